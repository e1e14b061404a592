"""What people paste after logging in, and how it is parsed."""

from __future__ import annotations

import re
import traceback
from urllib.parse import quote, urlencode

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from cfproxy.auth.redirect import (
    REDIRECT_MAX_CHARS,
    UNRECOGNISED,
    Redirect,
    base_of,
    check_redirect,
    explain_error,
    origin_of,
    parse_redirect,
)
from cfproxy.errors import LoginFailed
from cfproxy.secret import Secret

MARKER = "MARKERsecretMARKER"
BASE = "https://integration.example/cb"
QUERY = "code=8659m1X-k&scope=cfgateway%20offline_access&state=st-1"
CAME = Redirect(code=Secret("8659m1X-k"), state="st-1")
WHOLE = Redirect(code=Secret("8659m1X-k"), state="st-1", base=BASE)
ALONE = Redirect(code=Secret("8659m1X-k"))
SLASHED = Redirect(code=Secret("4/0Ab+cd=="), state="st-1", base=BASE)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"{BASE}?{QUERY}", WHOLE),
        (f"{BASE}#{QUERY}", WHOLE),
        (f"{BASE}?{QUERY}#_=_", WHOLE),
        (f"{BASE}?{QUERY}&", WHOLE),
        (f"  '{BASE}?{QUERY}'\n", WHOLE),
        (f"<{BASE}?{QUERY}>", WHOLE),
        (f"“{BASE}?{QUERY}”", WHOLE),
        (f"{BASE}?code=8659\n  m1X-k&scope=cfgateway offline_access&st\r\nate=st-1", WHOLE),
        (f"HTTPS://Integration.Example:443/cb?{QUERY}", WHOLE),
        (f"integration.example/cb?{QUERY}", CAME),
        (f"?{QUERY}", CAME),
        (QUERY, CAME),
        (QUERY.removeprefix("code="), CAME),
        ("8659m1X-k", Redirect(code=Secret("8659m1X-k"))),
        (" 8659m1\nX-k& ", Redirect(code=Secret("8659m1X-k"))),
        ("4/0Ab_cd==", Redirect(code=Secret("4/0Ab_cd=="))),
        ("?error=access_denied&state=st-1", Redirect(error="access_denied", state="st-1")),
        (f"{BASE}?error=access_denied", Redirect(error="access_denied", base=BASE)),
        (f"?error={MARKER}", Redirect(error=UNRECOGNISED)),
        (
            f"?{QUERY}&iss=https%3A%2F%2Faccounts.example",
            Redirect(code=Secret("8659m1X-k"), state="st-1", iss="https://accounts.example"),
        ),
        (BASE, Redirect(base=BASE)),
        (f"{BASE}?code=&state=1", Redirect(base=BASE)),
        # encoded once more, as a whole or in part
        (quote(f"{BASE}?{QUERY}", safe=""), WHOLE),
        (quote(quote(f"{BASE}?{QUERY}", safe=""), safe=""), WHOLE),
        (f"{BASE}?{quote(QUERY, safe='')}", WHOLE),
        (f"{BASE}%3F{quote(QUERY, safe='')}", WHOLE),
        (f"{quote(BASE, safe='')}?{QUERY}", WHOLE),
        (f"?{quote(QUERY, safe='')}", CAME),
        (quote(QUERY, safe=""), CAME),
        (quote(QUERY.removeprefix("code="), safe=""), CAME),
        (
            quote(f"{BASE}?error=access_denied&state=st-1"),
            Redirect(error="access_denied", state="st-1", base=BASE),
        ),
        # a code with characters that are encoded
        (f"{BASE}?code=4%2F0Ab%2Bcd%3D%3D&state=st-1", SLASHED),
        (f"{BASE}?code=4/0Ab+cd==&state=st-1", SLASHED),
        (f"{BASE}?code=4%252F0Ab%252Bcd%253D%253D&state=st-1", SLASHED),
        (quote(f"{BASE}?code=4%2F0Ab%2Bcd%3D%3D&state=st-1", safe=""), SLASHED),
        (quote(f"{BASE}?code=4%2F0Ab%2Bcd%3D%3D&state=st-1", safe=":/?&="), SLASHED),
        ("4%2F0Ab%2Bcd%3D%3D", Redirect(code=Secret("4/0Ab+cd=="))),
        ("4%252f0Ab%252bcd%253d%253d", Redirect(code=Secret("4/0Ab+cd=="))),
        ("4/0Ab+cd==", Redirect(code=Secret("4/0Ab+cd=="))),
        # as mails, terminals, shells and programs change an address
        (f"{BASE}?{QUERY}".replace("&", "&amp;"), WHOLE),
        (f"{BASE}?{QUERY}".replace("&", "&amp;amp;"), WHOLE),
        (f"{BASE}?{QUERY}".replace("&", "&#38;"), WHOLE),
        (f"{BASE}?{QUERY}".replace("&", "\\u0026"), WHOLE),
        (f"{BASE}?{QUERY}".replace("/", "\\/"), WHOLE),
        (f"{BASE}\\?{QUERY}".replace("&", "\\&").replace("=", "\\="), WHOLE),
        (f"{BASE}?{QUERY}".replace("&", "^&"), WHOLE),
        (f"{BASE}?code=8659 m1X-k&state=st-1", WHOLE),
        (f"> {BASE}?code=8659\n> m1X-k&state=st-1\n", WHOLE),
        (f'"{BASE}?code=8659"\n"m1X-k&state=st-1"', WHOLE),
        (f"{BASE}?code=86\u200b59m1X-k&state=st-1\ufeff", WHOLE),
        (f"\u00a0{BASE}?{QUERY}\u2028", WHOLE),
        (f"({BASE}?{QUERY}),", WHOLE),
        (f"[{BASE}?{QUERY}];", WHOLE),
        (f"{BASE}?{QUERY}#", WHOLE),
        # the code alone
        ("code=8659m1X-k", ALONE),
        ("code=8659m1X-k&", ALONE),
        ("'code=8659m1X-k'\n", ALONE),
        ("code: 8659m1X-k", ALONE),
        ("Code = 8659m1X-k", ALONE),
        ("code=8659m1X%2Dk", ALONE),
        ("8659m1X-k\n", ALONE),
        ("8659m1X-k\r\n\r\n", ALONE),
        ('"8659m1X-k"', ALONE),
        ("<8659m1X-k>", ALONE),
        ("8659m1X-k#_=_", ALONE),
        ("8659m1X-k#", ALONE),
    ],
)
def test_redirect_is_accepted_in_many_forms(text: str, expected: Redirect) -> None:
    """A whole URL, its query, or the code alone; wrapped, quoted, or truncated at the front."""
    assert parse_redirect(text) == expected


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("", "neither"),
        ("hello", "neither"),
        ("I could not log in", "neither"),
        ("scope=cfgateway&state=1", "no code"),
        (f"?{QUERY}&code=other", "'code' twice"),
        (f"?{QUERY}&state=other", "'state' twice"),
        (f"?{QUERY}#state=other", "'state' twice"),
        (f"{BASE}?code=8659m1X-k", "no state"),
        ("?code=8659m1X-k", "no state"),
        (f"?{quote('code=8659m1X-k', safe='')}", "no state"),
        ("code=8659m1X-k&scope=cfgateway", "no state"),
        ("the code is 8659m1X-k", "neither"),
        ("8659m1X-k%0d%0ax", "neither"),
        ("8659m1X-k%ff", "neither"),
        ("?code=a%0Ab&state=1", "damaged"),
        ("?code=a%FFb&state=1", "damaged"),
        ("x" * (REDIRECT_MAX_CHARS + 1), "too long"),
        ("?" + "a=1&" * 200, "too many"),
    ],
)
def test_other_input_is_refused_with_the_next_step(text: str, hint: str) -> None:
    """What can't be a redirect is refused in one line that says what to paste instead."""
    with pytest.raises(LoginFailed, match=hint) as caught:
        parse_redirect(text)
    assert "\n" not in str(caught.value)


