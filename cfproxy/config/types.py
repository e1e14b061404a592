"""How quantities and words are written: durations, sizes, rates, and protocol names.

Each parser raises ValueError with a message that says what is valid and never contains the value. What a
renderer writes, its parser reads back unchanged.
"""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Annotated

from pydantic import BeforeValidator, PlainSerializer, PlainValidator, WithJsonSchema

DURATION_MIN_S = 0.001
DURATION_MAX_S = 36_500 * 86_400.0
STRING = {"type": "string"}

_UNIT_S = {"d": 86_400, "h": 3_600, "m": 60, "s": 1}
_UNIT_BYTES = {"GiB": 2**30, "MiB": 2**20, "KiB": 2**10, "GB": 10**9, "MB": 10**6, "KB": 10**3, "B": 1}
_FACTOR_BYTES = {unit.lower(): factor for unit, factor in _UNIT_BYTES.items()} | {"": 1}
_DURATION = r"([0-9]{1,12}(?:\.[0-9]{1,20})?)(ms|s|m|h|d)?"
_SIZE = r"([0-9]{1,15})([KkMmGg][Ii]?[Bb]|[Bb])?"
_OFF_WORDS = frozenset({"off", "false", "no"})
_OFF_SCHEMA = {"enum": ["off", "Off", "OFF", "no", False]}


def parse_text(value: object, want: str) -> str:
    """Return a text or number as stripped text; `want` is the error message."""
    if not isinstance(value, str | int | float):
        raise ValueError(want)  # noqa: TRY004 - pydantic collects ValueErrors only
    return str(value).strip()


def _match(pattern: str, value: object, want: str) -> re.Match[str]:
    """Match a text or number as a whole; `want` is the error message."""
    match = re.fullmatch(pattern, parse_text(value, want))
    if match is None:
        raise ValueError(want)
    return match


def is_off(value: object) -> bool:
    """Return whether a value means `off`: the word in any case, what YAML takes for false, or null."""
    word = normalise_word(value)
    return word is None or word is False or (isinstance(word, str) and word in _OFF_WORDS)


def normalise_word(value: object) -> object:
    """Return a text as words are compared: in lower case, without quotes and spaces around it."""
    return unquote(value.strip()).strip().lower() if isinstance(value, str) else value


def unquote(text: str) -> str:
    """Return the text without one pair of quotes around it, and without the spaces around those.

    A variable keeps its quotes where no shell reads it: `docker run --env-file`, old versions of Compose.
    """
    bare = text.strip()
    return bare[1:-1] if len(bare) > 1 and bare[0] in "'\"" and bare[0] == bare[-1] else text


# --- quantities -------------------------------------------------------------------------------


def parse_duration(value: object) -> float:
    """Return seconds from `10s`, `300ms`, `5m`, `1h`, `30d` or a plain number of seconds."""
    want = "must be a duration such as 10s, 5m, 1h, 30d"
    number, unit = _match(_DURATION, value, want).groups(default="s")
    seconds = float(number) / 1000 if unit == "ms" else float(number) * _UNIT_S[unit]
    if not DURATION_MIN_S <= seconds <= DURATION_MAX_S:
        raise ValueError(f"{want}, from 1ms to 36500d")
    return seconds


def render_duration(seconds: float) -> str:
    """Return the duration in the largest unit that gives a whole number."""
    for unit, length in _UNIT_S.items():
        if seconds % length == 0:
            return f"{int(seconds / length)}{unit}"
    return f"{Decimal(repr(seconds)):f}s"


def parse_size(value: object) -> int:
    """Return bytes from `64MiB`, `256KiB`, `10MB` or a plain number of bytes."""
    want = "must be a size such as 256KiB, 64MiB, 10MB or a number of bytes"
    number, unit = _match(_SIZE, value, want).groups(default="")
    return int(number) * _FACTOR_BYTES[unit.lower()]


