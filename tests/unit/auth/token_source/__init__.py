"""`TokenSource` on a fake clock, with a scripted endpoint and a store that can fail."""
