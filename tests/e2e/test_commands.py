"""Output and exit codes of commands: one line on stderr, and the right code."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
import yaml

from tests.e2e.kit import World


@pytest.mark.parametrize(
    "args",
    [
        ["frobnicate"],
        ["--frobnicate"],
        ["status", "--frobnicate"],
        ["login", "--account"],
        ["login", "--print-url", "--finish", "x"],
        ["status", "--account", "nobody"],
        ["serve", "--account", "nobody"],
        ["config"],
        ["config", "frobnicate"],
        ["sandbox", "--listen", "nowhere"],
        ["sandbox", "--set", "no_such=1"],
        ["-c", "missing.yaml"],
        ["token", "-c", "missing.yaml"],
        ["sandbox", "-c", "config.yaml"],
        ["-c", "config.yaml", "demo"],
    ],
    ids=" ".join,
)
async def test_a_usage_error_is_one_line_and_exit_code_2(world: World, args: list[str]) -> None:
    """A wrong command line gets one line on stderr, none on stdout, and code 2."""
    ran = await world.run(*args)
    assert (ran.code, ran.out) == (2, "")
    assert ran.line


async def test_all_problems_of_a_configuration_are_reported_at_once(world: World) -> None:
    """`config check` prints a line with file and key for every problem, and exits with 2."""
    world.write_config(client_secret={"env": "NO_SUCH_NAME"}, listen="nowhere", pacing={"rate": -1}, oops=1)
    ran = await world.run("config", "check")
    assert (ran.code, ran.out) == (2, "")
    told = ran.err.splitlines()
    for key in ("client_secret", "listen", "pacing.rate", "oops"):
        assert any(f"{world.config_path}: {key}: " in line for line in told), key
    assert all(line.startswith("cfproxy: ") for line in told)
    assert (await world.run("serve")).code == 2


async def test_config_init_writes_a_private_file_and_overwrites_nothing(world: World) -> None:
    """Only its owner can read the new file; an existing one stays unchanged."""
    ran = await world.run("config", "init", "-c", "new/mine.yaml")
    assert ran.code == 0
    place = world.folder / "new" / "mine.yaml"
    if os.name == "posix":
        assert place.stat().st_mode & 0o777 == 0o600
    world.environment["CF_CLIENT_SECRET"] = "x"
    for command in (["config", "check"], ["serve"]):
        ran = await world.run(*command, "-c", str(place))
        assert (ran.code, ran.out) == (2, "")
        told = ran.err.splitlines()
        assert [line.split(": ")[2] for line in told] == ["client_id", "redirect_uri"]
        assert all("placeholder" in line for line in told)
    filled = (
        place.read_text(encoding="utf-8").replace("your-client-id", "app").replace("example.com", "ours.test")
    )
    place.write_text(filled, encoding="utf-8")
    assert (await world.run("config", "check", "-c", str(place))).code == 0
    place.write_text("changed", encoding="utf-8")
    ran = await world.run("config", "init", "-c", str(place))
    assert ran.code == 2
    assert "already exists" in ran.line
    assert place.read_text(encoding="utf-8") == "changed"


async def test_config_show_and_schema_describe_the_same_file(world: World) -> None:
    """`config show` prints YAML without secrets; the file in use is valid by `config schema`."""
    shown = await world.run("config", "show")
    assert shown.code == 0
    assert world.settings["client_secret"] not in shown.out
    assert yaml.safe_load(shown.out)
    schema = await world.run("config", "schema")
    assert schema.code == 0
    jsonschema.validate(world.settings, json.loads(schema.out))
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(world.settings | {"oops": 1}, json.loads(schema.out))


async def test_the_configuration_is_found_by_option_environment_and_place(world: World) -> None:
    """-c takes precedence over CFPROXY_CONFIG, and that over ./config.yaml; -c may come first."""
    for name in ("one", "two"):
        world.folder.joinpath(f"{name}.yaml").write_text(json.dumps(world.settings), encoding="utf-8")
    assert "config.yaml: ok" in (await world.run("config", "check")).out
    world.environment["CFPROXY_CONFIG"] = str(world.folder / "one.yaml")
    assert "one.yaml: ok" in (await world.run("config", "check")).out
    assert "two.yaml: ok" in (await world.run("config", "check", "-c", "two.yaml")).out
    assert "two.yaml: ok" in (await world.run("-c", "two.yaml", "config", "check")).out


async def test_status_prints_text_or_json(world: World) -> None:
    """`status` shows logins and expiry times as text and as JSON, without any network."""
    await world.log_in()
    await world.sandbox.close()
    text = await world.run("status")
    assert (text.code, text.err) == (0, "")
    assert text.out.startswith("default: ok: logged in\n")
    assert str(world.store_dir) in text.out
    report = json.loads((await world.run("status", "--json")).out)["accounts"][0]
    assert report["state"] == "ok"
    assert 0 < report["access_token"]["usable_s"] <= 3600
    assert 29 * 86400 < report["login"]["expires_in_s"] <= 30 * 86400


async def test_status_of_a_memory_store_is_unknown(world: World) -> None:
    """Only the running proxy knows its login, so status claims neither state."""
    world.write_config(store="memory")
    text = await world.run("status")
    assert (text.code, text.err) == (0, "")
    assert text.out.startswith(
        "default: unknown: store: memory is visible to the running proxy only: /status.json"
    )


async def test_token_prints_the_token_and_nothing_else(world: World) -> None:
    """Scripts can use the output of `cfproxy token` unchanged, also after a refresh."""
    await world.log_in()
    world.age(7200)
    ran = await world.run("token")
    assert (ran.code, ran.err) == (0, "")
    assert ran.out == f"{world.sandbox.access_tokens[-1].value}\n"
    assert world.document()["access_token"] == ran.out.strip()


async def test_debug_adds_a_traceback(world: World) -> None:
    """--debug works before and after the command's name."""
    for args in (["token", "--debug"], ["--debug", "token"]):
        ran = await world.run(*args)
        assert ran.code == 3
        assert "Traceback" in ran.err
        assert ran.err.splitlines()[-1].startswith("cfproxy: ")


