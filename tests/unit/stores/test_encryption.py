"""Encrypted records: unreadable without the key, and a wrong key never costs a login."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cfproxy.auth.models import Token
from cfproxy.errors import StoreUnusable
from cfproxy.secret import Secret
from cfproxy.stores import encryption as codec_module
from cfproxy.stores.documents import DocumentCodec, login_to_document
from cfproxy.stores.file import FileStore
from tests.support.store_examples import NOW, build_attempt, build_login, put

KEY = Secret("correct horse battery staple")
SEALED = '{"version": 2, "cipher": "scrypt-aes256gcm", "salt": "%s", "nonce": "%s", "data": "%s"}'
B64 = "AAAAAAAAAAAAAAAA"  # 12 bytes
REAL_N = codec_module.SCRYPT_N


@pytest.fixture(autouse=True, scope="module")
def _quick() -> Any:
    """Make the key derivation fast: it is slow on purpose."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(codec_module, "SCRYPT_N", 2)
        yield


def a_store(folder: Path, key: Secret | None = KEY) -> FileStore:
    return FileStore(folder, DocumentCodec(key))


def document_of(folder: Path) -> str:
    return (folder / "default.json").read_text()


@given(st.dictionaries(st.text(), st.none() | st.booleans() | st.integers() | st.text()))
def test_any_document_survives_the_round_trip(document: dict[str, Any]) -> None:
    """With and without a key, also in another process."""
    for key in (KEY, None):
        content = DocumentCodec(key).encode(document, "login of a")
        assert DocumentCodec(key).decode(content, "login of a", "there") == document


def test_key_derivation_has_the_recommended_cost() -> None:
    """OWASP's minimum for scrypt with 32 MiB: N = 2^15, r = 8, p = 3."""
    assert (REAL_N, codec_module.SCRYPT_R, codec_module.SCRYPT_P) == (2**15, 8, 3)


async def test_no_secret_is_on_disk_in_clear(tmp_path: Path) -> None:
    """Neither tokens nor login attempts can be read without the key."""
    store = a_store(tmp_path / "store")
    await store.save(build_login())
    await store.save_attempt(build_attempt())
    names = sorted(path.name for path in (tmp_path / "store").iterdir())
    assert len(names) == 2
    for name in names:
        text = (tmp_path / "store" / name).read_text()
        assert json.loads(text)["cipher"] == "scrypt-aes256gcm"
        for secret in ("access-1", "refresh-1", "verifier-1", "state-1", "client"):
            assert secret not in text


async def test_saves_share_no_nonce(tmp_path: Path) -> None:
    """Reusing a nonce under one key breaks AES-GCM."""
    store = a_store(tmp_path / "store")
    seen = set()
    for serial in range(1, 5):
        await store.save(build_login(serial=serial))
        kept = json.loads(document_of(tmp_path / "store"))
        seen.add((kept["salt"], kept["nonce"]))
    assert len(seen) == 4
    assert len({salt for salt, _ in seen}) == 1, "one derivation is enough"


async def test_login_in_clear_is_adopted_only_in_an_explicit_step(tmp_path: Path) -> None:
    """With a key, what anyone could have written is neither used nor replaced, until it is encrypted."""
    await a_store(tmp_path / "store", None).save(build_login())
    before = document_of(tmp_path / "store")
    store = a_store(tmp_path / "store")
    for refused in (store.load("default"), store.save(build_login(serial=2)), store.probe("default")):
        with pytest.raises(StoreUnusable, match=r"not encrypted .* run: cfproxy store encrypt;"):
            await refused
    assert document_of(tmp_path / "store") == before
    explicit = FileStore(tmp_path / "store", DocumentCodec(KEY, accept_clear=True))
    login = await explicit.load("default")
    assert login == build_login()
    await explicit.save(login)
    assert "access-1" not in document_of(tmp_path / "store")
    assert await store.load("default") == build_login()


@pytest.mark.parametrize(
    "envelope",
    [{}, {"cipher": None}, {"version": 2}, {"app_id": "0" * 16}, {"salt": "", "nonce": "", "data": ""}],
)
async def test_running_store_believes_nothing_in_clear(tmp_path: Path, envelope: dict[str, Any]) -> None:
    """Whatever an unencrypted document says about itself, its tokens are not used."""
    store = a_store(tmp_path / "store")
    await store.save(build_login())
    forged = login_to_document(build_login(token=Token(Secret("forged"), NOW, 3600.0))) | envelope
    put(tmp_path / "store" / "default.json", json.dumps(forged).encode())
    with pytest.raises(StoreUnusable):
        await store.load("default")


