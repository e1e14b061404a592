"""The path rules, and what servers could make of a path: decoded more than once, normalised, cut, trimmed.

A path is forwarded byte for byte, and nobody knows how the API and what is in front of it will read it. A
rule that denies a path must therefore hold for the most eager of them.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from urllib.parse import unquote, unquote_to_bytes

from cfproxy.errors import BadTarget, NotAllowed

PATH_MAX_BYTES = 4096  # as IIS by default; Unicode forms of 32 KiB take 100 ms to compare
_PASSES_MAX = 8  # no honest path is encoded more often
_ORDINARY = re.compile(rb"(?:/+[A-Za-z0-9_~-]+(?:\.+[A-Za-z0-9_~-]+)*)+/?")
_UNICODE_ESCAPE = re.compile(rb"%u([0-9A-Fa-f]{4})", re.IGNORECASE)  # of old Microsoft servers
# ASCII in more bytes than needed (RFC 3629 §3), also with a wrong final byte.
_OVERLONG = re.compile(rb"(?:[\xc0\xc1]|\xe0[\x80\x81]|\xf0\x80[\x80\x81])([\x00-\xff])")
# Unicode's Default_Ignorable_Code_Point (DerivedCoreProperties): invisible, and some databases ignore them.
_INVISIBLE = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164"
    "\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufff8\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]+"
)
# What a conversion to an older character set makes a slash.
_SLASHED = dict.fromkeys(map(ord, "\u2044\u2215\u29f8"), "/") | dict.fromkeys(
    map(ord, "\u2216\u29f5\u29f9"), "\\"
)
_BLANK = r"[\s\x00-\x1f\x7f]*"
_DOT_SEGMENT = re.compile(rf"(?:^|[/\\]){_BLANK}\.{_BLANK}(?:\.{_BLANK})?(?:[/\\;?#\x00]|$)")
_SEGMENT_START = re.compile(r"(?<=/)\s+")
_SEGMENT_END = re.compile(r"(?<![\s.])[\s.]+(?=/|$)")
_SLASHES = re.compile(r"/{2,}")
# Servers are known to disagree about these: an encoded slash or backslash, path parameters, control
# characters, a lone %; and, once decoded, about what is encoded still.
_AMBIGUOUS_PATH = re.compile(rb"%(?:2f|5c|3b|[01][0-9a-f]|7f|(?![0-9a-f]{2}))|\\|//|;", re.IGNORECASE)
_TWICE_ENCODED = re.compile(r"%(?:[0-9A-Fa-f]{2}|u[0-9A-Fa-f]{4})")
_AMBIGUOUS = re.compile(r"[\\;\x00-\x1f\x7f]|//")


class PathRules:
    """The rules of `access.paths`.

    Args:
        patterns: of whole decoded paths: `*` matches within a segment, `**` across segments. A leading `!`
            denies, in any letter case and with or without a final slash, since APIs may ignore both. Without
            an allowing pattern, every path that is not denied is allowed.
    """

    def __init__(self, patterns: Iterable[str]) -> None:
        allowed: list[str] = []
        denied: list[str] = []
        for pattern in patterns:
            (denied if pattern.startswith("!") else allowed).append(pattern.removeprefix("!"))
        self._allow = [_compile(pattern) for pattern in allowed]
        self._exact = {unquote(pattern) for pattern in allowed if "*" not in pattern}
        self._deny = [_compile(pattern, denies=True) for pattern in denied]

    def check(self, path: bytes) -> None:
        """Refuse paths that the rules don't allow.

        Args:
            path: as it will be sent.

        Raises:
            NotAllowed
            BadTarget: servers could read the path in two ways.
        """
        if len(path) > PATH_MAX_BYTES:
            raise BadTarget(
                f"while access.paths has rules, a path must have no more than {PATH_MAX_BYTES} bytes"
            )
        try:
            text = unquote_to_bytes(path).decode("utf-8")
        except UnicodeDecodeError:
            raise BadTarget("while access.paths has rules, a path must be UTF-8") from None
        readings = eager = {text}
        if not _ORDINARY.fullmatch(path) or b"//" in path:
            ambiguous = _AMBIGUOUS_PATH.search(path) or _TWICE_ENCODED.search(text)
            most = None if ambiguous else _read_eagerly(path)
            if most is None or _has_other_segments(text, most):
                raise BadTarget(
                    "while access.paths has rules, a path must have no dot segment, '//', ';', %2F, "
                    "control character, double encoding or lone %"
                )
            readings, eager = _find_readings(text), _find_readings(text) | _find_readings(most)
        if any(rule.fullmatch(one) for one in map(_fold, eager) for rule in self._deny) or (
            self._allow
            and text not in self._exact
            and not all(any(rule.fullmatch(one) for rule in self._allow) for one in readings)
        ):
            raise NotAllowed("access.paths does not allow this path")


def has_dot_segment(path: bytes) -> bool:
    """Return whether a server could read a segment `.` or `..` in the path, however it is written."""
    if _ORDINARY.fullmatch(path):
        return False
    text = _read_eagerly(path)
    return text is None or _DOT_SEGMENT.search(text) is not None


def _read_eagerly(path: bytes) -> str | None:
    """Return the path as the most eager server reads it; None if it is too long, or encoded absurdly often.

    It is decoded until nothing changes, `%uXXXX`, overlong UTF-8 and compatibility forms (Unicode's NFKC,
    such as full-width letters) included, and has no invisible characters.
    """
    for _ in range(_PASSES_MAX):
        if len(path) > PATH_MAX_BYTES:  # some characters have forms of 18 others
            break
        decoded = unquote_to_bytes(_UNICODE_ESCAPE.sub(_decode_escape, path))
        decoded = _OVERLONG.sub(_decode_overlong, decoded)
        text = decoded.decode("utf-8", "replace")
        if not text.isascii():
            text = unicodedata.normalize("NFKC", _INVISIBLE.sub("", text).translate(_SLASHED))
            text = text.replace("\u2044", " ")  # the slash within one half, for instance: it ends no segment
        if (again := text.encode()) == path:
            return text
        path = again
    return None


def _find_readings(text: str) -> set[str]:
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


def _fold(text: str) -> str:
    """Return `text` without differences that servers may ignore: letter case and compatibility forms."""
    if text.isascii():
        return text.lower()
    folded = unicodedata.normalize("NFKC", _INVISIBLE.sub("", text)).upper().lower()
    return folded.replace("i\u0307", "i")  # of a capital I with a dot


def _decode_escape(found: re.Match[bytes]) -> bytes:
    return chr(int(found[1], 16)).encode("utf-8", "replace")


def _decode_overlong(found: re.Match[bytes]) -> bytes:
    """Return the character: seven bits, of which the byte before the final one has the first."""
    return bytes([(found[0][-2] & 1) << 6 | found[1][0] & 0x3F])


def _has_other_segments(text: str, most: str) -> bool:
    """Return whether servers could find other segments in a path than its rules see.

    Args:
        text: decoded once.
        most: as the most eager server reads it.
    """
    return bool(_AMBIGUOUS.search(most) or _DOT_SEGMENT.search(most)) or most.count("/") != text.count("/")


def _compile(pattern: str, *, denies: bool = False) -> re.Pattern[str]:
    """Return an expression that never goes back to a wildcard: callers choose the paths.

    Behind a wildcard the first place where its literal fits is as good as any later one, because a later
    wildcard could match what is skipped. Only what ends a pattern must be at the end.
    """
    change = _fold if denies else str
    *groups, last = (
        [re.escape(change(unquote(literal))) for literal in group.split("*")] for group in pattern.split("**")
    )
    start = [first + "".join(f"(?>[^/]*?{one})" for one in others) for first, *others in groups]
    text = "".join(f"(?>.*?{group})" if at else group for at, group in enumerate(start))
    text += ".*?" if groups else ""
    first, *others = last
    text += first + "".join(f"(?>[^/]*?{one})" for one in others[:-1])
    text += f"[^/]*{others[-1]}" if others else ""
    return re.compile(text + "/?" if denies else text, re.DOTALL)
