"""What a source of settings is read into, and the error of one that can't be read.

Must not know: how it is read. YAML's library is for who has a file: a container without one starts sooner.
"""

from __future__ import annotations

from typing import Any

Keys = tuple[str, ...]
Tree = dict[str, Any]


class BadYaml(Exception):
    """The text cannot be read; carries our own words only, PyYAML's quote the text."""
