"""The connection to a Redis server, and what its failures mean.

Invariants:
1. Certificates are verified.
2. A call takes twice `CONNECT_S` and `ANSWER_S` at most, because it is retried once on a new connection.
   Whatever is sent must therefore be able to arrive twice.
3. Messages contain nothing from the server except its error code.
"""

from __future__ import annotations

import asyncio
import re
import ssl
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import redis.asyncio
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff
from redis.credentials import CredentialProvider
from redis.exceptions import (
    AuthenticationError,
    AuthorizationError,
    NoPermissionError,
    ReadOnlyError,
    RedisError,
    ResponseError,
)

from cfproxy.config.redis_url import RedisAddress
from cfproxy.errors import StoreUnavailable, StoreUnusable
from cfproxy.secret import Secret

CONNECT_S = 2.0
ANSWER_S = 2.0
CANCEL_AGAIN_S = 0.1

# Errors that may pass: out of memory, read-only, loading, no replica, disk trouble.
_TEMPORARY = frozenset(
    {"OOM", "READONLY", "LOADING", "NOREPLICAS", "MISCONF", "CLUSTERDOWN", "MASTERDOWN", "TRYAGAIN", "BUSY"}
)


def open_client(address: RedisAddress, ca_file: Path | None) -> redis.asyncio.Redis:
    """Return a client that connects when it is used; close it with `close_client`."""
    options: dict[str, Any] = {
        "socket_timeout": ANSWER_S,
        "socket_connect_timeout": CONNECT_S,
        "socket_keepalive": True,
        "retry": Retry(NoBackoff(), 1),
        # A demoted primary keeps its connections and refuses every write on them.
        "retry_on_error": [ReadOnlyError],
        "client_name": "cfproxy",
        "protocol": 2,
    }
    if address.tls:
        options |= {"ssl": True, "ssl_check_hostname": True, "ssl_cert_reqs": "required"}
        if ca_file is not None:
            # As for the API (see `runtime.factory`), a named authority need not be strictly right.
            options |= {"ssl_ca_certs": str(ca_file), "ssl_exclude_verify_flags": [ssl.VERIFY_X509_STRICT]}
    secret: dict[str, Any] = {"username": address.username}
    if address.password is not None:
        secret = {"credential_provider": _Credentials(address.username, address.password)}
    if address.service is None:
        host, port = address.hosts[0]
        return redis.asyncio.Redis(host=host, port=port, db=address.database, **options, **secret)
    # Sentinels and server count as one installation: same user, password and authorities. Sentinels often
    # have no password, so each is tried without one as well.
    sentinel = Sentinel(  # type: ignore[no-untyped-call] # redis-py leaves it without types
        list(address.hosts), sentinel_kwargs=options | secret, **options, **secret
    )
    if address.password is not None:
        for host, port in address.hosts:
            sentinel.sentinels.append(redis.asyncio.Redis(host=host, port=port, **options))
    client: redis.asyncio.Redis = sentinel.master_for(address.service, db=address.database)
    return client


class _Credentials(CredentialProvider):
    """Reads the password for each connection, because its file may have changed since."""

    def __init__(self, username: str | None, password: Secret) -> None:
        self._username = username
        self._password = password

    async def get_credentials_async(self) -> tuple[str] | tuple[str, str]:
        self._password = await asyncio.to_thread(self._password.reread)
        password = self._password.reveal()
        return (password,) if self._username is None else (self._username, password)


async def close_client(client: redis.asyncio.Redis) -> None:
    """Close all connections, including those to Sentinels."""
    await client.aclose()
    manager: Sentinel | None = getattr(client.connection_pool, "sentinel_manager", None)
    for sentinel in () if manager is None else manager.sentinels:
        await sentinel.aclose()


async def end_tasks(tasks: Iterable[asyncio.Task[None]]) -> None:
    """Cancel tasks that use the client, and return when they have ended.

    The cancellation is repeated, because redis-py can swallow one while it connects.
    """
    running = set(tasks)
    while running:
        for task in running:
            task.cancel()
        _, running = await asyncio.wait(running, timeout=CANCEL_AGAIN_S)


@contextmanager
def naming_errors(where: str) -> Iterator[None]:
    """Turn what redis-py raises into our errors; `where` names the server.

    Raises:
        StoreUnavailable: it may pass.
        StoreUnusable: the configuration or the server has to be changed.
    """
    try:
        yield
    except (AuthenticationError, AuthorizationError, NoPermissionError):
        raise StoreUnusable(
            f"{where} refuses this user or password, or it lacks a permission; correct store or the ACL"
        ) from None
    except ResponseError as error:
        code = _code(error)
        if code in {"MOVED", "ASK"}:
            raise StoreUnusable(
                f"{where} is one node of a Redis Cluster, and the keys are on another one; name a server "
                "that has all keys (redis:// or redis+sentinel://)"
            ) from None
        if code == "WRONGTYPE":
            raise StoreUnusable(
                f"{where} has other data under cfproxy's keys; give cfproxy a database of its own"
            ) from None
        if code in _TEMPORARY:
            raise StoreUnavailable(f"{where} cannot serve now ({code}); look at the server") from None
        raise StoreUnusable(
            f"{where} refuses cfproxy's commands ({code or 'ERR'}): is it Redis 6.2 or Valkey, or newer?"
        ) from None
    except (RedisError, OSError, TimeoutError) as error:
        if _is_untrusted(error):
            raise StoreUnavailable(
                f"{where} presents a certificate that is not trusted; name its authority in tls.ca_file, and "
                "the server as the certificate does"
            ) from None
        raise StoreUnavailable(f"{where} cannot be reached; check the server and the network") from None


def _is_untrusted(error: BaseException | None) -> bool:
    while error is not None and not isinstance(error, ssl.SSLCertVerificationError):
        error = error.__cause__ or error.__context__
    return error is not None


def _code(error: ResponseError) -> str:
    # redis-py cuts the code off where it has a class for it.
    by_class = {
        "OutOfMemoryError": "OOM",
        "ReadOnlyError": "READONLY",
        "MovedError": "MOVED",
        "AskError": "ASK",
        "ClusterDownError": "CLUSTERDOWN",
        "MasterDownError": "MASTERDOWN",
        "TryAgainError": "TRYAGAIN",
    }
    match = re.match(r"[A-Z]{2,20}(?= |$)", str(error))
    return by_class.get(type(error).__name__, match[0] if match else "")
