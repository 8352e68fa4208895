"""The API pages in docs/api, made of the docstrings: ``python -m tests.api`` writes them, a test keeps them equal."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent.parent / "docs" / "api"

PAGES: dict[str, tuple[str, ...]] = {
    "smtp": ("postbus.server.smtp", "postbus.server.lmtp", "postbus.server.plan", "postbus.server.streaming"),
    "session": ("postbus.server.session", "postbus.server.envelope", "postbus.server.body"),
    "auth": ("postbus.server.auth",),
    "proxy_protocol": ("postbus.server.proxy_protocol",),
    "replies": ("postbus.smtp.replies",),
    "controller": ("postbus.server.controller",),
    "listener": ("postbus.server.listener",),
    "handlers": ("postbus.server.handlers",),
    "main": ("postbus.server.main",),
    "testing": ("postbus.testing", "postbus.pytest_plugin"),
}
"""Each page and the modules it tells of, what people need most first."""

HIDDEN = frozenset({"Plan", "Stream", "Streaming", "Spill", "ListenerServer"})
"""Public by name, for other modules of the house only."""

SUBCLASS_POINTS = ("_call_handler_hook", "_create_session", "_create_envelope", "_create_server", "handle_exception")
"""Names to override that a base class of ours defines, or that begin with an underscore."""

SECTION = re.compile(r"^(Args|Attributes|Raises|Returns|Yields|Class attributes[^:]*):$")


def pages() -> dict[str, str]:
    """Return the text of each page by file name."""
    made = {f"{name}.md": page(modules) for name, modules in PAGES.items()}
    rows = [f"- [{', '.join(modules)}]({name}.md)" for name, modules in PAGES.items()]
    head = "# API\n\nMade from the docstrings by `python -m tests.api`. How the parts fit together: [the library](../library.md).\n\n"
    return {**made, "README.md": head + "\n".join(rows) + "\n"}


def page(modules: tuple[str, ...]) -> str:
    """Return one page."""
    return "\n".join(line for name in modules for line in _module(importlib.import_module(name))).rstrip() + "\n"


def _module(module: Any) -> Iterator[str]:
    yield from (f"# {module.__name__}", "", *_text(module))
    for name, value in vars(module).items():
        if name.startswith("_") or name in HIDDEN or getattr(value, "__module__", None) != module.__name__:
            continue
        if inspect.isclass(value):
            yield from _class(value)
        elif inspect.isfunction(value):
            yield from (f"## {name}", "", f"    {_signature(name, value)}", "", *_text(value))
        elif type(value).__name__ == "FixtureFunctionDefinition":
            yield from (f"## {name}", "", "A fixture.", "", *_text(value._get_wrapped_function()))


def _class(value: type) -> Iterator[str]:
    if issubclass(value, Enum):
        yield from (
            f"## {value.__name__}",
            "",
            f"    {', '.join(f'{member.name} = {member.value!r}' for member in value)}",
            "",
            *_text(value),
        )
        return
    yield from (f"## {value.__name__}", "", f"    class {_signature(value.__name__, value)}", "", *_text(value))
    initial = vars(value).get("__init__")
    if initial is not None and initial.__doc__:
        yield from _text(initial)
    for name in dict.fromkeys((*vars(value), *SUBCLASS_POINTS)):
        member = inspect.getattr_static(value, name, None)
        own = name in vars(value) or name in SUBCLASS_POINTS
        if member is None or not own or (name.startswith("_") and name not in SUBCLASS_POINTS):
            continue
        plain = member.__func__ if isinstance(member, classmethod | staticmethod) else member
        if isinstance(plain, property):
            yield from (f"### {value.__name__}.{name}", "", *_text(plain))
        elif inspect.isfunction(plain):
            kind = "async " if inspect.iscoroutinefunction(plain) else ""
            yield from (f"### {value.__name__}.{name}", "", f"    {kind}{_signature(name, plain)}", "", *_text(plain))


def _signature(name: str, value: Any) -> str:
    """Return how *value* is called, the annotations as they are written."""
    try:
        signature = inspect.signature(value)
    except (TypeError, ValueError):
        return name
    parts: list[str] = []
    for parameter in signature.parameters.values():
        if parameter.name in {"self", "cls"}:
            continue
        if parameter.kind is parameter.KEYWORD_ONLY and not any(part.startswith("*") for part in parts):
            parts.append("*")
        stars = {"VAR_POSITIONAL": "*", "VAR_KEYWORD": "**"}.get(parameter.kind.name, "")
        annotation = "" if parameter.annotation is parameter.empty else f": {_written(parameter.annotation)}"
        default = "" if parameter.default is parameter.empty else f"{' = ' if annotation else '='}{_default(parameter.default)}"
        parts.append(f"{stars}{parameter.name}{annotation}{default}")
    returns = (
        "" if inspect.isclass(value) or signature.return_annotation is signature.empty else f" -> {_written(signature.return_annotation)}"
    )
    return f"{name}({', '.join(parts)}){returns}"


def _written(annotation: Any) -> str:
    return annotation if isinstance(annotation, str) else getattr(annotation, "__name__", str(annotation))


def _default(value: Any) -> str:
    return "..." if " at 0x" in repr(value) or type(value).__name__ == "_HAS_DEFAULT_FACTORY_CLASS" else repr(value)


def _text(value: Any) -> Iterator[str]:
    """Yield the docstring as Markdown: sections as lists, code words in backticks."""
    in_section = False
    item = ""
    for line in re.sub(r"::$", ":", (inspect.getdoc(value) or "").replace("``", "`"), flags=re.MULTILINE).splitlines():
        section = SECTION.match(line)
        if section:
            in_section = True
            yield from (f"**{section[1]}**", "")
            continue
        if in_section and line and not line.startswith(" "):
            in_section = False
            if item:
                yield item
                item = ""
            yield ""
        if not in_section:
            yield line
        elif line.startswith("        "):
            item += f" {line.strip()}"
        else:
            if item:
                yield item
            item = f"- {line.strip()}" if line.strip() else ""
            if not line.strip():
                yield ""
    if item:
        yield item
    yield ""


def main() -> None:
    """Write every page."""
    FOLDER.mkdir(exist_ok=True)
    for name, text in pages().items():
        (FOLDER / name).write_text(text, "utf-8")


if __name__ == "__main__":
    main()
