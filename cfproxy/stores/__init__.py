"""Stores for logins: a folder, Redis, or memory.

Other packages call `open_store` and use what it returns as a `cfproxy.auth.interfaces.TokenStore`. Each store
passes the contract in `tests/integration/stores/test_contract.py`. Other code that needs Redis uses
`redis.client`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from cfproxy.auth.interfaces import TokenStore
from cfproxy.auth.models import App
from cfproxy.config import RedisAddress
from cfproxy.errors import ConfigError
from cfproxy.secret import Secret
from cfproxy.stores.documents import DocumentCodec
from cfproxy.stores.file import FileStore
from cfproxy.stores.memory import MemoryStore


def open_store(
    store: str | RedisAddress,
    directory: Path | None,
    key: Secret | None = None,
    ca_file: Path | None = None,
    app: App | None = None,
    *,
    accept_clear: bool = False,
    warn: Callable[[str], None] = lambda _: None,
) -> TokenStore:
    """Return a new store.

    Args:
        store: the setting: `memory`, `file`, `file:DIR`, or the address of a Redis server.
        directory: the folder of a file store, absolute.
        key: encrypts what is stored outside of this process; None to store it unencrypted.
        ca_file: authorities that a Redis client trusts instead of the system's.
        app: whose logins these are; None for any app's. Logins of other apps lie beside them, untouched.
        warn: called if a file store's permissions were corrected, or are loose and accepted.
        accept_clear: read what is not encrypted in spite of a key, to encrypt it.

    Raises:
        ConfigError: another value, or a file store without a folder.
    """
    codec = DocumentCodec(key, app, accept_clear=accept_clear)
    if isinstance(store, RedisAddress):
        from cfproxy.stores.redis.store import RedisStore  # noqa: PLC0415 - optional

        return RedisStore(store, codec, ca_file)
    if store == "memory":
        return MemoryStore()
    if store.partition(":")[0] == "file" and directory is not None:
        return FileStore(directory, codec, warn)
    # Without the value: a store's URL may hold a password.
    raise ConfigError("store: use file, file:DIR, memory or redis://host:port/0")