async def test_help_and_version_need_no_configuration(world: World) -> None:
    """--help and --version work in any folder."""
    world.config_path.unlink()
    for args in (["--help"], ["-h"], ["login", "--help"], ["config", "show", "-h"]):
        ran = await world.run(*args)
        assert (ran.code, ran.err) == (0, "")
        assert "Usage: cfproxy" in ran.out
    assert (await world.run("--version")).out.startswith("cfproxy, version ")


@pytest.mark.parametrize("word", ["status", "login", "config"])
async def test_an_option_may_have_a_value_like_a_command(world: World, word: str) -> None:
    """An account or a file may be named like a command, also without `serve`."""
    assert f"there is no account '{word}'" in (await world.run("--account", word)).line
    assert (await world.run("-c", word)).line.startswith(f"cfproxy: {word}: does not exist")


FULL = Path("/dev/full")
SAYING = [
    ["config", "show"],
    ["config", "schema"],
    ["config", "check"],
    ["status"],
    ["status", "--json"],
    ["token"],
    ["login", "--print-url"],
    ["logout"],
    ["sandbox", "--listen", "127.0.0.1:0"],
    ["--help"],
    ["--version"],
]


@pytest.mark.skipif(not FULL.exists(), reason="there is no /dev/full here")
@pytest.mark.parametrize("args", SAYING, ids=" ".join)
async def test_output_to_a_full_disk_fails_in_one_line(world: World, args: list[str]) -> None:
    """Output that can't be written is reported as such, with exit code 1."""
    await world.log_in()
    with FULL.open("wb") as full:
        process = world.popen(*args, stdout=full, stderr=subprocess.PIPE)
        _, err = process.communicate()
    assert (process.returncode, err.decode()) == (
        1,
        "cfproxy: the output can't be written: No space left on device; free space, or write it elsewhere\n",
    )


