"""YAML text as a tree of mappings, lists, texts and None.

Owns: what of YAML is understood, its bounds, and the words for what is not.
Must not know: any key, any file.
Invariants: a plain scalar is text, whatever it looks like, null apart; a short text gives no large tree;
no error quotes the text.
"""

from __future__ import annotations

from typing import Any

import yaml

from cfproxy.config.tree import BadYaml, Keys, Tree

NODES_MAX = 10_000
DEPTH_MAX = 20

_YAML = "tag:yaml.org,2002:"
_TAGS = frozenset(_YAML + kind for kind in ("str", "null", "merge", "map", "seq"))

# By PyYAML's own words, which quote at most one character here.
_CAUSES = (
    (r"found character '\t'", "a tab stands where YAML wants spaces; put spaces in its place"),
    ("expected a single document", "a second document begins here; one file holds one: remove the ---"),
)


def read_yaml(text: str) -> tuple[Any, list[tuple[Keys, str]]]:
    """Return the content and the keys that are given twice; raises BadYaml."""
    builder = _Builder()
    try:
        node = yaml.compose(text, Loader=_Loader)
        return (None if node is None else builder.build(node)), builder.twice
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        cause = next((words for sign, words in _CAUSES if sign in f"{error.context} {error.problem}"), None)
    except RecursionError:
        raise BadYaml("too many levels") from None
    except (yaml.YAMLError, ValueError, OverflowError):
        raise BadYaml("holds a character or an escape that YAML does not have") from None
    if cause is not None:
        raise BadYaml(place + cause)
    raise BadYaml(
        f"{place}not valid YAML; look at the indentation, the quotes and the space after each colon, "
        "here and in the line before"
    )


class _Loader(yaml.SafeLoader):
    """Reads every plain scalar but null as text: no octal 0123456, no boolean `off`, no dates."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - PyYAML's own name, read only
        first: [(tag, pattern) for tag, pattern in resolvers if tag in _TAGS]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


class _Builder:
    """Turns YAML nodes into dicts, lists, texts and None, within bounds."""

    def __init__(self) -> None:
        self.twice: list[tuple[Keys, str]] = []
        self._nodes = 0

    def build(self, node: yaml.Node, path: Keys = ()) -> Any:
        line = node.start_mark.line + 1
        self._nodes += 1
        if self._nodes > NODES_MAX or len(path) > DEPTH_MAX:
            raise BadYaml(f"line {line}: too many values, levels or aliases")
        if node.tag not in _TAGS:
            raise BadYaml(f"line {line}: tags (words that begin with !) can't be used")
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
                self.twice.append(((*path, key), f"is given twice (again in line {line})"))
            seen.add(key)
            value = self.build(value_node, (*path, key))
            if key_node.tag == f"{_YAML}merge":
                merged = _merge_key(value, line)
            else:
                own[key] = value
        return merged | own


def _merge_key(value: Any, line: int) -> Tree:
    """Return the pairs that `<<: value` stands for; of several mappings the earlier wins."""
    merged: Tree = {}
    for part in value if isinstance(value, list) else [value]:
        if not isinstance(part, dict):
            raise BadYaml(f"line {line}: << takes a mapping or a list of mappings")
        merged = part | merged
    return merged
