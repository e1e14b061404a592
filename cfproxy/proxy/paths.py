"""What servers could make of a request's path: decoded more than once, normalised, cut, trimmed.

A path is forwarded byte for byte, and nobody knows how the API and what is in front of it will read it. A
rule that denies a path must therefore hold for the most eager of them.
"""

from __future__ import annotations

import re
import unicodedata
from urllib.parse import unquote_to_bytes

PATH_MAX_BYTES = 4096  # as IIS by default; Unicode forms of 32 KiB take 100 ms to compare
_PASSES_MAX = 8  # no honest path is encoded more often
_ORDINARY = re.compile(rb"(?:/+[A-Za-z0-9_~-]+(?:\.+[A-Za-z0-9_~-]+)*)+/?")
_UNICODE_ESCAPE = re.compile(rb"%u([0-9A-Fa-f]{4})", re.IGNORECASE)  # of old Microsoft servers
# ASCII in more bytes than needed (RFC 3629 §3), also with a wrong final byte.
_OVERLONG = re.compile(rb"(?:[\xc0\xc1]|\xe0[\x80\x81]|\xf0\x80[\x80\x81])([\x00-\xff])")
# Invisible characters, which some drop, and what a conversion to an older character set makes a slash.
_DROPPED = dict.fromkeys(map(ord, "\u00ad\u034f\u061c\u180e\u200b\u200c\u200d\u200e\u200f\u2060\ufeff"))
_SLASHED = dict.fromkeys(map(ord, "\u2044\u2215\u29f8"), "/") | dict.fromkeys(
    map(ord, "\u2216\u29f5\u29f9"), "\\"
)
_TRANSLATION: dict[int, str | None] = {**_DROPPED, **_SLASHED}
_BLANK = r"[\s\x00-\x1f\x7f]*"
_DOT_SEGMENT = re.compile(rf"(?:^|[/\\]){_BLANK}\.{_BLANK}(?:\.{_BLANK})?(?:[/\\;?#\x00]|$)")
_SEGMENT_START = re.compile(r"(?<=/)\s+")
_SEGMENT_END = re.compile(r"(?<![\s.])[\s.]+(?=/|$)")
_SLASHES = re.compile(r"/{2,}")


def is_ordinary(path: bytes) -> bool:
    """Return whether there is only one way to read the path."""
    return _ORDINARY.fullmatch(path) is not None and b"//" not in path


def has_dot_segment(path: bytes) -> bool:
    """Return whether a server could read a segment `.` or `..` in the path, however it is written."""
    if _ORDINARY.fullmatch(path):
        return False
    text = read_eagerly(path)
    return text is None or _DOT_SEGMENT.search(text) is not None


def read_eagerly(path: bytes) -> str | None:
    """Return the path as the most eager server reads it; None if it is too long, or encoded absurdly often.

    It is decoded until nothing changes, `%uXXXX`, overlong UTF-8 and compatibility forms (Unicode's NFKC,
    such as full-width letters) included, and has no invisible characters.
    """
    if len(path) > PATH_MAX_BYTES:
        return None
    for _ in range(_PASSES_MAX):
        decoded = unquote_to_bytes(_UNICODE_ESCAPE.sub(_decode_escape, path))
        decoded = _OVERLONG.sub(_decode_overlong, decoded)
        text = decoded.decode("utf-8", "replace")
        if not text.isascii():
            text = unicodedata.normalize("NFKC", text.translate(_TRANSLATION))
            text = text.replace("\u2044", " ")  # the slash within one half, for instance: it ends no segment
        if (again := text.encode()) == path:
            return text
        path = again
    return None


def find_readings(text: str) -> set[str]:
    """Return what servers could make of a decoded path, itself included.

    Some take an encoded `?` or `#` for the path's end, `+` for a space, or ignore spaces and dots at the end
    of a segment.
    """
    found = {text, text.replace("+", " ")}
    for end in "?#":
        found |= {one.partition(end)[0] for one in found}
    for one in tuple(found):
        trimmed = _SEGMENT_START.sub("", _SEGMENT_END.sub("", one))
        found.add(_SLASHES.sub("/", trimmed))
    return found


def fold(text: str) -> str:
    """Return `text` without differences that servers may ignore: letter case and compatibility forms."""
    if text.isascii():
        return text.lower()
    folded = unicodedata.normalize("NFKC", text.translate(_DROPPED)).upper().lower()
    return folded.replace("i\u0307", "i")  # of a capital I with a dot


def _decode_escape(found: re.Match[bytes]) -> bytes:
    return chr(int(found[1], 16)).encode("utf-8", "replace")


def _decode_overlong(found: re.Match[bytes]) -> bytes:
    """Return the character: seven bits, of which the byte before the final one has the first."""
    return bytes([(found[0][-2] & 1) << 6 | found[1][0] & 0x3F])