@pytest.mark.skipif(not FULL.exists(), reason="there is no /dev/full here")
async def test_the_demo_ends_if_its_instructions_cannot_be_written(world: World) -> None:
    """Its log goes to standard error, which can."""
    with FULL.open("wb") as full:
        process = world.popen("demo", "--listen", "127.0.0.1:0", stdout=full, stderr=subprocess.PIPE)
        _, err = process.communicate()
    assert process.returncode == 1
    assert err.decode().splitlines()[-1].startswith("cfproxy: the output can't be written: No space left")


@pytest.mark.skipif(not FULL.exists(), reason="there is no /dev/full here")
async def test_an_error_that_can_not_be_printed_keeps_its_exit_code(world: World) -> None:
    """With stderr on a full disk the exit code still reports the error."""
    with FULL.open("wb") as full:
        codes = [world.popen(*args, stderr=full).wait() for args in (["token"], ["status", "--oops"])]
    assert codes == [3, 2]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows keeps folders that are in use")
def test_commands_work_in_a_deleted_folder(world: World) -> None:
    """As long as no relative path is needed."""
    gone = world.folder / "gone"
    python = shlex.quote(sys.executable)

    def run(*args: str) -> subprocess.CompletedProcess[str]:
        gone.mkdir()
        line = f"cd {shlex.quote(str(gone))} && rmdir {shlex.quote(str(gone))} && exec {python} -m cfproxy"
        return subprocess.run(
            ["/bin/sh", "-c", f"{line} {shlex.join(args)}"],
            env=world.full_environment(),
            capture_output=True,
            check=False,
            text=True,
        )

    done = run("config", "check", "-c", str(world.config_path))
    assert (done.returncode, done.stderr) == (0, "")
    done = run("config", "check", "-c", "config.yaml")
    assert done.returncode == 2
    assert done.stderr.startswith("cfproxy: config.yaml: does not exist")
    done = run("config", "init")
    assert done.returncode == 2
    assert done.stderr.startswith("cfproxy: config.yaml cannot be written: ")
    world.environment |= {"CFPROXY_CLIENT_ID": "a", "CFPROXY_REDIRECT_URI": "https://a.test/"}
    done = run("config", "check")
    assert (done.returncode, done.stdout) == (0, "environment: ok, accounts: default\n")
    world.environment["CFPROXY_STORE"] = "file:state"
    done = run("config", "check")
    assert done.returncode == 2
    assert done.stderr.startswith("cfproxy: environment: CFPROXY_STORE: ")


async def test_a_closed_pipe_ends_a_command_quietly(world: World) -> None:
    """As in `cfproxy config schema | head -1`."""
    reader, writer = os.pipe()
    os.close(reader)
    err = Path(world.folder / "err")
    with err.open("wb") as sink:
        process = world.popen("config", "schema", stdout=writer, stderr=sink)
    os.close(writer)
    assert process.wait() == 1
    assert err.read_bytes() == b""


@pytest.mark.skipif(sys.platform == "win32", reason="a POSIX shell closes the streams")
@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_closed_standard_stream_does_no_harm(closed: str, tmp_path: Path) -> None:
    """Daemons and cron may start programs without them; no socket may get their numbers."""
    environ = os.environ | {
        "CFPROXY_CLIENT_ID": "app",
        "CFPROXY_REDIRECT_URI": "https://example.com/cb",
        "CFPROXY_STORE": f"file:{tmp_path / 'state'}",
    }
    line = f"exec {shlex.quote(sys.executable)} -m cfproxy status {closed}"
    done = subprocess.run(
        ["/bin/sh", "-c", line], env=environ, cwd=tmp_path, capture_output=True, check=False
    )
    assert done.returncode == 3, done
    assert done.stderr == b""
