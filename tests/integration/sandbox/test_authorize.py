"""The authorization endpoint: what it refuses, the consent page, and the redirect."""

from __future__ import annotations

from html.parser import HTMLParser
from urllib.parse import parse_qsl, urlsplit

import pytest

from cfproxy.errors import LoginFailed
from cfproxy.sandbox import approve
from tests.integration.sandbox.world import CALLBACK, World


class Page(HTMLParser):
    """The parts of a page that the tests look at."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def read_query(url: str) -> dict[str, str]:
    return dict(parse_qsl(urlsplit(url).query, keep_blank_values=True))


async def test_consent_redirects_with_a_code(world: World) -> None:
    """Pressing "Yes, Allow" redirects with code, scope, the unchanged state, and the issuer."""
    redirected = await approve(world.authorize_url())
    answer = read_query(redirected)
    assert redirected.startswith(f"{CALLBACK}?")
    assert answer["state"] == "st&te=1"
    assert answer["scope"] == "cfgateway offline_access"
    assert answer["iss"] == world.sandbox.url
    assert (await world.exchange(answer["code"]))[0] == 200


async def test_denial_redirects_with_an_error(world: World) -> None:
    """Pressing "No" redirects with `access_denied` and the state."""
    redirected = await approve(world.authorize_url(), decision="deny")
    assert read_query(redirected) == {
        "error": "access_denied",
        "state": "st&te=1",
        "iss": world.sandbox.url,
    }


async def test_the_redirect_can_omit_issuer_and_state(world: World) -> None:
    """`iss` can be switched off, and a login without a state gets none back."""
    world.behaviour.iss_in_redirect = False
    assert set(read_query(await approve(world.authorize_url(state="")))) == {"code", "scope"}


async def test_the_query_of_a_redirect_uri_is_kept(world: World) -> None:
    """The result is appended to the redirect URI's own query (RFC 6749 §3.1.2)."""
    target = "https://integration.example/cb?tenant=7"
    world.behaviour.redirect_uris = (target,)
    redirected = await approve(world.authorize_url(redirect_uri=target))
    assert redirected.startswith(f"{target}&code=")


@pytest.mark.parametrize(
    "changes",
    [
        {"client_id": "unknown"},
        {"client_id": ""},
        {"redirect_uri": f"{CALLBACK}/"},
        {"redirect_uri": f"{CALLBACK}?x=1"},
        {"redirect_uri": "HTTPS://integration.example/callback"},
        {"redirect_uri": ""},
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_without_a_registered_redirect_uri_nothing_is_redirected(
    world: World, method: str, changes: dict[str, str]
) -> None:
    """A wrong client or redirect URI gets an error page of the sandbox."""
    target = world.authorize_url(**changes).removeprefix(world.sandbox.url)
    async with world.call(method, target, headers={}) as response:
        assert response.status == 400
        assert "Location" not in response.headers
        assert "This login cannot continue" in await response.text()


async def test_a_duplicate_parameter_is_refused(world: World) -> None:
    """An ambiguous address is not interpreted."""
    target = world.authorize_url().removeprefix(world.sandbox.url)
    assert await world.status("GET", f"{target}&state=2", headers={}) == 400


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"response_type": "token"}, "unsupported_response_type"),
        ({"scope": "cfgateway everything"}, "invalid_scope"),
        ({"scope": ""}, "invalid_scope"),
        ({"code_challenge": "x" * 43, "code_challenge_method": "plain"}, "invalid_request"),
        ({"code_challenge": "x" * 43}, "invalid_request"),
        ({"code_challenge": "short", "code_challenge_method": "S256"}, "invalid_request"),
    ],
)
async def test_other_errors_are_sent_to_the_app(world: World, changes: dict[str, str], error: str) -> None:
    """Once the redirect URI is trusted, errors are sent in the redirect, with the state."""
    answer = read_query(await approve(world.authorize_url(**changes)))
    assert (answer["error"], answer["state"]) == (error, "st&te=1")


