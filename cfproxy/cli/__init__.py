"""The commands, one module for each kind; `cfproxy.cli.main` imports only the one that is called."""
