"""The stored form of logins and login attempts: JSON documents, encrypted if there is a key.

All stores outside of the process read and write through `DocumentCodec`, which converts between
records and bytes.

Invariants:
1. What was encoded is decoded to an equal record.
2. A document of a newer version, or with a field missing or of another type, is refused as a whole. It is
   never half read and never taken for an empty store.
3. Error messages name the place and the field, never a value.
4. With a key, only what was encrypted with it is believed: whoever can write the store could have put an
   unencrypted document there.
"""

from __future__ import annotations

import json
from typing import Any

from cfproxy.auth.models import App, Attempt, Login, Token
from cfproxy.errors import StoreUnusable
from cfproxy.secret import Secret
from cfproxy.stores.encryption import Encryption

DOCUMENT_VERSION = 1
NUMBER_MAX = 1e11  # seconds since the epoch, in the year 5138


class DocumentCodec:
    """Turns logins and attempts into bytes and back.

    `decode_…` and `decode` raise `StoreUnusable` for what is not a document of the kind, for an encrypted one
    without its key, and for an unencrypted one if there is a key.

    Args:
        key: the passphrase or the key file's content; None to write documents unencrypted.
        app: whose documents these are; None for those of any app.
        accept_clear: read unencrypted documents in spite of the key, to encrypt them.
    """

    def __init__(
        self, key: Secret | None = None, app: App | None = None, *, accept_clear: bool = False
    ) -> None:
        self._encryption = Encryption(key)
        self.is_strict = key is not None and not accept_clear  # whether only what is encrypted is read
        command = "cfproxy store encrypt" if app is None else app.encrypt_command
        self._adopt = f"if it is yours, run: {command}; otherwise move it away and log in again"
        self.app_id = None if app is None else app.app_id

    def is_foreign(self, app_id: str | None) -> bool:
        """Return whether `app_id` is another app's; False if either is not known."""
        return None not in {app_id, self.app_id} and app_id != self.app_id

    def login_app(self, content: bytes, account: str) -> str | None:
        """Return the `app_id` of a stored login; None if it can't be told. Nothing is believed but this."""
        if (app_id := stated_app(content)) is not None:
            return app_id
        try:
            document = _parse(content, "")
            if isinstance(document, dict) and document.get("cipher") is not None:
                document = self.decode(content, f"login of {account}", "")
            return login_from_document(document, "").app_id
        except StoreUnusable:
            return None

    def encode_login(self, login: Login) -> bytes:
        """Return the bytes to store."""
        return self.encode(login_to_document(login), f"login of {login.account}", login.app_id)

    def decode_login(self, content: bytes, account: str, where: str) -> Login:
        """Return the login of `account`; `where` is its place, for messages."""
        login = login_from_document(self.decode(content, f"login of {account}", where), where)
        if login.account != account:
            raise StoreUnusable(
                f"{where} is not the login of account '{account}' but of another one; "
                "move it away and log in again"
            )
        return login

    def decode_other(self, content: bytes, account: str) -> Login | None:
        """Return a login that is another app's, for messages; None if it can't be read."""
        try:
            return self.decode_login(content, account, "")
        except StoreUnusable:
            return None

    def encode_attempt(self, attempt: Attempt, purpose: str) -> bytes:
        """Return the bytes to store; `purpose` is as for `encode`."""
        return self.encode(attempt_to_document(attempt), purpose, attempt.app_id)

    def decode_attempt(self, content: bytes, purpose: str, where: str) -> Attempt:
        """Return the attempt; `purpose` and `where` are as for `decode`."""
        cure = "start the login again"  # within half an hour it has expired anyway
        return attempt_from_document(self.decode(content, purpose, where, cure), where)

    def encode(self, document: dict[str, Any], purpose: str, app_id: str | None = None) -> bytes:
        """Return a document as bytes: ASCII, with a newline at the end.

        Args:
            document: JSON types only.
            purpose: its kind and account, such as `login of acme`; decoding needs the same words.
            app_id: stays readable without the key, so that each app finds its own documents.
        """
        if self._encryption.key is not None:
            document = self._encryption.encrypt(json.dumps(document).encode("ascii"), purpose)
            document |= {} if app_id is None else {"app_id": app_id}
        return json.dumps(document, indent=1).encode("ascii") + b"\n"

    def decode(self, content: bytes, purpose: str, where: str, cure: str = "") -> object:
        """Return the document.

        Args:
            content: what `encode` returned, or anything.
            purpose: as for `encode`.
            where: the place of the content, for messages.
            cure: what to do if it is unencrypted in spite of a key.
        """
        parsed = _parse(content, where)
        if isinstance(parsed, dict) and parsed.get("cipher") is not None:
            return _parse(self._encryption.decrypt(parsed, purpose, where), where)
        if self.is_strict:
            raise StoreUnusable(
                f"{where} is not encrypted although `store.key` is set: someone else may have put it there; "
                f"{cure or self._adopt}"
            )
        return parsed


def stated_app(content: bytes) -> str | None:
    """Return the `app_id` that a document states; None if it states none, as those of the first release."""
    try:
        parsed = _parse(content, "")
    except StoreUnusable:
        return None
    app_id = parsed.get("app_id") if isinstance(parsed, dict) else None
    return app_id if isinstance(app_id, str) else None