def fold(text: str, width: int) -> str:
    return "\r\n".join(text[start : start + width] for start in range(0, len(text), width))


@given(
    code=st.from_regex(r"\A[!-~]{8,60}\Z"),
    state=st.from_regex(r"\A[!-~]{1,60}\Z"),
    width=st.integers(20, 80),
    mark=st.sampled_from("?#"),
)
def test_line_breaks_of_a_terminal_do_not_matter(code: str, state: str, width: int, mark: str) -> None:
    """However the URL is wrapped, code and state are parsed exactly, if no code looks encoded itself."""
    assume(not re.search("%[0-9A-Fa-f]{2}", code + " " + state))
    query = urlencode({"code": code, "state": state}, quote_via=quote)
    came = parse_redirect(fold(f"{BASE}{mark}{query}", width))
    assert came == Redirect(code=Secret(code), state=state, base=BASE)


fragments = st.sampled_from(
    [
        "code=",
        "state=",
        "error=",
        "iss=",
        "&",
        "?",
        "#",
        "://",
        "https",
        "%",
        "\n",
        "[",
        "]",
        "@",
        " ",
        MARKER,
    ]
)
pasted = st.text() | st.lists(fragments | st.text(max_size=3)).map("".join)


@given(pasted)
@example(f"https://[{MARKER}?code=1&state=2")
@example("?code=%ff&state=\ud800")
def test_any_input_is_a_redirect_or_a_known_error(text: str) -> None:
    """Whatever is pasted, it is a redirect or a LoginFailed, and neither shows what it was."""
    shown = []
    try:
        came = parse_redirect(text)
        shown = [repr(came)]
        check_redirect(came, redirect_uri=BASE, authorize_url="https://accounts.example/a", again="again")
    except LoginFailed as error:
        shown += [str(error), repr(error), *traceback.format_exception(error)]
    else:
        assert (came.code is None) != (came.error is None)
    assert not [line for line in shown if MARKER in line]


