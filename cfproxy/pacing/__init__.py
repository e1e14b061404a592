"""The rate limit and its queue."""