def login_to_document(login: Login) -> dict[str, Any]:
    """Return the stored form: JSON types only, secrets unencrypted."""
    return {
        "version": DOCUMENT_VERSION,
        "account": login.account,
        "client_id": login.client_id,
        "token_url": login.token_url,
        "upstream": login.upstream,
        "scope": login.scope,
        "serial": login.serial,
        "login_at": login.login_at,
        "login_expires_at": login.login_expires_at,
        "access_token": login.token.value.reveal(),
        "obtained_at": login.token.obtained_at,
        "lifetime_s": login.token.lifetime_s,
        "refresh_token": None if login.refresh_token is None else login.refresh_token.reveal(),
        "presented_at": login.presented_at,
        "refused_at": login.refused_at,
        "answer_lost": login.answer_lost,
    }


def login_from_document(document: object, where: str) -> Login:
    """Return the login in a parsed document; raises `StoreUnusable`."""
    fields = _Fields(document, where)
    return Login(
        account=fields.text("account"),
        client_id=fields.text("client_id"),
        token_url=fields.text("token_url"),
        upstream=fields.text("upstream"),
        scope=fields.text("scope"),
        token=Token(
            value=fields.header_text("access_token"),
            obtained_at=fields.number("obtained_at"),
            lifetime_s=fields.number("lifetime_s"),
        ),
        refresh_token=fields.secret_or_none("refresh_token"),
        serial=fields.whole("serial"),
        login_at=fields.number("login_at"),
        login_expires_at=fields.number_or_none("login_expires_at"),
        presented_at=fields.number_or_none("presented_at"),
        refused_at=fields.number_or_none("refused_at"),
        answer_lost=fields.flag("answer_lost"),
    )


def attempt_to_document(attempt: Attempt) -> dict[str, Any]:
    """Return the stored form: JSON types only, secrets unencrypted."""
    return {
        "version": DOCUMENT_VERSION,
        "account": attempt.account,
        "state": attempt.state.reveal(),
        "verifier": None if attempt.verifier is None else attempt.verifier.reveal(),
        "redirect_uri": attempt.redirect_uri,
        "client_id": attempt.client_id,
        "created_at": attempt.created_at,
        "used": attempt.used,
        "app_id": attempt.app_id,
    }


def attempt_from_document(document: object, where: str) -> Attempt:
    """Return the attempt in a parsed document; raises `StoreUnusable`."""
    fields = _Fields(document, where)
    return Attempt(
        account=fields.text("account"),
        state=Secret(fields.text("state")),
        verifier=fields.secret_or_none("verifier"),
        redirect_uri=fields.text("redirect_uri"),
        client_id=fields.text("client_id"),
        created_at=fields.number("created_at"),
        used=fields.flag("used"),
        app_id=None if fields.absent("app_id") else fields.text("app_id"),
    )


class _Fields:
    """Typed reads from a document of our version."""

    def __init__(self, document: object, where: str) -> None:
        if not isinstance(document, dict):
            raise StoreUnusable(f"{where} is not a cfproxy document; move it away and log in again")
        self._document: dict[str, Any] = document
        self._where = where
        version = document.get("version")
        if type(version) is int and version > DOCUMENT_VERSION:
            raise StoreUnusable(
                f"{where} was written by a newer cfproxy (version {version}, this one reads "
                f"{DOCUMENT_VERSION}); update cfproxy; the document was not changed"
            )
        if type(version) is not int or version != DOCUMENT_VERSION:
            raise self._damaged("version")

    def _damaged(self, field: str) -> StoreUnusable:
        return StoreUnusable(
            f"{self._where} is damaged at '{field}'; restore it from a backup, "
            "or move it away and log in again"
        )

    def text(self, field: str) -> str:
        value = self._document.get(field)
        if not isinstance(value, str):
            raise self._damaged(field)
        return value

    def header_text(self, field: str) -> Secret:
        value = self.text(field)
        # It becomes part of a header, as it is.
        if not value.isascii() or not value.isprintable():
            raise self._damaged(field)
        return Secret(value)

    def secret_or_none(self, field: str) -> Secret | None:
        return None if self.absent(field) else Secret(self.text(field))

    def absent(self, field: str) -> bool:
        return self._document.get(field) is None

    def number(self, field: str) -> float:
        value = self._document.get(field)
        # The bounds keep out inf, nan and instants, sums of two included, that have no date.
        if isinstance(value, bool) or not isinstance(value, int | float) or not -1 < value < NUMBER_MAX:
            raise self._damaged(field)
        return float(value)

    def number_or_none(self, field: str) -> float | None:
        return None if self.absent(field) else self.number(field)

    def whole(self, field: str) -> int:
        value = self._document.get(field)
        if type(value) is not int or not 0 <= value < 2**63:
            raise self._damaged(field)
        return value

    def flag(self, field: str) -> bool:
        value = self._document.get(field)
        if not isinstance(value, bool):
            raise self._damaged(field)
        return value


def _parse(content: bytes, where: str) -> object:
    try:
        parsed: object = json.loads(content)
    except (ValueError, RecursionError):
        # Without its cause: that error's text and fields hold the content.
        raise StoreUnusable(
            f"{where} is not JSON, or was cut short; restore it from a backup, "
            "or move it away and log in again"
        ) from None
    return parsed
