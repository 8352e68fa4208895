"""Replies as values: their wire form, reading a hook's string, folding several into one."""

from __future__ import annotations

import pytest

from postbus.smtp import Reply, replies
from postbus.smtp.replies import fold


@pytest.mark.parametrize(
    ("reply", "wire"),
    [
        pytest.param(Reply(250, "OK", "2.0.0"), b"250 2.0.0 OK\r\n", id="enhanced"),
        pytest.param(Reply(354, "Go on"), b"354 Go on\r\n", id="plain"),
        pytest.param(Reply(250, ("a", "b", "c")), b"250-a\r\n250-b\r\n250 c\r\n", id="lines"),
        pytest.param(Reply(550, ("a", "b"), "5.1.1"), b"550-5.1.1 a\r\n550 5.1.1 b\r\n", id="enhanced lines"),
        pytest.param(Reply(250, ()), b"250 \r\n", id="no line"),
        pytest.param(Reply(250, "grün"), "250 grün\r\n".encode(), id="UTF-8"),
        pytest.param(Reply(250, "\udcff"), b"250 ?\r\n", id="no surrogates"),
    ],
)
def test_wire(reply: Reply, wire: bytes) -> None:
    """A reply's octets are made once, line by line."""
    assert wire == reply.wire


@pytest.mark.parametrize(
    ("text", "reply"),
    [
        pytest.param("250 OK", Reply(250, "OK"), id="plain"),
        pytest.param("250 2.1.0 OK", Reply(250, "OK", "2.1.0"), id="enhanced"),
        pytest.param("250 2.1.0", Reply(250, "", "2.1.0"), id="enhanced alone"),
        pytest.param("250", Reply(250, ""), id="code alone"),
        pytest.param("250 OK\r\n", Reply(250, "OK"), id="with its line end"),
        pytest.param("250 5.1.0 OK", Reply(250, "5.1.0 OK"), id="enhanced code of another class is text"),
        pytest.param("250-a\r\n250 b", Reply(250, ("a", "b")), id="lines"),
        pytest.param("250-2.0.0 a\n250 2.0.0 b", Reply(250, ("a", "b"), "2.0.0"), id="enhanced lines"),
        pytest.param("250-2.0.0 a\n250 b", Reply(250, ("2.0.0 a", "b")), id="enhanced in one line only is text"),
        pytest.param("421 4.3.2 Bye", Reply(421, "Bye", "4.3.2"), id="hang-up"),
    ],
)
def test_parse(text: str, reply: Reply) -> None:
    """A hook's string becomes the reply it stands for, and comes back as that string's meaning."""
    assert reply == Reply.parse(text)
    assert reply == Reply.parse(str(reply))


@pytest.mark.parametrize(
    "text", ["", "OK", "25 OK", "2500 OK", "150 OK", "600 OK", "250-a", "250 a\r\n250 b", "250-a\r\n251 b", "250OK", "250 a\rb"]
)
def test_parse_refuses(text: str) -> None:
    """What is not a reply is the hook's mistake."""
    with pytest.raises(ValueError, match="reply"):
        Reply.parse(text)


@pytest.mark.parametrize(("code", "text"), [(199, "x"), (600, "x"), (250, "a\r\n550 b"), (250, ("a", "b\n")), (250, "\0")])
def test_a_reply_is_one_reply(code: int, text: str | tuple[str, ...]) -> None:
    """No text can smuggle a second reply into the wire form."""
    with pytest.raises(ValueError, match="repl"):
        Reply(code, text)


def test_421_closes() -> None:
    """Whoever says 421 hangs up (RFC 5321 s4.2.2)."""
    assert Reply(421, "Bye").close
    assert not Reply(450, "Later").close


OK, LATER, NO = Reply(250, "Taken", "2.0.0"), Reply(450, "Later", "4.0.0"), Reply(550, "No", "5.0.0")


@pytest.mark.parametrize(
    ("several", "one"),
    [
        pytest.param([OK], OK, id="one"),
        pytest.param([OK, NO], OK, id="a success wins over a refusal"),
        pytest.param([NO, OK], OK, id="in any order"),
        pytest.param([OK, LATER, NO], replies.LOCAL_ERROR, id="a temporary failure wins over all"),
        pytest.param([NO, Reply(554, "Never")], NO, id="the first refusal"),
    ],
)
def test_fold(several: list[Reply], one: Reply) -> None:
    """Several recipients' outcomes become one reply that loses no mail."""
    assert one == fold(several)


def test_our_own_replies_are_consistent() -> None:
    """Each constant's enhanced code is of its code's class (RFC 2034 s3)."""
    ours = [value for value in vars(replies).values() if isinstance(value, Reply)]
    assert len(ours) > 40
    for reply in ours:
        assert not reply.enhanced or reply.enhanced[0] == str(reply.code)[0]
        assert reply.code == 354 or reply.enhanced
