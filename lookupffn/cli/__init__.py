"""How the commands start: logging, checks of the command line, exit codes."""
