"""Stock handlers."""

from __future__ import annotations

import io
import sys
from argparse import ArgumentParser
from typing import Any

import pytest

from postbus.server.handlers import Debugging, Sink
from tests.server.conftest import Run
from tests.server.test_smtp import sent
from tests.server.wire import Wire, listening


def test_debugging_prints_messages(run: Run) -> None:
    """Options, headers, the peer, the text."""

    async def scenario() -> None:
        stream = io.StringIO()
        async with listening(Debugging(stream)) as listener, Wire.to(listener) as wire:
            assert await wire.talk("EHLO x", "MAIL FROM:<a@x> BODY=8BITMIME", "RCPT TO:<b@x>", "DATA") == ["250", "250", "250", "354"]
            assert await sent(wire, "Subject: x\r\n\r\ntext\r\n") == "250 OK"
        lines = stream.getvalue().splitlines()
        assert lines[0] == "---------- MESSAGE FOLLOWS ----------"
        assert "mail options: ['BODY=8BITMIME']" in lines
        assert any(line.startswith("X-Peer: ('127.0.0.1'") for line in lines)
        assert lines[-2:] == ["text", "------------ END MESSAGE ------------"]

    run(scenario())


def test_sink_takes_everything(run: Run) -> None:
    """And does nothing."""

    async def scenario() -> None:
        async with listening(Sink()) as listener, Wire.to(listener) as wire:
            await wire.begin()
            assert await sent(wire) == "250 2.0.0 OK"

    run(scenario())


@pytest.mark.parametrize(
    ("handler", "words", "stream"),
    [
        pytest.param(Debugging, (), sys.stdout, id="standard output"),
        pytest.param(Debugging, ("stderr",), sys.stderr, id="standard error"),
        pytest.param(Sink, (), None, id="sink"),
    ],
)
def test_from_cli(handler: Any, words: tuple[str, ...], stream: Any) -> None:
    """Words make a handler."""
    made = handler.from_cli(ArgumentParser(), *words)
    assert type(made) is handler
    assert stream is None or made.stream is getattr(sys, "stderr" if words else "stdout")


@pytest.mark.parametrize(("handler", "words"), [(Debugging, ("both",)), (Debugging, ("stdout", "stderr")), (Sink, ("x",))])
def test_from_cli_refuses_other_words(handler: Any, words: tuple[str, ...]) -> None:
    """By way of the parser."""
    with pytest.raises(SystemExit):
        handler.from_cli(ArgumentParser(), *words)
