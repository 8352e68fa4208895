"""A handler's hooks: found once, called often; and what their return values mean.

A hook is ``handle_<NAME>`` on the handler, a plain function or a coroutine. What it returns becomes a ``Reply`` here, or ``Misanswered``:
nothing a hook does wrong reaches the peer as text.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Sequence
from enum import Enum
from functools import lru_cache
from typing import Any, Final

from postbus.smtp import replies
from postbus.smtp.replies import Reply

Hook = Callable[..., Any]


class _Missing(Enum):
    MISSING = "no such hook"


MISSING: Final = _Missing.MISSING
"""What ``_call_handler_hook`` returns when the handler has no such hook."""

THROUGH_SERVER = ("HELO", "EHLO", "MAIL", "RCPT", "DATA", "RSET", "NOOP", "QUIT", "VRFY", "PROXY")
"""The hooks aiosmtpd asks by ``_call_handler_hook``."""

OUTCOMES = frozenset({2, 4, 5})  # first digits a hook may answer with


class Misanswered(Exception):  # noqa: N818 - named for what happened
    """A hook returned something that is no answer; the text names the type, never the value."""


class Hooks:
    """The hooks of one handler; an absent one is None.

    *by_server*: the server class overrides ``_call_handler_hook``; then the hooks of ``THROUGH_SERVER`` are asked by way of it.

    Attributes:
        handler: the object they belong to.
        by_name: every ``handle_<NAME>`` by name, for verbs we do not know.
        ehlo_has_responses: ``handle_EHLO`` takes the 5-argument form, with the list of lines.
    """

    __slots__ = (
        "by_name",
        "connect",
        "data",
        "data_abort",
        "data_chunk",
        "disconnect",
        "ehlo",
        "ehlo_has_responses",
        "exception",
        "expn",
        "handler",
        "helo",
        "help",
        "mail",
        "noop",
        "proxy",
        "quit",
        "rcpt",
        "rset",
        "starttls",
        "vrfy",
    )

    def __init__(self, handler: Any, *, by_server: bool = False) -> None:
        self.handler = handler
        found: dict[str, Hook] = {
            name.removeprefix("handle_"): getattr(handler, name) for name in dir(handler) if name.startswith("handle_")
        }
        if "DATA" not in found and hasattr(handler, "process_message"):
            found["DATA"] = _from_process_message(handler.process_message)
        self.by_name = found
        asked = {**found, **{name: _through_server(name) for name in THROUGH_SERVER}} if by_server else found
        self.connect = found.get("CONNECT")
        self.data_chunk = found.get("DATA_CHUNK")
        self.data_abort = found.get("DATA_ABORT")
        self.disconnect = found.get("DISCONNECT")
        self.proxy = asked.get("PROXY")
        self.helo = asked.get("HELO")
        self.ehlo = asked.get("EHLO")
        self.mail = asked.get("MAIL")
        self.rcpt = asked.get("RCPT")
        self.data = asked.get("DATA")
        self.rset = asked.get("RSET")
        self.noop = asked.get("NOOP")
        self.quit = asked.get("QUIT")
        self.vrfy = asked.get("VRFY")
        self.expn = found.get("EXPN")
        self.help = found.get("HELP")
        self.starttls = found.get("STARTTLS")
        self.exception = found.get("exception")
        self.ehlo_has_responses = "EHLO" in found and _takes_responses(found["EHLO"])


def _through_server(name: str) -> Hook:
    """Return a hook that has the server ask the handler's."""
    return lambda server, _session, _envelope, *args: server._call_handler_hook(name, *args)  # noqa: SLF001 - subclasses override it


def _takes_responses(hook: Hook) -> bool:
    """Return whether ``handle_EHLO`` is of the 5-argument form.

    Raises:
        RuntimeError: it is of neither form.
    """
    parameters = inspect.signature(hook).parameters
    if any(parameter.kind is parameter.VAR_POSITIONAL for parameter in parameters.values()) or len(parameters) == 5:
        return True
    if len(parameters) != 4:
        raise RuntimeError(f"handle_EHLO takes server, session, envelope, hostname and responses, not {len(parameters)} arguments")
    warnings.warn("Use the 5-argument handle_EHLO() hook instead of the 4-argument one", DeprecationWarning, stacklevel=2)
    return False


