"""Any content of the store's files is a login or one of our errors, and is never overwritten."""

from __future__ import annotations

import io
import json
from collections.abc import Awaitable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, TypeVar

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cfproxy.auth.models import App, AttemptGone, Login, login_problem
from cfproxy.cli.main import run
from cfproxy.errors import CfproxyError, StoreUnusable
from cfproxy.secret import Secret
from cfproxy.stores.documents import DocumentCodec, login_from_document, login_to_document
from cfproxy.stores.file import FileStore
from tests.support.examples import examples
from tests.support.store_examples import NOW, build_attempt, build_login, put

APP = App(
    "default",
    "app",
    "https://accounts.example/connect/token",
    "https://api.example:443",
    "cfgateway offline_access",
    "authorization_code",
)
KEYED = DocumentCodec(Secret("a passphrase"))
VALUES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.sampled_from((1e308, -1e308, 10**400, -1, 0, 2**63, "\ud800", "", "a\x00b"))
    | st.text(max_size=8)
    | st.lists(st.integers(), max_size=2)
    | st.dictionaries(st.text(max_size=4), st.integers(), max_size=2)
)


def content_of(login: Login, codec: DocumentCodec) -> bytes:
    return codec.encode_login(login)


CONTENTS = (
    content_of(build_login(), DocumentCodec()),
    content_of(
        build_login(refresh_token=None, presented_at=NOW, refused_at=NOW, answer_lost=True), DocumentCodec()
    ),
    content_of(build_login(), KEYED),
)


_T = TypeVar("_T")


async def attempt_to(work: Awaitable[_T]) -> _T | CfproxyError | AttemptGone:
    try:
        return await work
    except (CfproxyError, AttemptGone) as error:
        return error


@st.composite
def files(draw: st.DrawFn) -> bytes:
    """Return a record with changed bytes, or with arbitrary values for some of its fields."""
    content = draw(st.sampled_from(CONTENTS))
    if draw(st.booleans()):
        document: dict[str, Any] = json.loads(content)
        for name in draw(st.lists(st.sampled_from(sorted(document)), min_size=1, max_size=3)):
            document[name] = draw(VALUES)
        return json.dumps(document).encode()
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(content)))
        skip = draw(st.sampled_from((0, 1, 1, 20, 2000)))
        content = content[:at] + draw(st.binary(max_size=3)) + content[at + skip :]
    return content


@settings(max_examples=examples(300), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=files() | st.binary(max_size=100) | st.sampled_from((b"[" * 100_000, b'{"a":' * 50_000)))
async def test_any_login_file_is_a_login_or_one_of_our_errors(tmp_path: Path, content: bytes) -> None:
    """With and without a key: a refused file stays unchanged, and a login can be judged and shown."""
    path = tmp_path / "store" / "default.json"
    for codec in (DocumentCodec(), KEYED):
        put(path, content)
        store = FileStore(path.parent, codec)
        found = await attempt_to(store.load("default"))
        if isinstance(found, CfproxyError):
            assert isinstance(found, StoreUnusable)
            assert "\n" not in str(found)
            assert isinstance(await attempt_to(store.save(build_login(serial=2))), StoreUnusable)
            assert path.read_bytes() == content
        else:
            login = found
            assert isinstance(login, Login)
            assert login == login_from_document(login_to_document(login), "it")
            str(login_problem(login, APP))
            repr(login)


@settings(max_examples=examples(80), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
async def test_any_attempt_file_is_an_attempt_or_one_of_our_errors(
    tmp_path: Path, data: st.DataObject
) -> None:
    """A pending login is completed, or refused with the next step."""
    folder = tmp_path / "store"
    store = FileStore(folder)
    attempt = build_attempt()
    await store.save_attempt(attempt)
    [path] = [path for path in folder.iterdir() if ".login-" in path.name]
    document = json.loads(path.read_bytes())
    for name in data.draw(st.lists(st.sampled_from(sorted(document)), min_size=1, max_size=2)):
        document[name] = data.draw(VALUES)
    put(path, data.draw(st.just(json.dumps(document).encode()) | st.binary(max_size=60)))
    taken = await attempt_to(store.claim_attempt("default", "state-1", NOW))
    assert isinstance(taken, CfproxyError | AttemptGone) or taken.account == "default"
    assert "\n" not in str(taken)
    for left in folder.iterdir():
        left.unlink()


@settings(max_examples=examples(60), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=files(), as_json=st.booleans())
def test_status_reports_any_content_of_the_file(tmp_path: Path, content: bytes, as_json: bool) -> None:
    """The first command that users run after a failure does not crash."""
    put(tmp_path / "store" / "default.json", content)
    config = tmp_path / "config.yaml"
    config.write_text(
        "client_id: app\nclient_secret: MARKER\nredirect_uri: https://studio.example/callback\n"
        f"store: file:{tmp_path / 'store'}\n"
        "token_url: https://accounts.example/connect/token\nupstream: https://api.example\n"
    )
    said = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    with redirect_stdout(said), redirect_stderr(said):
        code = run(["-c", str(config), "status", *(["--json"] if as_json else [])])
    said.seek(0)
    text = said.read()
    assert code in {0, 3, 4}, text
    assert text
    assert not any(secret in text for secret in ("access-1", "refresh-1", "Traceback", "internal error"))
