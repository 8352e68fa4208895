"""What a server without hooks answers."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from postbus.smtp import Command, Helo, Help, Noop, Owed, Quit, Reply, Xclient, replies
from tests.smtp.driver import opened

NOTHING: Mapping[str, str | None] = {}


@pytest.mark.parametrize(
    ("event", "lmtp", "expected"),
    [
        pytest.param(Noop(), False, replies.OK, id="a fixed text"),
        pytest.param(Quit(), True, replies.BYE, id="the last one"),
        pytest.param(Command("NOOP", None), False, replies.UNKNOWN, id="a raw verb is the shell's"),
        pytest.param(Helo("HELO", "x"), False, Reply(250, "mx.test"), id="HELO has one line"),
        pytest.param(Help("lhlo"), True, Reply(214, "Syntax: LHLO hostname", "2.0.0"), id="HELP knows the protocol"),
        pytest.param(Xclient(NOTHING), False, Reply(220, "mx.test ESMTP"), id="XCLIENT begins anew"),
        pytest.param(Xclient(NOTHING), True, Reply(220, "mx.test LMTP"), id="and so in LMTP"),
    ],
)
def test_default_replies(event: Owed, lmtp: bool, expected: Reply) -> None:
    """Every event has an answer; what it says depends on the session alone."""
    assert expected == opened(lmtp=lmtp).default_reply(event)


def test_a_greeting_lists_what_is_offered() -> None:
    """EHLO's lines are those of the offer, made once for all sessions under it."""
    reply, again = (opened().default_reply(Helo("EHLO", "x")) for _ in range(2))
    assert reply.lines == opened().greeting_lines()
    assert reply is again
