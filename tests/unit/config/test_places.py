"""Where the configuration is looked for, and what is passed over there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cfproxy.config import FoundConfig, find_config, load_settings
from cfproxy.config.keys import keys_of
from cfproxy.config.settings import FileKeys
from cfproxy.errors import ConfigError
from tests.support.config_loader import BASE, ENVIRON

posix_only = pytest.mark.skipif(os.name != "posix", reason="only POSIX has it")


@pytest.fixture(autouse=True)
def user_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's configuration folder, which does not exist yet."""
    folder = tmp_path / "user"
    monkeypatch.setattr("platformdirs.user_config_path", lambda _: folder)
    return folder


def _find(cwd: Path, environ: dict[str, str] | None = None, explicit: str | None = None) -> Path | None:
    return find_config(explicit, environ or {}, cwd).path


def test_the_file_is_searched_for_in_order(tmp_path: Path, user_folder: Path) -> None:
    """-c, CFPROXY_CONFIG, ./cfproxy.yaml, a ./config.yaml of ours, the user's folder, none."""
    assert _find(tmp_path, {"CFPROXY_CONFIG": ""}) is None
    user_folder.mkdir()
    order = ["c.yaml", "e.yaml", "cfproxy.yaml", "config.yaml", "user/config.yaml"]
    for name in order:
        (tmp_path / name).write_text(BASE)
    assert _find(tmp_path, {"CFPROXY_CONFIG": "e.yaml"}, "c.yaml") == tmp_path / "c.yaml"
    assert _find(tmp_path, {"CFPROXY_CONFIG": "e.yaml"}) == tmp_path / "e.yaml"
    for name in order[2:]:
        assert _find(tmp_path) == tmp_path / name
        (tmp_path / name).unlink()
    assert _find(tmp_path) is None


# --- config.yaml of others --------------------------------------------------------------------


@pytest.mark.parametrize("key", keys_of(FileKeys))
@pytest.mark.parametrize(
    "form", ["{}: x\n", "# mine\n---\n{} : x\n", '"{}": x', "  {}: x\n  b: 1", "{{{}: x}}", '{{"{}": 1}}']
)
def test_a_config_yaml_with_a_key_of_ours_is_ours(tmp_path: Path, key: str, form: str) -> None:
    """Whichever key, and however it is written."""
    (tmp_path / "config.yaml").write_text("a: 1\n" * (form[0] not in " {#") + form.format(key))
    assert _find(tmp_path) == tmp_path / "config.yaml"


@pytest.mark.parametrize(
    "text", ["client_id: a\n\tb: [", "client_secret:hunter2", "listen: 'a", "log: 1\nlog: 2", "a: [\nlog: {}"]
)
def test_a_mistake_in_a_config_yaml_of_ours_is_reported(tmp_path: Path, text: str) -> None:
    """It does not make the file another program's."""
    (tmp_path / "config.yaml").write_text(text)
    found = find_config(None, {}, tmp_path)
    with pytest.raises(ConfigError):
        load_settings(found.path, ENVIRON)


