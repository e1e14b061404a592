"""cfproxy's own responses: errors rendered as problem documents (RFC 9457).

What is fixed for a kind of error (slug, status, title, proxy error) is an attribute of its class. The detail
is the error's own message, which holds no secret (see `cfproxy.errors`).
"""

from __future__ import annotations

import json
import math
from typing import Any

from cfproxy.errors import CfproxyError, ConfigError, KeyRequired


def render_problem(error: CfproxyError, request_id: str) -> tuple[list[tuple[bytes, bytes]], bytes]:
    """Return the headers and the body of the problem response to `error`; the framing is up to the caller.

    Args:
        error: what happened.
        request_id: identifies this occurrence in the log.
    """
    document: dict[str, Any] = {
        "type": f"urn:cfproxy:problem:{error.slug}",
        "title": error.title,
        "status": error.status,
        "detail": str(error),
        "instance": f"urn:cfproxy:request:{request_id}",
    }
    if isinstance(error, ConfigError) and error.problems:
        document["problems"] = [str(problem) for problem in error.problems]
    headers = [
        (b"Content-Type", b"application/problem+json"),
        (b"Cache-Control", b"no-store"),
        # A browser that shows this document as a page would request a favicon, from this page's origin.
        (b"Content-Security-Policy", b"default-src 'none'; sandbox"),
        (b"Proxy-Status", f'cfproxy; error={error.proxy_error}; details="{error.slug}"'.encode()),
    ]
    retry_after_s = getattr(error, "retry_after_s", None)
    if retry_after_s is not None:
        headers.append((b"Retry-After", b"%d" % max(1, math.ceil(retry_after_s))))
    if isinstance(error, KeyRequired):
        # RFC 9110 §15.5.2 requires a challenge; every client can answer Basic.
        headers.append((b"WWW-Authenticate", b'Basic realm="cfproxy", charset="UTF-8"'))
    return headers, json.dumps(document, ensure_ascii=True).encode() + b"\n"
