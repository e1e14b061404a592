"""Logins in Redis or Valkey, for any number of machines.

Owns: nothing but the name. `records.py` is the store, `locks.py` its lock, `news.py` what tells of others'
changes, `client.py` the connection and what its failures mean.
"""
