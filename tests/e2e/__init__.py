"""Tests of the whole, as processes."""
