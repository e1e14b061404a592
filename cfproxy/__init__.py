"""cfproxy: a local reverse proxy that holds the OAuth tokens of the Creative Force Gateway API."""

__version__ = "0.1.0"
