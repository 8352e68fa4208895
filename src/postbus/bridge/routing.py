"""Which route takes a recipient: an ordered list of patterns, the first that fits wins.

Exact addresses and whole domains, which is nearly everything in a large table, are found by lookup; wildcards bound to a
domain are tried only for that domain; what remains is tried one after the other. Each finding knows its place in the list, and
the least place wins, so the outcome is that of trying the list in order. How patterns are written: ``postbus.bridge.patterns``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Protocol

from postbus.bridge.expressions import ADDRESS_MAX_CHARACTERS
from postbus.bridge.patterns import Pattern, compile_pattern, split_tag
from postbus.bridge.settings import Acceptance, RouteSettings
from postbus.event.cloudevents import message_max_octets
from postbus.event.ids import normalize
from postbus.event.mail import Mode

NO_CAPTURES: Mapping[str, str] = MappingProxyType({})


class Carrier(Protocol):
    """What a route must know of a sink (``postbus.sinks.Sink`` is one)."""

    @property
    def event_max_octets(self) -> int:
        """The largest event carried."""

    @property
    def octets(self) -> bool:
        """Raw-mode events are wanted as octets."""


@dataclass(frozen=True, slots=True)
class Match:
    """The route that takes a recipient.

    Attributes:
        route, pattern: the route's name and the pattern that fitted, as configured.
        tag: what follows the first ``+``, where the route looks at tags.
        captures: the named groups of a regular expression that took part.
        sinks, best_effort: names.
        message_max_octets: the largest message whose event certainly fits every required sink; ``None``: any.
        event_max_octets: the largest event every required sink carries.
    """

    route: str
    pattern: str
    tag: str | None
    captures: Mapping[str, str]
    mode: Mode
    acceptance: Acceptance
    sinks: tuple[str, ...]
    best_effort: tuple[str, ...]
    message_max_octets: int | None
    event_max_octets: int


@dataclass(frozen=True, slots=True)
class _Entry:
    """One pattern at its *place* in the list, with the match it gives when there is neither tag nor capture to say."""

    place: int
    pattern: Pattern
    match: Match


@dataclass(slots=True)
class _Table:
    """Entries by how they are found. In each, the earliest place comes first."""

    exact: dict[str, _Entry] = field(default_factory=dict)
    untagged: dict[str, _Entry] = field(default_factory=dict)
    domains: dict[str, _Entry] = field(default_factory=dict)
    bound: dict[str, list[_Entry]] = field(default_factory=dict)
    others: list[_Entry] = field(default_factory=list)
    everyone: _Entry | None = None


class Router:
    """The route table. Immutable: a reload makes a new one.

    Args:
        routes: in order.
        sinks: every sink the routes name; ``KeyError`` for one that is missing.
        acceptance: of routes that do not say.
        normalized: how addresses are brought into the form patterns are compared with.

    Attributes:
        message_max_octets: the largest message that some route takes, which is what EHLO may announce; ``None``: any.

    Raises:
        PatternError: a pattern cannot be used.
    """

    def __init__(
        self,
        routes: Sequence[RouteSettings],
        sinks: Mapping[str, Carrier],
        acceptance: Acceptance = "spool",
        normalized: Callable[[str], str] = normalize,
    ) -> None:
        self._normalized = normalized
        entries = tuple(_entries(routes, sinks, acceptance))
        self._table = _table(entries)
        limits = [entry.match.message_max_octets for entry in entries]
        self.message_max_octets = None if None in limits else max(limit for limit in limits if limit is not None)

    def match(self, address: str) -> Match | None:
        """Return the route that takes *address*, as the client sent it; ``None``: no such recipient here."""
        table, address = self._table, self._normalized(address)
        at = address.rfind("@")
        domain = address[at + 1 :] if at >= 0 else ""
        plain, tag = split_tag(address) if "+" in address else (address, None)
        best = table.everyone
        for found in (table.exact.get(address), table.untagged.get(plain), table.domains.get(domain)):
            if found is not None and (best is None or found.place < best.place):
                best = found
        captures = NO_CAPTURES
        for entries in (table.bound.get(domain, ()), table.others):
            entry, groups = _first_fit(entries, best, address, plain)
            if entry is not None:
                best, captures = entry, groups
        return None if best is None else _said(best, tag, captures)


def _first_fit(entries: Sequence[_Entry], best: _Entry | None, address: str, plain: str) -> tuple[_Entry | None, Mapping[str, str]]:
    """Return the first of *entries* that fits and stands before *best*, with its captures."""
    for entry in entries:
        if best is not None and entry.place > best.place:
            break
        pattern = entry.pattern
        if pattern.expression is None or (pattern.kind == "expression" and len(address) > ADDRESS_MAX_CHARACTERS):
            continue
        fit = pattern.expression.fullmatch(plain if pattern.untagged else address)
        if fit is not None:
            return entry, {name: text for name, text in fit.groupdict().items() if text is not None}
    return None, NO_CAPTURES


def _said(entry: _Entry, tag: str | None, captures: Mapping[str, str]) -> Match:
    """Return the match of *entry*, with what this address adds to it."""
    if captures:
        tag = captures.get("tag")
    elif not entry.pattern.tagged:
        tag = None
    if tag is None and not captures:
        return entry.match
    m = entry.match
    return Match(m.route, m.pattern, tag, captures, m.mode, m.acceptance, m.sinks, m.best_effort, m.message_max_octets, m.event_max_octets)


def _table(entries: Iterable[_Entry]) -> _Table:
    table = _Table()
    for entry in entries:
        pattern = entry.pattern
        match pattern.kind:
            case "everyone":
                table.everyone = table.everyone or entry
            case "exact":
                (table.untagged if pattern.untagged else table.exact).setdefault(pattern.key, entry)
            case "domain":
                table.domains.setdefault(pattern.key, entry)
            case "wildcard" if pattern.key:
                table.bound.setdefault(pattern.key, []).append(entry)
            case "wildcard" | "expression":
                table.others.append(entry)
        if pattern.text.lower().startswith("postmaster@"):
            table.exact.setdefault("postmaster", entry)  # RFC 5321 s4.5.1: the bare name is the same mailbox
    return table


def _entries(routes: Sequence[RouteSettings], sinks: Mapping[str, Carrier], acceptance: Acceptance) -> Iterable[_Entry]:
    place = 0
    for route in routes:
        required = [sinks[name] for name in route.sinks]
        limits = [message_max_octets(sink.event_max_octets, route.mode, sink.octets) for sink in required]
        for text in route.match:
            match = Match(
                route=route.name,
                pattern=text,
                tag=None,
                captures=NO_CAPTURES,
                mode=route.mode,
                acceptance=route.acceptance or acceptance,
                sinks=route.sinks,
                best_effort=route.best_effort,
                message_max_octets=min((limit for limit in limits if limit is not None), default=None),
                event_max_octets=min(sink.event_max_octets for sink in required),
            )
            yield _Entry(place, compile_pattern(text, tags=route.tags), match)
            place += 1
