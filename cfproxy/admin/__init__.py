"""The admin endpoints and pages."""
