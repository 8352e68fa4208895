"""What is the same for every connection of one class with one handler, worked out once: hooks, raw verbs, offer, banner.

``smtp_<VERB>`` methods make a class extensible; calling a coroutine per command makes it slow. So the methods that a subclass leaves
alone are never called: their verbs go the fast way, and only a verb whose method is new or overridden is *raw*.
"""

from __future__ import annotations

import ssl
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from postbus.server.auth import methods_of, offered
from postbus.server.hooks import Hooks
from postbus.smtp.replies import Reply
from postbus.smtp.terms import Limits, Offer

if TYPE_CHECKING:
    from postbus.server.networks import Networks
    from postbus.server.reception import Reception
    from postbus.server.roster import Roster, Terms

DEFAULT_LIMITS = Limits()

_Function = TypeVar("_Function", bound=Callable[..., Any])


def syntax(text: str, extended: str | None = None, when: str | None = None) -> Callable[[_Function], _Function]:
    """Return a decorator that gives an ``smtp_<VERB>`` method its line in HELP.

    Args:
        text: the syntax, such as ``"NOW [UTC]"``.
        extended: what an ESMTP session sees behind it.
        when: name of an attribute of the server; while that is false, HELP does not know the verb.
    """

    def decorate(function: _Function) -> _Function:
        function.__smtp_syntax__ = text  # type: ignore[attr-defined]
        function.__smtp_syntax_extended__ = extended  # type: ignore[attr-defined]
        function.__smtp_syntax_when__ = when  # type: ignore[attr-defined]
        return function

    return decorate


class Plan:
    """The shared part of many connections.

    Attributes:
        acts: what each event of the engine leads to.
        key: what it was made from; a connection with another key needs another plan.
        hooks: the handler's.
        methods: name of verb to name of method, of every raw verb.
        raw_verbs: the same names, as the engine takes them.
        offer: for connections as they begin. BDAT only where DATA has no method: it would go round that.
        banner: greeting of the usual kind.
        limits: of the engine; the class' own bounds included.
        special: what some networks are offered otherwise: (who, field of ``Offer``, its value).
        external: who has shown a certificate is offered EXTERNAL too.
        mechanisms: of AUTH, by name: whose method it is (``server`` or ``handler``), and its name.
        pushes, checks_helo, checks_auth: ``push``, ``check_helo_needed`` or ``check_auth_needed`` is overridden: every verb is raw, to go
            through it.
        counts: ``command_call_limit`` is set: every verb is raw, to be counted.
        explains: somebody overrides ``handle_exception`` or hooks it.
    """

    __slots__ = (
        "acts", "banner", "checks_auth", "checks_helo", "counts", "explains", "external", "hooks", "key", "limits", "mechanisms", "methods",
        "offer", "pushes", "raw_verbs", "special",
    )  # fmt: skip

    def __init__(self, server: Reception, roster: Roster) -> None:
        self.key = key_of(server, roster)
        smtp_class = type(server)
        self.acts = server._acts_by_event()  # noqa: SLF001 - a floor of the same class
        self.hooks = Hooks(server.event_handler, by_server=not is_stock(smtp_class, "_call_handler_hook"))
        self.pushes = not is_stock(smtp_class, "push")
        self.checks_helo = not is_stock(smtp_class, "check_helo_needed")
        self.counts = server._call_limits is not None  # noqa: SLF001 - a floor of the same class
        self.checks_auth = not is_stock(smtp_class, "check_auth_needed")
        methods = {name.removeprefix("smtp_").upper(): name for name in dir(smtp_class) if name.startswith("smtp_")}
        if not (self.pushes or self.checks_helo or self.checks_auth or self.counts):
            raw = _raw_for_its_class(server)
            methods = {verb: name for verb, name in methods.items() if verb in raw or not is_stock(smtp_class, name)}
        if server.lmtp:  # these are methods of the class below, and no verbs of LMTP (RFC 2033 s4.1)
            methods = {verb: name for verb, name in methods.items() if verb not in NOT_LMTP or not is_stock(smtp_class, name)}
        self.methods = methods
        self.raw_verbs = frozenset(methods)
        self.explains = self.hooks.exception is not None or not is_stock(smtp_class, "handle_exception")
        self.mechanisms = {
            **{mechanism: ("server", name) for mechanism, name in methods_of(smtp_class).items()},
            **{mechanism: ("handler", name) for mechanism, name in methods_of(server.event_handler).items()},
        }
        offer = offer_of(server, roster, mechanisms_of(server, self))
        without = tuple(mechanism for mechanism in offer.auth if mechanism != "EXTERNAL")
        self.external = without != offer.auth and self.mechanisms["EXTERNAL"] == ("server", "auth_EXTERNAL")
        chunking = offer.chunking and "DATA" not in methods
        self.offer = replace(offer, auth=without if self.external else offer.auth, chunking=chunking)
        self.special = special_of(roster.terms)
        self.limits = limits_of(server, roster.terms.limits)
        self.banner = Reply(220, banner_text(server))

    def syntaxes(self, server: Reception) -> dict[str, str]:
        """Return the line in HELP of every raw verb that has one now."""
        found = {}
        for verb, name in self.methods.items():
            method = getattr(server, name)
            text = getattr(method, "__smtp_syntax__", None)
            when = getattr(method, "__smtp_syntax_when__", None)
            if text is not None and (when is None or getattr(server, when)):
                extended = getattr(method, "__smtp_syntax_extended__", None) or ""
                found[verb] = text + (extended if server.session is not None and server.session.extended_smtp else "")
        return found


