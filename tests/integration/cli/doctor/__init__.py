"""The doctor's checks, each with its subject broken."""
