"""The tee reads the wire by itself: whole messages, without transparency dots, however the octets were cut."""

from __future__ import annotations

import pytest

from tests.e2e.tee import Turn, messages

SESSION = (
    b"EHLO c\r\nMAIL FROM:<a@b>\r\nRCPT TO:<x@y>\r\nRCPT TO:<\xc3\xbc@y>\r\nDATA\r\n",
    b"..dot\r\n.\x2e\r\nDATA\r\n.\r\nMAIL FROM:<>\r\nRCPT TO:<z@y>\r\nDATA\r\n",
    b".\r\nQUIT\r\n",
)


@pytest.mark.parametrize("size", [pytest.param(size, id=f"cut by {size}") for size in (1, 2, 3, 1000)])
def test_messages_of_a_conversation(size: int) -> None:
    """Dots at line starts, a line that looks like a command, an empty message, commands in the segment of the end."""
    turns: list[Turn] = [("server", b"220 hi\r\n")]
    for said in SESSION:
        turns += [("client", said[start : start + size]) for start in range(0, len(said), size)]
        turns.append(("server", b"250 ok\r\n354 go on\r\n"))
    found = list(messages(turns))
    assert [b".dot\r\n.\r\nDATA\r\n", b""] == [message.octets for message in found]
    assert [("x@y", "ü@y"), ("z@y",)] == [message.recipients for message in found]


def test_a_refused_data_begins_no_message() -> None:
    """After another answer than 354 the client speaks commands again."""
    turns: list[Turn] = [("client", b"DATA\r\n"), ("server", b"503 5.5.1 no\r\n"), ("client", b"a\r\n.\r\n")]
    assert [] == list(messages(turns))
