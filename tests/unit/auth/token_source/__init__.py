"""The broker and what it consists of, on a fake clock."""
