"""What may come when, written out independently of ``states``: one row per state, command and kind of answer.

``CODES`` says what each state answers to each command; ``ANSWERS`` where other answers than the default lead. ``check`` plays one
row; the mutation test plays them all against damaged tables.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from postbus.smtp import Reply, State
from tests.smtp.driver import OFFER, Driver, Policy, codes

CONNECTED, GREETED, SENDER, REFUSED, RECIPIENTS, CONTENT, CHUNK, CHUNKS, FAILED, UPGRADING, AUTHENTICATING, CLOSED = (
    State.CONNECTED, State.GREETED, State.SENDER, State.REFUSED, State.RECIPIENTS, State.CONTENT, State.CHUNK, State.CHUNKS, State.FAILED,
    State.UPGRADING, State.AUTHENTICATING, State.CLOSED,
)  # fmt: skip
SIZE_MAX = 1000

COMMANDS = {
    "EHLO": b"EHLO client.example\r\n", "HELO": b"HELO client.example\r\n", "LHLO": b"LHLO client.example\r\n",
    "MAIL": b"MAIL FROM:<a@client.example>\r\n", "RCPT": b"RCPT TO:<b@mx.test>\r\n", "DATA": b"DATA\r\n", "RSET": b"RSET\r\n",
    "NOOP": b"NOOP\r\n", "QUIT": b"QUIT\r\n", "VRFY": b"VRFY b\r\n", "EXPN": b"EXPN b\r\n", "HELP": b"HELP\r\n",
    "STARTTLS": b"STARTTLS\r\n", "AUTH": b"AUTH PLAIN\r\n",
    "XCLIENT": b"XCLIENT ADDR=192.0.2.1\r\n", "XFORWARD": b"XFORWARD ADDR=192.0.2.1\r\n", ".": b"text\r\n.\r\n", "BDAT": b"BDAT 4\r\ntext",
    "LAST": b"BDAT 4 LAST\r\ntext",
    "BIG": b"BDAT 1001\r\n" + b"x" * 1001, "half BDAT": b"BDAT 4\r\nte", "half LAST": b"BDAT 4 LAST\r\nte",
    "half BIG": b"BDAT 1001\r\n" + b"x" * 999, "rest": b"xt", "=": b"AHgAeA==\r\n",
}  # fmt: skip

# How to get there: the commands before, and how RCPT is answered on the way.
WAYS = {
    CONNECTED: "",
    GREETED: "EHLO",
    SENDER: "EHLO MAIL",
    REFUSED: "EHLO MAIL RCPT!",
    RECIPIENTS: "EHLO MAIL RCPT",
    CONTENT: "EHLO MAIL RCPT DATA",
    CHUNKS: "EHLO MAIL RCPT BDAT",
    FAILED: "EHLO MAIL RCPT BIG",
    AUTHENTICATING: "EHLO AUTH",
}

#              EHLO HELO MAIL RCPT DATA RSET NOOP QUIT VRFY EXPN HELP STARTTLS AUTH BDAT LAST XCLIENT XFORWARD
CODES = {
    CONNECTED:  "250G 250G 503  503  503  250  250  221X 252  502  214  503      503  503  503  220C    250",
    GREETED:    "250G 250G 250S 503  503  250G 250  221X 252  502  214  220C     334A 503  503  220C    250",
    SENDER:     "250G 250G 503  250R 503  250G 250  221X 252  502  214  503      503  503  503  503     503",
    REFUSED:    "250G 250G 503  250R 554  250G 250  221X 252  502  214  503      503  554  554  503     503",
    RECIPIENTS: "250G 250G 503  250R 354D 250G 250  221X 252  502  214  503      503  250K 250G 503     503",
    CHUNKS:     "250G 250G 503  503  503  250G 250  221X 252  502  214  503      503  250K 250G 503     503",
    FAILED:     "250G 250G 503  503  503  250G 250  221X 252  502  214  503      503  503  503G 503     503",
}  # fmt: skip
LMTP_CODES = {state: line.replace("554", "503") for state, line in CODES.items()}
_COLUMNS = (
    "EHLO", "HELO", "MAIL", "RCPT", "DATA", "RSET", "NOOP", "QUIT", "VRFY", "EXPN", "HELP", "STARTTLS", "AUTH", "BDAT", "LAST", "XCLIENT",
    "XFORWARD",
)  # fmt: skip
_TARGETS = {
    "G": GREETED,
    "S": SENDER,
    "R": RECIPIENTS,
    "D": CONTENT,
    "K": CHUNKS,
    "X": CLOSED,
    "C": CONNECTED,
    "A": AUTHENTICATING,
}  # C: TLS comes up at once

# state, command, the shell's answer, the state after it. Where an answer is not listed nothing may move.
ANSWERS = [
    *((state, verb, code, state) for state in CODES for verb in ("EHLO", "HELO") for code in (450, 550)),
    *((state, "RSET", code, CONNECTED if state is CONNECTED else GREETED) for state in CODES for code in (450, 550)),
    *((state, verb, code, state) for state in CODES for verb in ("NOOP", "VRFY", "EXPN", "HELP") for code in (250, 450, 550)),
    *((state, "QUIT", code, CLOSED) for state in CODES for code in (450, 550)),
    *((state, verb, 421, CLOSED) for state in CODES for verb in ("EHLO", "NOOP", "RSET")),
    *((GREETED, "MAIL", code, GREETED) for code in (451, 550)),
    *((SENDER, "RCPT", code, REFUSED) for code in (450, 550)),
    (SENDER, "RCPT", 251, RECIPIENTS),
    *((REFUSED, "RCPT", code, REFUSED) for code in (450, 550)),
    *((RECIPIENTS, "RCPT", code, RECIPIENTS) for code in (450, 550)),
    *((RECIPIENTS, "DATA", code, RECIPIENTS) for code in (250, 451, 554)),
    *((CONTENT, ".", code, GREETED) for code in (250, 354, 451, 554)),
    (CONTENT, ".", 421, CLOSED),
    *((state, verb, code, after) for state in (RECIPIENTS, CHUNKS) for code in (450, 550)
      for verb, after in (("BDAT", FAILED), ("LAST", GREETED))),
    *((state, "BDAT", 421, CLOSED) for state in (RECIPIENTS, CHUNKS)),
    *((GREETED, "STARTTLS", code, GREETED) for code in (454, 501)),
    *((state, "XCLIENT", code, state) for state in (CONNECTED, GREETED) for code in (450, 550)),
    *((state, "XFORWARD", code, state) for state in (CONNECTED, GREETED) for code in (450, 550)),
    *((GREETED, "AUTH", code, GREETED) for code in (235, 454, 535)),
    *((AUTHENTICATING, "=", code, GREETED) for code in (235, 454, 535)),
    (AUTHENTICATING, "=", 334, AUTHENTICATING),
    (AUTHENTICATING, "=", 421, CLOSED),
    (CONNECTED, "EHLO", 250, GREETED),
]  # fmt: skip

# In the middle of a chunk: how it began, what "." is answered (``None``: nobody asks), the code and the state after its rest.
BEGUN = [
    ("half BDAT", None, 250, CHUNKS),
    ("half BIG", None, 552, FAILED),
    *(("half LAST", code, code, GREETED) for code in (250, 354, 451, 554)),
    ("half LAST", 421, 421, CLOSED),
]

# Arguments the engine itself refuses move nothing, but a recipient was named.
MALFORMED = [
    *((state, b"QUIT now\r\n", "501", state) for state in CODES),
    *((state, b"RSET now\r\n", "501", state) for state in CODES),
    *((state, b"EHLO\r\n", "501", state) for state in CODES),
    *((state, b"VRFY\r\n", "501", state) for state in CODES),
    (GREETED, b"MAIL FROM:<a\r\n", "501", GREETED),
    (GREETED, b"STARTTLS now\r\n", "501", GREETED),
    *((state, b"XCLIENT ADDR\r\n", "501", state) for state in (CONNECTED, GREETED)),
    *((state, b"XFORWARD ADDR\r\n", "501", state) for state in (CONNECTED, GREETED)),
    (GREETED, b"AUTH\r\n", "501", GREETED),
    (AUTHENTICATING, b"*\r\n", "501", GREETED),
    (AUTHENTICATING, b"QUIT\r\n", "501", GREETED),
    (AUTHENTICATING, b"NOOP NOOP\r\n", "501", GREETED),
    (SENDER, b"RCPT TO:<b@>\r\n", "501", REFUSED),
    (SENDER, b"RCPT TO:<b\0@mx.test>\r\n", "501", REFUSED),
    (REFUSED, b"RCPT TO:<b@>\r\n", "501", REFUSED),
    (RECIPIENTS, b"RCPT TO:<b@>\r\n", "501", RECIPIENTS),
    (RECIPIENTS, b"DATA now\r\n", "501", RECIPIENTS),
]  # fmt: skip


@dataclass(frozen=True)
class Row:
    """From *state*, *octets* get *code* and lead to *after*; *answer* is the shell's, ``None`` the default."""

    id: str
    lmtp: bool
    state: State
    octets: bytes
    code: str
    after: State
    answer: tuple[str, Reply] | None = None
    begun: str = ""


