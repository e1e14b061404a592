"""YAML text as a tree of mappings, lists, texts and None.

A plain scalar is text, whatever it looks like, except null. A short text never gives a large tree. No error
quotes the text.
"""

from __future__ import annotations

from typing import Any

import yaml

from cfproxy.config.problems import BadYaml, Keys, Tree

NODES_MAX = 10_000
DEPTH_MAX = 20

_YAML = "tag:yaml.org,2002:"
_TAGS = frozenset(_YAML + kind for kind in ("str", "null", "merge", "map", "seq"))

# By PyYAML's messages, which quote at most one character here.
_CAUSES = (
    (r"found character '\t'", "a tab is used for indentation; replace it with spaces"),
    ("expected a single document", "a second document starts here; a file has only one: remove the ---"),
)


def read_yaml(text: str) -> tuple[Any, list[tuple[Keys, str]]]:
    """Return the content, and a message for each duplicate key; raise BadYaml if it can't be read."""
    builder = _Builder()
    try:
        node = yaml.compose(text, Loader=_Loader)
        return (None if node is None else builder.build(node)), builder.duplicates
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        cause = next((text for sign, text in _CAUSES if sign in f"{error.context} {error.problem}"), None)
    except RecursionError:
        raise BadYaml("too many levels") from None
    except (yaml.YAMLError, ValueError, OverflowError):
        raise BadYaml("contains a character or an escape that YAML does not allow") from None
    if cause is not None:
        raise BadYaml(place + cause)
    raise BadYaml(
        f"{place}not valid YAML; check the indentation, the quotes and the space after each colon, "
        "in this line and the one before"
    )


class _Loader(yaml.SafeLoader):
    """Reads every plain scalar except null as text: no octal 0123456, no boolean `off`, no dates."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - PyYAML's own name, read only
        first: [(tag, pattern) for tag, pattern in resolvers if tag in _TAGS]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


class _Builder:
    """Turns YAML nodes into dicts, lists, texts and None, within limits."""

    def __init__(self) -> None:
        self.duplicates: list[tuple[Keys, str]] = []
        self._nodes = 0

    def build(self, node: yaml.Node, path: Keys = ()) -> Any:
        line = node.start_mark.line + 1
        self._nodes += 1
        if self._nodes > NODES_MAX or len(path) > DEPTH_MAX:
            raise BadYaml(f"line {line}: too many values, levels or aliases")
        if node.tag not in _TAGS:
            raise BadYaml(f"line {line}: tags (words that start with !) are not supported")
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            return [self.build(item, (*path, str(index))) for index, item in enumerate(node.value)]
        return None if node.tag == f"{_YAML}null" else node.value

    def _mapping(self, node: yaml.MappingNode, path: Keys) -> Tree:
        own: Tree = {}
        merged: Tree = {}
        seen: set[str] = set()
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode) or key_node.tag not in _TAGS:
                raise BadYaml(f"line {line}: a key must be plain text")
            key = key_node.value
            if key in seen:
                self.duplicates.append(((*path, key), f"is given twice (again in line {line})"))
            seen.add(key)
            value = self.build(value_node, (*path, key))
            if key_node.tag == f"{_YAML}merge":
                merged = _merge_key(value, line)
            else:
                own[key] = value
        return merged | own


def _merge_key(value: Any, line: int) -> Tree:
    """Return the pairs that `<<: value` stands for; of several mappings, earlier ones win."""
    merged: Tree = {}
    for part in value if isinstance(value, list) else [value]:
        if not isinstance(part, dict):
            raise BadYaml(f"line {line}: << takes a mapping or a list of mappings")
        merged = part | merged
    return merged
