"""The corpus, one file for each kind of attack."""
