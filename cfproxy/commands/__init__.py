"""The commands, one module for each kind; `cfproxy.cli` imports only the one that is called."""
