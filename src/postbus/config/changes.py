"""Say what a reload changes, by path: for the log, and for what must be built anew."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from postbus.config.finding import Path, dotted
from postbus.config.tree import Settings


def changes(before: Settings, after: Settings) -> tuple[str, ...]:
    """Return the dotted paths at which the two differ, in the order of the tree; paths only, so it may be logged.

    A list that has grown or shrunk, and a map's name that has come or gone, is one path.
    """
    return tuple(dotted(path) for path in _changes(before.model_dump(), after.model_dump(), ()))


def _changes(before: Any, after: Any, path: Path) -> Iterator[Path]:
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        for key in dict.fromkeys([*before, *after]):
            if key in before and key in after:
                yield from _changes(before[key], after[key], (*path, key))
            else:
                yield (*path, key)
    elif isinstance(before, tuple | list) and isinstance(after, tuple | list) and len(before) == len(after):
        for index, (old, new) in enumerate(zip(before, after, strict=True)):
            yield from _changes(old, new, (*path, index))
    elif before != after:
        yield path
