"""The clients of the recipes, and how to run each.

Owns: which program runs which file, and the words of a skip where it is missing.
Must not know: what a recipe does (`test_recipes.py`).
"""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.paths import ROOT

HERE = Path(__file__).resolve().parent
RECIPES = ROOT / "docs" / "recipes"
PATIENCE_S = 60.0
_JACKSON = [Path(f"/usr/share/java/jackson-{part}.jar") for part in ("core", "annotations", "databind")]
_ASSEMBLIES = (
    *("System.Private.CoreLib", "System.Private.Uri", "System.Runtime", "System.Runtime.Extensions"),
    *("System.Collections", "System.Linq", "System.Console", "System.IO.FileSystem", "System.Memory"),
    *("System.Net.Http", "System.Net.Primitives", "System.Text.Json"),
)


@dataclass(frozen=True)
class Client:
    """A recipe's file and the command that runs it.

    Args:
        file: in docs/recipes.
        words: takes the recipe's path and a folder to build in; returns the command but for its argument.
    """

    file: str
    words: Callable[[Path, Path], list[str]]

    @property
    def name(self) -> str:
        """The name of the recipe's page without suffix."""
        return Path(self.file).stem


def program(name: str, package: str) -> str:
    """Return a program's path; skip the test if it is missing."""
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed: {package}")
    return found


def _shell(tool: str) -> Callable[[Path, Path], list[str]]:
    def words(path: Path, _: Path) -> list[str]:
        program(tool, f"apt-get install {tool}")
        program("jq", "apt-get install jq")
        return [program("sh", "it comes with every POSIX system"), str(path)]

    return words


def _python(module: str) -> Callable[[Path, Path], list[str]]:
    def words(path: Path, _: Path) -> list[str]:
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is not installed: pip install {module}")
        return [sys.executable, str(path)]

    return words


def _php(path: Path, _: Path) -> list[str]:
    php = program("php", "apt-get install php-cli php-curl")
    if not _succeeds(php, "-r", "exit(extension_loaded('curl') ? 0 : 1);"):
        pytest.skip("PHP has no curl: apt-get install php-curl")
    return [php, str(path)]


def _perl(path: Path, _: Path) -> list[str]:
    perl = program("perl", "apt-get install perl")
    if not _succeeds(perl, "-MLWP", "-MHTTP::Request::Common", "-e", "1"):
        pytest.skip("Perl has no LWP: apt-get install libwww-perl")
    return [perl, str(path)]


def _node(path: Path, _: Path) -> list[str]:
    node = program("node", "apt-get install nodejs")
    if not _succeeds(node, "-e", "process.exit(Number(process.versions.node.split('.')[0]) >= 20 ? 0 : 1)"):
        pytest.skip("this Node is older than 20")
    return [node, str(path)]


def _java(path: Path, _: Path) -> list[str]:
    java = program("java", "apt-get install default-jdk-headless")
    if not _succeeds(java, "--list-modules") or "jdk.compiler" not in _output(java, "--list-modules"):
        pytest.skip("this Java can't run a source file: apt-get install default-jdk-headless")
    if not all(jar.exists() for jar in _JACKSON):
        pytest.skip("Jackson is not installed: apt-get install libjackson2-databind-java")
    return [java, "-Dfile.encoding=UTF-8", "-cp", os.pathsep.join(map(str, _JACKSON)), str(path)]


def _r(path: Path, _: Path) -> list[str]:
    rscript = program("Rscript", "apt-get install r-cran-httr2")
    if not _succeeds(rscript, "-e", "library(httr2); library(jsonlite)"):
        pytest.skip("R lacks httr2 or jsonlite: apt-get install r-cran-httr2 r-cran-jsonlite")
    return [rscript, str(path)]


def _go(path: Path, folder: Path) -> list[str]:
    built = folder / "recipe"
    go = program("go", "apt-get install golang-go")
    subprocess.run([go, "build", "-o", str(built), str(path)], check=True, timeout=PATIENCE_S)
    return [str(built)]


