"""A corpus of hostile requests, and the invariants that hold for each."""
