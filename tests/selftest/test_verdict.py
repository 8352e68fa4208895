"""What is a failure, what is as safe, what is lenient: decided from what could be observed."""

from __future__ import annotations

from dataclasses import replace

import pytest

from postbus.selftest.played import End, Exchange, Played
from postbus.selftest.vectors import Row, Step, rows
from postbus.selftest.verdict import Verdict, differences, judge

ROWS = {row.id: row for row in rows()}
QUIT = b"QUIT\r\n"


def played(row: Row, *got: tuple[str, ...], probe: tuple[str, ...] | None = ("221 2.0.0",), end: End = "open") -> Played:
    """Return *row* with the prologue answered as it should be, then *got* for each of its steps, then a QUIT if *probe* is said."""
    exchanges = [Exchange("prologue", step.octets, step.expect, step.expect) for step in row.prologue]
    exchanges += [
        Exchange("row", None if step.kind == "tls" else step.octets, step.expect, codes)
        for step, codes in zip(row.steps, got, strict=False)
        if step.kind != "eof"
    ]
    if probe is not None:
        exchanges.append(Exchange("probe", QUIT, () if row.closes else ("221",), probe))
    return Played(tuple(exchanges), end, row.protocol == "lmtp", row.early)


def as_listed(row: Row) -> list[tuple[str, ...]]:
    """Return the listed answers."""
    return [step.expect for step in row.steps]


@pytest.mark.parametrize("row", [row for row in rows() if "proxy" not in row.server], ids=lambda row: row.id)
def test_the_listed_answer_passes(row: Row) -> None:
    """Every row's own answers are a pass, to the letter."""
    ends = any(step.kind == "eof" for step in row.steps)
    end: End = "closed" if row.closes else "left" if ends else "open"
    found = played(row, *as_listed(row), probe=None if row.closes or ends else ("221",), end=end)
    assert Verdict("pass") == judge(row, found)
    assert [] == differences(row, found)


