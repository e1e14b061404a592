"""The structure that docs/architecture.md promises, where import-linter and ruff do not check it."""

from __future__ import annotations

import ast
import os
import pkgutil
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

import cfproxy

PACKAGE = Path(cfproxy.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
MODULES = sorted(module.name for module in pkgutil.walk_packages([str(PACKAGE)], "cfproxy."))
PACKAGES = sorted(path.parent for path in PACKAGE.glob("*/__init__.py"))
# Forks for each module. The imports of other packages are shared, because they take most of the time.
IMPORT_EACH = """
import importlib, os, sys
import aiohttp, click, prometheus_client, pydantic, structlog, yaml
for name in sys.argv[1:]:
    child = os.fork()
    if child == 0:
        importlib.import_module(name)
        os.write(1, f"{name}\\n".encode())
        os._exit(0)
    os.waitpid(child, 0)
    if "cfproxy" in sys.modules:
        sys.exit("a package that cfproxy uses imports cfproxy")
"""


def _line_count(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def _is_protocol(node: ast.AST) -> bool:
    names = [base.value if isinstance(base, ast.Subscript) else base for base in getattr(node, "bases", ())]
    return isinstance(node, ast.ClassDef) and any(
        isinstance(name, ast.Name) and name.id == "Protocol" for name in names
    )


def test_few_modules_lie_outside_the_packages() -> None:
    """At most eight Python files lie directly in the package."""
    assert len(list(PACKAGE.glob("*.py"))) <= 8


def test_no_module_is_long() -> None:
    """No module has more than 350 lines."""
    assert {str(path.relative_to(PACKAGE)): n for path in FILES if (n := _line_count(path)) > 350} == {}


def test_modules_are_short_as_a_rule() -> None:
    """Half of the modules have at most 150 lines."""
    assert statistics.median(map(_line_count, FILES)) <= 150


def test_protocols_are_rare() -> None:
    """The package defines at most eight protocols."""
    found = [
        f"{path.relative_to(PACKAGE)}:{getattr(node, 'name', '')}"
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if _is_protocol(node)
    ]
    assert len(found) <= 8, found


@pytest.mark.parametrize("package", PACKAGES, ids=[package.name for package in PACKAGES])
def test_each_package_says_what_it_is_for(package: Path) -> None:
    """Its `__init__` has a docstring with what it owns and what other packages use."""
    docstring = ast.get_docstring(ast.parse((package / "__init__.py").read_text(encoding="utf-8")))
    assert docstring
    assert len(docstring.splitlines()) >= 3


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_each_module_can_be_imported_alone() -> None:
    """No module relies on another one having been imported first."""
    command = [sys.executable, "-W", "error", "-c", IMPORT_EACH, *MODULES]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout.split() == MODULES
