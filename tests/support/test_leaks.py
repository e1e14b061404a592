"""The watch over secrets detects each kind of leak, and passes a clean test."""

from __future__ import annotations

import base64
import os
import re
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.paths import ROOT
from tests.support.secret_ledger import SECRETS_MAX, SecretLedger, is_marker

# Runs under the watch in a separate pytest, because its tests have to fail.
SUITE = '''
import asyncio, base64, json, logging, subprocess, sys, traceback, warnings
from pathlib import Path
from urllib.parse import quote

import pytest
import structlog
from structlog.testing import LogCapture

from cfproxy.errors import GrantRefused, LoginFailed
from cfproxy.sandbox import Behaviour
from cfproxy.sandbox.grants import Grants
from cfproxy.sandbox.journal import Journal
from cfproxy.secret import Secret
from tests.e2e.kit import SITECUSTOMIZE, open_world

IMPORTED = Secret("imported~0123456789/abc")
VALUE = "".join(["made", "~0123456789/", "uvwxyz"])


@pytest.fixture(scope="module")
def shared():
    return Secret("".join(["shared", "~0123456789"]))


def test_clean(shared):
    log = structlog.get_logger()
    secret = Secret(VALUE)
    log.info("token.refreshed", token=secret, fingerprint=secret.fingerprint())
    print(secret, repr(secret), VALUE[:8])
    with pytest.raises(LoginFailed):
        raise LoginFailed("the code is used")

def test_clean_use_of_shared(shared):
    assert shared

def test_leak_to_stdout():
    print("x", Secret(VALUE).reveal())

def test_leak_to_stderr():
    print(Secret(VALUE).reveal(), file=sys.stderr)

def test_leak_that_is_read_back(capsys):
    print(Secret(VALUE).reveal())
    capsys.readouterr()

def test_leak_in_url_form():
    print("https://a.example/?token=" + quote(Secret(VALUE).reveal(), safe=""))

def test_leak_in_base64():
    print(base64.b64encode(b"Basic me:" + Secret(VALUE).reveal().encode() + b"!").decode())

def test_leak_to_the_log_at_debug():
    logging.getLogger("some.library").debug("sent %s", Secret(VALUE).reveal())

def test_leak_to_a_captured_event():
    log = structlog.wrap_logger(None, processors=[LogCapture()])
    log.debug("token.refreshed", token=Secret(VALUE).reveal())

def test_leak_to_structlog():
    structlog.get_logger().debug("token.refreshed", token=Secret(VALUE).reveal())

def test_leak_in_a_warning():
    with pytest.warns(UserWarning):
        warnings.warn("bad token " + Secret(VALUE).reveal())

def test_leak_in_an_error_text():
    with pytest.raises(LoginFailed):
        raise LoginFailed("wrong: " + Secret(VALUE).reveal())

def test_leak_in_an_error_that_a_cycle_keeps():
    error = LoginFailed("wrong: " + Secret(VALUE).reveal())
    error.itself = error

def test_leak_in_the_repr_of_an_error():
    with pytest.raises(GrantRefused):
        raise GrantRefused("refused", description=Secret(VALUE).reveal())

def test_leak_in_a_cause():
    def parse():
        try:
            raise ValueError("server said " + Secret(VALUE).reveal())
        except ValueError as error:
            raise LoginFailed("the answer can't be read") from error
    with pytest.raises(LoginFailed):
        parse()

def test_leak_in_a_printed_trace():
    try:
        raise KeyError(Secret(VALUE).reveal())
    except KeyError:
        traceback.print_exc()

def test_leak_in_a_broken_repr(monkeypatch):
    monkeypatch.setattr(Secret, "__repr__", lambda secret: secret.reveal())
    print({"secret": Secret(VALUE)})

def test_leak_in_a_failure_report():
    expected = Secret(VALUE).reveal()
    assert expected == "other"

def test_leak_of_a_shared_secret(shared):
    print(shared.reveal())

def test_leak_of_an_imported_secret():
    print(IMPORTED.reveal())

def test_leak_of_an_issued_code():
    grants = Grants(Behaviour(), lambda: 0.0, Journal())
    print(grants.issue_code("https://a.example/", "cfgateway"))

def test_leak_of_an_issued_access_token():
    print(Grants(Behaviour(token_format="jwt"), lambda: 0.0, Journal()).start_login("cfgateway"))

def test_leak_of_an_issued_refresh_token():
    answer = Grants(Behaviour(), lambda: 0.0, Journal()).start_login("cfgateway offline_access")
    print(answer["refresh_token"])

def test_leak_in_output_of_a_child():
    code = "import sys; print('x', sys.argv[1])"
    subprocess.run([sys.executable, "-c", code, Secret(VALUE).reveal()], capture_output=True)

def test_leak_in_output_of_a_child_that_is_awaited():
    async def run():
        code = "import sys; print('x', sys.argv[1], file=sys.stderr)"
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", code, Secret(VALUE).reveal(), stderr=asyncio.subprocess.PIPE
        )
        await process.communicate()
    asyncio.run(run())

def in_a_world(tmp_path, line, work):
    """Run `work` in a world whose processes run `line` when they start."""
    folder = tmp_path / "sitecustomize"
    folder.mkdir()
    original = SITECUSTOMIZE.joinpath("sitecustomize.py").read_text(encoding="utf-8")
    folder.joinpath("sitecustomize.py").write_text(f"{original}\\n{line}")
    async def run():
        async with open_world(tmp_path) as world:
            root = world.full_environment()["PYTHONPATH"]
            world.environment["PYTHONPATH"] = f"{folder}{__import__('os').pathsep}{root}"
            await world.log_in()
            await work(world)
    asyncio.run(run())

CONFIGURED = "import json, sys; print(json.load(open('config.yaml'))['client_secret'], file=sys.stderr)"
STORED = "import json, sys; print(json.load(open('store/default.json'))['access_token'], file=sys.stderr)"

def test_leak_in_the_log_of_a_child(tmp_path):
    async def work(world):
        async with world.serve() as proxy:
            assert await proxy.status() == 200
    in_a_world(tmp_path, STORED, work)

def test_leak_of_a_secret_that_only_a_child_knows(tmp_path):
    line = "print(Secret('of-a-child~' + '0123456789').reveal())"
    async def work(world):
        await world.run("--version")
    in_a_world(tmp_path, line, work)

def test_leak_of_the_client_secret_by_a_command(tmp_path):
    async def work(world):
        await world.run("config", "show")
    in_a_world(tmp_path, CONFIGURED, work)

def test_leak_of_the_state_outside_of_the_address(tmp_path):
    async def work(world):
        ran = await world.run("login", "--print-url")
        print(ran.out.partition("state=")[2].partition("&")[0])
    in_a_world(tmp_path, "", work)

def test_clean_session(tmp_path):
    async def work(world):
        assert (await world.run("login", "--print-url")).code == 0
        assert (await world.run("token")).code == 0
        async with world.serve() as proxy:
            assert await proxy.status() == 200
    in_a_world(tmp_path, "", work)
'''
TESTS = re.findall(r"(?m)^def (test_\w+)\(", SUITE)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Run the suite above and return pytest's output."""
    folder = tmp_path_factory.mktemp("watched")
    folder.joinpath("test_suite.py").write_text(SUITE, encoding="utf-8")
    folder.joinpath("pytest.ini").write_text("[pytest]\nfilterwarnings = error\n", encoding="utf-8")
    plugins = ("-p", "tests.support.leaks", "-p", "no:asyncio", "-p", "no:cacheprovider")
    words = [sys.executable, "-m", "pytest", *plugins, "-rA", "test_suite.py"]
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "COV_"))}
    done = subprocess.run(
        words,
        cwd=folder,
        env=environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in TESTS if name.startswith("test_leak")])