async def test_pkce_can_be_required(world: World) -> None:
    """With `require_pkce` a login without a challenge is an error; one with a challenge continues."""
    world.behaviour.require_pkce = True
    assert read_query(await approve(world.authorize_url()))["error"] == "invalid_request"
    url = world.authorize_url(code_challenge="x" * 43, code_challenge_method="S256")
    assert "code" in read_query(await approve(url))


async def test_the_consent_page_names_the_app_and_its_scopes(world: World) -> None:
    """It names the studio, the app and the scopes, and has one button for each decision."""
    world.behaviour.app_name = "<b>Shop & Sync</b>"
    async with world.client.get(world.authorize_url()) as response:
        page = Page(await response.text())
    assert "The Demo Studio asks" in page.text
    assert "<b>Shop & Sync</b>" in page.text
    assert "(cfgateway)" in page.text
    assert "(offline_access)" in page.text
    assert "Yes, Allow" in page.text
    buttons = [attributes for tag, attributes in page.tags if tag == "button"]
    assert [(each["name"], each["value"]) for each in buttons] == [
        ("decision", "allow"),
        ("decision", "deny"),
    ]


async def test_the_pages_load_no_scripts_and_nothing_from_other_origins(world: World) -> None:
    """The policy allows only the sandbox's style sheet and a form that ends at the app."""
    async with world.client.get(world.authorize_url()) as response:
        page = Page(await response.text())
        assert response.headers["Content-Security-Policy"] == (
            "default-src 'none'; style-src 'self'; form-action 'self' https://integration.example; "
            "base-uri 'none'; frame-ancestors 'none'"
        )
        assert response.headers["Cache-Control"] == "no-store"
        assert response.headers["Referrer-Policy"] == "no-referrer"
    names = {tag for tag, _ in page.tags}
    assert not names & {"script", "style", "img", "iframe"}
    assert not any("style" in attributes for _, attributes in page.tags)
    sheet = next(attributes["href"] for tag, attributes in page.tags if tag == "link")
    async with world.client.get(f"{world.sandbox.url}{sheet}") as response:
        assert (response.status, response.content_type) == (200, "text/css")


async def test_a_redirect_uri_without_csp_syntax_is_allowed_by_scheme(world: World) -> None:
    """A form may end at an IPv6 address too."""
    target = "http://[::1]:9/callback"
    world.behaviour.redirect_uris = (target,)
    async with world.client.get(world.authorize_url(redirect_uri=target)) as response:
        assert "form-action 'self' http:;" in response.headers["Content-Security-Policy"]


@pytest.mark.parametrize("body", ["", "decision=perhaps", "decision=allow&decision=deny"])
async def test_a_form_without_a_clear_decision_is_refused(world: World, body: str) -> None:
    """Only one of the two buttons ends the login."""
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    target = world.authorize_url().removeprefix(world.sandbox.url)
    assert await world.status("POST", target, headers=headers, data=body) == 400


async def test_the_paste_page_shows_the_redirected_url(world: World) -> None:
    """The sandbox's own `/paste` is always registered, and shows the whole address to copy."""
    redirected = await approve(world.authorize_url(redirect_uri=f"{world.sandbox.url}/paste"))
    async with world.client.get(redirected) as response:
        page = Page(await response.text())
    assert "paste it into cfproxy login" in page.text
    shown = next(line for line in page.text.splitlines() if "/paste?" in line)
    code = read_query(redirected)["code"]
    assert f"{world.sandbox.url}/paste?code={code}" in shown
    status, _ = await world.exchange(code, redirect_uri=f"{world.sandbox.url}/paste")
    assert status == 200


async def test_the_paste_page_escapes_what_it_shows(world: World) -> None:
    """Markup in the address is shown as text."""
    async with world.call("GET", "/paste?code=<script>x</script>&state=\"'", headers={}) as response:
        html = await response.text()
    assert "<script" not in html
    assert "&lt;script&gt;" in html


async def test_approve_reports_why_it_failed(world: World) -> None:
    """An error page, or no page at all, raises an error with a readable message."""
    with pytest.raises(LoginFailed, match="answered 400; check client_id and redirect_uri"):
        await approve(world.authorize_url(client_id="unknown"))
    url = world.authorize_url()
    await world.sandbox.close()
    with pytest.raises(LoginFailed, match="is the sandbox running"):
        await approve(url)
