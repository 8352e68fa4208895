"""What the engine tells the shell: one small record per fact, in the order the peer's bytes say them.

Events are frozen facts. ``fact`` makes the type checker refuse every assignment, while the classes themselves are plain
slotted dataclasses: a really frozen one costs a microsecond more per event, ten per message.

Every event carries ``verb``, its name in the transition table (``states``). *Owed* events must be answered by
``Engine.answer`` before anything further is parsed; ``Chunk`` and ``Refused`` need no answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from types import MappingProxyType
from typing import TYPE_CHECKING, ClassVar, TypeVar, dataclass_transform

if TYPE_CHECKING:
    from postbus.smtp.replies import Reply

_Class = TypeVar("_Class")

NO_PARAMETERS: Mapping[str, str | None] = MappingProxyType({})
NO_DEFECTS: Mapping[str, int] = MappingProxyType({})


def _no_parameters() -> Mapping[str, str | None]:
    return NO_PARAMETERS


def _no_defects() -> Mapping[str, int]:
    return NO_DEFECTS


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def fact(cls: type[_Class]) -> type[_Class]:
    """Make *cls* a slotted dataclass that the type checker treats as frozen."""
    return dataclass(slots=True)(cls)


class Signal(Enum):
    """What ``Engine.next_event`` returns when there is no event."""

    NEED_DATA = "need data"
    """Everything received is understood; feed more."""
    PAUSED = "paused"
    """An answer is owed, the banner is not sent yet or TLS is being started: nothing is parsed."""
    CLOSED = "closed"
    """The conversation is over: send what is left of ``bytes_to_send`` and close."""


@fact
class Helo:
    """HELO, EHLO or LHLO (RFC 5321 s4.1.1.1, RFC 2033 s4.1). ``hostname`` is free of control characters, at most 255 octets."""

    verb: str
    hostname: str


@fact
class Mail:
    """MAIL FROM (RFC 5321 s4.1.1.2).

    Attributes:
        address: without brackets and source route; ``""`` is the null reverse-path.
        parameters: keys upper-case, values as sent, ``None`` for a bare keyword.
        defects: what was tolerated, kind to count: see ``grammar``.
        arg: the argument as sent, ``FROM:<...> ...``.
    """

    address: str
    parameters: Mapping[str, str | None] = field(default_factory=_no_parameters)
    defects: Mapping[str, int] = field(default_factory=_no_defects)
    arg: str = ""
    verb: ClassVar[str] = "MAIL"


@fact
class Rcpt:
    """RCPT TO (RFC 5321 s4.1.1.3); attributes as ``Mail``. ``address`` is ``postmaster`` in any case when sent without a domain."""

    address: str
    parameters: Mapping[str, str | None] = field(default_factory=_no_parameters)
    defects: Mapping[str, int] = field(default_factory=_no_defects)
    arg: str = ""
    verb: ClassVar[str] = "RCPT"


@fact
class DataStart:
    """DATA: answer 354 to have the content, anything else to refuse it (RFC 5321 s4.1.1.4)."""

    verb: ClassVar[str] = "DATA"


@fact
class Bdat:
    """BDAT: a chunk of the content is announced (RFC 3030 s2): answer 2xx to have it, anything else to have it skipped.

    The answer is sent when the octets are in; of a *last* chunk a 2xx is not sent, since ``EndOfMessage`` will be owed one. The events of
    a chunk are as behind DATA: ``Chunk``, and after the last one ``EndOfMessage``. A chunk that is refused by the engine ends the
    message at once: ``EndOfMessage`` with its refusal.
    """

    size_octets: int
    last: bool
    verb: ClassVar[str] = "BDAT"


@fact
class Chunk:
    """A piece of the content of DATA or BDAT, transparency dots removed. Needs no answer. Pieces break anywhere, within a line too."""

    octets: bytes
    verb: ClassVar[str] = "CHUNK"


@fact
class EndOfMessage:
    """The content is complete.

    Attributes:
        size_octets: of the content without transparency dots, the dropped part of a refused one included.
        refusal: ``None``: the answer is owed (on LMTP one reply per accepted recipient). Otherwise the engine has already
            answered with it, the transaction is over and what the chunks gave must be discarded.
        defects: what was tolerated in the content, kind to count: ``bare-cr``, ``bare-lf``, ``nul``, ``long-line``.
    """

    size_octets: int
    refusal: Reply | None = None
    defects: Mapping[str, int] = field(default_factory=_no_defects)
    verb: ClassVar[str] = "."


@fact
class StartTls:
    """STARTTLS: answer 220 to begin (RFC 3207 s4); then handshake, then ``Engine.tls_started``."""

    verb: ClassVar[str] = "STARTTLS"


@fact
class Auth:
    """AUTH (RFC 4954 s4): answer 334 with a challenge to have an ``AuthResponse``, 2xx to say that the peer is who it says to be.

    Attributes:
        mechanism: upper-case, one of ``Offer.auth``.
        initial: the initial response's octets, at most 9 KiB; ``b""`` for an empty one (``=``), ``None`` where none was sent.
    """

    mechanism: str
    initial: bytes | None = field(default=None, repr=False)
    verb: ClassVar[str] = "AUTH"


@fact
class AuthResponse:
    """The peer's answer to a challenge; answer it as ``Auth``.

    Attributes:
        octets: decoded, at most 9 KiB.
        refusal: ``None``: the answer is owed. Otherwise the engine has already answered with it and the exchange is over: it was
            cancelled, or was no base64, or too long.
    """

    octets: bytes = field(repr=False)
    refusal: Reply | None = None
    verb: ClassVar[str] = "="


@fact
class Rset:
    """RSET (RFC 5321 s4.1.1.5)."""

    verb: ClassVar[str] = "RSET"


@fact
class Noop:
    """NOOP (RFC 5321 s4.1.1.9)."""

    arg: str | None = None
    verb: ClassVar[str] = "NOOP"


@fact
class Vrfy:
    """VRFY (RFC 5321 s4.1.1.6). ``arg`` without the SMTPUTF8 keyword of RFC 6531 s3.7.4.2."""

    arg: str
    verb: ClassVar[str] = "VRFY"


@fact
class Expn:
    """EXPN (RFC 5321 s4.1.1.7)."""

    arg: str
    verb: ClassVar[str] = "EXPN"


@fact
class Help:
    """HELP (RFC 5321 s4.1.1.8)."""

    arg: str | None = None
    verb: ClassVar[str] = "HELP"


@fact
class Quit:
    """QUIT (RFC 5321 s4.1.1.10). Whatever the answer, the engine is closed after it."""

    verb: ClassVar[str] = "QUIT"


@fact
class Xclient:
    """XCLIENT: answer 220 as the banner of a session with another client; attributes as in ``xclient.XCLIENT``, None: not available."""

    attributes: Mapping[str, str | None]
    verb: ClassVar[str] = "XCLIENT"


@fact
class Xforward:
    """XFORWARD: where the next mail came from before it came to the peer; attributes as in ``xclient.XFORWARD``."""

    attributes: Mapping[str, str | None]
    verb: ClassVar[str] = "XFORWARD"


@fact
class Command:
    """A raw verb: one the shell named in ``raw_verbs`` and answers by itself, by way of ``Engine.interpret`` if it likes."""

    verb: str
    arg: str | None = field(repr=False)  # of AUTH it holds credentials


@fact
class Refused:
    """The engine has answered a bad command by itself. For logs and counts; needs no answer.

    Attributes:
        verb: upper-case, at most 16 characters; ``""`` where there is none (an overlong line, early talk).
        reply: what was answered.
        ended: the transaction is over by it: the last chunk of a message of which one was refused.
    """

    verb: str
    reply: Reply
    ended: bool = False


Owed = (
    Helo
    | Mail
    | Rcpt
    | DataStart
    | Bdat
    | EndOfMessage
    | StartTls
    | Auth
    | AuthResponse
    | Rset
    | Noop
    | Vrfy
    | Expn
    | Help
    | Quit
    | Xclient
    | Xforward
    | Command
)
Event = Owed | Chunk | Refused
