"""How quantities and words are written: durations, sizes, rates, names of the protocols.

Owns: for each of these notations one parser, one renderer and one JSON Schema.
Must not know: which setting uses it, where a value comes from.
Invariants: each parser raises ValueError with a text that says what is wanted and does not hold the
value; what a renderer writes, its parser reads back unchanged.
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
_NUMBER = r"[0-9]{1,6}(\.[0-9]{1,6})?"
_OFF_WORDS = frozenset({"off", "false", "no"})
_OFF_SCHEMA = {"enum": ["off", "Off", "OFF", "no", False]}


def text_of(value: object, want: str) -> str:
    """Return a text or number as text, without space around it; `want` is the error's text."""
    if not isinstance(value, str | int | float):
        raise ValueError(want)  # noqa: TRY004 - pydantic collects ValueErrors only
    return str(value).strip()


def is_off(value: object) -> bool:
    """Return whether a value says `off`: the word in any case, what YAML takes for false, or null."""
    word = _lowered(value)
    return word is None or word is False or (isinstance(word, str) and word in _OFF_WORDS)


def _lowered(value: object) -> object:
    """Return a text as a word: in lower case, without the quotes that a variable may have kept."""
    if not isinstance(value, str):
        return value
    word = value.strip().lower()
    return word[1:-1].strip() if word[:1] in {"'", '"'} and word[:1] == word[-1:] else word


# --- quantities -------------------------------------------------------------------------------


def parse_duration(value: object) -> float:
    """Return seconds from `10s`, `300ms`, `5m`, `1h`, `30d` or a plain number of seconds."""
    want = "must be a duration such as 10s, 5m, 1h, 30d"
    match = re.fullmatch(_DURATION, text_of(value, want))
    if not match:
        raise ValueError(want)
    seconds = float(match[1]) / 1000 if match[2] == "ms" else float(match[1]) * _UNIT_S[match[2] or "s"]
    if not DURATION_MIN_S <= seconds <= DURATION_MAX_S:
        raise ValueError(f"{want}, from 1ms to 36500d")
    return seconds


def render_duration(seconds: float) -> str:
    """Return the notation with the largest unit that leaves a whole number."""
    for unit, length in _UNIT_S.items():
        if seconds % length == 0:
            return f"{int(seconds / length)}{unit}"
    return f"{Decimal(repr(seconds)):f}s"


def parse_size(value: object) -> int:
    """Return bytes from `64MiB`, `256KiB`, `10MB` or a plain number of bytes."""
    want = "must be a size such as 256KiB, 64MiB, 10MB or a number of bytes"
    match = re.fullmatch(_SIZE, text_of(value, want))
    if not match:
        raise ValueError(want)
    return int(match[1]) * _FACTOR_BYTES[(match[2] or "").lower()]


def render_size(size_bytes: int) -> str:
    """Return the notation with the first unit that leaves a whole number."""
    unit, factor = next(
        (u, f) for u, f in _UNIT_BYTES.items() if size_bytes % f == 0 and (size_bytes or f == 1)
    )
    return f"{size_bytes // factor}{unit}"


def parse_rate(value: object) -> float | None:
    """Return a positive number, or None for `off`."""
    want = "must be a positive number (at most 6 digits before and after the point) or off"
    if is_off(value):
        return None
    text = text_of(value, want)
    if not re.fullmatch(_NUMBER, text) or float(text) <= 0:
        raise ValueError(want)
    return float(text)


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


def parse_client_id(value: object) -> str:
    """Return the text as it is: any printable ASCII (RFC 6749 appendix A.1)."""
    if not isinstance(value, str) or not re.fullmatch(r"[\x20-\x7e]+", value) or not value.strip():
        raise ValueError("must be text of printable ASCII characters, not empty")
    return value


def parse_scope(value: object) -> str:
    """Return the scope tokens with one space between them (RFC 6749 §3.3)."""
    want = "must be scope names with spaces between them"
    text = text_of(value, want)
    if not re.fullmatch(r"[\x20\x21\x23-\x5b\x5d-\x7e]+", text):
        raise ValueError(want)
    return " ".join(text.split())


def parse_method(value: object) -> str:
    """Return an HTTP method in upper case (a token, RFC 9110 §5.6.2)."""
    want = "must be an HTTP method such as GET"
    text = text_of(value, want).upper()
    if not re.fullmatch(r"[A-Z0-9!#$%&'*+.^_`|~-]+", text):
        raise ValueError(want)
    return text


def parse_path_pattern(value: object) -> str:
    """Return a pattern as it is: `/v1/jobs/*`, `/v1/**`, `!/v1/assets/**`."""
    want = "must be a path that starts with / (or !/ to forbid it), such as /v1/jobs/*"
    text = text_of(value, want)
    if not re.fullmatch(r"!?/[\x21-\x7e]*", text) or "?" in text or "#" in text:
        raise ValueError(want)
    return text


ClientId = Annotated[str, PlainValidator(parse_client_id), WithJsonSchema({**STRING, "minLength": 1})]
Scope = Annotated[str, PlainValidator(parse_scope), WithJsonSchema(STRING)]
Method = Annotated[str, PlainValidator(parse_method), WithJsonSchema(STRING)]
PathPattern = Annotated[
    str, PlainValidator(parse_path_pattern), WithJsonSchema({**STRING, "pattern": "^!?/"})
]
Word = BeforeValidator(_lowered)
Flag = Annotated[bool, Word]
