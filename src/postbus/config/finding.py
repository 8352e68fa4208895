"""What is wrong with a configuration, one line each: what, where, and what would be right."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Path = tuple[str | int, ...]
"""A place in the configuration tree: keys of maps and indexes of lists, from the root."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing an operator should know about the configuration.

    Attributes:
        severity: an ``error`` keeps postbus from starting (or a reload from happening); a ``warning`` does not.
        path: the key, dotted, as in ``listeners.smtp.address``; ``""`` for the configuration as a whole.
        line: in the file, from 1; ``None`` when the value did not come from a file.
        message: what is wrong, without a full stop.
        remedy: what would be right; ``""`` where the message says it already.
        origin: the file's name or the environment variable; ``""`` for a default or what is missing altogether.
    """

    severity: Literal["error", "warning"]
    path: str
    line: int | None
    message: str
    remedy: str = ""
    origin: str = ""

    def __str__(self) -> str:
        """Return the finding as one line, in the form editors and terminals know (``file:line: ...``)."""
        place = f"{self.origin}:{self.line}" if self.origin and self.line else self.origin
        said = f"{self.message}; {self.remedy}" if self.remedy else self.message
        line = ": ".join(part for part in (place, self.path, said) if part)
        return printable(line if self.severity == "error" else f"{line} (warning)")


class ConfigurationError(Exception):
    """The configuration cannot be used; ``findings`` say why, errors first."""

    def __init__(self, findings: Iterable[Finding]) -> None:
        self.findings = tuple(sorted(findings, key=lambda finding: finding.severity))
        super().__init__("\n".join(map(str, self.findings)))


def dotted(path: Path) -> str:
    """Return *path* as people write it: ``routes[0].sinks``."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def quoted(value: object, max_characters: int = 60) -> str:
    """Return *value* as it may be shown in a finding: on one line, quoted if text, cut if long."""
    match value:
        case str():
            text = f'"{value}"'
        case bool() | None:
            text = {True: "true", False: "false", None: "nothing"}[value]
        case dict():
            text = "a map"
        case list() | tuple():
            text = "a list"
        case _:
            text = f"{value:.10g}" if isinstance(value, float) else str(value)
    text = printable(text)
    return text if len(text) <= max_characters else text[: max_characters - 4] + '..."'


def printable(text: str) -> str:
    """Return *text* on one line, without anything a terminal would act on."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