def _from_process_message(process_message: Hook) -> Hook:
    """Return a ``handle_DATA`` that calls smtpd's ``process_message(peer, mailfrom, rcpttos, data)``, where None means success."""

    async def handle_data(_server: Any, session: Any, envelope: Any) -> Any:
        outcome = process_message(session.peer, envelope.mail_from, envelope.rcpt_tos, envelope.content)
        if inspect.isawaitable(outcome):
            outcome = await outcome
        return replies.OK if outcome is None else outcome

    warnings.warn("Use handler.handle_DATA() instead of .process_message()", DeprecationWarning, stacklevel=3)
    return handle_data


def reply_of(outcome: Any) -> Reply:
    """Return the reply that a hook's *outcome* stands for: a ``Reply``, or its text such as ``"250 2.0.0 OK"``.

    Raises:
        Misanswered: it stands for none, or for one that answers nothing (3xx).
    """
    if type(outcome) is str:
        return _reply_of_text(outcome)
    if isinstance(outcome, str):  # an enumeration of texts, say
        return _reply_of_text(str.__str__(outcome))
    if isinstance(outcome, bytes):
        return _reply_of_text(outcome.decode("utf-8", "replace"))
    if not isinstance(outcome, Reply):
        raise Misanswered(f"returned {type(outcome).__name__}, not a reply")
    if outcome.code // 100 not in OUTCOMES:
        raise Misanswered(f"answered {outcome.code}, which ends nothing")
    return outcome


@lru_cache(maxsize=512)
def _reply_of_text(text: str) -> Reply:
    try:
        reply = Reply.parse(text)
    except ValueError:
        raise Misanswered("returned text that is not a reply") from None
    return reply_of(reply)


def message_replies(outcome: Any, recipients: int, *, lmtp: bool) -> Reply | tuple[Reply, ...]:
    """Return what *outcome* of ``handle_DATA`` says for *recipients* accepted ones: one reply on SMTP, one each on LMTP (RFC 2033 s4.2).

    A sequence holds one outcome per recipient, in order; on SMTP it is folded (``replies.fold``). So does text with a whole reply on each
    line, which is how LMTP handlers for aiosmtpd say it.

    Raises:
        Misanswered: not a reply, or not as many as recipients.
    """
    if type(outcome) is not list and (isinstance(outcome, str | bytes | Reply) or not isinstance(outcome, Sequence)):
        try:
            one = reply_of(outcome)
        except Misanswered:
            each = _replies_by_line(outcome)
            if recipients < 2 or len(each) != recipients:
                raise
            return each if lmtp else replies.fold(each)
        return (one,) * recipients if lmtp else one
    each = tuple([reply_of(part) for part in outcome])
    if len(each) != recipients:
        raise Misanswered(f"returned {len(each)} replies for {recipients} recipients")
    return each if lmtp else replies.fold(each)


def _replies_by_line(outcome: Any) -> tuple[Reply, ...]:
    """Return the replies in *outcome*, text with one on each line; none if it is something else."""
    try:
        return tuple(reply_of(line) for line in outcome.split("\r\n")) if isinstance(outcome, str) else ()
    except Misanswered:
        return ()


def ehlo_reply(outcome: Any) -> Reply:
    """Return the reply for the list of lines (``"250-SIZE 1000"``, ``"250 HELP"``) that a 5-argument ``handle_EHLO`` returns.

    Raises:
        Misanswered: it is neither such a list nor a reply.
    """
    if isinstance(outcome, str | Reply) or not isinstance(outcome, Sequence) or not outcome:
        return reply_of(outcome)
    lines = [str(line) for line in outcome]
    marked = [line[:3] + "-" + line[4:] for line in lines[:-1]] + [lines[-1][:3] + " " + lines[-1][4:]]
    return reply_of("\r\n".join(marked))