@pytest.mark.parametrize(
    ("row", "got", "probe", "end", "word", "why"),
    [
        # 6.1: the number of replies tells
        ("eod-lf-dot-lf", [("250",), ("250",)], ("250", "354", "250", "250", "221"), "open", "FAIL", "smuggled"),
        ("eod-lf-dot-lf", [("250",), ("503",)], ("503", "503", "221"), "open", "FAIL", "smuggled"),
        ("eod-lf-dot-lf", [("250",), ("250",)], ("221",), "open", "lenient", "one mail"),
        ("eod-lf-dot-lf", [("521",)], None, "closed", "safe", "521"),
        ("eod-lf-dot-lf", [()], None, "closed", "safe", "hung up"),
        ("eod-lf-dot-lf", [()], None, "silent", "FAIL", "hung"),
        ("eod-split-2", [(), ()], None, "silent", "FAIL", "hung"),
        ("eod-split-2", [(), ("554",)], ("221",), "open", "safe", "554"),
        ("lmtp-stray", [("250",), ("250", "250", "250", "354"), ("250",)], None, "silent", "FAIL", "LMTP gives one"),
        # 6.2
        ("starttls-injection", [("220", "250")], None, "no tls", "FAIL", "smuggled"),
        ("starttls-injection", [("501",)], ("221",), "open", "lenient", "hang up"),
        ("http-get", [("500",)], ("500", "500", "250", "221"), "open", "FAIL", "ran MAIL out of an HTTP request"),
        ("http-get", [("221",)], None, "closed", "safe", "221"),
        ("http-get", [("500",)], ("500", "500", "503", "221"), "open", "lenient", "hang up"),
        ("http-get", [()], None, "closed", "safe", "hung up"),
        # 6.3
        ("behind-noop", [("250",)], ("250", "221"), "open", "lenient", "took"),
        ("end-accepted", [("250",), ("250",), ("503",)], ("221",), "open", "FAIL", "kept state"),
        ("end-accepted", [("250",), ("503",), ("503",)], ("221",), "open", "pass", ""),
        ("end-rset", [("250",), ("250",)], ("221",), "open", "FAIL", "kept state"),
        ("rcpt-first", [("250",)], ("221",), "open", "FAIL", "kept state"),
        ("mail-first", [("250",)], ("221",), "open", "lenient", "took MAIL"),
        ("mail-twice", [("501",)], ("221",), "open", "safe", "501"),
        ("control-nul", [("250",), ("250",), ("503",), ("250",), ("250",)], ("221",), "open", "FAIL", "0x00"),
        ("control-tab", [("250",), ("250",), ("503",), ("250",), ("250",)], ("221",), "open", "lenient", "took"),
        ("bare-lf-command", [("250",), ("250",)], ("250", "221"), "open", "FAIL", "smuggled"),
        ("command-long", [("500",), ("500",)], ("250", "221"), "open", "lenient", "several"),
        ("command-long", [("500",), ("250",)], ("250", "221"), "open", "FAIL", "smuggled"),
        ("command-long", [("500",), ("421",)], None, "closed", "safe", "421"),
        ("flood-noop", [("250",)] * 101, ("221",), "open", "lenient", "took"),
        ("flood-noop", [("250",)] * 60 + [("421",)], None, "closed", "safe", "421"),
        ("path-cr-header", [("250",), ("503",), ("250",)], ("221",), "open", "FAIL", "0x0d"),
        ("parameter-unknown", [("250",), ("503",), ("250",)], ("221",), "open", "lenient", "took MAIL"),
        ("dot-stuffed", [("450",)], ("221",), "open", "safe", "450"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_other_answers(row: str, got: list[tuple[str, ...]], probe: tuple[str, ...] | None, end: End, word: str, why: str) -> None:
    """Danger fails; refusing otherwise is safe; taking more than the table is lenient."""
    verdict = judge(ROWS[row], played(ROWS[row], *got, probe=probe, end=end))
    assert word == verdict.word
    assert why in verdict.why


def test_a_command_that_ran_behind_the_handshake_fails() -> None:
    """CVE-2011-0411: one reply more than was asked for inside TLS."""
    row = ROWS["starttls-injection"]
    injected = [
        Exchange("row", row.steps[0].octets, row.steps[0].expect, ("220",)),
        Exchange("probe", None),
        Exchange("probe", b"NOOP\r\n", ("250",), ("503",)),
        Exchange("probe", QUIT, (), ("250", "221")),
    ]
    dropped = [*injected[:2], replace(injected[2], got=("250",)), replace(injected[3], got=("221",))]
    greeted = [Exchange("prologue", step.octets, step.expect, step.expect) for step in row.prologue]
    assert "FAIL" == judge(row, Played((*greeted, *injected), "open")).word
    assert Verdict("safe", "went on to TLS, and what stood behind STARTTLS did not run") == judge(row, Played((*greeted, *dropped), "open"))


@pytest.mark.parametrize(
    ("reply", "word"), [pytest.param("554", "lenient", id="refused at the dot"), pytest.param("250", "FAIL", id="a mail for nobody")]
)
def test_354_without_a_recipient(reply: str, word: str) -> None:
    """RFC 2920 s3.1 allows 354 where it is refused at the dot; a mail for nobody is none."""
    row = ROWS["all-refused"]
    found = played(row, ("250", "550", "354"), probe=None)
    ended = (*found.exchanges, Exchange("probe", b".\r\n", (), (reply,)), Exchange("probe", QUIT, ("221",), ("221",)))
    assert word == judge(row, replace(found, exchanges=ended)).word


@pytest.mark.parametrize(
    ("greeting", "end", "expected"),
    [
        (None, "closed", Verdict("FAIL", "hung up before its banner")),
        (None, "silent", Verdict("FAIL", "sent no banner")),
        ("421", "open", Verdict("skipped", "the banner was 421")),
    ],
)
def test_no_banner(greeting: str | None, end: End, expected: Verdict) -> None:
    """A server that does not greet fails; one that turns us away was not tested."""
    assert expected == judge(ROWS["unknown"], Played((), end, greeting=greeting))


@pytest.mark.parametrize(
    ("got", "end", "expected"),
    [
        (("421 4.7.0",), "closed", Verdict("skipped", "answered 421 4.7.0 to EHLO, before the attack began")),
        ((), "closed", Verdict("FAIL", "hung up at EHLO, before the attack began")),
        ((), "silent", Verdict("FAIL", "did not answer at EHLO, before the attack began")),
    ],
)
def test_a_prologue_that_goes_wrong(got: tuple[str, ...], end: End, expected: Verdict) -> None:
    """What was turned away before the attack was not tested; what broke there failed."""
    assert expected == judge(ROWS["rcpt-first"], Played((Exchange("prologue", b"EHLO client.example\r\n", ("250",), got),), end))


def test_differences_name_every_code() -> None:
    """For a server of our own the enhanced code counts, and how the connection ends."""
    row = replace(ROWS["unknown"], steps=(Step("send", b"NOOP\r\n", ("250 2.0.0",)),))
    assert ["b'NOOP\\r\\n': expected ['250 2.0.0'], got ['250']", "the connection should be open, and is closed"] == differences(
        row, played(row, ("250",), probe=None, end="closed")
    )
