"""Logs, metrics, status."""
