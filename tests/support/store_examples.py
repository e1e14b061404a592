"""Records and checks that the tests of stores share."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from cfproxy.auth.models import Attempt, Login, Token
from cfproxy.errors import StoreUnusable
from cfproxy.secret import Secret
from cfproxy.stores.file import FileStore

NOW = 1_700_000_000.0

posix_only = pytest.mark.skipif(os.name != "posix", reason="needs modes, owners and signals of POSIX")
root_only = pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0,
    reason="only root may mount file systems and give files away",
)


def build_login(account: str = "default", **changes: Any) -> Login:
    fields: dict[str, Any] = {
        "account": account,
        "client_id": "app",
        "token_url": "https://accounts.example/connect/token",
        "upstream": "https://api.example:443",
        "scope": "cfgateway offline_access",
        "token": Token(Secret("access-1"), NOW, 3600.0),
        "refresh_token": Secret("refresh-1"),
        "serial": 1,
        "login_at": NOW,
    }
    return Login(**(fields | changes))


def build_attempt(
    account: str = "default",
    state: str = "state-1",
    created_at: float = NOW,
    verifier: str | None = "verifier-1",
) -> Attempt:
    return Attempt(
        account=account,
        state=Secret(state),
        verifier=None if verifier is None else Secret(verifier),
        redirect_uri="https://studio.example/callback",
        client_id="app",
        created_at=created_at,
    )


def put(path: Path, content: bytes) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.write_bytes(content)
    path.chmod(0o600)


async def refusal(store: FileStore) -> str:
    """Return the message with which load, save and probe refuse the record, all in the same words."""
    words = []
    for refused in (store.load("default"), store.save(build_login(serial=2)), store.probe("default")):
        with pytest.raises(StoreUnusable) as caught:
            await refused
        words.append(str(caught.value))
    assert len(set(words)) == 1
    assert "\n" not in words[0]
    return words[0]
