"""Say in an operator's words what the settings classes refuse: one literal table, and a few looks around the place.

Pydantic's own messages are written for programmers and name neither the file's line nor the nearest right key.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping
from typing import Any

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from postbus.config import shape
from postbus.config.finding import Path, dotted, quoted

Said = tuple[str, str]
"""What is wrong, and what would be right."""

SECRET_MARKS = ("password", "secret", "token", "credential", "authorization", "headers")
"""Keys whose values are never repeated in a finding: findings go to logs and terminals."""

_OCTETS: Mapping[str, float] = {
    "b": 1,
    "k": 1024,
    "kb": 1000,
    "kib": 1024,
    "ki": 1024,
    "m": 1024**2,
    "mb": 1000**2,
    "mib": 1024**2,
    "mi": 1024**2,
    "g": 1024**3,
    "gb": 1000**3,
    "gib": 1024**3,
    "gi": 1024**3,
}
_UNITS: Mapping[str, tuple[str, Mapping[str, float]]] = {
    "_octets_s": ("octets per second", _OCTETS),
    "_ms": ("milliseconds", {"ms": 1, "s": 1e3, "m": 6e4, "min": 6e4, "h": 3.6e6}),
    "_s": ("seconds", {"ms": 1e-3, "s": 1, "sec": 1, "m": 60, "min": 60, "h": 3600, "d": 86_400}),
    "_days": ("days", {"d": 1, "h": 1 / 24, "w": 7}),
    "_octets": ("octets", _OCTETS),
}
"""Ends of key names, longest first: the unit in words, and how many of it other spellings are."""

_QUANTITY = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]+)\s*")

_SENTENCES: Mapping[str, tuple[str, str]] = {
    # pydantic's error type: what is wrong, what would be right. {value} is what stands there; the rest is pydantic's context.
    "missing": ("this key is required", ""),
    "bool_type": ("{value} is neither true nor false", "write true or false"),
    "bool_parsing": ("{value} is neither true nor false", "write true or false"),
    "int_type": ("{value} is not a whole number", "write {wanted}"),
    "int_parsing": ("{value} is not a whole number", "write {wanted}"),
    "int_parsing_size": ("{value} is too large a number", "write a smaller one"),
    "int_from_float": ("{value} is not a whole number", "write {wanted}"),
    "float_type": ("{value} is not a number", "write {wanted}"),
    "float_parsing": ("{value} is not a number", "write {wanted}"),
    "finite_number": ("{value} is not a finite number", "write {wanted}"),
    "string_type": ("{value} is not text", "write text, in quotes where it looks like a number or a switch"),
    "string_too_short": ("{value} is too short", "write {min_length} or more characters"),
    "string_too_long": ("the text is too long", "write at most {max_length} characters"),
    "string_pattern_mismatch": ("{value} does not have the right form", "{form}"),
    "greater_than": ("{value} is too small", "write more than {gt}{unit}"),
    "greater_than_equal": ("{value} is too small", "write at least {ge}{unit}"),
    "less_than": ("{value} is too large", "write less than {lt}{unit}"),
    "less_than_equal": ("{value} is too large", "write at most {le}{unit}"),
    "literal_error": ("{value} is not known here", "{choices}"),
    "dict_type": ("{value} stands where a map is wanted", "write keys below it"),
    "mapping_type": ("{value} stands where a map is wanted", "write keys below it"),
    "model_type": ("{value} stands where a map is wanted", "{keys}"),
    "model_attributes_type": ("{value} stands where a map is wanted", "{keys}"),
    "list_type": ("{value} stands where a list is wanted", "write `[...]`, or one `- item` a line"),
    "tuple_type": ("{value} stands where a list is wanted", "write `[...]`, or one `- item` a line"),
    "too_short": ("there are too few entries", "give at least {min_length}"),
    "too_long": ("there are too many entries", "give at most {max_length}"),
    "ip_any_network": ("{value} is not a network", "write one in CIDR form, as in 10.0.0.0/8"),
    "path_type": ("{value} is not the name of a file", "write its path as text"),
    "union_tag_not_found": ("the kind is missing", "{choices}"),
    "union_tag_invalid": ('there is no {discriminator} "{tag}"', "{choices}"),
}

_FORMS: Mapping[str, str] = {
    r"^[a-z0-9]+(_[a-z0-9]+)*$": "use a-z and 0-9, with single underscores between",
    r"^[a-zA-Z0-9._-]+$": "use letters, digits, dots, underscores and dashes",
}


def said(error: ErrorDetails, path: Path, root: type[BaseModel], tree: object) -> Said:
    """Return what is wrong at *path* and what would be right, from pydantic's *error* about *tree*."""
    kind, context = error["type"], dict(error.get("ctx", {}))
    if kind == "extra_forbidden":
        return unknown(path, root, tree)
    if kind in {"value_error", "assertion_error"}:
        message, _, remedy = without(str(context.get("error", error["msg"])), path, error["input"]).rstrip(".").partition("; ")
        return message, remedy
    sentence = _SENTENCES.get(kind)
    if sentence is None:
        return error["msg"][:1].lower() + error["msg"][1:].rstrip("."), ""
    words = _Words(context, error, path, root, tree)
    return sentence[0].format_map(words), sentence[1].format_map(words)


