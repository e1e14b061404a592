"""The limit of open files, and core dumps."""

from __future__ import annotations

import subprocess
import sys

import pytest

from cfproxy.runtime.os_limits import forbid_core_dumps, open_files_for

OPEN_FILES = """
import resource  # noqa: PLC0415 - not on Windows
from cfproxy.runtime.os_limits import open_files_for
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 128))
print(open_files_for(32), resource.getrlimit(resource.RLIMIT_NOFILE)[0])
print(open_files_for(100), resource.getrlimit(resource.RLIMIT_NOFILE)[0])
print(open_files_for(5000), resource.getrlimit(resource.RLIMIT_NOFILE)[0])
"""
CORE_DUMPS = """
import ctypes, resource
from cfproxy.runtime.os_limits import forbid_core_dumps
resource.setrlimit(resource.RLIMIT_CORE, (resource.getrlimit(resource.RLIMIT_CORE)[1],) * 2)
%s
print(resource.getrlimit(resource.RLIMIT_CORE)[0], ctypes.CDLL(None).prctl(3, 0, 0, 0, 0))
"""

has_limits = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such limit")


def run(script: str) -> list[str]:
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return out.stdout.splitlines()


@has_limits
def test_the_limit_of_open_files_is_raised_as_far_as_needed_and_allowed() -> None:
    """A sufficient limit is left alone; the hard limit is never exceeded."""
    assert run(OPEN_FILES) == ["32 64", "100 100", "128 128"]


@has_limits
def test_a_system_that_accepts_less_than_it_reports_is_respected(monkeypatch: pytest.MonkeyPatch) -> None:
    """MacOS reports an unlimited hard limit, and accepts at most 10,240."""
    import resource

    accepted: list[int] = []

    def set_limit(_: int, limits: tuple[int, int]) -> None:
        if limits[0] > most:
            raise ValueError("too many")
        accepted.append(limits[0])

    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, resource.RLIM_INFINITY))
    monkeypatch.setattr(resource, "setrlimit", set_limit)
    most = 10_240
    assert (open_files_for(20_000), accepted) == (10_240, [10_240])
    most = 100
    assert open_files_for(20_000) == 256


@pytest.mark.skipif(sys.platform != "linux", reason="prctl is Linux's")
def test_a_process_can_forbid_core_dumps() -> None:
    """Neither a core file nor a handler that the kernel pipes dumps to gets the memory."""
    assert run(CORE_DUMPS % "")[0].split()[1] == "1"
    assert run(CORE_DUMPS % "forbid_core_dumps()") == ["0 0"]


def test_forbidding_core_dumps_does_nothing_on_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows has neither the limit nor the flag."""
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setitem(sys.modules, "resource", None)
    forbid_core_dumps()
