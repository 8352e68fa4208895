"""Reads ``attacks.json``; its ``about`` says how."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

DATA = Path(__file__).with_name("attacks.json")


@dataclass(frozen=True)
class Step:
    """*octets* to send and the replies to await, as ``"250 2.1.0"``; or a ``tls`` handshake, ``eof`` or ``silence``."""

    kind: Literal["send", "tls", "eof", "silence"]
    octets: bytes = b""
    expect: tuple[str, ...] = ()


@dataclass(frozen=True)
class Row:
    """One attack: the prologue's steps, then its own. See ``about`` in the data for each field."""

    id: str
    title: str
    section: str
    source: str
    protocol: Literal["smtp", "lmtp"]
    server: Mapping[str, Any]
    prologue: tuple[Step, ...]
    steps: tuple[Step, ...]
    accepted: tuple[bytes, ...]
    closes: bool
    one_segment: bool
    bulky: bool
    early: bool

    @property
    def headed(self) -> bool:
        """Whether the server wants a PROXY header and greets only then."""
        return "proxy" in self.server

    @property
    def withholdable(self) -> bool:
        """Whether the row means the same when the client waits for nothing: not if its segments or TLS define it."""
        return not self.one_segment and all(step.kind == "send" for step in self.steps)


@cache
def rows() -> tuple[Row, ...]:
    """Return every row of the attack table."""
    data = json.loads(DATA.read_text("utf-8"))
    prologues = {name: _steps(steps) for name, steps in data["prologues"].items()}
    return tuple(_row(raw, prologues) for raw in data["rows"])


def _row(raw: dict[str, Any], prologues: Mapping[str, tuple[Step, ...]]) -> Row:
    return Row(
        id=raw["id"],
        title=raw["title"],
        section=raw["section"],
        source=raw.get("source", ""),
        protocol=raw["protocol"],
        server={name: tuple(value) if isinstance(value, list) else value for name, value in raw.get("server", {}).items()},
        prologue=prologues[raw["prologue"]],
        steps=_steps(raw["steps"]),
        accepted=tuple(_octets(content) for content in raw["accepted"]),
        closes=raw.get("closes", False),
        one_segment=raw.get("one_segment", False),
        bulky=raw.get("bulky", False),
        early=raw["prologue"] == "early",
    )


def _steps(raw: list[dict[str, Any]]) -> tuple[Step, ...]:
    steps: list[Step] = []
    for entry in raw:
        if "send" in entry:
            step = Step("send", _octets(entry["send"]), tuple(_expected(entry["expect"])))
        else:
            step = Step("tls" if "tls" in entry else "silence" if "silence" in entry else "eof")
        steps += [step] * entry.get("times", 1)
    return tuple(steps)


def _octets(raw: str | dict[str, Any] | list[Any]) -> bytes:
    if isinstance(raw, list):
        return b"".join(_octets(part) for part in raw)
    if isinstance(raw, dict):
        return str(raw["repeat"]).encode("latin-1") * int(raw["times"])
    return raw.encode("latin-1")


def _expected(raw: list[Any]) -> list[str]:
    found: list[str] = []
    for entry in raw:
        found += [entry["repeat"]] * entry["times"] if isinstance(entry, dict) else [entry]
    return found
