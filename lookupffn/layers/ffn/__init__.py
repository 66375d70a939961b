"""The feed-forwards, one a file."""
