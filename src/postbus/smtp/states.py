r"""Where a session stands and what may come next: the one place that knows the order of commands.

Theory of operation
-------------------
A session is in one ``State``. Each input (a verb, or ``.`` for the end of a message) finds its row in ``SMTP`` or ``LMTP``, which is

* a ``Reply``: the input is out of order here; the engine answers so by itself and nothing moves; or
* a ``Move``: the input is legal. It becomes an event, the shell answers, and **the reply's first digit** picks the next state;
  a digit that is not in the row moves nothing. ``BAD_ARGUMENT`` stands for the digit when the engine itself refused the
  argument (a malformed QUIT does not quit). So a state never changes before its reply is known.

``.`` is never out of order: it exists where a message can end, and nothing else exists in CONTENT and CHUNK. In CHUNK, the input ``BDAT``
is the end of a chunk that is not the last: 2 for one that is taken, 5 for one that is not. In AUTHENTICATING there is but ``=``, an answer
to a challenge.

    OPENING --banner--> CONNECTED --EHLO--> GREETED --MAIL--> SENDER --RCPT--> RECIPIENTS --DATA 354--> CONTENT
                                               ^                |  ^\            |                       |
                                               |            RCPT 5xx \__REFUSED__/ RCPT 2xx               |
                                               +-- RSET, EHLO --+------------------+---------- "." any ---+

    RECIPIENTS --BDAT--> CHUNK --250--> CHUNKS --BDAT--> CHUNK --LAST, "." any--> GREETED        CHUNKS --RSET, EHLO--> GREETED
                           \--5xx--> FAILED --RSET, EHLO, BDAT LAST--> GREETED

    CONNECTED, GREETED --XCLIENT 220--> CONNECTED
    GREETED --AUTH 334--> AUTHENTICATING --"=" 2xx, 4xx, 5xx--> GREETED
    GREETED --STARTTLS 220--> UPGRADING --TLS up--> CONNECTED        any --QUIT, hang-up--> CLOSED

Entering a state outside ``TRANSACTION`` forgets the whole transaction, wherever it came from. That is the only place where
it is forgotten (what went wrong in others was always a second place: Postfix 20260724, 20260803).

What the tables cannot say
--------------------------
* Verbs that exist in one protocol only, that end a pipelining group, that pass before TLS: columns of ``commands.VERBS``.
* STARTTLS behind an active TLS, AUTH behind a successful one, either after a HELO that was no EHLO: decided by their parsers.
* How many recipients were accepted; limits and budgets: ``engine``.
* The transitions without a verb: banner sent, TLS up, hang-up. ``engine`` makes them in ``open``, ``tls_started``, ``refuse``.
* FAILED counts as a transaction because LMTP owes as many replies after LAST as recipients were accepted; the shell has forgotten it.
* A chunk that comes out of order is skipped before its reply is sent; nothing moves, but for the end of FAILED. One that the shell refuses
  (with whatever digit: 5 stands for all) is skipped too, and the message has failed.
* HELO, EHLO and LHLO share rows: which of them exist is the protocol's business.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Final

from postbus.smtp import replies
from postbus.smtp.replies import Reply


class State(Enum):
    """Where a session stands."""

    OPENING = "the banner is not sent"
    CONNECTED = "not greeted"
    GREETED = "greeted, no transaction"
    SENDER = "sender known, no recipient named"
    REFUSED = "recipients named, none accepted"
    RECIPIENTS = "at least one recipient accepted"
    CONTENT = "reading the message"
    CHUNK = "reading a chunk"
    CHUNKS = "chunks taken, the last one not yet"
    FAILED = "a chunk was refused, the last one not yet seen"
    UPGRADING = "TLS is being started"
    AUTHENTICATING = "a challenge is sent, its answer awaited"
    CLOSED = "over"

    __hash__ = object.__hash__  # members are single; Enum's own hash is a Python function, called several times a message


BAD_ARGUMENT: Final = 0

Move = Mapping[int, State]
Row = Move | Reply
Table = Mapping[State, Mapping[str, Row]]

TRANSACTION: Final = frozenset({State.SENDER, State.REFUSED, State.RECIPIENTS, State.CONTENT, State.CHUNK, State.CHUNKS, State.FAILED})

_STAY: Move = {}
_GREET: Move = {2: State.GREETED}  # a refused EHLO changes nothing (RFC 5321 s4.1.4)
_RESET: Move = {2: State.GREETED, 4: State.GREETED, 5: State.GREETED}  # RSET resets even if a hook frowns (RFC 5321 s4.1.1.5)
_END: Move = {2: State.GREETED, 3: State.GREETED, 4: State.GREETED, 5: State.GREETED}  # whatever became of the message
_LEAVE: Move = {2: State.CLOSED, 4: State.CLOSED, 5: State.CLOSED}
_SECURE: Move = {2: State.UPGRADING}
_SPOKEN_FOR: Mapping[str, Row] = {"XCLIENT": {2: State.CONNECTED}, "XFORWARD": _STAY}
_NOT_SPOKEN_FOR: Mapping[str, Row] = {"XCLIENT": replies.IN_TRANSACTION, "XFORWARD": replies.IN_TRANSACTION}
_CHALLENGE: Move = {3: State.AUTHENTICATING}
_VERDICT: Move = {2: State.GREETED, 4: State.GREETED, 5: State.GREETED}  # another 334 goes on with the exchange


def _table(data_without_recipient: Reply) -> Table:
    """Return the transition table; the protocols differ in one reply (RFC 2033 s4.2)."""
    anywhere: dict[str, Row] = {"NOOP": _STAY, "VRFY": _STAY, "EXPN": _STAY, "HELP": _STAY, "QUIT": _LEAVE}
    greeting: dict[str, Row] = {"HELO": _GREET, "EHLO": _GREET, "LHLO": _GREET}
    return {
        State.CONNECTED: {
            **anywhere,
            **greeting,
            "RSET": _STAY,
            "STARTTLS": replies.SEND_EHLO,
            **_SPOKEN_FOR,
            "AUTH": replies.SEND_EHLO,
            "MAIL": replies.SEND_HELO,
            "RCPT": replies.SEND_HELO,
            "DATA": replies.SEND_HELO,
            "BDAT": replies.SEND_HELO,
        },
        State.GREETED: {
            **anywhere,
            **greeting,
            "RSET": _RESET,
            "STARTTLS": _SECURE,
            **_SPOKEN_FOR,
            "AUTH": _CHALLENGE,
            "MAIL": {2: State.SENDER},
            "RCPT": replies.SEND_MAIL,
            "DATA": replies.SEND_MAIL,
            "BDAT": replies.SEND_MAIL,
        },
        State.SENDER: {
            **anywhere,
            **greeting,
            "RSET": _RESET,
            "STARTTLS": replies.IN_TRANSACTION,
            **_NOT_SPOKEN_FOR,
            "AUTH": replies.IN_TRANSACTION,
            "MAIL": replies.NESTED_MAIL,
            "RCPT": {2: State.RECIPIENTS, 4: State.REFUSED, 5: State.REFUSED, BAD_ARGUMENT: State.REFUSED},
            "DATA": replies.SEND_RCPT,
            "BDAT": replies.SEND_RCPT,
        },
        State.REFUSED: {
            **anywhere,
            **greeting,
            "RSET": _RESET,
            "STARTTLS": replies.IN_TRANSACTION,
            **_NOT_SPOKEN_FOR,
            "AUTH": replies.IN_TRANSACTION,
            "MAIL": replies.NESTED_MAIL,
            "RCPT": {2: State.RECIPIENTS},
            "DATA": data_without_recipient,
            "BDAT": data_without_recipient,
        },
        State.RECIPIENTS: {
            **anywhere,
            **greeting,
            "RSET": _RESET,
            "STARTTLS": replies.IN_TRANSACTION,
            **_NOT_SPOKEN_FOR,
            "AUTH": replies.IN_TRANSACTION,
            "MAIL": replies.NESTED_MAIL,
            "RCPT": _STAY,
            "DATA": {3: State.CONTENT},
            "BDAT": {2: State.CHUNK, 5: State.FAILED},
        },
        State.CHUNK: {".": _END, "BDAT": {2: State.CHUNKS, 5: State.FAILED}},
        State.CHUNKS: {
            **anywhere,
            **greeting,
            **dict.fromkeys(("MAIL", "RCPT", "DATA", "STARTTLS", "AUTH", *_SPOKEN_FOR), replies.AFTER_BDAT),
            "RSET": _RESET,
            "BDAT": {2: State.CHUNK, 5: State.FAILED},
        },
        State.FAILED: {
            **anywhere,
            **greeting,
            **dict.fromkeys(("MAIL", "RCPT", "DATA", "BDAT", "STARTTLS", "AUTH", *_SPOKEN_FOR), replies.CHUNK_FAILED),
            "RSET": _RESET,
            ".": {5: State.GREETED},
        },
        State.CONTENT: {".": _END},
        State.AUTHENTICATING: {"=": _VERDICT},
    }


SMTP: Table = _table(replies.NO_RECIPIENTS)
LMTP: Table = _table(replies.NO_LMTP_RECIPIENTS)
