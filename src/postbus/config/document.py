"""Read YAML into a plain tree that remembers its lines.

YAML as people mean it, which is the core schema of YAML 1.2: ``no``, ``on``, ``12:30`` and ``0600`` are text (the settings
classes take ``yes`` and ``on`` where a switch is wanted), there are no dates, and the only tags are the implicit ones. A key
given twice is an error, since the last one would win silently; aliases are followed within bounds, because a short file can
otherwise stand for billions of nodes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import yaml

from postbus.config.finding import ConfigurationError, Finding, Path, dotted, quoted

DOCUMENT_MAX_CHARACTERS = 1_048_576
"""Kubernetes stores at most 1 MiB in a ConfigMap; nothing sensible is longer."""

NODES_MAX = 100_000
"""Nodes after aliases are followed: 20 routes a node-dozen each take 240; ten nested aliases of ten would take 10^10."""

DEPTH_MAX = 32
"""The deepest key of the settings tree lies at 6."""


class _Loader(yaml.SafeLoader):
    """The safe loader with YAML 1.2's idea of what a plain scalar is."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 - PyYAML wants a plain dict on the class


_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF"))
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"^[-+]?(?:0|[1-9][0-9]*)$"), list("-+0123456789"))
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:(?:0|[1-9][0-9]*)\.[0-9]*|\.[0-9]+|(?:0|[1-9][0-9]*)(?=[eE]))(?:[eE][-+]?[0-9]+)?$"),
    list("-+0123456789."),
)
_Loader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile(r"^(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""])

_TAG = "tag:yaml.org,2002:"


@dataclass(frozen=True, slots=True)
class Document:
    """What a file says.

    Attributes:
        tree: maps with text keys, lists and scalars.
        lines: the line of every key and item, from 1.
        name: of the file, for findings.
    """

    tree: Mapping[str, Any] = field(default_factory=dict)
    lines: Mapping[Path, int] = field(default_factory=lambda: MappingProxyType({}))
    name: str = ""


def parse(text: str, name: str) -> Document:
    """Return what *text* says.

    Raises:
        ConfigurationError: it is not YAML, not one map, or one of YAML's traps; every finding names its line.
    """
    if len(text) > DOCUMENT_MAX_CHARACTERS:
        said = f"the file has {len(text)} characters"
        raise ConfigurationError([Finding("error", "", None, said, f"at most {DOCUMENT_MAX_CHARACTERS} are read", name)])
    root = _compose(text, name)
    if root is None or (isinstance(root, yaml.ScalarNode) and root.tag == f"{_TAG}null"):
        return Document(name=name)
    builder = _Builder(name)
    tree = builder.build(root, (), 1)
    if not isinstance(tree, dict) and not builder.findings:
        builder.refuse((), root, "the file is not a map", "write `key: value` lines")
    if builder.findings:
        raise ConfigurationError(builder.findings)
    return Document(tree, MappingProxyType(builder.lines), name)


def value(text: str) -> object:
    """Return what *text*, one value in YAML's flow form (``[a, b]``, ``{a: b}``), says.

    Raises:
        ConfigurationError: as ``parse``; the findings know neither path nor line.
    """
    root = _compose(text, "")
    builder = _Builder("")
    tree = builder.build(root, (), 1) if root is not None else None
    if builder.findings:
        raise ConfigurationError(builder.findings)
    return tree


def _compose(text: str, name: str) -> yaml.Node | None:
    try:
        documents = list(yaml.compose_all(text, Loader=_Loader))
    except yaml.MarkedYAMLError as error:
        raise ConfigurationError([_syntax(error, text, name)]) from None
    except (yaml.YAMLError, RecursionError) as error:
        why = "it is nested too deeply" if isinstance(error, RecursionError) else "it holds a character that YAML does not allow"
        raise ConfigurationError([Finding("error", "", None, f"not YAML: {why}", "", name)]) from None
    if len(documents) > 1:
        line = documents[1].start_mark.line + 1
        raise ConfigurationError([Finding("error", "", line, "a second document starts here", "remove the `---` line", name)])
    return documents[0] if documents else None


def _syntax(error: yaml.MarkedYAMLError, text: str, name: str) -> Finding:
    """Return what the parser met, in the words of somebody who has made the mistake before."""
    problem = error.problem or error.context or "the parser gives no reason"
    unclosed = any(sign in problem for sign in _UNCLOSED)
    mark = error.context_mark if unclosed and error.context_mark else error.problem_mark or error.context_mark
    line = mark.line + 1 if mark else None
    shown = text.splitlines()[mark.line] if mark and mark.line < len(text.splitlines()) else ""
    for sign, said, remedy in _SYNTAX:
        if sign in problem and (said != _TAB or "\t" in shown):
            return Finding("error", "", line, said, remedy, name)
    return Finding("error", "", line, f"not YAML: {problem}", "", name)


_TAB = "a tab where YAML wants spaces"
_SYNTAX = (
    ("cannot start any token", _TAB, "indent with spaces"),
    ("cannot start any token", "a character that starts no value", "put the value in quotes"),
    ("mapping values are not allowed here", "a colon in a value, or a key indented too far", "put the value in quotes, or align the key"),
    ("found undefined alias", "an alias (`*`) without its anchor", "put a value that starts with `*` in quotes"),
    ("expected alphabetic or numeric character", "`*` or `&` starts no plain value", "put it in quotes"),
    ("expected <block end>", "the indentation does not fit the lines above", "align keys of one map, and `-` of one list"),
    ("could not find expected ':'", "a key without its colon", "write `key: value`"),
    ("found unexpected end of stream", "a quote is not closed", "close it"),
    ("expected ',' or", "a bracket or brace is not closed, or a comma is missing", "close it"),
    ("expected the node content", "a bracket or brace is not closed, or a comma is missing", "close it"),
    ("found duplicate anchor", "the same anchor (`&`) twice", "give each its own name"),
)


_UNCLOSED = ("found unexpected end of stream", "expected ',' or")
"""Problems that are met at the end of the file and made where the quote or bracket stands."""


class _Builder:
    """Turns composed nodes into a plain tree; collects findings instead of stopping at the first."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.lines: dict[Path, int] = {}
        self.findings: list[Finding] = []
        self._nodes = 0
        self._scalars = yaml.constructor.SafeConstructor()

    def refuse(self, path: Path, node: yaml.Node, message: str, remedy: str) -> None:
        """Note that *node*, at *path*, cannot stand."""
        line = node.start_mark.line + 1 if self.name else None
        self.findings.append(Finding("error", dotted(path), line, message, remedy, self.name))

    def build(self, node: yaml.Node, path: Path, depth: int) -> Any:
        """Return the plain value of *node*; ``None`` for what was refused."""
        self._nodes += 1
        if self._nodes > NODES_MAX or depth > DEPTH_MAX:
            if not self.findings:
                self.refuse(path[:4], node, "aliases and nesting stand for too much here", f"at most {NODES_MAX} values, {DEPTH_MAX} deep")
            return None
        self.lines.setdefault(path, node.start_mark.line + 1)
        if isinstance(node, yaml.MappingNode):
            return {key: self.build(item, (*path, key), depth + 1) for key, item in self._items(node, path)}
        if isinstance(node, yaml.SequenceNode):
            return [self.build(item, (*path, index), depth + 1) for index, item in enumerate(node.value) if not self._over()]
        if node.tag.removeprefix(_TAG) not in {"str", "bool", "int", "float", "null"}:
            self.refuse(path, node, f"the tag {quoted(node.tag)} is not known", "write a plain value")
            return None
        try:
            return self._scalars.construct_object(node)
        except ValueError:
            self.refuse(path, node, f"{quoted(node.value)} is not what its tag says", "write it without the tag")
            return None

    def _over(self) -> bool:
        return self._nodes > NODES_MAX

    def _items(self, node: yaml.MappingNode, path: Path) -> Iterator[tuple[str, yaml.Node]]:
        first: dict[str, int] = {}
        for key_node, item in node.value:
            if self._over():
                return
            key = key_node.value if isinstance(key_node, yaml.ScalarNode) else None
            if key is None:
                self.refuse(path, key_node, "a key that is a list or a map", "put text with braces or brackets in quotes")
            elif key == "<<":
                self.refuse(path, key_node, "merge keys (`<<`) are not read", "write the keys out")
            elif key in first:
                self.refuse((*path, key), key_node, f"the key is here a second time, first in line {first[key]}", "keep one of them")
            else:
                first[key] = key_node.start_mark.line + 1
                self.lines[(*path, key)] = first[key]
                yield key, item
