"""The table, one file for each kind of trick."""
