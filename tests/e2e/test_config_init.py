"""`cfproxy config init` on a terminal, where it asks for the app's values."""

from __future__ import annotations

import asyncio
import contextlib
import os
from pathlib import Path
from typing import Any

import pytest

from cfproxy.config import load_settings
from tests.e2e.kit import World
from tests.e2e.processes import PATIENCE_S
from tests.support.secret_ledger import LEDGER

pytestmark = pytest.mark.skipif(os.name != "posix", reason="pseudo-terminals are Unix's")


async def _answer(world: World, *answers: str) -> tuple[int, str]:
    """Run the command on a terminal and type the answers; return the exit code and the output."""
    import pty

    ours, theirs = pty.openpty()
    # A session of its own, because the terminal of the session asks for passwords.
    ends: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), theirs)
    process = world.popen("config", "init", "-c", "new.yaml", start_new_session=True, **ends)
    os.close(theirs)
    shown = b""

    def converse() -> None:
        nonlocal shown
        left = list(answers)
        with contextlib.suppress(OSError):  # how Linux reports that the other end is closed
            while piece := os.read(ours, 4096):
                shown += piece
                if shown.endswith(b": ") and left:
                    os.write(ours, left.pop(0).encode() + b"\n")

    try:
        await asyncio.wait_for(asyncio.to_thread(converse), PATIENCE_S)
        code = await asyncio.to_thread(process.wait, PATIENCE_S)
    finally:
        process.kill()
        os.close(ours)
    told = shown.decode().replace("\r\n", "\n")
    LEDGER.add_text("the terminal", told)
    return code, told


def _settings(place: Path) -> tuple[str, str, str | None, str]:
    account = load_settings(place, {"CF_CLIENT_SECRET": "from-environment"}).accounts["default"]
    assert account.client_secret is not None
    return account.client_id, account.grant, account.redirect_uri, account.client_secret.reveal()


async def test_a_redirect_uri_selects_the_grant(world: World) -> None:
    """It asks for two values and the secret, and names the next command."""
    secret = world.sandbox.behaviour.client_secret
    code, shown = await _answer(world, "app", "https://us.example/cb", secret)
    assert code == 0
    assert secret not in shown
    assert shown.endswith("Wrote new.yaml. Now run: cfproxy login -c new.yaml\n")
    place = world.folder / "new.yaml"
    assert place.stat().st_mode & 0o777 == 0o600
    assert _settings(place) == ("app", "authorization_code", "https://us.example/cb", secret)


async def test_no_redirect_uri_selects_client_credentials(world: World) -> None:
    """An empty secret stands for the variable, which is then the next step."""
    code, shown = await _answer(world, "app", "", "")
    assert code == 0
    assert shown.endswith("Wrote new.yaml. Set CF_CLIENT_SECRET, then run: cfproxy serve -c new.yaml\n")
    place = world.folder / "new.yaml"
    assert _settings(place) == ("app", "client_credentials", None, "from-environment")


async def test_a_wrong_answer_is_reported_and_asked_for_again(world: World) -> None:
    """A secret in the environment is not asked for."""
    world.environment["CF_CLIENT_SECRET"] = "from-environment"
    code, shown = await _answer(world, "your-client-id", 'a "b"', "nonsense", "https://us.example/cb")
    assert code == 0
    assert "placeholder" in shown
    assert shown.count("Redirect URI") == 2
    assert "secret is taken from $CF_CLIENT_SECRET" in shown
    assert _settings(world.folder / "new.yaml")[0] == 'a "b"'


async def test_an_existing_file_is_refused_before_the_first_question(world: World) -> None:
    """No typed answer is lost."""
    (world.folder / "new.yaml").write_text("", encoding="utf-8")
    code, shown = await _answer(world)
    assert code == 2
    assert shown.startswith("cfproxy: new.yaml already exists")
