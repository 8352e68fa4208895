"""Coroutines that seldom have to wait, run at once as far as they go: without a task's turn, a timer or a place in a line."""

from __future__ import annotations

from collections.abc import Awaitable, Coroutine, Generator
from typing import Any, Generic, TypeVar

Result = TypeVar("Result")


class Rest(Awaitable[Result], Generic[Result]):
    """What is left of a coroutine that has to wait. Await it, once."""

    __slots__ = ("_waits_for", "_work")

    def __init__(self, work: Coroutine[Any, Any, Result], waits_for: Any) -> None:
        self._work = work
        self._waits_for = waits_for

    def __await__(self) -> Generator[Any, Any, Result]:
        """Go on as ``yield from`` would have (PEP 380)."""
        work, value = self._work, self._waits_for
        while True:
            try:
                try:
                    sent = yield value
                except BaseException as error:  # noqa: BLE001 - a cancellation, or what the future holds: it is the coroutine's
                    value = work.throw(error)
                else:
                    value = work.send(sent)
            except StopIteration as done:
                return done.value  # type: ignore[no-any-return]


def begin(work: Coroutine[Any, Any, Result]) -> Result | Rest[Result]:
    """Run *work* until it has to wait; return its result, or what to await for it. Call it in a task. Raises what *work* raises."""
    try:
        waits_for = work.send(None)
    except StopIteration as done:
        return done.value  # type: ignore[no-any-return]
    return Rest(work, waits_for)