OTHERS: dict[str, str | bytes] = {
    "another's keys": "title: My page\ntheme: dark\n",
    "our key below another": "server:\n  listen: 8080\n  log: {level: debug}\n",
    "our key in a list": "- client_id: x\n",
    "our key in an item": "- name: a\n  client_id: x\n",
    "our key in an indented text": "  a: |\n    client_id: x\n",
    "our key below another in braces": '{"a": {"client_id": 1}}',
    "a list in braces": "{[a]: 1}",
    "our key in a text": "text: |\n  client_id: x\n",
    "our key in a comment": "# client_id: x\n",
    "another case": "Client_ID: x\nLISTEN: y\n",
    "several documents": "kind: Pod\n---\nkind: Service\n",
    "templates": "{% if x %}\nkey: {{ value }}\n{% endif %}\n",
    "tags": "!include other.yaml\n",
    "broken": "a: [\n",
    "deep": "[" * 5000,
    "aliases": "a: &a [*a]\n",
    "text": "hello",
    "nothing": "",
    "binary": bytes(range(256)),
    "UTF-16": "client_id: x\n".encode("utf-16"),
    "huge": "client_id: x\n" + "#" * 300_000,
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_config_yaml_of_another_program_is_passed_over(
    tmp_path: Path, user_folder: Path, name: str
) -> None:
    """Whatever it contains; the search goes on, and a note says why it was not used."""
    content = OTHERS[name]
    (tmp_path / "config.yaml").write_bytes(content.encode() if isinstance(content, str) else content)
    found = find_config(None, {}, tmp_path)
    assert found.path is None
    (note,) = found.notes
    assert note.source == str(tmp_path / "config.yaml")
    assert note.text.startswith("was not used, because it ")
    assert note.text.endswith("; name the file to read: -c FILE or CFPROXY_CONFIG")
    user_folder.mkdir()
    (user_folder / "config.yaml").write_text(BASE)
    assert _find(tmp_path) == user_folder / "config.yaml"


@pytest.mark.parametrize("name", ["cfproxy.yaml", "config.yaml", "user/config.yaml"])
@pytest.mark.parametrize("kind", ["folder", "pipe", "loop", "dangling"])
@posix_only
def test_what_is_no_file_is_passed_over(tmp_path: Path, name: str, kind: str) -> None:
    """A folder that a container made of a missing file, a pipe that nobody writes to, a link to nowhere."""
    place = tmp_path / name
    place.parent.mkdir(exist_ok=True)
    if kind == "folder":
        place.mkdir()
    elif kind == "pipe":
        os.mkfifo(place)
    else:
        place.symlink_to(place.name if kind == "loop" else "nowhere")
    assert _find(tmp_path) is None


@posix_only
def test_a_folder_below_a_file_is_no_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """HOME=/dev/null is a way to say that there is no home."""
    monkeypatch.setattr("platformdirs.user_config_path", lambda _: Path("/dev/null/.config"))
    assert find_config(None, {}, tmp_path) == FoundConfig(None)


def test_a_user_without_a_home_has_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Platformdirs raises an error, or leaves the ~ in the path."""

    def no_home(_: str) -> Path:
        raise RuntimeError

    monkeypatch.setattr("platformdirs.user_config_path", no_home)
    assert find_config(None, {}, tmp_path) == FoundConfig(None)
    monkeypatch.setattr("platformdirs.user_config_path", lambda _: Path("~/.config/cfproxy"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "~/.config/cfproxy").mkdir(parents=True)
    (tmp_path / "~/.config/cfproxy/config.yaml").write_text(BASE)
    assert find_config(None, {}, tmp_path / "user") == FoundConfig(None)


def test_the_notes_say_why_a_file_is_read(tmp_path: Path, user_folder: Path) -> None:
    """And how to name another one; a file that was named needs no reason."""
    user_folder.mkdir()
    reasons = {
        "user/config.yaml": "it is in the user's configuration folder",
        "config.yaml": "it is in the working folder and has the key client_id",
        "cfproxy.yaml": "it is in the working folder",
    }
    for name, reason in reasons.items():
        (tmp_path / name).write_text(BASE)
        (note,) = find_config(None, {}, tmp_path).notes
        text = f"was read because {reason}; to read another file, name it: -c FILE or CFPROXY_CONFIG"
        assert (note.source, note.text) == (str(tmp_path / name), text)
    assert find_config("config.yaml", {}, tmp_path).notes == ()


# --- files that were named --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("explicit", "environ"), [("nope.yaml", {}), (None, {"CFPROXY_CONFIG": "nope.yaml"})]
)
def test_a_named_file_must_exist(tmp_path: Path, explicit: str | None, environ: dict[str, str]) -> None:
    """No other file is read instead."""
    (tmp_path / "config.yaml").write_text(BASE)
    with pytest.raises(ConfigError, match=r"nope\.yaml: does not exist \(named by (-c|CFPROXY_CONFIG)\)"):
        find_config(explicit, environ, tmp_path)


def test_an_inaccessible_path_is_reported_when_it_is_read(tmp_path: Path) -> None:
    """It is neither skipped nor a traceback."""
    path = _find(tmp_path, explicit="x" * 5_000)
    assert path is not None
    with pytest.raises(ConfigError, match="can't be read"):
        load_settings(path, {})


def test_a_dangling_link_is_reported_as_such(tmp_path: Path) -> None:
    """`config init` would not write through it, so the message does not suggest that."""
    link = tmp_path / "config.yaml"
    link.symlink_to("nowhere.yaml")
    with pytest.raises(ConfigError, match=r"is a link to a file that does not exist") as caught:
        _find(tmp_path, explicit=str(link))
    assert "config init" not in str(caught.value)


# --- trust ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["cfproxy.yaml", "config.yaml"])
@posix_only
def test_an_untrusted_file_is_used_only_if_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """It decides where tokens go: in a folder that others can write to it may be a trap."""
    place = tmp_path / name
    place.write_text(BASE)
    assert _find(tmp_path) == place
    place.chmod(0o666)
    with pytest.raises(ConfigError, match="others can write to it"):
        _find(tmp_path)
    assert _find(tmp_path, explicit=name) == place
    place.chmod(0o664)
    owner = place.stat().st_uid
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    if owner == 0:  # a file of root is trusted like one's own
        os.chown(place, 12345, -1)
    with pytest.raises(ConfigError, match="belongs to another user"):
        _find(tmp_path)


@posix_only
def test_an_untrusted_config_yaml_of_another_program_is_passed_over(tmp_path: Path) -> None:
    """It does not stop the start."""
    place = tmp_path / "config.yaml"
    place.write_text("title: x\n")
    place.chmod(0o666)
    assert _find(tmp_path) is None
