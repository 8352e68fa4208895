"""Random sessions and what must come of them: a model of a few dozen lines that knows nothing of tables, pumps and tasks.

A script is a list of ``Step``: a verb, one of its lines, and what each hook it leads to will do. ``ROWS`` has a function for each verb that
tells which replies follow, which hooks are called, and what the transaction is then; another verb is another row there and in ``LINES``.
``Model.calls`` says what the hooks must have seen of the envelope: everything of this transaction and nothing of any before.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from hypothesis import strategies as st


class Fate(Enum):
    """What a hook does."""

    ACCEPT = "250"
    LATER = "450"
    NEVER = "550"
    RAISE = "raises"
    NONE = "returns None"
    NONSENSE = "returns no reply"
    TOO_LATE = "returns when it has been answered for"
    NOBODY = "accepts a recipient and keeps nobody"
    TWICE = "makes two recipients of one"


CODES: Mapping[Fate, str] = {
    Fate.ACCEPT: "250", Fate.NOBODY: "250", Fate.TWICE: "250", Fate.LATER: "450", Fate.NEVER: "550",
    Fate.RAISE: "451", Fate.NONE: "451", Fate.NONSENSE: "451", Fate.TOO_LATE: "451",
}  # fmt: skip
SIZE_MAX = 2000

# Each verb's lines: what is sent, then the code it gets without asking a hook ("" if a hook is asked) where it may come at all.
LINES: Mapping[str, tuple[tuple[bytes, str], ...]] = {
    "EHLO": ((b"EHLO c.example", ""), (b"EHLO a b", "501")),
    "HELO": ((b"HELO c.example", ""), (b"HELO", "501")),
    "MAIL": (
        (b"MAIL FROM:<a@b>", ""), (b"MAIL FROM:<>", ""), (b"MAIL FROM:<x@y> SIZE=9 BODY=8bitmime ENVID=q", ""),
        ("MAIL FROM:<ä@b> SMTPUTF8".encode(), ""), (b"MAIL FROM:<a..b@c> XOWN=1", ""),
        (b"MAIL FROM:<a", "501"), (b"MAIL FROM:<a@b> RET=x", "501"), (b"MAIL FROM:<a@b> SIZE=99999", "552"), (b"MAIL", "501"),
    ),
    "RCPT": (
        (b"RCPT TO:<r1@x>", ""), (b"RCPT TO:<r2@x> NOTIFY=never", ""), (b"RCPT TO:<r3@x> ORCPT=rfc822;o@x XOWN", ""),
        (b"RCPT TO:<r..4@x>", ""), ("RCPT TO:<ü@x>".encode(), ""),
        (b"RCPT TO:<r", "501"), (b"RCPT TO:<r5@x> NOTIFY=x", "501"), (b"RCPT", "501"),
    ),
    "DATA": (
        (b"text\r\n", ""), (b"", ""), (b"x" * 1200 + b"\r\n", ""),
        (b"stray\ntext\r\n", "550"), (b"x" * 900 + b"\r\n" + b"y" * 1200 + b"\r\n", "552"),
    ),
    "BDAT": ((b"text\r\n", ""), (b"", ""), (b"bare\nline\r\n.\r\n", ""), (b"x" * 2001, "552")),
    "CHUNK": ((b"text\r\n", ""), (b"", ""), (b"bare\nline\r\n", ""), (b"x" * 900 + b"\r\n", ""), (b"x" * 2001, "")),
    "AUTH": (
        (b"AUTH PLAIN AHgAZ29vZA==", ""), (b"AUTH PLAIN AHgAYmFk", "535"),
        (b"AUTH PLAIN =x", "501"), (b"AUTH XYZZY", "504"), (b"AUTH", "501"),
    ),
    "XFORWARD": ((b"XFORWARD ADDR=192.0.2.9 HELO=c.example", ""), (b"XFORWARD NAME=n.example", ""), (b"XFORWARD", "501")),
    "RSET": ((b"RSET", ""), (b"RSET x", "501")),
    "NOOP": ((b"NOOP", ""), (b"NOOP x", "")),
    "VRFY": ((b"VRFY x", ""), (b"VRFY", "501")),
    "STARTTLS": ((b"STARTTLS", ""), (b"STARTTLS x", "501")),
    "JUNK": ((b"XYZZY", "500"),),
}  # fmt: skip


@dataclass(frozen=True)
class Step:
    """One command; for DATA *line* is the content, sent if 354 comes; for BDAT it is that of each of two chunks.

    Attributes:
        fate: what its hook does. soon: not at once, but in a task. waits: the client awaits the replies before it goes on.
    """

    verb: str
    line: bytes
    refusal: str
    fate: Fate
    soon: bool
    waits: bool


@dataclass
class Seen:
    """The envelope as a hook finds it; ``marks`` are those hooks left on it before: numbers of calls."""

    mail_from: str | None = None
    mail_options: list[str] = field(default_factory=list)
    mail_params: dict[str, str | None] = field(default_factory=dict)
    smtp_utf8: bool = False
    rcpt_tos: list[str] = field(default_factory=list)
    rcpt_options: list[str] = field(default_factory=list)
    rcpt_params: list[dict[str, str | None]] = field(default_factory=list)
    defects: dict[str, int] = field(default_factory=dict)
    body: bytes | None = None
    marks: list[int] = field(default_factory=list)
    xforward: dict[str, str] = field(default_factory=dict)

    def copy(self) -> Seen:
        """Return what it is now."""
        return deepcopy(self)

    def add(self, defects: Mapping[str, int]) -> None:
        """Count *defects*."""
        for kind, count in defects.items():
            self.defects[kind] = self.defects.get(kind, 0) + count


@dataclass
class Model:
    """What a session is: greeted or not, and one envelope, of a transaction or of none.

    Attributes:
        calls: hooks called so far, with what they saw.
        chunked: chunks were taken, of which ``content`` is made; failed: one was refused, and the last one has not come.
        named, accepted: recipients of the transaction, for the engine; its envelope may have others (``NOBODY``, ``TWICE``).
    """

    lmtp: bool = False
    chunking: bool = True
    greeted: str = ""
    tls: bool = False
    sender: bool = False
    named: int = 0
    accepted: int = 0
    chunked: bool = False
    failed: bool = False
    content: bytes = b""
    authenticated: bool = False
    envelope: Seen = field(default_factory=Seen)
    calls: list[tuple[str, Seen]] = field(default_factory=list)

    def play(self, step: Step) -> list[str]:
        """Take *step* and return the codes of its replies."""
        return ROWS[step.verb](self, step)

    def call(self, hook: str) -> None:
        """A hook is called, looks, and leaves its mark."""
        self.calls.append((hook, self.envelope.copy()))
        self.envelope.marks.append(len(self.calls))

    def forget(self) -> None:
        """A transaction has ended, or none has begun."""
        self.sender, self.named, self.accepted, self.envelope = False, 0, 0, Seen()
        self.chunked, self.failed, self.content = False, False, b""

    def fail(self) -> None:
        """A chunk was refused: the message is lost, though the transaction goes on to its last chunk."""
        self.chunked, self.failed, self.content, self.envelope = False, True, b"", Seen()


def _greet(model: Model, step: Step) -> list[str]:
    if model.lmtp and step.verb == "HELO":
        return ["500"]
    if step.refusal:
        return [step.refusal]
    before = (model.sender, model.named, model.accepted, model.envelope, model.chunked, model.failed, model.content)
    model.forget()
    model.call(step.verb)
    if CODES[step.fate] == "250":
        model.greeted = step.verb
    else:
        model.sender, model.named, model.accepted, model.envelope, model.chunked, model.failed, model.content = before
    return [CODES[step.fate]]


def _mail(model: Model, step: Step) -> list[str]:
    if not model.greeted or model.sender:
        return ["503"]
    if step.refusal:
        return [step.refusal]
    address, parameters, defects = _read(step.line, "MAIL FROM:")
    envelope = model.envelope
    envelope.mail_params = parameters
    envelope.smtp_utf8 = "SMTPUTF8" in parameters
    envelope.add(defects)
    model.call("MAIL")
    if CODES[step.fate] != "250":
        model.forget()
        return [CODES[step.fate]]
    model.sender = True
    envelope.mail_from = address or "<>"
    envelope.mail_options = _options(parameters)
    return ["250"]


def _rcpt(model: Model, step: Step) -> list[str]:
    if not model.sender or model.chunked or model.failed:
        return ["503"]
    model.named += 1
    if step.refusal:
        return [step.refusal]
    address, parameters, defects = _read(step.line, "RCPT TO:")
    envelope = model.envelope
    if not address.isascii() and not envelope.smtp_utf8:
        return ["553"]
    model.call("RCPT")
    code = CODES[step.fate]
    if code == "250":
        model.accepted += 1
        count = {Fate.NOBODY: 0, Fate.TWICE: 2}.get(step.fate, 1)
        envelope.rcpt_tos += [address] * count
        envelope.rcpt_options += _options(parameters) if count else []
        envelope.rcpt_params += [parameters] * count
        envelope.add(defects)
    return [code]


def _data(model: Model, step: Step) -> list[str]:
    if model.chunked or model.failed:
        return ["503"]
    if not model.accepted:
        return ["554" if model.named and not model.lmtp else "503"]
    if not model.envelope.rcpt_tos:
        return ["503"]
    replies = model.accepted if model.lmtp else 1
    if step.refusal:
        model.forget()
        return ["354", *[step.refusal] * replies]
    model.envelope.body = step.line
    if len(step.line) > 1000:
        model.envelope.add({"long-line": 1})
    model.call("DATA")
    model.forget()
    return ["354", *[CODES[step.fate]] * replies]


def _chunk(model: Model, step: Step) -> list[str]:
    """One chunk that is not the last."""
    code = _chunk_refusal(model, step.line)
    if not code:
        model.chunked, model.content = True, model.content + step.line
    elif code == "552" or (code == "503" and model.accepted):  # for nobody: a hook said 250 and kept none
        model.fail()
    return [code or "250"]


def _bdat(model: Model, step: Step) -> list[str]:
    """Two chunks, of which the second one says LAST; after it nothing is left, unless it was out of turn."""
    first = _chunk(model, step)
    replies = model.accepted if model.lmtp and model.sender else 1  # RFC 2033 s4.3: zero replies for zero recipients
    code = _chunk_refusal(model, step.line)
    if not code:
        model.envelope.body = content = model.content + step.line
        bare = content.count(b"\n") - content.count(b"\r\n")
        model.envelope.add({"bare-lf": bare} if bare else {})
        model.call("DATA")
        code = CODES[step.fate]
        model.forget()
    elif code == "552" or model.failed:
        model.forget()
    return [*first, *[code] * replies]


def _chunk_refusal(model: Model, octets: bytes) -> str:
    """Return the code that a chunk of *octets* is refused with, ``""`` if it is taken."""
    for bad, code in (
        (not model.sender or model.failed, "503"),
        (not model.accepted, "554" if model.named and not model.lmtp else "503"),
        (not model.chunking, "502"),
        (not model.envelope.rcpt_tos, "503"),
        (len(model.content) + len(octets) > SIZE_MAX, "552"),
    ):
        if bad:
            return code
    return ""


def _auth(model: Model, step: Step) -> list[str]:
    if model.greeted != "EHLO" or model.sender or model.authenticated:
        return ["503"]
    if step.refusal:
        return [step.refusal]
    model.authenticated = True
    return ["235"]


def _xforward(model: Model, step: Step) -> list[str]:
    if model.sender:
        return ["503"]
    if step.refusal:
        return [step.refusal]
    words = (word.partition("=") for word in step.line.decode().split(" ")[1:])
    model.envelope.xforward.update({name: value for name, _, value in words})
    return ["250"]


def _rset(model: Model, step: Step) -> list[str]:
    if step.refusal:
        return [step.refusal]
    model.forget()
    model.call("RSET")
    return [CODES[step.fate]]


def _bystander(model: Model, step: Step) -> list[str]:
    if step.refusal:
        return [step.refusal]
    model.call(step.verb)
    return [CODES[step.fate]]


def _starttls(model: Model, step: Step) -> list[str]:
    if not model.greeted or model.sender:
        return ["503"]
    if step.refusal:
        return [step.refusal]
    if model.tls or model.greeted == "HELO":
        return ["503"]
    model.tls, model.greeted, model.authenticated = True, "", False
    model.forget()
    return ["220"]


ROWS: Mapping[str, Callable[[Model, Step], list[str]]] = {
    "EHLO": _greet, "HELO": _greet, "MAIL": _mail, "RCPT": _rcpt, "DATA": _data, "BDAT": _bdat, "RSET": _rset,
    "CHUNK": _chunk, "AUTH": _auth, "XFORWARD": _xforward,
    "NOOP": _bystander, "VRFY": _bystander, "STARTTLS": _starttls, "JUNK": lambda _model, step: [step.refusal],
}  # fmt: skip


def _read(line: bytes, head: str) -> tuple[str, dict[str, str | None], dict[str, int]]:
    """Return address, parameters and defects of a line of the table."""
    path, *words = line.decode().removeprefix(head).split(" ")
    address = path[1:-1]
    parameters = {key.upper(): value if equals else None for key, equals, value in (word.partition("=") for word in words)}
    defects = {"dots": 1} if ".." in address else {}
    own = sum(key == "XOWN" for key in parameters)
    return address, parameters, {**defects, **({"unregistered-parameter": own} if own else {})}


def _options(parameters: Mapping[str, str | None]) -> list[str]:
    return [key if value is None else f"{key}={value.upper()}" for key, value in parameters.items()]


def seen(envelope: Any) -> Seen:
    """Return what a hook finds on *envelope*."""
    return Seen(
        envelope.mail_from,
        list(envelope.mail_options),
        dict(envelope.mail_params),
        envelope.smtp_utf8,
        list(envelope.rcpt_tos),
        list(envelope.rcpt_options),
        [dict(each) for each in envelope.rcpt_params],
        {kind: count for kind, count in envelope.defects.items() if kind != "pipelining"},  # that hangs on segments, all else does not
        envelope.original_content,
        list(vars(envelope).get("marks", ())),
        dict(envelope.xforward),
    )


# Verbs by how often they come: enough of those that make mail that mails are made.
_SELDOM = ["AUTH", "XFORWARD", "EHLO", "HELO", "RSET", "NOOP", "VRFY", "STARTTLS", "JUNK"]
_VERBS = ["MAIL"] * 5 + ["RCPT"] * 7 + ["DATA"] * 4 + ["BDAT", "CHUNK"] * 3 + _SELDOM
_FATES = [Fate.ACCEPT] * 8 + [Fate.LATER, Fate.NEVER, Fate.RAISE, Fate.NONE, Fate.NONSENSE, Fate.TOO_LATE]


@st.composite
def steps(draw: st.DrawFn) -> Step:
    """Draw one step."""
    verb = draw(st.sampled_from(_VERBS))
    line, refusal = draw(st.sampled_from(LINES[verb]))
    fate = draw(st.sampled_from([*_FATES, Fate.NOBODY, *[Fate.TWICE] * 3] if verb == "RCPT" else _FATES))
    return Step(verb, line, refusal, fate, soon=draw(st.booleans()), waits=draw(st.booleans()))


def said(verb: str, line: int = 0, fate: Fate = Fate.ACCEPT) -> Step:
    """Return the step that says a verb's *line*-th line, its replies awaited."""
    octets, refusal = LINES[verb][line]
    return Step(verb, octets, refusal, fate, soon=False, waits=True)


GREETING = said("EHLO")
scripts = st.lists(steps(), max_size=30).map(lambda some: [GREETING, *some])
