"""Settings are always valid, and mean the same on the command line, in JSON, in Python and in the docs."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, fields
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cfproxy.sandbox import Behaviour, Fault, InvalidSettings, parse_setting
from cfproxy.sandbox.behaviour import FaultKind
from tests.support.paths import ROOT

DOCUMENT = ROOT / "docs" / "sandbox.md"


def render(value: object) -> str:
    """Render a value as on the command line and in docs/sandbox.md."""
    match value:
        case bool():
            return str(value).lower()
        case float():
            return repr(value).removesuffix(".0")
        case tuple():
            return " ".join(value)
        case list():
            return json.dumps([asdict(fault) for fault in value])
        case _:
            return str(value)


def defaults() -> dict[str, str]:
    return {name: render(getattr(Behaviour(), name)) for name in Behaviour.model_fields}


def descriptions() -> dict[str, str]:
    return {name: " ".join(str(info.description).split()) for name, info in Behaviour.model_fields.items()}


def test_every_default_can_be_written_on_the_command_line() -> None:
    """A default copied from the documentation is read back as that default."""
    for name, text in defaults().items():
        assert parse_setting(name, text) == getattr(Behaviour(), name)


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("rotation", "false", False),
        ("rotation", "ON", True),
        ("limiter", "sliding", "sliding"),
        ("limit_rate", "5", 5),
        ("limit_per_s", "0.5", 0.5),
        ("access_lifetime_s", "90s", 90.0),
        ("code_lifetime_s", "30m", 1800.0),
        ("access_lifetime_s", "1h", 3600.0),
        ("refresh_lifetime_s", "30d", 2592000.0),
        (
            "redirect_uris",
            "https://a.example/x https://b.example/y",
            ("https://a.example/x", "https://b.example/y"),
        ),
        ("api_faults", '[{"kind": "stall", "times": 2}]', [Fault("stall", times=2)]),
    ],
)
def test_a_setting_is_read_from_text(name: str, text: str, value: object) -> None:
    """Flags, words, numbers, durations with a unit, lists and faults can be given as text."""
    assert parse_setting(name, text) == value


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("rotatoin", "true", "there is no setting 'rotatoin'; there are client_id, client_secret"),
        ("rotation", "maybe", "rotation: must be a valid boolean"),
        ("limiter", "leaky", "limiter: must be 'fixed', 'sliding' or 'off'"),
        ("limit_rate", "0", "limit_rate: must be greater than or equal to 1"),
        ("limit_rate", "1.5", "limit_rate: must be a valid integer"),
        ("limit_per_s", "0", "limit_per_s: must be greater than 0"),
        ("access_lifetime_s", "soon", "access_lifetime_s: expected a duration"),
        ("access_lifetime_s", "nan", "access_lifetime_s: must be a finite number"),
        ("client_id", "", "client_id: String should have at least 1 character"),
        ("grants", "password", "grants.0: must be 'authorization_code' or 'client_credentials'"),
        ("api_faults", "{", "api_faults: expected JSON"),
        ("api_faults", "{}", "api_faults: must be a valid list"),
        ("api_faults", "[1]", "api_faults.0: must be a dictionary"),
        ("api_faults", '[{"kind": "boom"}]', "api_faults.0.kind: must be 'status', 'stall'"),
        ("api_faults", '[{"times": 1}]', "api_faults.0.kind: Field required"),
        ("api_faults", '[{"kind": "stall", "delay": 1}]', "api_faults.0.delay: a fault has no such field"),
        (
            "api_faults",
            '[{"kind": "slow", "delay_s": -1}]',
            "api_faults.0.delay_s: must be greater than or equal to 0",
        ),
        (
            "api_faults",
            '[{"kind": "stall", "times": 0}]',
            "api_faults.0.times: must be greater than or equal to 1",
        ),
        (
            "api_faults",
            '[{"kind": "garbage", "size_bytes": "x"}]',
            "api_faults.0.size_bytes: must be a valid integer",
        ),
        (
            "api_faults",
            '[{"kind": "status", "status": 99}]',
            "api_faults.0.status: must be greater than or equal to 200",
        ),
        ("api_faults", '[{"kind": "status", "body": 1}]', "api_faults.0.body: must be a valid string"),
        (
            "api_faults",
            '[{"kind": "status", "headers": {"A\\n": "b"}}]',
            "api_faults.0.headers.A\n.[key]: String should match",
        ),
        (
            "api_faults",
            '[{"kind": "status", "headers": {"A": "b\\r\\nC: d"}}]',
            "api_faults.0.headers.A: String should match",
        ),
    ],
)
def test_an_invalid_text_is_refused_with_a_reason(name: str, text: str, says: str) -> None:
    """The message names the setting and what it accepts."""
    with pytest.raises(ValueError) as caught:
        parse_setting(name, text)
    assert str(caught.value).startswith(says)


def test_an_unknown_setting_cannot_be_set() -> None:
    """A misspelt attribute raises instead of changing nothing."""
    behaviour = Behaviour()
    with pytest.raises(ValueError, match="no attribute 'rotatoin'"):
        setattr(behaviour, "rotatoin", False)  # noqa: B010 - a checker would refuse the misspelt attribute


def test_an_invalid_value_cannot_be_set() -> None:
    """A wrong type raises at the assignment, and the old value stays."""
    behaviour = Behaviour()
    with pytest.raises(ValueError, match="valid boolean"):
        behaviour.rotation = "no"  # type: ignore[assignment]  # the wrong type is the test
    assert behaviour.rotation is True


def test_several_settings_change_together_or_not_at_all() -> None:
    """One invalid setting among valid ones changes nothing, and all problems are reported at once."""
    behaviour = Behaviour()
    with pytest.raises(InvalidSettings) as caught:
        behaviour.update(
            {
                "rotation": False,
                "limit_rate": True,
                "nonsense": 1,
                "redirect_uris": "https://x",
                "grants": [1],
            }
        )
    assert caught.value.problems == [
        "grants.0: must be 'authorization_code' or 'client_credentials'",
        "redirect_uris: must be a valid tuple",
        "limit_rate: must be a valid integer",
        "nonsense: there is no such setting",
    ]
    assert behaviour == Behaviour()


def test_the_json_form_of_all_settings_can_be_sent_back() -> None:
    """The control plane accepts what it shows."""
    changed = Behaviour(rotation=False, limit_rate=3, api_faults=[Fault("slow", delay_s=0.5)])
    copied = Behaviour()
    copied.update(json.loads(json.dumps(changed.model_dump())))
    assert copied == changed


WORDS = st.text(st.characters(exclude_categories=("Z", "C")), min_size=1)


@given(
    st.one_of(
        st.tuples(st.just("rotation"), st.booleans()),
        st.tuples(st.just("limit_rate"), st.integers(1, 2**53)),
        st.tuples(st.just("access_lifetime_s"), st.floats(0, 1e12)),
        st.tuples(st.just("redirect_uris"), st.lists(WORDS).map(tuple)),
    )
)
def test_a_valid_value_survives_being_written_and_read(setting: tuple[str, object]) -> None:
    """The text form of every type of value is read back unchanged."""
    name, value = setting
    behaviour = Behaviour()
    setattr(behaviour, name, value)
    assert getattr(behaviour, name) == value
    assert parse_setting(name, render(value)) == value


@given(st.one_of(st.floats(max_value=-1e-9), st.just(math.inf), st.just(math.nan), st.booleans(), st.text()))
def test_a_duration_is_a_finite_number_that_is_not_negative(value: object) -> None:
    """No other value is accepted as a number of seconds."""
    with pytest.raises(InvalidSettings, match="access_lifetime_s"):
        Behaviour().update({"access_lifetime_s": value})


def test_the_documentation_lists_every_setting() -> None:
    """The table in docs/sandbox.md has exactly the settings, with their defaults and descriptions."""
    shown, texts = defaults(), descriptions()
    rows = [f"| `{name}` | `{shown[name]}` | {texts[name]} |" for name in Behaviour.model_fields]
    lines = DOCUMENT.read_text(encoding="utf-8").splitlines()
    start = lines.index("| setting | default | what it does |") + 2
    assert lines[start : start + len(rows) + 1] == [*rows, ""]


def test_the_documentation_lists_every_fault() -> None:
    """Every kind of fault and every field of a fault has a row in docs/sandbox.md."""
    text = DOCUMENT.read_text(encoding="utf-8")
    names = [*get_args(FaultKind), *(each.name for each in fields(Fault) if each.name != "kind")]
    assert [name for name in names if f"\n| `{name}` |" not in text] == []


def test_every_value_of_a_choice_is_documented() -> None:
    """The table names every value that a setting can have."""
    texts = descriptions()
    choices = {
        name: values
        for name, info in Behaviour.model_fields.items()
        if (values := [each for each in get_args(info.annotation) if isinstance(each, str)])
    }
    assert set(choices) == {"refresh_expiry", "reuse_detection", "token_format", "limiter"}
    for name, values in choices.items():
        for value in values:
            assert f"`{value}`" in texts[name], name


def test_a_long_duration_is_shown_in_digits() -> None:
    """The documentation shows a default that can be copied."""
    assert defaults()["refresh_lifetime_s"] == "2592000"
    assert defaults()["limit_per_s"] == "1"
