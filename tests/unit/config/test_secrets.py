"""No message, repr, traceback or rendering contains a secret's value."""

from __future__ import annotations

import traceback
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from cfproxy.config import Access, Settings, render_settings
from cfproxy.secret import Secret
from tests.support.config_loader import BASE, MARKER, Loader, outcome
from tests.support.examples import examples


@pytest.fixture(scope="session")
def load(tmp_path_factory: pytest.TempPathFactory) -> Loader:
    """A folder of this module's own."""
    return Loader(tmp_path_factory.mktemp("config"))


# A secret may look like a word, which a key does too.
MARKERS = (MARKER, "HunterMarker")


def _secret_forms(marker: str) -> list[Any]:
    return [
        *(marker, f"{marker}\n", [marker], [[marker]], {marker: None}, {marker: marker}, {"a": {marker: 1}}),
        *({"env": marker}, {"file": marker}, {"env": [marker]}, {"file": f"{marker}\0"}, {"ENV": marker}),
        {"env": marker, "file": marker},
    ]


_SECRET_PLACES = [
    "client_secret: %s",
    "access: {keys: [%s]}",
    "access: {keys: %s}",
    "access: {keys: [ok, %s, {env: K}]}",
    "accounts: {a: {client_secret: %s}}",
    "accounts: {a: {access: {keys: [%s]}}}",
    "client_secrett: %s",
    "client_secret: %s\nclient_secret: %s",
    "client_secret: [%s, !x %s]",
]


_RAW_PLACES = [
    "client_secret:%s",
    "{client_id: a, client_secret:%s}",
    "accounts: {a: {client_secret:%s}}",
    "access: {keys:[%s]}",
    "client_secret: '%s",
    'client_secret: "%s\\q"',
    "client_secret: %s: x",
    "client_secret: *%s",
    "client_secret: !%s x",
    "client_secret: | %s",
    "client_secret: @%s",
    "client_secret: {%s: 1, %s: 2}",
    "client_secret: {%s: 1, %s: 2, {x: 1}: 3}",
    "client_secret: &%s\n  %s: &%s 1\n  %s: 2",
    "\tclient_secret: %s",
    "store: redis://u:%s@h/0/1",
    "store: rediss://:%s@h,i",
    "upstream: https://u:%s@h/",
    "token_url: 'https://u:%s@h/'",
    "redirect_uri: https://u:%s@h/",
]


_MISTAKES = [
    *("", "pacing: {rate: soon}", "a: [", "client_id: x", "listen: 0.0.0.0:1", "grant: client_credentials"),
    *(
        "accounts: {b: {listen: 8080}}",
        "\t",
        "&a *b",
        "pacing:rate",
        "access: 5",
        "- x",
        "unknown: 1",
        "%YAML 9",
    ),
]


def _variables(marker: str) -> list[dict[str, str]]:
    return [
        {"CFPROXY_CLIENT_SECRET": marker},
        {"CFPROXY_CLIENT_SECRET": f"{marker}\x07"},
        {"CFPROXY_CLIENT_SECRET__FILE": marker},
        {"CFPROXY_CLIENT_SECRET__ENV": marker},
        {"CFPROXY_CLIENT_SECRETT": marker},
        {"CFPROXY_ACCESS__KEYS": f"{marker},{marker}\x07"},
        {"CFPROXY_ACCESS__KEYS": f"[{marker}"},
        {"CFPROXY_ACCESS": f"{{keys: [{marker}], {marker}: 1}}"},
        {"CFPROXY_ACCOUNTS__A": f"{{client_secret:{marker}}}"},
        {"CFPROXY_STORE": f"redis://:{marker}@h:x"},
        {"CFPROXY_CLIENT_SECRET__ENV": "S", "S": f"{marker}\x07"},
        {},
    ]


@st.composite
def _texts_with_a_secret(draw: st.DrawFn, marker: str) -> str:
    form = yaml.safe_dump(draw(st.sampled_from(_secret_forms(marker))), default_flow_style=True, width=1000)
    in_yaml = form.removesuffix("...\n").strip()
    lines = [place.replace("%s", in_yaml) for place in _SECRET_PLACES]
    lines += [place.replace("%s", marker) for place in _RAW_PLACES]
    around = draw(st.lists(st.sampled_from([*_MISTAKES, BASE]), max_size=3))
    around.insert(draw(st.integers(0, len(around))), draw(st.sampled_from(lines)))
    return "\n".join(around)


@settings(max_examples=examples(400))
@given(st.data(), st.sampled_from(MARKERS))
def test_no_secret_ever_shows(load: Loader, data: st.DataObject, marker: str) -> None:
    """Whatever is wrong near a secret, its value is in no message, repr, traceback or rendering."""
    text = data.draw(_texts_with_a_secret(marker))
    environ = data.draw(st.sampled_from(_variables(marker)))
    got = outcome(lambda: load.settings(text, environ))
    shown = repr(got) + str(got)
    if isinstance(got, Settings):
        shown += render_settings(got)
    else:
        shown += "".join(traceback.format_exception(got))
    assert marker not in shown


def test_every_kind_of_secret_is_redacted(load: Loader) -> None:
    """A configuration with every kind of secret shows each as [redacted]."""
    environ = {"K": f"{MARKER}-2"}
    got = load.settings(
        f"{BASE}client_secret: {MARKER}\naccess: {{keys: [{MARKER}-1, {{env: K}}]}}\n"
        f"accounts: {{a: {{listen: 8090, client_secret: {MARKER}-3}}}}",
        environ,
    )
    assert got.accounts["default"].client_secret == Secret(MARKER)
    assert render_settings(got).count("[redacted]") == 6
    assert MARKER not in render_settings(got) + repr(got)


def test_settings_constructed_in_python_hide_their_input_too() -> None:
    """The error for a value of a wrong type does not contain the value."""
    with pytest.raises(ValidationError) as caught:
        Access(keys=({"vault": MARKER},))  # type: ignore[arg-type] # the mistake under test
    assert "must be text, {env: NAME} or {file: PATH}" in str(caught.value)
    assert MARKER not in str(caught.value) + repr(caught.value)
