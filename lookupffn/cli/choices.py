"""What can be chosen for each group of the config: files of configs/, of installed packages, and members of a race."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import OmegaConf

import lookupffn
from lookupffn import plugins
from lookupffn.config.race import RACE
from lookupffn.errors import UserError


def _find_configs() -> Path:
    """configs/ of the repository, or of the installed package."""
    package = Path(lookupffn.__file__).resolve().parent
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


CONFIG_DIR = _find_configs()


class PackagesSearchPath(SearchPathPlugin):
    """Adds the configs/ folders of packages with feed-forwards to Hydra's search path."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """See Hydra."""
        for folder in plugins.config_folders():
            search_path.append("lookupffn-plugin", f"file://{folder}")


def config_folders(config_dir: Path = CONFIG_DIR) -> list[Path]:
    """Every folder that groups are looked for in."""
    return [config_dir, *plugins.config_folders()]


def groups(config_name: str, config_dir: Path = CONFIG_DIR) -> list[str]:
    """The groups that a command's config chooses from: the keys of its defaults list."""
    defaults = OmegaConf.load(config_dir / f"{config_name}.yaml").get("defaults", [])
    keys = [str(key) for entry in defaults if OmegaConf.is_dict(entry) for key in entry]
    return [key for key in keys if not key.startswith("override ")]


def choices(group: str, config_dir: Path = CONFIG_DIR) -> dict[str, Path]:
    """The files of a group by the name that a user types; members of a race are no part of them."""
    found: dict[str, Path] = {}
    for folder in config_folders(config_dir):
        for path in sorted((folder / group).rglob("*.yaml")):
            found.setdefault(str(path.relative_to(folder / group).with_suffix("")), path)
    return found


def race_members(config_dir: Path = CONFIG_DIR) -> list[str]:
    """What `ffn` runs through in a race, as it would be typed: gemm, race/gemm_half, ..."""
    return [f"{RACE}/{name}" if options else ffn for ffn, name, options in _variants(config_dir)]


def _variants(config_dir: Path) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(the choice of ffn, the variant's name, its options) for every line under ``race``."""
    seen: dict[str, Path] = {}
    for ffn, path in choices("ffn", config_dir).items():
        variants = (yaml.safe_load(path.read_text(encoding="utf-8")) or {}).get(RACE) or {}
        for name, options in variants.items():
            if name in seen:
                raise UserError(f"{path}: {name} is a member of the race in {seen[name]} too; give it another name")
            seen[name] = path
            yield ffn, name, options or {}


def with_hardware_file(arguments: list[str]) -> list[str]:
    """The command line with ``hardware=FILE`` as the key it is: Hydra's group of that name knows only names."""
    found = []
    for argument in arguments:
        key, _, value = argument.partition("=")
        is_file = key == "hardware" and (value.endswith((".yaml", ".yml")) or "/" in value)
        found.append(f"hardware_file='{value}'" if is_file else argument)
    return found


def register() -> None:
    """Tells Hydra of other packages' folders and of the members of the race.

    Members are no files, so they live in Hydra's store: ``ffn=race/gemm_half`` is the file gemm with other options.
    """
    Plugins.instance().register(PackagesSearchPath)
    store = ConfigStore.instance()
    for ffn, name, options in _variants(CONFIG_DIR):
        if options:
            node = {"defaults": [f"/ffn/{ffn}@_here_", "_self_"], **options}
            store.store(group=f"ffn/{RACE}", name=name, node=node)


OmegaConf.register_new_resolver(RACE, lambda: ",".join(race_members()), replace=True)
