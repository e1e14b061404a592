"""Logins in Redis or Valkey, for any number of machines.

`store.py` is the store, `lock.py` its lock and `subscription.py` notices changes by other machines.
Other packages use `client.py`: it connects to a server and translates its errors.
"""
