"""A sender that vanishes behind the dot, while a hold route waits for its sink: the work is not cancelled, and its retry can be known."""

from __future__ import annotations

import asyncio
import socket
import struct
from typing import Any

import pytest

from tests.e2e.conftest import Start
from tests.e2e.harness import Postbus, tree
from tests.e2e.receiver import receiving
from tests.e2e.senders import Desk, Letter, Traffic, send_until


def _config(url: str) -> dict[str, Any]:
    return tree(sinks={"file": {"kind": "webhook", "url": url}}, acceptance="hold")


async def _send_up_to_the_dot(postbus: Postbus, letter: Letter) -> socket.socket:
    """Send *letter* with its dot; return the connection, nothing of it read since the 354."""
    reader, writer = await asyncio.open_connection("127.0.0.1", postbus.port())
    writer.transport.set_write_buffer_limits(0)  # drain: until all is with the kernel
    rows = ["EHLO client.test", "MAIL FROM:<a@example.net>", *(f"RCPT TO:<{recipient}>" for recipient in letter.recipients), "DATA"]
    await _reply(reader)
    for row in rows:
        writer.write(f"{row}\r\n".encode())
        await _reply(reader)
    writer.write(letter.wire)
    await writer.drain()
    kept: socket.socket = writer.get_extra_info("socket").dup()
    writer.transport.abort()
    return kept


async def _reply(reader: asyncio.StreamReader) -> None:
    while (await reader.readline())[3:4] == b"-":
        pass


@pytest.mark.parametrize("cut", [pytest.param(True, id="reset"), pytest.param(False, id="closed")])
async def test_a_sender_that_vanishes_behind_the_dot(start: Start, *, cut: bool) -> None:
    """Its event is published all the same; the lost reply is logged; when it comes again, the dedupekey is the same and the id is not."""
    async with receiving() as receiver:
        postbus = await asyncio.to_thread(start, _config(receiver.url))
        receiver.mood = "slow"
        letter = Desk("v").letter(["one@example.org"])
        with await _send_up_to_the_dot(postbus, letter) as connection:
            await receiver.until(lambda: receiver.asked == 1, "the event on its way")
            if cut:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        if cut:
            await asyncio.to_thread(postbus.log.wait, "session.closed")
        assert [] == receiver.taken
        receiver.gate.set()
        await receiver.until(lambda: len(receiver.taken) == 1, "the event")
        if cut:
            [lost] = await asyncio.to_thread(postbus.log.wait, "reply.lost")
            assert lost["reply"].startswith("250")
            assert 1 == await asyncio.to_thread(postbus.metric, "postbus_replies_lost_total")
        traffic = Traffic()
        await send_until(traffic, postbus.address(), [letter])
        assert letter.keys == traffic.acknowledged.keys()
        first, second = receiver.taken
        assert first["dedupekey"] == second["dedupekey"]
        assert first["id"] != second["id"]
        assert first["data"]["raw"]["sha256"] == second["data"]["raw"]["sha256"] == letter.sha256
        assert 0 == await asyncio.to_thread(postbus.terminate)