def _powershell(path: Path, _: Path) -> list[str]:
    return [
        program("pwsh", "PowerShell 7, which Debian does not carry"),
        str(path),
    ]


def _dotnet(path: Path, folder: Path) -> list[str]:
    if (sdk := shutil.which("dotnet")) is not None:
        return _built_by_sdk(sdk, path, folder)
    home = ROOT / ".venv" / "dotnet" / "dotnetcore2" / "bin"
    mcs = program("mcs", "apt-get install mono-mcs, or have a .NET SDK")
    if not home.is_dir():
        pytest.skip("no .NET: pip install --target .venv/dotnet -r tests/docs/recipes/requirements.txt")
    (framework,) = (home / "shared" / "Microsoft.NETCore.App").iterdir()
    # This compiler does not support an async Main.
    entry = folder / "entry.cs"
    entry.write_text(
        "static class Entry { static int Main(string[] words) "
        "{ return Program.Main(words).GetAwaiter().GetResult(); } }",
        encoding="utf-8",
    )
    built = folder / "recipe.dll"
    subprocess.run(
        [
            *(mcs, "-nostdlib", "-noconfig", "-langversion:7.2", "-nowarn:28,1702", "-main:Entry"),
            *(f"-r:{framework / name}.dll" for name in _ASSEMBLIES),
            *(f"-out:{built}", str(entry), str(path)),
        ],
        check=True,
        timeout=PATIENCE_S,
    )
    options = {
        "framework": {"name": "Microsoft.NETCore.App", "version": framework.name},
        "configProperties": {"System.Globalization.Invariant": True},
    }
    config = json.dumps({"runtimeOptions": options})
    built.with_suffix(".runtimeconfig.json").write_text(config, encoding="utf-8")
    runtime = home / "dotnet"
    runtime.chmod(0o755)  # pip keeps no mode
    return [str(runtime), str(built)]


def _built_by_sdk(sdk: str, path: Path, folder: Path) -> list[str]:
    version = _output(sdk, "--version").partition(".")[0]
    project = folder / "recipe"
    project.mkdir()
    shutil.copy(path, project / "Program.cs")
    (project / "recipe.csproj").write_text(
        '<Project Sdk="Microsoft.NET.Sdk"><PropertyGroup><OutputType>Exe</OutputType>'
        f"<TargetFramework>net{version}.0</TargetFramework></PropertyGroup></Project>",
        encoding="utf-8",
    )
    subprocess.run([sdk, "build", "-o", str(project / "out")], cwd=project, check=True, timeout=PATIENCE_S)
    return [sdk, str(project / "out" / "recipe.dll")]


def _newman(path: Path, folder: Path) -> list[str]:
    node = program("node", "apt-get install nodejs")
    if not (HERE / "node_modules" / "newman").is_dir():
        pytest.skip("newman is not installed: npm install --prefix tests/docs/recipes")
    return [node, str(HERE / "newman.cjs"), str(path), str(folder)]


CLIENTS = [
    Client("curl.sh", _shell("curl")),
    Client("wget.sh", _shell("wget")),
    Client("postman-collection.json", _newman),
    Client("python-requests.py", _python("requests")),
    Client("python-httpx.py", _python("httpx")),
    Client("php.php", _php),
    Client("perl.pl", _perl),
    Client("node.mjs", _node),
    Client("Java.java", _java),
    Client("r.R", _r),
    Client("powershell.ps1", _powershell),
    Client("dotnet.cs", _dotnet),
    Client("go.go", _go),
]


@functools.cache
def _output(*words: str) -> str:
    return subprocess.run(words, capture_output=True, check=False, timeout=PATIENCE_S).stdout.decode()


@functools.cache
def _succeeds(*words: str) -> bool:
    return subprocess.run(words, capture_output=True, check=False, timeout=PATIENCE_S).returncode == 0
