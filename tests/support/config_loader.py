"""Shared by the tests of the configuration: a file to load, and the minimum it needs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from cfproxy.config import Account, Settings, load_settings
from cfproxy.errors import ConfigError

BASE = "client_id: app\nredirect_uri: https://example.com/cb\n"
ENVIRON = {"CFPROXY_CLIENT_ID": "app", "CFPROXY_REDIRECT_URI": "https://example.com/cb"}
MARKER = "S3cret-Marker.zz9"


class Loader:
    """Loads text as the file config.yaml in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / "config.yaml"

    def settings(self, text: str | bytes, environ: Mapping[str, str] | None = None) -> Settings:
        self.path.write_bytes(text.encode() if isinstance(text, str) else text)
        return load_settings(self.path, environ or {})

    def account(self, text: str, environ: Mapping[str, str] | None = None) -> Account:
        return self.settings(BASE + text, environ).accounts["default"]

    def problems(self, text: str | bytes, environ: Mapping[str, str] | None = None) -> list[str]:
        with pytest.raises(ConfigError) as caught:
            self.settings(text, environ)
        assert caught.value.problems
        return str(caught.value).replace(str(self.path), "config.yaml").splitlines()

    def problem(self, text: str, environ: Mapping[str, str] | None = None) -> str:
        (only,) = self.problems(BASE + text, environ)
        return only


def outcome(load_it: Callable[[], Settings]) -> Settings | ConfigError:
    """Return the loaded settings, or the error."""
    try:
        return load_it()
    except ConfigError as error:
        return error
