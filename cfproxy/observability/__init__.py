"""Logs, metrics and status reports.

`logs.LogOutput` configures logging for the process; `metrics.Metrics` holds its counters, the latest requests
and trends, and renders them for Prometheus; `status.report_*` describe accounts and queues as plain data, for
the command line and the admin listener.
"""
