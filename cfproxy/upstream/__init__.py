"""The HTTP client for the API."""