async def test_attempt_in_clear_is_not_believed(tmp_path: Path) -> None:
    """A planted state and verifier would log the victim in as the attacker; other attempts still work."""
    await a_store(tmp_path / "store", None).save_attempt(build_attempt(state="planted", created_at=NOW + 9))
    store = a_store(tmp_path / "store")
    for state in ("planted", None):
        with pytest.raises(StoreUnusable, match=r"not encrypted .*; start the login again"):
            await store.claim_attempt("default", state, NOW + 10)
    await store.save_attempt(build_attempt())
    assert (await store.claim_attempt("default", None, NOW + 10)).state == Secret("state-1")


@pytest.mark.parametrize(
    ("key", "text"),
    [(None, "is encrypted; set `store.key`"), (Secret("wrong"), "was encrypted with another `store.key`")],
)
async def test_login_is_neither_read_nor_overwritten_without_its_key(
    tmp_path: Path, key: Secret | None, text: str
) -> None:
    """The message tells a wrong key from a missing one, and the login is still there for the right one."""
    await a_store(tmp_path / "store").save(build_login())
    before = document_of(tmp_path / "store")
    store = a_store(tmp_path / "store", key)
    for attempt in (store.load("default"), store.save(build_login(serial=2)), store.probe("default")):
        with pytest.raises(StoreUnusable, match=text) as caught:
            await attempt
        assert "wrong" not in str(caught.value)
        assert caught.value.__cause__ is None
    assert document_of(tmp_path / "store") == before
    assert await a_store(tmp_path / "store").load("default") == build_login()


async def test_document_of_another_account_is_refused(tmp_path: Path) -> None:
    """Swapping files without the key can't give one account the login of another."""
    store = a_store(tmp_path / "store")
    await store.save(build_login(account="acme"))
    (tmp_path / "store" / "acme.json").rename(tmp_path / "store" / "default.json")
    with pytest.raises(StoreUnusable, match=r"another `store\.key`, or is damaged"):
        await store.load("default")


async def test_attempt_is_claimed_by_another_process_with_the_key(tmp_path: Path) -> None:
    """A login that one process started can be finished by another one, but not with another key."""
    await a_store(tmp_path / "store").save_attempt(build_attempt())
    with pytest.raises(StoreUnusable):
        await a_store(tmp_path / "store", None).claim_attempt("default", "state-1", NOW)
    taken = await a_store(tmp_path / "store").claim_attempt("default", "state-1", NOW)
    assert taken == build_attempt()


@given(st.integers(0, 10_000), st.integers(1, 255))
def test_changed_byte_is_detected(place: int, change: int) -> None:
    """No damage to an encrypted document yields another document."""
    document = {"access_token": "a", "n": 1}
    content = bytearray(DocumentCodec(KEY).encode(document, "p"))
    content[place % len(content)] ^= change
    try:
        got = DocumentCodec(KEY).decode(bytes(content), "p", "there")
    except StoreUnusable:
        return
    # White space between the fields may change, and a cipher that is no longer named is a plain document.
    assert got == document or (isinstance(got, dict) and "access_token" not in got)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff",
        b"[" * 100_000,
        b'{"cipher": "rot13"}',
        b'{"cipher": 1}',
        (SEALED % (B64, B64, B64)).encode(),
        (SEALED % ("!", B64, B64)).encode(),
        (SEALED % (B64 + "AAAAAA==", "AAAA", B64)).encode(),
        (SEALED % (B64 + "AAAAAA==", B64, "")).encode(),
        SEALED.replace('"data": "%s"', '"data": 1').replace("%s", B64).encode(),
        SEALED.replace("2", "3", 1).replace("%s", B64).encode(),
    ],
)
def test_foreign_content_is_refused(content: bytes) -> None:
    """Damaged and foreign documents raise one error, which says what to do."""
    with pytest.raises(StoreUnusable, match=r"there .*log in again"):
        DocumentCodec(KEY).decode(content, "p", "there")