# --- checking the redirect ---------------------------------------------------------------


def check(came: Redirect, redirect_uri: str = BASE) -> None:
    check_redirect(
        came,
        redirect_uri=redirect_uri,
        authorize_url="https://accounts.example/connect/authorize?tenant=1",
        again="start again",
    )


@pytest.mark.parametrize(
    "redirect_uri",
    [
        BASE,
        f"{BASE}?kind=cf",
        f"{BASE}/",
        "http://integration.example/cb",
        "https://INTEGRATION.example:443/cb",
    ],
)
def test_normalised_url_is_the_same_place(redirect_uri: str) -> None:
    """A trailing slash, a change to https, a default port and capital letters make no difference."""
    check(WHOLE, redirect_uri)


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        (f"https://elsewhere.example/cb?{QUERY}", "not at redirect_uri"),
        (f"https://integration.example/other?{QUERY}", "not at redirect_uri"),
        ("https://accounts.example/connect/authorize?client_id=1&state=2", "open it in a browser"),
        ("https://accounts.example/home/error?errorId=CfDJ8", "page of the accounts server"),
        (f"{BASE}?{QUERY}&iss=https%3A%2F%2Fevil.example", "iss differs"),
        (f"{BASE}?{QUERY}&iss=accounts.example", "iss differs"),
        (BASE, "has no code"),
    ],
)
def test_url_that_is_not_our_redirect_is_explained(text: str, hint: str) -> None:
    """Another URL, another server and a URL without a code each have their own message."""
    with pytest.raises(LoginFailed, match=hint) as caught:
        check(parse_redirect(text))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("iss", ["https://accounts.example", "https://ACCOUNTS.example:443/realms/x"])
def test_issuer_is_compared_by_origin(iss: str) -> None:
    """RFC 9207: a server may name itself, also with a path; its origin must be that of authorize_url."""
    check(Redirect(code=Secret("c"), state="s", iss=iss))


def test_each_kind_of_refusal_has_its_own_message() -> None:
    """A denial, a server error and a refused app have different messages."""
    messages = {
        explain_error(error, "start again")
        for error in (
            "access_denied",
            "server_error",
            "temporarily_unavailable",
            "invalid_scope",
            UNRECOGNISED,
        )
    }
    assert len(messages) == 5
    assert all("start again" in message for message in messages)


def test_urls_are_compared_without_user_and_query() -> None:
    """User, query, default port and capital letters do not count; what is no URL equals nothing."""
    assert base_of("https://u:p@Host.Example:443?x=1#y") == "https://host.example/"
    assert base_of("http://host.example:443/a") == "http://host.example:443/a"
    assert origin_of("https://host.example/a/b?c") == "https://host.example"
    assert origin_of("https://[::1") == base_of("mailto:someone") == ""
