"""What the engine alone costs: microseconds of CPU for a message on a reused session, no socket, no hooks.

Run: ``python -m tests.bench.engine``
"""

from __future__ import annotations

import time

from postbus.smtp import Chunk, EndOfMessage, Engine, Offer, Refused, Reply, Signal

LINE = b"x" * 70 + b"\r\n"
ENVELOPE = [b"MAIL FROM:<sender@client.example.com>\r\n", b"RCPT TO:<recipient@server.example.com>\r\n", b"DATA\r\n"]
MESSAGES = {
    "1 KB": ([*ENVELOPE, LINE * 14 + b".\r\n"], 10_000),
    "64 KB in two segments": ([*ENVELOPE, LINE * 455, LINE * 455 + b".\r\n"], 500),
}
ROUNDS = 5


def opened() -> Engine:
    """Return an engine that has greeted its peer."""
    engine = Engine(Offer("mx.test"))
    engine.open(Reply(220, "mx.test ESMTP"))
    feed(engine, b"EHLO client.example.com\r\n")
    return engine


def feed(engine: Engine, segment: bytes) -> None:
    """Hand *segment* to *engine* and answer what it says, as the shell does."""
    engine.receive(segment)
    while not isinstance(event := engine.next_event(), Signal):
        if isinstance(event, Chunk | Refused) or (isinstance(event, EndOfMessage) and event.refusal is not None):
            continue
        engine.answer(engine.default_reply(event))
    engine.bytes_to_send()


def cost_us(segments: list[bytes], times: int) -> float:
    """Return the least CPU a message took over some rounds, in microseconds."""
    engine = opened()
    best = float("inf")
    for _ in range(ROUNDS):
        begin = time.process_time()
        for _ in range(times):
            for segment in segments:
                feed(engine, segment)
        best = min(best, (time.process_time() - begin) / times * 1e6)
    return best


def main() -> None:
    """Print the table."""
    for name, (segments, times) in MESSAGES.items():
        print(f"{name:24}{cost_us(segments, times):8.1f} us")


if __name__ == "__main__":
    main()