def rows() -> Iterator[Row]:
    """Yield every row, SMTP's then LMTP's."""
    for lmtp, table in ((False, CODES), (True, LMTP_CODES)):
        protocol = "lmtp" if lmtp else "smtp"
        for state, line in table.items():
            for verb, cell in zip(_COLUMNS, line.split(), strict=True):
                if lmtp and (
                    verb == "HELO" or (verb == "LAST" and state in (SENDER, REFUSED))
                ):  # no recipients, no replies (RFC 2033 s4.3)
                    continue
                after = _TARGETS[cell[3:]] if cell[3:] else state
                yield Row(f"{protocol}-{state.name}-{verb}", lmtp, state, _command(verb, lmtp=lmtp), cell[:3], after)
        for state, verb, code, after in ANSWERS:
            if lmtp and verb == "HELO":
                continue
            answer = ("BDAT" if verb == "LAST" else _name(verb, lmtp=lmtp), Reply(code, "As the shell says"))
            yield Row(f"{protocol}-{state.name}-{verb}-{code}", lmtp, state, _command(verb, lmtp=lmtp), str(code), after, answer)
        for begun, said, code, after in BEGUN:
            end = None if said is None else (".", Reply(said, "As the shell says"))
            yield Row(f"{protocol}-CHUNK-{begun}-{code}", lmtp, CHUNK, COMMANDS["rest"], str(code), after, end, begun)
        for state, octets, refusal, after in MALFORMED:
            if lmtp and octets.startswith(b"EHLO"):
                continue
            yield Row(f"{protocol}-{state.name}-{octets[:12]!r}", lmtp, state, octets, refusal, after)