def test_a_leak_fails_its_test(run: str, name: str) -> None:
    """A test fails if a secret appears in any of its texts, in any form."""
    assert f"FAILED test_suite.py::{name} " in run, run


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in TESTS if name.startswith("test_clean")])
def test_a_clean_test_passes(run: str, name: str) -> None:
    """A test that handles secrets without showing one passes."""
    assert f"PASSED test_suite.py::{name}\n" in run, run
    assert f"ERROR test_suite.py::{name}" not in run


@pytest.mark.slow
def test_a_finding_names_the_place_and_hides_the_secret(run: str) -> None:
    """A finding has kind, place and line, and only the beginning and length of the secret."""
    assert "stdout of python" in run
    assert "the failure report, line" in run, "which would have failed anyway"
    assert "serve-1.log, line 1: an issued access token" in run
    assert "the trace of LoginFailed, line 1: a Secret 'made'… (22 characters)" in run
    verdicts = "".join(re.findall(r"(?m)^.*characters\)$", run))
    assert "made~0123456789/uvwxyz" not in verdicts


@given(st.text(min_size=1), st.text(), st.text())
def test_a_secret_is_found_in_any_text(inner: str, before: str, after: str) -> None:
    """A secret is found whatever surrounds it, plain or as part of base64."""
    secret = f"marker-{inner}-0123456789"
    text = (before + secret + after).encode("utf-8", "surrogatepass")
    for shown in (
        before + secret + after,
        base64.b64encode(text).decode(),
        base64.urlsafe_b64encode(text).decode(),
    ):
        ledger = SecretLedger()
        ledger.add_secret(secret, "a marker")
        ledger.add_text("here", shown)
        assert len(ledger.findings()) == 1
        assert ledger.findings() == []


def test_a_full_ledger_loses_no_finding() -> None:
    """A full ledger searches before it drops secrets."""
    ledger = SecretLedger()
    ledger.add_secret("the-first-of-many-secrets", "a marker")
    ledger.add_text("here", "x the-first-of-many-secrets x")
    for number in range(SECRETS_MAX):
        ledger.add_secret(f"another-of-many-secrets-{number}", "a marker")
    assert len(ledger.findings()) == 1


@pytest.mark.parametrize("value", ["short", "https://api.example/abcdefgh", "aaaaaaaaaaaaaaaaaaaaaaaa", ""])
def test_common_values_are_no_markers(value: str) -> None:
    """Short or monotonous values, and URLs, legitimately occur in texts."""
    assert not is_marker(value)
