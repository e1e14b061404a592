"""Token stores: where logins are kept.

Owns: the choice of the adapter. Each adapter implements `cfproxy.auth.interfaces.TokenStore` and passes one
contract suite.
Must not know: the engine, or what a token is good for.
"""

from __future__ import annotations

from pathlib import Path

from cfproxy.auth.interfaces import TokenStore
from cfproxy.config import RedisAddress
from cfproxy.errors import ConfigError
from cfproxy.secret import Secret
from cfproxy.stores.encryption import DocumentCodec
from cfproxy.stores.file import FileStore
from cfproxy.stores.memory import MemoryStore


def open_store(
    store: str | RedisAddress,
    directory: Path | None,
    key: Secret | None = None,
    ca_file: Path | None = None,
) -> TokenStore:
    """Return a new store.

    Args:
        store: the setting: `memory`, `file`, `file:DIR`, or where a Redis server is.
        directory: the folder of a file store, absolute.
        key: encrypts what is kept outside of this process; None to keep it in clear.
        ca_file: whom a Redis client trusts instead of the system's authorities.

    Raises:
        ConfigError: another word, or a file store without a folder.
    """
    if isinstance(store, RedisAddress):
        from cfproxy.stores.redis.store import RedisStore  # noqa: PLC0415 - optional

        return RedisStore(store, DocumentCodec(key), ca_file)
    if store == "memory":
        return MemoryStore()
    if store.partition(":")[0] == "file" and directory is not None:
        return FileStore(directory, DocumentCodec(key))
    # The value is left out: a store's URL may hold a password.
    raise ConfigError("store: use file, file:DIR, memory or redis://host:port/0")