def check(row: Row) -> None:
    """Play *row*."""
    driver = Driver(
        replace(OFFER, starttls=True, auth=("PLAIN",), auth_tls=False, xclient=True, xforward=True, size_octets=SIZE_MAX), lmtp=row.lmtp
    )
    for step in [*WAYS[RECIPIENTS].split(), row.begun] if row.begun else WAYS[row.state].split():
        verb = step.rstrip("!")
        driver.policy = Policy(answers={"RCPT": Reply(550, "No")} if step.endswith("!") else {})
        driver.feed(_command(verb, lmtp=row.lmtp))
    assert row.state is driver.engine.state
    driver.policy = Policy(answers=dict([row.answer]) if row.answer else {})
    sent = codes(driver.feed(row.octets))
    assert [row.code] == [code[:3] for code in sent]
    assert row.after is driver.engine.state
    if row.after in (CONNECTED, GREETED, AUTHENTICATING, CLOSED):
        assert not driver.engine.in_transaction
        assert driver.engine.accepted_recipients == 0


def _name(verb: str, *, lmtp: bool) -> str:
    return "LHLO" if lmtp and verb == "EHLO" else verb


def _command(verb: str, *, lmtp: bool) -> bytes:
    return COMMANDS[_name(verb, lmtp=lmtp)]
