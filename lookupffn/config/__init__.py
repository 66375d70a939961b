"""One dataclass a section of the config, and the validator they share."""
