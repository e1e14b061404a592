"""Finds the YAML file, and reads it into a tree of known keys.

Whatever the file contains, the result is a tree or problems, never another exception. The environment is read
in `environment.py`.
"""

from __future__ import annotations

import codecs
import contextlib
import os
import re
import shlex
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import platformdirs

from cfproxy.config.keys import check_keys, keys_of
from cfproxy.config.problems import BadYaml, Keys, Problems, Tree
from cfproxy.config.references import user_folder
from cfproxy.config.settings import FileKeys
from cfproxy.config.types import unquote
from cfproxy.errors import ConfigError, Problem

FILE_MAX_BYTES = 262_144
FLOW_MAX_CHARS = 16_384
_UNTRUSTED = "belongs to another user, or others can write to it; to use it anyway, name it: -c FILE"


@dataclass(frozen=True, slots=True)
class FoundConfig:
    """The configuration file.

    Args:
        path: None if there is none.
        notes: for a file that nobody named why it is read, else why those in the usual places are not.
    """

    path: Path | None
    notes: tuple[Problem, ...] = ()


def find_config(explicit: str | None, environ: Mapping[str, str], cwd: Path) -> FoundConfig:
    """Return the first of: `explicit`, `$CFPROXY_CONFIG`, a file in `cwd`, a file in the user's folder.

    In `cwd` that is `cfproxy.yaml`, or a `config.yaml` that has a key of ours at its top level. What nobody
    named and this user can't read counts as absent.

    Raises:
        ConfigError: the named file does not exist, or a file that was not named is not trusted.
    """
    for name, origin in ((explicit, "-c"), (unquote(environ.get("CFPROXY_CONFIG", "")), "CFPROXY_CONFIG")):
        if name:
            _check_exists(cwd / name, name, origin)
            return FoundConfig(cwd / name)
    skipped = []
    for place, why in _usual_places(cwd):
        try:
            status = _look_at(place)
            if status is None:
                continue
            reason = why or f"it is in the working folder and has the key {_own_key(place)}"
        except BadYaml as error:
            text = f"was not used, because it {error}; name the file to read: -c FILE or CFPROXY_CONFIG"
            skipped.append(Problem(str(place), "", text))
            continue
        if not _is_trusted(status):
            raise ConfigError("untrusted configuration file", (Problem(str(place), "", _UNTRUSTED),))
        text = f"was read because {reason}; to read another file, name it: -c FILE or CFPROXY_CONFIG"
        return FoundConfig(place, (Problem(str(place), "", text),))
    return FoundConfig(None, tuple(skipped))


def _check_exists(path: Path, name: str, origin: str) -> None:
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        if path.is_symlink():
            text = f"is a link to a file that does not exist (named by {origin}); fix the link"
        else:
            text = f"does not exist (named by {origin}); run: cfproxy config init -c {shlex.quote(name)}"
        raise ConfigError("no such configuration file", (Problem(name, "", text),)) from None
    except OSError:
        pass  # reading it will report the problem


def _usual_places(cwd: Path) -> Iterator[tuple[Path, str]]:
    """Yield where a file that nobody named may be, and why it is ours there; empty if its content decides."""
    yield cwd / "cfproxy.yaml", "it is in the working folder"
    yield cwd / "config.yaml", ""
    if (folder := user_folder(platformdirs.user_config_path)) is not None:
        yield folder / "config.yaml", "it is in the user's configuration folder"


def _look_at(place: Path) -> os.stat_result | None:
    """Return a readable file's status, None if it is absent; BadYaml says what else it is."""
    try:
        status = place.stat()
        if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for its other end
            raise BadYaml("is not a file")
        with place.open("rb"):
            return status
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise BadYaml(f"can't be read: {error.strerror}") from None


def _own_key(place: Path) -> str:
    """Return a key of ours at the top level of a file whose name many programs use.

    By its lines, because parsing another program's file may take seconds, and a broken file of ours is still
    ours: its mistake has to be reported. Only mappings in braces are parsed.
    """
    text, keys = _read_text(place), keys_of(FileKeys)
    found = None
    if text.lstrip().startswith("{"):
        with contextlib.suppress(BadYaml):
            tree, _ = parse_yaml(text[:FLOW_MAX_CHARS])
            found = next((str(key) for key in keys if key in tree), None)
    elif first := re.search(r"(?m)^( *)(?!---|#|%)\S", text):
        line = re.search(rf"(?m)^{first[1]}(['\"]?)({'|'.join(keys)})\1[ \t]*:", text)
        found = None if line is None else line[2]
    if found is None:
        raise BadYaml("has no key of cfproxy at its top level")
    return found


def _is_trusted(status: os.stat_result) -> bool:
    """Whether a file that was not named belongs to this user or the system, and only they can write to it.

    It decides where tokens and secrets go, and other users may be able to write to the current folder.
    """
    return os.name != "posix" or (status.st_uid in {0, os.geteuid()} and not status.st_mode & stat.S_IWOTH)


def read_file(path: Path, problems: Problems, *, searched: bool = False) -> Tree | None:
    """Return the file's known keys; None if it can't be read at all.

    `searched`: nobody named it, so it has to be trusted each time that it is read.
    """
    try:
        tree, duplicates = parse_yaml(_read_text(path, searched=searched))
    except BadYaml as error:
        problems.add((), str(error))
        return None
    for keys, text in duplicates:
        problems.add(keys, text)
    if not isinstance(tree, dict | None):
        problems.add((), "must consist of lines such as `key: value`, with a space after the colon")
        return None
    return check_keys(FileKeys, tree or {}, (), problems)


def parse_yaml(text: str) -> tuple[Any, list[tuple[Keys, str]]]:
    """Return what `read_yaml` returns."""
    from cfproxy.config.yaml import read_yaml  # noqa: PLC0415 - a start without a file is faster

    return read_yaml(text)


def _read_text(path: Path, *, searched: bool = False) -> str:
    flags = getattr(os, "O_NONBLOCK", 0) if searched else 0  # a pipe must not make us wait

    def opener(name: str, mode: int) -> int:
        return os.open(name, mode | flags)

    try:
        with open(path, "rb", opener=opener) as file:
            status = os.fstat(file.fileno())
            if searched and not stat.S_ISREG(status.st_mode):
                raise BadYaml("is not a file")
            if searched and not _is_trusted(status):
                raise BadYaml(_UNTRUSTED)
            data = file.read(FILE_MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or "not a usable path"
        raise BadYaml(f"can't be read: {reason}") from None
    if len(data) > FILE_MAX_BYTES:
        raise BadYaml(f"is larger than {FILE_MAX_BYTES // 1024} KiB")
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise BadYaml("is UTF-16 text; save it as UTF-8")
    try:
        return data.decode("utf-8-sig")  # Windows editors put a byte-order mark first
    except UnicodeDecodeError:
        raise BadYaml("is not UTF-8 text; save it as UTF-8") from None
