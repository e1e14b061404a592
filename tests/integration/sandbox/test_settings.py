"""Settings: valid or not there at all, the same on the command line, in JSON, in Python and in the docs."""

from __future__ import annotations

import json
import math
from dataclasses import fields

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cfproxy.sandbox import Behaviour, Fault, InvalidSettings, describe_settings, parse_setting
from cfproxy.sandbox.faults import FAULT_KINDS
from cfproxy.sandbox.kinds import Choice, Flag, Kind, Seconds, Texts, Whole
from tests.support.paths import ROOT

DOCUMENT = ROOT / "docs" / "sandbox.md"


def test_every_default_can_be_written_on_the_command_line() -> None:
    """What the help shows as a default is read back as that default."""
    fresh = Behaviour()
    for setting in describe_settings():
        assert parse_setting(setting.name, setting.default) == getattr(fresh, setting.name)


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
        ("rotation", "maybe", "rotation: expected true or false"),
        ("limiter", "leaky", "limiter: expected one of fixed, sliding, off"),
        ("limit_rate", "0", "limit_rate: expected a whole number, 1 or more"),
        ("limit_rate", "1.5", "limit_rate: expected a whole number, 1 or more"),
        ("limit_per_s", "0", "limit_per_s: expected a duration"),
        ("access_lifetime_s", "soon", "access_lifetime_s: expected a duration"),
        ("access_lifetime_s", "nan", "access_lifetime_s: expected a duration"),
        ("client_id", "", "client_id: expected a text"),
        ("grants", "password", "grants: expected any of authorization_code, client_credentials"),
        ("api_faults", "{", "api_faults: expected JSON"),
        ("api_faults", "{}", "api_faults: expected a list of faults"),
        ("api_faults", "[1]", "api_faults: a fault is an object"),
        ("api_faults", '[{"kind": "boom"}]', "api_faults: kind: expected one of status, stall"),
        ("api_faults", '[{"times": 1}]', "api_faults: kind: missing"),
        ("api_faults", '[{"kind": "stall", "delay": 1}]', "api_faults: a fault has no 'delay'; it has body"),
        (
            "api_faults",
            '[{"kind": "slow", "delay_s": -1}]',
            "api_faults: delay_s: expected a number of seconds",
        ),
        ("api_faults", '[{"kind": "stall", "times": 0}]', "api_faults: times: expected a whole number"),
        (
            "api_faults",
            '[{"kind": "garbage", "size_bytes": "x"}]',
            "api_faults: size_bytes: expected a whole",
        ),
        ("api_faults", '[{"kind": "status", "status": 99}]', "api_faults: status: expected 200 to 599"),
        ("api_faults", '[{"kind": "status", "body": 1}]', "api_faults: body: expected a text"),
        (
            "api_faults",
            '[{"kind": "status", "headers": {"A\\n": "b"}}]',
            "api_faults: headers: expected names",
        ),
        (
            "api_faults",
            '[{"kind": "status", "headers": {"A": "b\\r\\nC: d"}}]',
            "api_faults: headers: expected",
        ),
    ],
)
def test_a_wrong_text_is_answered_with_what_is_expected(name: str, text: str, says: str) -> None:
    """The message names the setting and says what it accepts."""
    with pytest.raises(ValueError) as caught:
        parse_setting(name, text)
    assert str(caught.value).startswith(says)


def test_a_setting_that_does_not_exist_cannot_be_set() -> None:
    """A misspelt attribute raises instead of changing nothing."""
    behaviour = Behaviour()
    with pytest.raises(AttributeError, match="no setting 'rotatoin'"):
        setattr(behaviour, "rotatoin", False)  # noqa: B010 - a checker would refuse the misspelt attribute


def test_an_invalid_value_cannot_be_set() -> None:
    """A wrong type raises at the assignment, and the old value stays."""
    behaviour = Behaviour()
    with pytest.raises(ValueError, match="rotation: expected true or false"):
        behaviour.rotation = "no"  # type: ignore[assignment]  # the wrong type is the test
    assert behaviour.rotation is True


def test_several_settings_change_together_or_not_at_all() -> None:
    """One bad setting among good ones changes nothing, and all problems are told at once."""
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
        "limit_rate: expected a whole number, 1 or more",
        "nonsense: there is no such setting",
        "redirect_uris: expected a list of texts",
        "grants: expected a list of texts without spaces",
    ]
    assert behaviour == Behaviour()


def test_the_json_form_of_all_settings_can_be_sent_back() -> None:
    """What the control plane shows is what it accepts."""
    changed = Behaviour(rotation=False, limit_rate=3, api_faults=[Fault("slow", delay_s=0.5)])
    copied = Behaviour()
    copied.update(json.loads(json.dumps(changed.to_document())))
    assert copied == changed


@given(
    st.one_of(
        st.tuples(st.just(Flag()), st.booleans()),
        st.tuples(st.just(Whole(0)), st.integers(0, 2**53)),
        st.tuples(st.just(Seconds()), st.floats(0, 1e12)),
        st.tuples(
            st.just(Texts()), st.lists(st.text(st.characters(exclude_categories=("Z", "C")), min_size=1))
        ),
    )
)
def test_a_valid_value_survives_being_written_and_read(pair: tuple[Kind, object]) -> None:
    """Every kind of value reads what it writes."""
    kind, value = pair
    kept = kind.check(value)
    assert kind.check(kind.parse(kind.render(kept))) == kept


@given(st.one_of(st.floats(max_value=-1e-9), st.just(math.inf), st.just(math.nan), st.booleans(), st.text()))
def test_a_duration_is_a_finite_number_that_is_not_negative(value: object) -> None:
    """Nothing else passes as a number of seconds."""
    with pytest.raises(ValueError, match="seconds"):
        Seconds().check(value)


def test_the_documentation_lists_every_setting_as_it_is() -> None:
    """The table in docs/sandbox.md holds every setting with its default and its description, and no other."""
    rows = [f"| `{setting.name}` | `{setting.default}` | {setting.text} |" for setting in describe_settings()]
    lines = DOCUMENT.read_text(encoding="utf-8").splitlines()
    start = lines.index("| setting | default | what it does |") + 2
    assert lines[start : start + len(rows) + 1] == [*rows, ""]


def test_the_documentation_lists_every_fault() -> None:
    """Every kind of fault and every field of a fault has its row in docs/sandbox.md."""
    text = DOCUMENT.read_text(encoding="utf-8")
    names = [*FAULT_KINDS, *(each.name for each in fields(Fault) if each.name != "kind")]
    assert [name for name in names if f"\n| `{name}` |" not in text] == []


def test_every_value_of_a_choice_is_documented() -> None:
    """Whoever reads the table learns all values that a setting can have."""
    for setting in fields(Behaviour):
        kind = setting.metadata["kind"]
        for value in kind.options if isinstance(kind, Choice) else ():
            assert f"`{value}`" in setting.metadata["text"], setting.name


def test_a_long_duration_is_shown_in_figures() -> None:
    """A default can be read and copied."""
    shown = {setting.name: setting.default for setting in describe_settings()}
    assert shown["refresh_lifetime_s"] == "2592000"
    assert shown["limit_per_s"] == "1"
