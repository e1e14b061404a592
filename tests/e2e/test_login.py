"""Login and logout on the command line, in every form and with every failure."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable
from pathlib import Path
from urllib.parse import parse_qsl, quote, urlsplit

import pytest

from cfproxy.sandbox import Fault, approve
from tests.e2e.kit import World, until
from tests.e2e.processes import Ran

SECRETS_FILE = "*.login-*.json"


async def begin(world: World, *args: str) -> str:
    """Run `login --print-url`; the one line on its stdout is the address."""
    ran = await world.run("login", "--print-url", *args)
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.count("\n") == 1
    return ran.out.strip()


async def come_back(world: World) -> str:
    """Begin a login and consent; return the redirected address."""
    return await approve(await begin(world))


def code_of(address: str) -> str:
    return dict(parse_qsl(urlsplit(address).query))["code"]


async def finish(world: World, text: str, stdin: str = "") -> Ran:
    return await world.run("login", "--finish", text, stdin=stdin)


FORMS: dict[str, Callable[[str], str]] = {
    "whole address": str,
    "query": lambda address: urlsplit(address).query,
    "bare code": code_of,
    "stdin": lambda _: "-",
    "encoded once more": lambda address: quote(address, safe=""),
    "escapes encoded once more": lambda address: address.replace("%", "%25"),
    "HTML": lambda address: address.replace("&", "&amp;"),
    "wrapped": lambda address: f"<{address[:70]}\r\n  {address[70:]}>",
    "bare code, encoded": lambda address: quote(code_of(address), safe="").replace("-", "%2D") + "\n",
    "code= alone": lambda address: f"code={code_of(address)}\n",
}


@pytest.mark.parametrize("form", FORMS)
async def test_the_redirected_address_may_have_any_form(world: World, form: str) -> None:
    """Whole or in part, encoded again, wrapped or from standard input, it finishes the login.

    A code that was refused before does not use the login up.
    """
    address = await come_back(world)
    refused = await finish(world, "another-code-of-mine")
    assert (refused.code, "the code was refused" in refused.line) == (1, True)
    texts = {name: make(address) for name, make in FORMS.items()}
    ran = await finish(world, texts.get(form, "-"), stdin=f"{address}\n")
    assert (ran.code, ran.err) == (0, "")
    assert ran.out == "Logged in as account 'default' (cfgateway offline_access).\n"
    assert (await world.run("status")).code == 0
    token = await world.run("token")
    assert token.out.strip() == world.sandbox.access_tokens[-1].value


async def paste(world: World, *pastes: Callable[[str], str]) -> tuple[Ran, str]:
    """Run `cfproxy login`, consent, and paste what the functions make of the address that came back."""
    process = await asyncio.create_subprocess_exec(
        *world.command("login", "--no-browser"),
        cwd=world.folder,
        env=world.full_environment(),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    address = await approve((await process.stdout.readline()).decode().strip())
    out, err = await process.communicate("".join(f"{each(address)}\n" for each in pastes).encode())
    assert process.returncode is not None
    world.said += [out.decode(), err.decode()]
    return Ran(process.returncode, out.decode(), err.decode()), address


def another_state(address: str) -> str:
    state = dict(parse_qsl(urlsplit(address).query))["state"]
    return address.replace(state, "x" * len(state))


async def test_the_prompt_reads_from_a_pipe(world: World) -> None:
    """`cfproxy login` prints the address and reads the redirected one from standard input."""
    ran, _ = await paste(world, str)
    assert ran.code == 0
    assert "Logged in" in ran.out
    assert "redirect_uri" in ran.err
    assert re.search(r"Waiting for it until \d\d:\d\d \(30 minutes\)", ran.err)
    assert "Requesting tokens from the token endpoint" in ran.err
    assert (await world.run("status")).code == 0


@pytest.mark.parametrize(
    "wrong", [lambda _: "", lambda _: "<html>", another_state], ids=["nothing", "no address", "wrong state"]
)
async def test_a_wrong_paste_is_asked_for_again(world: World, wrong: Callable[[str], str]) -> None:
    """An error that another paste can fix is printed, and the prompt repeats."""
    ran, _ = await paste(world, wrong, wrong, str)
    assert ran.code == 0, ran
    assert "Logged in" in ran.out
    assert ran.err.count("> ") == 3
    assert ran.err.count("cfproxy: ") == 2


async def test_a_wrapped_address_may_be_pasted(world: World) -> None:
    """Each line of it is read in turn, and what came before belongs to it."""
    ran, _ = await paste(world, lambda address: f"{address[:60]}\n{address[60:]}")
    assert ran.code == 0, ran
    assert "Logged in" in ran.out


async def test_the_prompt_gives_up_after_three_wrong_pastes_and_the_login_stays_open(world: World) -> None:
    """The last error names the command that finishes the same login later."""
    ran, address = await paste(world, *[another_state] * 3, str)
    assert (ran.code, ran.err.count("> ")) == (1, 3)
    assert "cfproxy login --finish" in ran.err.splitlines()[-1]
    assert (await finish(world, address)).code == 0


async def test_the_prompt_ends_if_no_other_paste_can_help(world: World) -> None:
    """A code that the server refused, or a denial, ends the command."""
    world.sandbox.behaviour.code_lifetime_s = 0
    ran, _ = await paste(world, str, str)
    assert (ran.code, ran.err.count("> ")) == (1, 1)
    assert "the code was refused" in ran.err
    ran, _ = await paste(world, lambda address: address.replace("code=", "error=access_denied&x="), str)
    assert (ran.code, ran.err.count("> ")) == (1, 1)
    assert "denied" in ran.err


async def test_an_empty_prompt_fails_with_advice(world: World) -> None:
    """Without input, the login fails and names the two-step way."""
    ran = await world.run("login", "--no-browser")
    assert ran.code == 1
    assert "--print-url" in ran.err.splitlines()[-1]


async def test_each_failure_has_its_own_message(world: World) -> None:
    """Each failed login prints one line of its own and exits with 1."""
    lines: dict[str, str] = {}

    async def fail(name: str, text: str, code: int = 1) -> None:
        ran = await finish(world, text)
        assert (ran.code, ran.out) == (code, ""), (name, ran)
        lines[name] = ran.line

    await fail("nothing pending", "some-code-of-mine")
    address = await come_back(world)
    state = dict(parse_qsl(urlsplit(address).query))["state"]
    await fail("wrong state", address.replace(state, "x" * len(state)))
    await fail("another place", address.replace("integration.example", "evil.example"))
    await fail("another issuer", address.replace("iss=http", "iss=https"))
    await fail("rubbish", "<html>")
    await fail("no code", "https://integration.example/callback")
    assert (await finish(world, address)).code == 0
    await fail("replayed", address)
    await fail("denied", await approve(await begin(world), decision="deny"))
    address = await come_back(world)
    world.sandbox.grants.codes[code_of(address)].used = True
    await fail("used code", address)
    world.sandbox.behaviour.code_lifetime_s = 0
    await fail("expired code", await come_back(world))
    # The server's `invalid_grant` does not tell these two apart, so one line names both.
    assert lines.pop("expired code") == lines["used code"]
    world.sandbox.behaviour.code_lifetime_s = 1800
    world.sandbox.inject("token", Fault("status", status=503))
    await fail("server error", await come_back(world), code=5)
    assert len(set(lines.values())) == len(lines), lines
    for name, line in lines.items():
        assert "cfproxy login" in line or "paste" in line or "copy" in line, (name, line)
    # Nothing of it touched the login that was there.
    assert (await world.run("token")).code == 0


async def test_an_unregistered_redirect_uri_is_reported(world: World) -> None:
    """The accounts server shows an error page; its address leads to the right advice."""
    world.write_config(redirect_uri="https://integration.example/another")
    url = await begin(world)
    ran = await finish(world, url)
    assert ran.code == 1
    error_page = f"{world.sandbox.url}/connect/error?id=1"
    ran = await finish(world, error_page)
    assert ran.code == 1
    assert "redirect_uri" in ran.line


async def test_a_redirect_uri_that_changed_during_a_login_is_reported(world: World) -> None:
    """A login that was started with another redirect_uri is not finished by mistake."""
    world.sandbox.behaviour.redirect_uris = ("https://integration.example/callback", "https://other.example/")
    address = await come_back(world)
    world.write_config(redirect_uri="https://other.example/")
    ran = await finish(world, address)
    assert ran.code == 1
    assert "redirect_uri" in ran.line


async def test_after_a_wrong_secret_the_same_code_still_works(world: World) -> None:
    """A server that rejects the app does not use up the code."""
    right = world.settings["client_secret"]
    world.write_config(client_secret="not-the-secret")
    address = await come_back(world)
    ran = await finish(world, address)
    assert ran.code == 5
    assert "client_secret" in ran.line
    world.write_config(client_secret=right)
    assert (await finish(world, address)).code == 0


@pytest.mark.parametrize("require", [True, False])
async def test_pkce_can_be_turned_off(world: World, require: bool) -> None:
    """With `pkce: false` no challenge is sent; a server that requires one is reported."""
    world.write_config(pkce=False)
    world.sandbox.behaviour.require_pkce = require
    url = await begin(world)
    assert "code_challenge" not in url
    ran = await finish(world, await approve(url))
    if require:
        assert ran.code == 1
        assert "pkce" in ran.line
    else:
        assert ran.code == 0


async def test_a_running_proxy_notices_login_and_logout(world: World) -> None:
    """It starts without a login, serves as soon as there is one, and stops after the logout."""
    async with world.serve() as proxy:
        assert await proxy.problem() == ("login-required", None)
        assert await proxy.ready() == 503
        assert (await finish(world, await come_back(world))).code == 0

        async def answers(wanted: int) -> bool:
            return await proxy.status() == wanted and await proxy.ready() == wanted

        await until(lambda: answers(200), "the login is picked up")
        ran = await world.run("logout")
        assert ran.code == 0
        assert "the server has revoked them" in ran.out
        await until(lambda: answers(503), "the logout is noticed")
        assert await proxy.problem() == ("login-required", None)
    assert list(world.store_dir.glob("*.json")) == []


async def test_logout_deletes_the_tokens_also_without_the_server(world: World) -> None:
    """It works without a login, with one, and without the server; then `token` asks for a login."""
    assert "was not logged in" in (await world.run("logout")).out
    await world.log_in()
    assert (await world.run("logout")).code == 0
    assert [token.revoked for token in world.sandbox.access_tokens] == [True]
    await world.log_in()
    await world.sandbox.close()
    ran = await world.run("logout")
    assert ran.code == 0
    assert "could not be reached" in ran.out
    ran = await world.run("token")
    assert (ran.code, ran.out) == (3, "")
    assert ran.line.endswith("run: cfproxy login")
    told = await world.run("status", "--json")
    assert told.code == 3
    assert json.loads(told.out)["accounts"][0]["state"] == "login-required"


async def test_logout_sends_nothing_to_a_server_other_than_the_token_endpoints(world: World) -> None:
    """A revocation_url elsewhere would get the client secret and both tokens."""
    await world.log_in()
    callers: list[asyncio.StreamWriter] = []
    other = await asyncio.start_server(lambda _, writer: callers.append(writer), "127.0.0.1", 0)
    port = other.sockets[0].getsockname()[1]
    world.write_config(revocation_url=f"http://127.0.0.1:{port}/connect/revocation")
    ran = await world.run("logout")
    other.close()
    assert (ran.code, callers) == (0, [])
    assert "the server does not revoke" in ran.out
    assert not any(token.revoked for token in world.sandbox.access_tokens)


async def test_client_credentials_need_no_login(world: World) -> None:
    """An app serves at once; `login` only checks its settings."""
    world.write_config(grant="client_credentials", redirect_uri=None)
    async with world.serve() as proxy:
        assert await proxy.status() == 200
        assert await proxy.ready() == 200
        world.sandbox.revoke_access_tokens()
        assert await proxy.status() == 200
    assert [each.grant for each in world.sandbox.token_requests] == ["client_credentials"] * 2
    assert (await world.run("login")).code == 0
    assert (await world.run("status")).code == 0
    assert (await world.run("login", "--print-url")).code == 2
    world.write_config(client_secret="not-the-secret")
    ran = await world.run("login")
    assert ran.code == 5
    assert "client_secret" in ran.line


async def test_the_logout_of_an_app_explains_what_it_does(world: World) -> None:
    """With client credentials there is no login to end; the stored token is revoked and deleted."""
    world.write_config(grant="client_credentials", redirect_uri=None)
    ran = await world.run("logout")
    assert ran.code == 0
    assert ran.out == (
        "Account 'default' uses client credentials: it has no login to end, and no token was stored.\n"
    )
    assert (await world.run("token")).code == 0
    ran = await world.run("logout")
    assert ran.code == 0
    assert ran.out == (
        "Account 'default' uses client credentials: it has no login to end. Its stored token is deleted; "
        "the server has revoked it. The next request fetches a new one.\n"
    )
    assert [token.revoked for token in world.sandbox.access_tokens] == [True]


async def test_the_next_step_repeats_the_options_that_were_given(world: World) -> None:
    """The command in a message has the file and the account of the command that failed."""
    listen = {"listen": "127.0.0.1:0"}
    world.write_config(accounts={"acme": listen, "beta": listen})
    world.config_path.rename(world.folder / "my file.yaml")
    options = ("-c", "my file.yaml", "--account", "acme")
    command = "cfproxy login -c 'my file.yaml' --account acme"
    assert (await world.run("status", *options)).out.splitlines()[0].endswith(f"run: {command}")
    assert (await world.run("token", *options)).line.endswith(f"run: {command}")
    assert command in (await world.run("login", *options, "--finish", "some-code-of-mine")).line
    assert (await world.run("-c", "my file.yaml", "token")).line.endswith(
        "run: cfproxy login -c 'my file.yaml'"
    )


async def test_a_finished_attempt_leaves_no_verifier_on_disk(world: World) -> None:
    """A pending attempt is private, and a finished one holds no secret."""
    address = await come_back(world)
    (pending,) = world.store_dir.glob(SECRETS_FILE)
    verifier = json.loads(pending.read_text(encoding="utf-8"))["verifier"]
    assert verifier
    assert (await finish(world, address)).code == 0
    left = "".join(Path(path).read_text(encoding="utf-8") for path in world.store_dir.glob("*"))
    assert verifier not in left
