"""Walk the settings classes by path: what may stand at a key, before anything has been validated.

A path can lead to several classes at once, since a sink's class follows from its ``kind``; so a place is a tuple of annotations.
"""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from postbus.config.finding import Path

Shape = tuple[Any, ...]
"""The annotations that may hold at one place, unions taken apart."""

_MAPS = (dict, Mapping)
_LISTS = (list, tuple, Sequence, frozenset)


def shape_of(annotation: object) -> Shape:
    """Return *annotation* taken apart: no ``Annotated``, no unions, no ``None``."""
    origin = _origin(annotation)
    if origin is Annotated:
        return shape_of(get_args(annotation)[0])
    if origin is Union or isinstance(annotation, types.UnionType):
        return tuple(leaf for member in get_args(annotation) for leaf in shape_of(member))
    return () if annotation is type(None) else (annotation,)


def _origin(annotation: Any) -> Any:
    """Return the generic class behind *annotation*; ``None`` for a plain class."""
    return get_origin(annotation)


def models(shape: Shape) -> tuple[type[BaseModel], ...]:
    """Return the settings classes that may stand here."""
    return tuple(leaf for leaf in shape if isinstance(leaf, type) and issubclass(leaf, BaseModel))


def is_map(shape: Shape) -> bool:
    """Say whether a map by free names may stand here."""
    return any(_origin(leaf) in _MAPS for leaf in shape)


def is_list(shape: Shape) -> bool:
    """Say whether a list may stand here."""
    return any(_origin(leaf) in _LISTS for leaf in shape)


def is_tree(shape: Shape) -> bool:
    """Say whether something with values below it may stand here."""
    return bool(models(shape)) or is_map(shape) or is_list(shape)


def choices(shape: Shape) -> tuple[str, ...]:
    """Return the words a ``Literal`` allows here."""
    return tuple(str(word) for leaf in shape if _origin(leaf) is Literal for word in get_args(leaf))


def below(shape: Shape, key: str | int) -> Shape:
    """Return what may stand at *key* of this place; ``()`` if nothing may."""
    found: list[Any] = []
    for leaf in shape:
        origin = _origin(leaf)
        if isinstance(leaf, type) and issubclass(leaf, BaseModel):
            field = leaf.model_fields.get(str(key))
            found += shape_of(field.annotation) if field else ()
        elif origin in _MAPS:
            found += shape_of(get_args(leaf)[1])
        elif origin in _LISTS and isinstance(key, int):
            found += shape_of(get_args(leaf)[0])
    return tuple(found)


def at(root: type[BaseModel], path: Path, tree: object = None) -> Shape:
    """Return what may stand at *path* below *root*; where *tree* names a ``kind``, only that kind's class counts."""
    shape: Shape = (root,)
    for key in path:
        shape = below(_of_kind(shape, tree), key)
        tree = child(tree, key)
    return _of_kind(shape, tree)


def child(tree: object, key: str | int) -> object:
    """Return what *tree* holds at *key*; ``None`` if it holds nothing there."""
    if isinstance(tree, Mapping):
        return tree.get(str(key))
    if isinstance(tree, list | tuple) and isinstance(key, int) and key < len(tree):
        return tree[key]
    return None


def _of_kind(shape: Shape, tree: object) -> Shape:
    """Return only the classes whose literal ``kind`` is the one *tree* names, else those that take any kind, if there are any."""
    kind = child(tree, "kind")
    if kind is None:
        return shape
    words = {leaf: choices(below((leaf,), "kind")) for leaf in models(shape)}
    chosen = tuple(leaf for leaf in words if kind in words[leaf])
    free = tuple(leaf for leaf in words if not words[leaf] and below((leaf,), "kind"))
    return chosen or free or shape


def fields(shape: Shape) -> dict[str, FieldInfo]:
    """Return the fields of every class that may stand here, by key."""
    return {name: field for model in models(shape) for name, field in model.model_fields.items()}


def places(root: type[BaseModel]) -> Iterator[tuple[Path, type[BaseModel], FieldInfo]]:
    """Yield every key of the tree, in order: its path (``<name>`` for a free name, ``0`` for a list's item), class and field."""
    yield from _places((root,), ())


def _places(shape: Shape, path: Path) -> Iterator[tuple[Path, type[BaseModel], FieldInfo]]:
    for model in models(shape):
        for name, field in model.model_fields.items():
            yield (*path, name), model, field
            yield from _inner(shape_of(field.annotation), (*path, name))


def _inner(shape: Shape, path: Path) -> Iterator[tuple[Path, type[BaseModel], FieldInfo]]:
    yield from _places(shape, path)
    generic = tuple(leaf for leaf in shape if _origin(leaf) is not None)
    if is_map(generic):
        yield from _inner(below(generic, "<name>"), (*path, "<name>"))
    if is_list(generic):
        yield from _inner(below(generic, 0), (*path, 0))
