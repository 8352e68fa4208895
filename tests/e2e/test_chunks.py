"""BDAT in the running process: killed inside a chunk, drained inside a message, and what an event of it says."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from tests.e2e.harness import Postbus, running, tree

LARGE = b"x" * 76 + b"\r\n"


class Talk:
    """A conversation in octets."""

    def __init__(self, port: int, header: bytes = b"") -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=60.0)
        self.socket.sendall(header)
        self._lines: BinaryIO = self.socket.makefile("rb")
        self.reply()

    def reply(self) -> int:
        """Return the code of the next reply."""
        line = self._lines.readline()
        while line[3:4] == b"-":
            line = self._lines.readline()
        return int(line[:3] or 0)

    def say(self, *sent: bytes) -> int:
        """Send each of *sent* and return the code of the last one's reply."""
        code = 0
        for octets in sent:
            self.socket.sendall(octets)
            code = self.reply()
        return code

    def begin(self, greeting: bytes, *recipients: bytes) -> None:
        """Bring the session to where content may come."""
        assert 250 == self.say(greeting, b"MAIL FROM:<a@example.net>\r\n", *(b"RCPT TO:<%s>\r\n" % each for each in recipients))

    def close(self) -> None:
        """Hang up."""
        self._lines.close()
        self.socket.close()


@contextmanager
def talking(postbus: Postbus, listener: str, *recipients: bytes, header: bytes = b"") -> Iterator[Talk]:
    """A conversation that has come to its recipients."""
    talk = Talk(postbus.port(listener), header)
    try:
        talk.begin(b"LHLO x\r\n" if listener == "lmtp" else b"EHLO x\r\n", *recipients)
        yield talk
    finally:
        talk.close()


def listeners() -> dict[str, object]:
    """Return two, one for each protocol."""
    return {"mx": {"address": "127.0.0.1:0"}, "lmtp": {"address": "127.0.0.1:0", "protocol": "lmtp"}}


def test_killed_inside_a_chunk(tmp_path: Path) -> None:
    """What had its 250 is published; of the message whose last chunk was under way nothing is, and no file of it stays."""
    with running(tmp_path, tree(listeners=listeners())) as postbus:
        with talking(postbus, "mx", b"half@example.org") as half, talking(postbus, "mx", b"whole@example.org") as whole:
            chunk = LARGE * 4000
            assert 250 == half.say(b"BDAT %d\r\n" % len(chunk) + chunk)
            half.socket.sendall(b"BDAT %d LAST\r\n" % len(chunk) + chunk[:-1000])
            assert 250 == whole.say(b"BDAT %d LAST\r\n" % len(chunk) + chunk)
            postbus.kill()
        postbus.start()
        postbus.wait_delivered()
        assert ["whole@example.org"] == [event["data"]["envelope"]["recipient"] for event in postbus.events()]
        spill = postbus.folder / "spool" / "spill"
        assert [] == list(spill.iterdir())


async def test_drained_inside_a_message(tmp_path: Path) -> None:
    """A message in chunks gets its true reply, or replies, and then 421; both are published, once."""
    with (
        running(tmp_path, tree(listeners=listeners())) as postbus,
        talking(postbus, "mx", b"a@example.org") as smtp,
        talking(postbus, "lmtp", b"b@example.org", b"c@example.org") as lmtp,
    ):
        assert 250 == smtp.say(b"BDAT 6\r\nS: 1\r\n")
        lmtp.socket.sendall(b"BDAT 11 LAST\r\nS: 1\r\n")
        ending = asyncio.create_task(asyncio.to_thread(postbus.terminate))
        await asyncio.to_thread(postbus.log.wait, "app.draining")
        assert [250, 421] == [smtp.say(b"BDAT 5 LAST\r\n\r\nhi\n"), smtp.reply()]
        assert [250, 250, 421] == [lmtp.say(b"\r\nhi\n"), lmtp.reply(), lmtp.reply()]
        smtp.close()
        lmtp.close()
        assert 0 == await ending
        assert ["a", "b", "c"] == sorted(event["data"]["envelope"]["recipient"][0] for event in postbus.events())


def test_a_reload_asks_for_proxy_headers(tmp_path: Path) -> None:
    """From the next connection on; whoever is there already goes on as he was."""
    config = tree(listeners=listeners())
    with running(tmp_path, config) as postbus, talking(postbus, "mx", b"before@example.org") as before:
        postbus.config["listeners"]["mx"]["proxy"] = {"header": True, "trusted": ["127.0.0.1"]}
        assert "" == postbus.reload()["needs_restart"]
        with talking(postbus, "mx", b"after@example.org", header=b"PROXY TCP6 2001:db8::7 2001:db8::1 4711 25\r\n") as after:
            assert 250 == after.say(b"BDAT 2 LAST\r\n\r\n")
        assert 250 == before.say(b"BDAT 2 LAST\r\n\r\n")
        clients = {event["data"]["envelope"]["recipient"]: event["data"]["client"] for event in postbus.wait_events(2)}
        assert ("2001:db8::7", 4711, True) == tuple(clients["after@example.org"][key] for key in ("ip", "port", "viaProxy"))
        assert ("127.0.0.1", False) == tuple(clients["before@example.org"][key] for key in ("ip", "viaProxy"))
