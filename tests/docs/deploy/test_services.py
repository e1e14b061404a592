"""The files for systemd, Windows and macOS are valid and accepted by cfproxy."""

from __future__ import annotations

import plistlib
import re
import shutil
import subprocess
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from cfproxy.config import TcpAddress, load_settings
from cfproxy.errors import UsageError
from tests.docs.deploy.files import DEPLOY, load_with, parse_command, read_text, words_of

needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed"
)
CLIENT = {"CFPROXY_CLIENT_ID": "a", "CFPROXY_GRANT": "client_credentials"}
SECRET = {"CFPROXY_CLIENT_SECRET": "s"}
TASK = "{http://schemas.microsoft.com/windows/2004/02/mit/task}"


def _unit(name: str) -> dict[str, list[tuple[str, str]]]:
    """Return the sections of a unit; a key may occur more than once."""
    sections: dict[str, list[tuple[str, str]]] = {}
    for line in read_text(name).splitlines():
        if line.startswith("["):
            sections[line[1:-1]] = current = []
        elif line and not line.startswith("#"):
            key, _, value = line.partition("=")
            current.append((key, value))
    return sections


@needs_systemd
def test_systemd_accepts_the_units(tmp_path: Path) -> None:
    """`systemd-analyze verify` reports nothing if the program is where the unit says."""
    for name in ("cfproxy.service", "cfproxy.socket"):
        text = read_text(name).replace("/opt/cfproxy/bin/cfproxy", shutil.which("true") or "")
        (tmp_path / name).write_text(text)
    units = [str(tmp_path / name) for name in ("cfproxy.service", "cfproxy.socket")]
    ran = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *units], capture_output=True, text=True, check=False
    )
    # Ignore messages about other units of this machine.
    told = [line for line in ran.stderr.splitlines() if "cfproxy" in line or str(tmp_path) in line]
    assert told == []


@needs_systemd
def test_the_service_is_locked_down() -> None:
    """Its exposure level is the one on the page; a unit without hardening has 9.6."""
    said = re.search(r"rates the unit (\d\.\d)", read_text("systemd.md"))
    assert said
    ran = subprocess.run(
        [
            "systemd-analyze",
            "security",
            "--offline=yes",
            "--threshold=20",
            str(DEPLOY / "cfproxy.service"),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    if "unrecognized option" in ran.stderr:
        pytest.skip("this systemd-analyze judges loaded units only")
    assert ran.returncode == 0, ran.stdout[-200:]  # tenths
    assert f"Overall exposure level for cfproxy.service: {said[1]}" in ran.stdout


def test_cfproxy_accepts_the_service(tmp_path: Path) -> None:
    """Command line and variables are valid once systemd's specifiers are replaced."""
    service = _unit("cfproxy.service")["Service"]
    options = dict(service)
    command, _, config = parse_command(words_of(options["ExecStart"]))
    assert (command, config) == ("serve", "/etc/cfproxy/config.yaml")
    name, _, _ = options["LoadCredential"].partition(":")
    variables = dict(value.split("=", 1) for key, value in service if key == "Environment")
    given = {
        key: value.replace("%d", "/run/c").replace("%S", str(tmp_path)) for key, value in variables.items()
    }
    settings = load_with(CLIENT | given, {f"/run/c/{name}": "the-secret"}, tmp_path)
    account = settings.accounts["default"]
    assert account.client_secret is not None
    assert account.client_secret.reveal() == "the-secret"
    assert account.store.url == f"file:{tmp_path / options['StateDirectory'] / 'logins'}"
    assert int(options["RestartPreventExitStatus"]) == UsageError.exit_code
    assert int(options["TimeoutStopSec"]) > account.timeouts.drain_s + account.timeouts.token_s


def test_the_sockets_match_the_configuration() -> None:
    """Sockets without a name are matched by address."""
    settings = load_settings(None, CLIENT | SECRET)
    listening = [value for key, value in _unit("cfproxy.socket")["Socket"] if key == "ListenStream"]
    addresses = [settings.accounts["default"].listen, settings.admin]
    places = [
        TcpAddress(host, each.port)
        for each in addresses
        if isinstance(each, TcpAddress)
        for host in each.hosts
    ]
    assert listening == [str(place) for place in places]


def test_the_windows_service_runs_cfproxy() -> None:
    """It names its configuration and store, and has no special rights."""
    root = ET.fromstring(read_text("windows-service.xml"))  # noqa: S314 - our own file
    assert root.tag == "service"
    values = {child.tag: (child.text or "").strip() for child in root}
    assert {"id", "name", "description", "executable", "arguments"} <= set(values)
    command, _, config = parse_command(values["arguments"].split())
    assert (command, config) == ("serve", r"C:\ProgramData\cfproxy\config.yaml")
    environ = {item.attrib["name"]: item.attrib["value"] for item in root.findall("env")}
    assert load_settings(None, CLIENT | SECRET | environ).log.format == "json"
    assert root.findtext("serviceaccount/username") == r"NT AUTHORITY\LocalService"
    assert values["stoptimeout"] == "60 sec"


def test_the_windows_task_runs_cfproxy() -> None:
    """It runs from logon without a time limit, with plain user rights, for Register-ScheduledTask."""
    text = read_text("windows-task.xml")
    assert "<?xml" not in text  # an encoding that is declared and not that of the string is refused
    root = ET.fromstring(text)  # noqa: S314 - our own file
    assert root.tag == f"{TASK}Task"
    assert [child.tag.removeprefix(TASK) for child in root] == [
        "RegistrationInfo",
        "Triggers",
        "Principals",
        "Settings",
        "Actions",
    ]
    assert root.findtext(f".//{TASK}ExecutionTimeLimit") == "PT0S"
    assert root.findtext(f".//{TASK}RunLevel") == "LeastPrivilege"
    command, _, config = parse_command((root.findtext(f".//{TASK}Arguments") or "").split())
    assert (command, config) == ("serve", r"%LOCALAPPDATA%\cfproxy\config.yaml")


def test_launchd_runs_cfproxy() -> None:
    """The property list has known keys only, and the files it writes are private."""
    agent = plistlib.loads(read_text("launchd.plist").encode())
    program, *words = agent["ProgramArguments"]
    assert Path(program).name == "cfproxy"
    command, _, config = parse_command(words)
    assert command == "serve"
    assert config is not None
    assert config.endswith("/cfproxy/config.yaml")
    assert load_settings(None, CLIENT | SECRET | agent["EnvironmentVariables"]).log.format == "json"
    assert agent["Umask"] == 0o077
    assert agent["KeepAlive"] == {"SuccessfulExit": False}
    assert agent["ExitTimeOut"] == 60