class _Words(dict[str, str]):
    """The words a sentence of the table may ask for, made only when asked."""

    def __init__(self, context: Mapping[str, Any], error: ErrorDetails, path: Path, root: type[BaseModel], tree: object) -> None:
        plain = {name: number(value) if isinstance(value, float) else str(value) for name, value in context.items()}
        plain["discriminator"] = plain.get("discriminator", "").replace("'", "")
        super().__init__(plain)
        self._made: Mapping[str, Callable[[], str]] = {
            "value": lambda: "the value" if hidden(path, error["input"]) else quoted(error["input"]),
            "wanted": lambda: _quantity(path, error["input"]),
            "unit": lambda: f" {name}" if (name := unit(path)) else "",
            "form": lambda: _FORMS.get(plain.get("pattern", ""), f"it must match {plain.get('pattern')}"),
            "choices": lambda: _choice(error["input"], plain, shape.at(root, path, tree)),
            "keys": lambda: f"write keys below it: {', '.join(sorted(shape.fields(shape.at(root, path, tree))))}",
        }

    def __missing__(self, word: str) -> str:
        make = self._made.get(word)
        return make() if make else word


def without(message: str, path: Path, value: object) -> str:
    """Return *message* without *value* where it may carry a secret: a URL's user name, password and query do."""
    if isinstance(value, str) and value and hidden(path, value):
        return message.replace(repr(value), "the value").replace(value, "the value")
    return message


def hidden(path: Path, value: object) -> bool:
    """Say whether *value*, at *path*, may carry a secret, so that a finding must not repeat it."""
    return any(mark in str(key) for key in path for mark in SECRET_MARKS) or (isinstance(value, str) and "://" in value)


def unknown(path: Path, root: type[BaseModel], tree: object) -> Said:
    """Return that the last key of *path* is not known, and the nearest that is: here, or elsewhere in the tree."""
    key, known = str(path[-1]), sorted(shape.fields(shape.at(root, path[:-1], tree)))
    near = meant(path, root, tree)
    if near:
        return f"there is no key {quoted(key)} here", f"did you mean {near}?"
    elsewhere = [place for place, _, _ in shape.places(root) if place[-1] == key]
    if elsewhere:
        return f"there is no key {quoted(key)} here", f"it belongs at {dotted(elsewhere[0])}"
    return f"there is no key {quoted(key)} here", f"known are {', '.join(known)}" if known else ""


def meant(path: Path, root: type[BaseModel], tree: object) -> str | None:
    """Return the known key that the last one of *path* is probably meant to be."""
    return nearest(str(path[-1]), sorted(shape.fields(shape.at(root, path[:-1], tree))))


def nearest(word: str, known: list[str] | tuple[str, ...]) -> str | None:
    """Return the one of *known* most like *word*, ignoring how words are joined (``logFormat``, ``log-format``); ``None`` if none is."""
    plain = {_joined(name): name for name in known}
    found = difflib.get_close_matches(_joined(word), list(plain), n=1, cutoff=0.6)
    whole = [name for short, name in plain.items() if len(_joined(word)) > 3 and short.startswith(_joined(word))]
    return whole[0] if whole else plain[found[0]] if found else None


def _joined(word: str) -> str:
    return re.sub(r"[^a-z0-9]", "", word.lower())


def unit(path: Path) -> str:
    """Return the unit the key's name ends with, in words; ``""`` if it has none."""
    name = str(path[-1]) if path else ""
    return next((words for suffix, (words, _) in _UNITS.items() if name.endswith(suffix)), "")


def _quantity(path: Path, value: object) -> str:
    """Return what to write for *value* (``30s``, ``25MiB``) where a plain number of the key's unit is wanted."""
    name = str(path[-1]) if path else ""
    match = _QUANTITY.fullmatch(value) if isinstance(value, str) else None
    for suffix, (words, factors) in _UNITS.items():
        if name.endswith(suffix):
            factor = factors.get(match[2].lower()) if match else None
            return f"{number(float(match[1]) * factor)}, in {words}" if match and factor else f"a number of {words}"
    return "a number"


def number(value: float) -> str:
    """Return *value* as it is written in a file: no exponent, no point where none is needed."""
    return str(int(value)) if value.is_integer() else f"{value:.6g}"


def _choice(value: object, context: Mapping[str, str], place: shape.Shape) -> str:
    """Return which words are allowed, the likely one alone where there is one."""
    allowed = shape.choices(place) or shape.choices(shape.below(place, "kind"))
    wrong = context.get("tag", value if isinstance(value, str) else "")
    near = nearest(wrong, allowed) if wrong else None
    return f"did you mean {near}?" if near else f"use {_or(allowed)}"


def _or(words: tuple[str, ...]) -> str:
    return f"{', '.join(words[:-1])} or {words[-1]}" if len(words) > 1 else "".join(words)
