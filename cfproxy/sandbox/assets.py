"""The object store beside the API: presigned URLs, and uploads to them without the API's token.

An upload with a token is refused, as object stores do. Bodies are hashed while they stream, never buffered.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from cfproxy.sandbox.studio import Record, Studio

URL_LIFETIME_S = 3600.0


@dataclass(frozen=True)
class _Slot:
    asset: Record
    signature: str
    expires_at: float


@dataclass
class Assets:
    """The object store.

    Args:
        studio: stores the assets.
        clock: seconds since the epoch.
        base_url: the sandbox's own URL.
    """

    studio: Studio
    clock: Callable[[], float]
    base_url: str = ""
    _slots: dict[str, _Slot] = field(default_factory=dict)

    def presign(self, file_name: str, product_id: str | None) -> dict[str, Any]:
        """Announce an asset and return the URL to upload it to."""
        asset = self.studio.add_asset(file_name, product_id)
        slot = _Slot(asset, secrets.token_hex(16), self.clock() + URL_LIFETIME_S)
        self._slots[asset["id"]] = slot
        url = f"{self.base_url}/_objects/{asset['id']}?signature={slot.signature}"
        return {"assetId": asset["id"], "url": url, "method": "PUT", "expiresIn": int(URL_LIFETIME_S)}

    def reset(self) -> None:
        """Invalidate all presigned URLs."""
        self._slots.clear()

    async def receive(self, request: web.Request) -> web.Response:
        """Accept an upload: 400 with an `Authorization` header, 403 for an invalid or expired URL."""
        if "Authorization" in request.headers:
            return _refuse(400, "InvalidArgument", "Only one auth mechanism allowed.")
        slot = self._slots.get(request.match_info["key"])
        if slot is None or not secrets.compare_digest(
            slot.signature.encode(), request.query.get("signature", "").encode()
        ):
            return _refuse(403, "SignatureDoesNotMatch", "The signature does not match.")
        if self.clock() >= slot.expires_at:
            return _refuse(403, "AccessDenied", "Request has expired.")
        size_bytes, digest = await hash_body(request)
        slot.asset.update(uploaded=True, sizeBytes=size_bytes, sha256=digest)
        return web.Response(headers={"ETag": f'"{digest[:32]}"'})


async def hash_body(request: web.BaseRequest) -> tuple[int, str]:
    """Read a whole body; return its size in bytes and its SHA-256 in hex."""
    digest, size_bytes = hashlib.sha256(), 0
    async for chunk in request.content.iter_any():
        digest.update(chunk)
        size_bytes += len(chunk)
    return size_bytes, digest.hexdigest()


def _refuse(status: int, code: str, message: str) -> web.Response:
    body = f"<Error><Code>{code}</Code><Message>{message}</Message></Error>"
    return web.Response(status=status, text=body, content_type="application/xml")
