"""Settings that contradict each other, within one account or between accounts, and unreplaced placeholders.

No message contains a secret.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from importlib.util import find_spec

from cfproxy.config.addresses import TcpAddress, UnixAddress
from cfproxy.config.redis_url import RedisAddress
from cfproxy.config.settings import Access, Account, Settings
from cfproxy.errors import Problem
from cfproxy.secret import Secret

EXPOSED = (
    "can be reached from other machines, and anyone who reaches this port acts as you; "
    "set access.keys, or access.allow_remote: true if that is intended"
)

# In the starter file and the example, where only the user knows the value.
CLIENT_ID_PLACEHOLDER = "your-client-id"
REDIRECT_URI_PLACEHOLDER = "https://example.com/callback"

# What templates, shells, CI systems and examples leave where a value belongs.
_PLACEHOLDER = re.compile(
    r"\$?\{\{.*\}\}|[$#%@]?\{.*\}#?|(\$|enc|@[\w.]+)\(.*\)|\$(env:)?[A-Za-z_]\w*|%\w+%|<.*>|(enc)?\[.*\]"
    r"|__\w+__|@@?\w+@@?|!\w+ .*|(env|file|secret|vault|op|arn|ssm|keyring|command):.*|x{3,}"
    r"|\*{3,}|\.{3,}|…|todo|tbd|fixme|placeholder"
    r"|(change|replace|put|insert)[ _-]?(me|this|it).*|(your|my)[ _-].*(id|secret|key|password|here)|none",
    re.IGNORECASE,
)
_NOT_REPLACED = (
    "looks like a placeholder that nothing has replaced, such as ${NAME}; give the value itself, "
    "{env: NAME} or {file: PATH}"
)

# What the addresses have in common that a wildcard takes; `::` takes both families.
_WILDCARDS = {"0.0.0.0": ".", "::": ""}  # noqa: S104 - recognised here, not listened on


def account_conflicts(account: Account) -> Iterator[tuple[set[str], tuple[str, ...], str]]:
    """Yield the conflicts within one account: the keys involved, the path to report, and the message."""
    if account.grant == "authorization_code" and account.redirect_uri is None:
        text = "needed for login: the redirect URI as registered with the app (or grant: client_credentials)"
        yield {"client_id", "grant", "redirect_uri"}, ("redirect_uri",), text
    if account.client_id == CLIENT_ID_PLACEHOLDER:
        text = "is still the placeholder; replace it with the id of the app registered with Creative Force"
        yield {"client_id"}, ("client_id",), text
    if account.grant == "authorization_code" and account.redirect_uri == REDIRECT_URI_PLACEHOLDER:
        text = "is still the placeholder; replace it with the redirect URI exactly as registered with the app"
        yield {"grant", "redirect_uri"}, ("redirect_uri",), text
    if account.grant == "client_credentials" and account.client_secret is None:
        text = "needed with grant: client_credentials"
        yield {"client_id", "grant", "client_secret"}, ("client_secret",), text
    if account.retry.body_memory_bytes > account.retry.body_max_bytes:
        yield {"retry"}, ("retry",), "body_memory must not be larger than body_max"
    if account.limits.line_bytes > account.limits.head_bytes:
        yield {"limits"}, ("limits",), "line must not be larger than head"
    if account.access.users and isinstance(account.listen, TcpAddress):
        text = "works with a Unix socket only (listen: unix:/path); elsewhere use access.keys"
        yield {"listen", "access"}, ("access", "users"), text
    if account.store.key is not None and find_spec("cryptography") is None:
        yield {"store"}, ("store", "key"), "needs a library; run: pip install 'cfproxy[encrypt]'"
    if account.store.url == "file" and account.store_dir is None and account.grant == "authorization_code":
        text = (
            "needs a place: this user has no home folder; set store: file:DIR, or store: memory if a restart "
            "may end the login"
        )
        yield {"store"}, ("store",), text
    address = account.store.url if isinstance(account.store.url, RedisAddress) else None
    if address is not None and find_spec("redis") is None:
        yield {"store"}, ("store", "url"), "needs a library; run: pip install 'cfproxy[redis]'"
    if account.store.password is not None and (address is None or address.password is not None):
        text = "is for a Redis store only" if address is None else "is also in store.url; keep one of them"
        yield {"store"}, ("store", "password"), text
    if account.pacing.shared and (address is None or account.pacing.rate is None):
        text = (
            "needs a rate"
            if account.pacing.rate is None
            else "needs a Redis store; set store: redis://host:port/0"
        )
        yield {"pacing", "store"}, ("pacing", "shared"), text
    if is_exposed(account.listen, account.access):
        yield {"listen", "access"}, ("listen",), EXPOSED


def placeholder_warnings(settings: Settings) -> Iterator[Problem]:
    """Yield a warning for each secret that looks like a placeholder; no message contains it."""
    seen = set()
    for name, account in settings.accounts.items():
        secrets = {
            "client_id": Secret(account.client_id),
            "client_secret": account.client_secret,
            "store.key": account.store.key,
            "store.password": account.store_url.password
            if isinstance(account.store_url, RedisAddress)
            else None,
        } | {f"access.keys.{index}": key.secret for index, key in enumerate(account.access.keys)}
        for key, secret in secrets.items():
            if secret is None or (key, secret) in seen or not _PLACEHOLDER.fullmatch(secret.reveal().strip()):
                continue
            seen.add((key, secret))  # accounts inherit it
            path = key if name == "default" else f"accounts.{name}.{key}"
            yield Problem(settings.source, path, _NOT_REPLACED)


def is_exposed(address: TcpAddress | UnixAddress | None, access: Access) -> bool:
    """Return whether other machines can reach an address without a key and without `allow_remote`."""
    unprotected = not access.keys and not access.allow_remote
    return isinstance(address, TcpAddress) and not address.is_loopback and unprotected


def key_conflicts(accounts: Mapping[str, Account]) -> Iterator[tuple[str, int, str]]:
    """Yield access keys for an unknown account or for two accounts: account, index and message."""
    for name, account in accounts.items():
        keys = account.access.keys
        for index, key in enumerate(keys):
            if key.account is not None and key.account not in accounts:
                known = ", ".join(accounts)
                yield name, index, f"is for an account that does not exist; there are: {known}"
            earlier = next((i for i in range(index) if keys[i].secret == key.secret), None)
            if earlier is not None and keys[earlier].account != key.account:
                yield name, index, f"is the same key as access.keys.{earlier}, but for another account"


def listen_conflicts(admin: TcpAddress | None, accounts: Mapping[str, Account]) -> Iterator[tuple[str, str]]:
    """Yield each account whose listen address is already taken, and the message."""
    seen: list[tuple[str, TcpAddress | UnixAddress]] = [("admin", admin)] if admin else []
    for name, account in accounts.items():
        if account.listen is None:
            continue
        owner = next((owner for owner, address in seen if _overlap(address, account.listen)), None)
        if owner:
            text = f"{account.listen} is taken by {owner}; give this account a listen address of its own"
            yield name, text
        seen.append((f"account '{name}'", account.listen))


def _overlap(one: TcpAddress | UnixAddress, other: TcpAddress | UnixAddress) -> bool:
    """Return whether two listen addresses collide, including wildcards and localhost."""
    if not isinstance(one, TcpAddress) or not isinstance(other, TcpAddress):
        return one == other
    if one.port != other.port or one.port == 0:
        return False
    return any(
        a == b or _WILDCARDS.get(a, "none") in b or _WILDCARDS.get(b, "none") in a
        for a in one.hosts
        for b in other.hosts
    )


def pacing_conflicts(accounts: Mapping[str, Account]) -> Iterator[tuple[str, str]]:
    """Yield each account whose pacing differs from another's for the same upstream, and the message."""
    first: dict[str, Account] = {}
    for name, account in accounts.items():
        other = first.setdefault(account.upstream_origin, account)
        if other.pacing != account.pacing:
            text = (
                f"must be as in account '{other.name}': both use one upstream, whose limit is per IP address"
            )
            yield name, text
        elif account.pacing.shared and str(account.store.url) != str(other.store.url):
            text = f"is shared in the store of account '{other.name}', but this account has another store"
            yield name, text
