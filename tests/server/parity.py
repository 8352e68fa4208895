"""What aiosmtpd's modules offer, and where ours differ: compared by names and signatures, never by reading code."""

from __future__ import annotations

import importlib
import inspect
import types
from collections.abc import Iterator
from typing import Any

MODULES = ("smtp", "lmtp", "controller", "handlers", "main", "proxy_protocol")

SUBCLASS_POINTS = frozenset({
    "_auth_interact", "_authenticate", "_call_handler_hook", "_cleanup", "_create_envelope", "_create_server", "_create_session",
    "_deliver", "_factory_invoker", "_handle_hooks", "_run", "_set_post_data_state", "_set_rset_state", "_smtp_methods", "_thread",
})  # fmt: skip
"""Names with an underscore that programs override or look at."""


def differences() -> Iterator[tuple[str, str]]:
    """Yield (dotted name, what differs) for each name of aiosmtpd that ours has not, or has otherwise."""
    for module in MODULES:
        theirs = importlib.import_module(f"aiosmtpd.{module}")
        try:
            ours: Any = importlib.import_module(f"postbus.server.{module}")
        except ModuleNotFoundError:
            yield module, "no such module"
            continue
        for name in sorted(_offered(theirs)):
            yield from _compared(f"{module}.{name}", getattr(theirs, name), getattr(ours, name, None))


def _offered(module: types.ModuleType) -> set[str]:
    """Return the names that a program may import from *module*."""
    here = {
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and not isinstance(value, types.ModuleType)
        and getattr(value, "__module__", module.__name__) in {module.__name__, None}
    }
    return here | {name for name in getattr(module, "__all__", ()) if not name.startswith("_")}


def _compared(path: str, theirs: Any, ours: Any) -> Iterator[tuple[str, str]]:
    if ours is None:
        yield path, "missing"
    elif inspect.isclass(theirs):
        if not inspect.isclass(ours):
            yield path, f"is {type(ours).__name__}, not a class"
            return
        if inspect.isfunction(vars(theirs).get("__init__")):
            yield from _called_alike(path, theirs, ours)
        for name, value in sorted(vars(theirs).items()):
            if name in SUBCLASS_POINTS or not name.startswith("_"):
                found = inspect.getattr_static(ours, name, None)
                if found is None and name not in getattr(ours, "__annotations__", {}) and not _set_by_init(ours, name):
                    yield f"{path}.{name}", "missing"
                elif callable(value) and not isinstance(value, type):
                    yield from _called_alike(f"{path}.{name}", getattr(theirs, name), getattr(ours, name))
    elif inspect.isfunction(theirs):
        yield from _called_alike(path, theirs, ours)


def _set_by_init(ours: type, name: str) -> bool:
    """Return whether *name* is documented as an attribute of *ours*, which sets it when it is made."""
    return any(name in (inspect.getdoc(base) or "") for base in ours.__mro__[:-1])


def _called_alike(path: str, theirs: Any, ours: Any) -> Iterator[tuple[str, str]]:
    """Yield where *ours* cannot be called as *theirs*; that it takes more by keyword is no difference."""
    if inspect.iscoroutinefunction(theirs) != inspect.iscoroutinefunction(ours):
        yield path, "one is a coroutine function, the other is not"
        return
    try:
        wanted, has = inspect.signature(theirs).parameters, inspect.signature(ours).parameters
    except (TypeError, ValueError):
        return
    for name, parameter in wanted.items():
        found = has.get(name)
        if found is None:
            yield f"{path}({name})", "missing"
        elif found.kind is not parameter.kind:
            yield f"{path}({name})", f"{parameter.kind.description} there, {found.kind.description} here"
        elif found.default != parameter.default:
            yield f"{path}({name})", f"default {parameter.default!r} there, {found.default!r} here"
    order = [name for name, parameter in has.items() if name in wanted and parameter.kind is parameter.POSITIONAL_OR_KEYWORD]
    if order != [name for name, parameter in wanted.items() if name in has and parameter.kind is parameter.POSITIONAL_OR_KEYWORD]:
        yield path, "another order"
    for name, parameter in has.items():
        if name not in wanted and parameter.default is parameter.empty and parameter.kind in {0, 1, 3}:
            yield f"{path}({name})", "must be given here"
