"""Encryption of stored documents with a passphrase.

AES-256-GCM (NIST SP 800-38D) under a key that scrypt (RFC 7914) derives from the passphrase. Deriving it is
slow on purpose, so it is done once for each salt, and a store that has been read is written with its salt.

Invariants:
1. What was encrypted for one account and purpose is not accepted for another.
2. Neither the passphrase nor the content appears in a message.
"""

from __future__ import annotations

import base64
import secrets
import threading
from typing import TYPE_CHECKING, Any

from cfproxy.errors import StoreUnusable
from cfproxy.secret import Secret

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

ENCRYPTED_VERSION = 2  # an older cfproxy reports it as written by a newer one
CIPHER = "scrypt-aes256gcm"
SALT_BYTES, NONCE_BYTES, KEY_BYTES = 16, 12, 32
# OWASP's parameters for 32 MiB of memory; a few tenths of a second.
SCRYPT_N, SCRYPT_R, SCRYPT_P = 2**15, 8, 3
_CIPHERS_MAX = 8


class Encryption:
    """Encrypts and decrypts; safe to use from several threads.

    Args:
        key: the passphrase or the key file's content; None if there is none.
    """

    def __init__(self, key: Secret | None) -> None:
        self.key = key
        self._lock = threading.Lock()  # guards the two below: stores work in threads
        self._ciphers: dict[bytes, AESGCM] = {}
        self._salt = secrets.token_bytes(SALT_BYTES)

    def encrypt(self, clear: bytes, purpose: str) -> dict[str, Any]:
        """Return a JSON document that holds `clear`, encrypted for `purpose`."""
        with self._lock:
            salt = self._salt
        nonce = secrets.token_bytes(NONCE_BYTES)
        data = self._cipher(salt).encrypt(nonce, clear, purpose.encode("utf-8", "surrogatepass"))
        binary = {"salt": salt, "nonce": nonce, "data": data}
        encoded = {name: base64.b64encode(value).decode("ascii") for name, value in binary.items()}
        return {"version": ENCRYPTED_VERSION, "cipher": CIPHER, **encoded}

    def decrypt(self, document: dict[str, Any], purpose: str, where: str) -> bytes:
        """Return what `encrypt` was given.

        Args:
            document: what `encrypt` returned, or anything.
            purpose: as for `encrypt`.
            where: its place, for messages.

        Raises:
            StoreUnusable: damaged, of an unknown form, or encrypted with another key.
        """
        if (document.get("version"), document.get("cipher")) != (ENCRYPTED_VERSION, CIPHER):
            raise _damaged(where)
        salt, nonce, data = (_decoded(document.get(name), where) for name in ("salt", "nonce", "data"))
        if self.key is None:
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
                self._ciphers[salt] = self._derive(salt)
            return self._ciphers[salt]

    def _derive(self, salt: bytes) -> AESGCM:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM  # noqa: PLC0415 - optional
        from cryptography.hazmat.primitives.kdf.scrypt import Scrypt  # noqa: PLC0415

        assert self.key is not None  # noqa: S101 - the callers have checked
        kdf = Scrypt(salt=salt, length=KEY_BYTES, n=SCRYPT_N, r=SCRYPT_R, p=SCRYPT_P)
        return AESGCM(kdf.derive(self.key.reveal().encode("utf-8", "surrogatepass")))


def _decoded(text: object, where: str) -> bytes:
    if not isinstance(text, str):
        raise _damaged(where)
    try:
        return base64.b64decode(text, validate=True)
    except ValueError:
        raise _damaged(where) from None


def _damaged(where: str) -> StoreUnusable:
    return StoreUnusable(
        f"{where} is encrypted in a way that this cfproxy cannot read, or damaged; update cfproxy, restore "
        "the file from a backup, or move it away and log in again"
    )
