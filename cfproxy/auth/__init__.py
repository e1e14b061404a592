"""Tokens: OAuth, refreshing, logging in."""
