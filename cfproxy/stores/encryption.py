"""Between a document and the bytes that a store keeps: JSON, encrypted where there is a key.

Owns: the outer form of what is kept, encryption, and the words for what cannot be read.
Must not know: where the bytes are, what the document means.
Invariants: bytes that cannot be read as ours raise and are never taken for an empty store; what was
encrypted for one account and purpose is not accepted for another; the key is in no text.

AES-256-GCM (NIST SP 800-38D) under a key that scrypt (RFC 7914) makes from the passphrase. Deriving it is
meant to be slow, so it is done once for each salt, and a store that has been read is written with its salt.
"""

from __future__ import annotations

import base64
import json
import secrets
import threading
from typing import TYPE_CHECKING, Any

from cfproxy.errors import StoreUnusable
from cfproxy.secret import Secret

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

SEALED_VERSION = 2  # an older cfproxy says of it that a newer one wrote it
CIPHER = "scrypt-aes256gcm"
SALT_BYTES, NONCE_BYTES, KEY_BYTES = 16, 12, 32
# OWASP's choice for 32 MiB of memory; a few tenths of a second.
SCRYPT_N, SCRYPT_R, SCRYPT_P = 2**15, 8, 3
_CIPHERS_MAX = 8


class DocumentCodec:
    """Turn documents into bytes and back.

    Args:
        key: the passphrase or key file's content; None to keep documents in clear.
    """

    def __init__(self, key: Secret | None = None) -> None:
        self._key = key
        self._lock = threading.Lock()  # guards what follows: stores work in threads
        self._ciphers: dict[bytes, AESGCM] = {}
        self._salt = secrets.token_bytes(SALT_BYTES)

    def encode(self, document: dict[str, Any], purpose: str) -> bytes:
        """Return the bytes to keep: ASCII, with a newline at the end.

        Args:
            document: JSON types only.
            purpose: what it is and whose, such as `login of acme`; `decode` wants the same words.
        """
        if self._key is not None:
            document = self._sealed(json.dumps(document).encode("ascii"), purpose)
        return json.dumps(document, indent=1).encode("ascii") + b"\n"

    def decode(self, content: bytes, purpose: str, where: str) -> object:
        """Return the document; one in clear is read with a key as well, so that a key can be added.

        Args:
            content: what `encode` returned, or anything.
            purpose: as for `encode`.
            where: the content's place, for messages.

        Raises:
            StoreUnusable: not JSON; encrypted, and there is no key, or another one.
        """
        parsed = _parse(content, where)
        if not isinstance(parsed, dict) or parsed.get("cipher") is None:
            return parsed
        match parsed:
            case {"version": 2, "cipher": "scrypt-aes256gcm", "salt": str(salt), "nonce": str(nonce)} if (
                isinstance(parsed.get("data"), str)
            ):
                packed = (salt, nonce, parsed["data"])
                return _parse(
                    self._opened([_unpacked(part, where) for part in packed], purpose, where), where
                )
        raise _damaged(where)

    def _sealed(self, clear: bytes, purpose: str) -> dict[str, Any]:
        with self._lock:
            salt = self._salt
        nonce = secrets.token_bytes(NONCE_BYTES)
        data = self._cipher(salt).encrypt(nonce, clear, purpose.encode("utf-8", "surrogatepass"))
        packed = {"salt": salt, "nonce": nonce, "data": data}
        shown = {name: base64.b64encode(part).decode("ascii") for name, part in packed.items()}
        return {"version": SEALED_VERSION, "cipher": CIPHER, **shown}

    def _opened(self, parts: list[bytes], purpose: str, where: str) -> bytes:
        salt, nonce, data = parts
        if self._key is None:
            raise StoreUnusable(
                f"{where} is encrypted; set `store.key` to the key that it was written with, "
                "or move it away and log in again"
            )
        if len(salt) != SALT_BYTES or len(nonce) != NONCE_BYTES:
            raise _damaged(where)
        from cryptography.exceptions import InvalidTag  # noqa: PLC0415 - optional

        try:
            clear = self._cipher(salt).decrypt(nonce, data, purpose.encode("utf-8", "surrogatepass"))
        except InvalidTag:
            raise StoreUnusable(
                f"{where} was encrypted with another `store.key`, or is damaged; set the key that it was "
                "written with, or move it away and log in again"
            ) from None
        with self._lock:
            self._salt = salt
        return clear

    def _cipher(self, salt: bytes) -> AESGCM:
        with self._lock:
            if salt not in self._ciphers:
                if len(self._ciphers) >= _CIPHERS_MAX:
                    self._ciphers.clear()
                self._ciphers[salt] = self._derived(salt)
            return self._ciphers[salt]

    def _derived(self, salt: bytes) -> AESGCM:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM  # noqa: PLC0415 - optional
        from cryptography.hazmat.primitives.kdf.scrypt import Scrypt  # noqa: PLC0415

        assert self._key is not None  # noqa: S101 - whoever seals or opens has looked
        kdf = Scrypt(salt=salt, length=KEY_BYTES, n=SCRYPT_N, r=SCRYPT_R, p=SCRYPT_P)
        return AESGCM(kdf.derive(self._key.reveal().encode("utf-8", "surrogatepass")))


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


def _unpacked(text: str, where: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except ValueError:
        raise _damaged(where) from None


def _damaged(where: str) -> StoreUnusable:
    return StoreUnusable(
        f"{where} is encrypted in a way that this cfproxy cannot read, or damaged; update cfproxy, restore "
        "the file from a backup, or move it away and log in again"
    )