def render_size(size_bytes: int) -> str:
    """Return the size in the first unit that gives a whole number."""
    unit, factor = next(
        (u, f) for u, f in _UNIT_BYTES.items() if size_bytes % f == 0 and (size_bytes or f == 1)
    )
    return f"{size_bytes // factor}{unit}"


def parse_rate(value: object) -> float | None:
    """Return a positive number, or None for `off`."""
    if is_off(value):
        return None
    want = "must be a positive number (at most 6 digits before and after the point) or off"
    rate = float(_match(r"[0-9]{1,6}(\.[0-9]{1,6})?", value, want)[0])
    if not rate:
        raise ValueError(want)
    return rate


def render_rate(rate: float | None) -> int | float | str:
    """Return `off` for None, and a whole number without its fraction."""
    return "off" if rate is None else int(rate) if rate == int(rate) else rate


Duration = Annotated[
    float,
    PlainValidator(parse_duration),
    PlainSerializer(render_duration),
    WithJsonSchema(
        {"anyOf": [{**STRING, "pattern": f"^{_DURATION}$"}, {"type": "number", "exclusiveMinimum": 0}]}
    ),
]
Size = Annotated[
    int,
    PlainValidator(parse_size),
    PlainSerializer(render_size),
    WithJsonSchema({"anyOf": [{**STRING, "pattern": f"^{_SIZE}$"}, {"type": "integer", "minimum": 0}]}),
]
Rate = Annotated[
    float | None,
    PlainValidator(parse_rate),
    PlainSerializer(render_rate),
    WithJsonSchema({"anyOf": [{"type": "number", "exclusiveMinimum": 0}, _OFF_SCHEMA]}),
]


# --- words ------------------------------------------------------------------------------------


def parse_auto(value: object) -> bool:
    """Return whether a value means `auto`; the other word is `off`."""
    if value is not True and normalise_word(value) != "auto" and not is_off(value):
        raise ValueError("must be auto or off")
    return not is_off(value)


def parse_client_id(value: object) -> str:
    """Return the text unchanged: any printable ASCII (RFC 6749 appendix A.1)."""
    if not isinstance(value, str) or not re.fullmatch(r"[\x20-\x7e]+", value) or not value.strip():
        raise ValueError("must be text of printable ASCII characters, not empty")
    return value


def parse_scope(value: object) -> str:
    """Return the scope names separated by single spaces (RFC 6749 §3.3)."""
    want = "must be scope names separated by spaces"
    return " ".join(_match(r"[\x20\x21\x23-\x5b\x5d-\x7e]+", value, want)[0].split())


def parse_method(value: object) -> str:
    """Return an HTTP method in upper case (a token, RFC 9110 §5.6.2)."""
    return _match(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+", value, "must be an HTTP method such as GET")[0].upper()


def parse_path_pattern(value: object) -> str:
    """Return a pattern unchanged: `/v1/jobs/*`, `/v1/**`, `!/v1/assets/**`."""
    want = "must be a path that starts with / (or !/ to forbid it), such as /v1/jobs/*"
    return _match(r"!?/[\x21\x22\x24-\x3e\x40-\x7e]*", value, want)[0]  # no # and no ?


ClientId = Annotated[str, PlainValidator(parse_client_id), WithJsonSchema({**STRING, "minLength": 1})]
Scope = Annotated[str, PlainValidator(parse_scope), WithJsonSchema(STRING)]
Method = Annotated[str, PlainValidator(parse_method), WithJsonSchema(STRING)]
PathPattern = Annotated[
    str, PlainValidator(parse_path_pattern), WithJsonSchema({**STRING, "pattern": "^!?/"})
]
AutoOff = Annotated[
    bool,
    PlainValidator(parse_auto),
    PlainSerializer(lambda is_auto: "auto" if is_auto else "off"),
    WithJsonSchema({"enum": ["auto", *_OFF_SCHEMA["enum"]]}),
]
Word = BeforeValidator(normalise_word)
Flag = Annotated[bool, Word]