NOT_LMTP = frozenset({"HELO", "EHLO"})
STOCK_MODULES = frozenset(f"postbus.server.{name}" for name in ("identification", "smtp", "lmtp"))


def is_stock(smtp_class: type, name: str) -> bool:
    """Return whether method *name* of *smtp_class* is as we wrote it."""
    return getattr(smtp_class, name).__module__ in STOCK_MODULES


def _raw_for_its_class(server: Reception) -> set[str]:
    """Return the verbs that old hooks and bounds of *server*'s class make raw."""
    raw = set()
    for hook, verbs, instead in (("ehlo_hook", {"EHLO", "LHLO"}, "handle_EHLO"), ("rset_hook", {"RSET"}, "handle_RSET")):
        if hasattr(server, hook):
            warnings.warn(f"Use handler.{instead}() instead of .{hook}()", DeprecationWarning, stacklevel=2)
            raw |= verbs
    return raw | {"MAIL", "RCPT"} if server.local_part_limit else raw


def limits_of(server: Reception, limits: Limits) -> Limits:
    """Return the listener's *limits*, where the class of *server* has none of its own."""
    if server.command_size_limit != DEFAULT_LIMITS.command_octets:
        limits = replace(limits, command_octets=server.command_size_limit)
    if server.line_length_limit != DEFAULT_LIMITS.text_line_octets:
        most = server.line_length_limit  # lines are looked at from the flagged length on
        limits = replace(limits, text_line_octets=most, text_line_flag_octets=min(most, limits.text_line_flag_octets))
    return limits


def banner_text(server: Reception) -> str:
    """Return the greeting's words; the protocol name is what some clients look for (RFC 5321 s4.2)."""
    return f"{server.hostname} {'LMTP' if server.lmtp else 'ESMTP'} {server.__ident__}"


def key_of(server: Reception, roster: Roster) -> tuple[Any, ...]:
    """Return what tells one plan from another."""
    size_octets, requiretls = roster.terms.size_octets, roster.terms.requiretls
    return (
        type(server),
        id(server.event_handler),
        server.data_size_limit,
        None if size_octets is None else size_octets(),
        None if requiretls is None else requiretls(),
        server.enable_SMTPUTF8,
        server.decode_data,
        server.hostname,
        server.__ident__,
        server.tls_context is None,
        server.require_starttls,
        server._call_limits is None,  # noqa: SLF001 - a floor of the same class
        server.command_size_limit,
        server.line_length_limit,
        server.local_part_limit,
        server._auth_terms,  # noqa: SLF001
    )


def mechanisms_of(server: Reception, plan: Plan) -> tuple[str, ...]:
    """Return the mechanisms to offer: of ours only those whose passwords somebody can judge, and those asked for by name."""
    smtp_class = type(server)
    own = {name for name, (owner, method) in plan.mechanisms.items() if owner == "handler" or not is_stock(smtp_class, method)}
    required, _, wanted, excluded, asked = server._auth_terms  # noqa: SLF001 - a floor of the same class
    judged = required or asked or "AUTH" in plan.hooks.by_name or not is_stock(smtp_class, "_authenticate")
    return tuple(name for name in offered(own, judged=judged, wanted=wanted, excluded=excluded) if name in plan.mechanisms)


def offer_of(server: Reception, roster: Roster, mechanisms: tuple[str, ...]) -> Offer:
    """Return what *server* offers on the listener of *roster*."""
    context: ssl.SSLContext | None = server.tls_context
    offer = Offer(
        hostname=server.hostname,
        size_octets=least(server.data_size_limit, roster.terms.size_octets() if roster.terms.size_octets else None),
        smtputf8=server.enable_SMTPUTF8,
        eightbitmime=not server.decode_data or server.enable_SMTPUTF8,  # RFC 6531 s3.1: DialogUTF8 needs 8BITMIME
        starttls=context is not None and not roster.terms.implicit_tls,
        requiretls=roster.terms.requiretls is not None and roster.terms.requiretls(),
        require_tls=bool(server.require_starttls) and not roster.terms.implicit_tls,
        auth=mechanisms,
        auth_tls=server._auth_require_tls,  # noqa: SLF001
        require_auth=server._auth_required and is_stock(type(server), "check_auth_needed"),  # noqa: SLF001
    )
    offer = replace(offer, **roster.terms.offer)
    return replace(offer, binarymime=offer.binarymime and not server.decode_data)  # what is binary is no text


def special_of(terms: Terms) -> tuple[tuple[Networks, str, Any], ...]:
    """Return what some networks are offered otherwise than all others: (who, field of ``Offer``, its value)."""
    return tuple(
        row
        for row in (
            (terms.stray_allowed_from, "stray", "allow"),
            (terms.pipelining_exempt, "strict_pipelining", False),
            (terms.xclient, "xclient", True),
            (terms.xforward, "xforward", True),
        )
        if row[0]
    )


def least(one: int | None, other: int | None) -> int | None:
    """Return the smaller bound, where None is no bound."""
    return min((bound for bound in (one, other) if bound is not None), default=None)
