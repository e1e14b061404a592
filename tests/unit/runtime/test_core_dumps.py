"""A crash leaves no copy of the memory behind."""

from __future__ import annotations

import subprocess
import sys

import pytest

from cfproxy.runtime.process import forbid_core_dumps

ASK = """
import ctypes, resource
from cfproxy.runtime.process import forbid_core_dumps
resource.setrlimit(resource.RLIMIT_CORE, (resource.getrlimit(resource.RLIMIT_CORE)[1],) * 2)
%s
print(resource.getrlimit(resource.RLIMIT_CORE)[0], ctypes.CDLL(None).prctl(3, 0, 0, 0, 0))
"""


def ask(line: str) -> list[str]:
    out = subprocess.run([sys.executable, "-c", ASK % line], capture_output=True, text=True, check=True)
    return out.stdout.split()


@pytest.mark.skipif(sys.platform != "linux", reason="prctl is Linux's")
def test_a_process_can_make_itself_undumpable() -> None:
    """Neither a core file nor a handler that the kernel pipes dumps to gets the memory."""
    assert ask("")[1] == "1"
    assert ask("forbid_core_dumps()") == ["0", "0"]


def test_where_there_is_no_such_switch_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows has neither limit nor mark."""
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setitem(sys.modules, "resource", None)
    forbid_core_dumps()
