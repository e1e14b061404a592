"""The limit of open files: raised as far as the system allows, and never guessed."""

from __future__ import annotations

import subprocess
import sys

import pytest

from cfproxy.runtime.process import open_files_for

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such limit")

ASK = """
import resource  # noqa: PLC0415 - not on Windows
from cfproxy.runtime.process import open_files_for
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 128))
print(open_files_for(32), resource.getrlimit(resource.RLIMIT_NOFILE)[0])
print(open_files_for(100), resource.getrlimit(resource.RLIMIT_NOFILE)[0])
print(open_files_for(5000), resource.getrlimit(resource.RLIMIT_NOFILE)[0])
"""


def test_the_limit_goes_as_high_as_is_wanted_and_allowed() -> None:
    """What is enough is left alone; the hard limit is never exceeded, and told."""
    out = subprocess.run([sys.executable, "-c", ASK], capture_output=True, text=True, check=True).stdout
    assert out.splitlines() == ["32 64", "100 100", "128 128"]


def test_a_system_that_takes_less_than_it_says_is_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Mac calls its limit unlimited, and takes no more than 10,240."""
    import resource

    taken: list[int] = []

    def take(_: int, limits: tuple[int, int]) -> None:
        if limits[0] > most:
            raise ValueError("too many")
        taken.append(limits[0])

    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, resource.RLIM_INFINITY))
    monkeypatch.setattr(resource, "setrlimit", take)
    most = 10_240
    assert (open_files_for(20_000), taken) == (10_240, [10_240])
    most = 100
    assert open_files_for(20_000) == 256
