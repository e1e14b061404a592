"""The doctor's checks, each with its thing broken."""
