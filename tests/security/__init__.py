"""A corpus of hostile requests, and what must hold for every one of them."""
