"""The transcripts of ``tests/dialogs``, to the letter, however the client's octets arrive.

A line of a transcript: ``#`` says what it shows; ``!`` sets a field of Offer (``auth`` to several words) or of Limits (``limits.errors
3``), ``lmtp``, ``plaintext`` (AUTH without TLS), ``refuse`` an address, or ``wait`` (the client must await its replies); ``c -> `` is
sent with CRLF, ``c => `` with only its escapes; ``s <- `` is a line the server sends; ``m <- `` a message it took; ``s closes``.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import pytest

from postbus.smtp import Limits, Offer
from tests.smtp.driver import ARRIVALS, BANNER, OFFER, Driver, Policy, pipelined

FOLDER = Path(__file__).parents[1] / "dialogs"


@dataclass
class Dialog:
    """One transcript: pairs of what the client sends and what the server says then, and the messages taken."""

    name: str
    turns: list[tuple[bytes, bytes]] = field(default_factory=list)
    messages: list[bytes] = field(default_factory=list)
    closes: bool = False
    wait: bool = False
    lmtp: bool = False
    offer: Offer = OFFER
    limits: Limits = field(default_factory=Limits)
    refuses: frozenset[str] = frozenset()

    def driver(self) -> Driver:
        """Return a session with the server this dialog asks for, the banner not sent."""
        return Driver(self.offer, lmtp=self.lmtp, limits=self.limits, policy=Policy(refuses=self.refuses), greeted=False)


def octets(text: str) -> bytes:
    """Return *text* with its escapes resolved."""
    return text.encode().decode("unicode_escape").encode("latin-1") if "\\" in text else text.encode()


def read(path: Path) -> Dialog:
    """Return the transcript at *path*."""
    dialog = Dialog(path.stem, turns=[(b"", b"")])
    for line in path.read_text("utf-8").splitlines():
        mark, text = line[:4], line[5:]
        if mark in ("c ->", "c =>"):
            if dialog.turns[-1][1]:
                dialog.turns.append((b"", b""))
            sent, said = dialog.turns[-1]
            dialog.turns[-1] = (sent + octets(text) + (b"\r\n" if mark == "c ->" else b""), said)
        elif mark == "s <-":
            sent, said = dialog.turns[-1]
            dialog.turns[-1] = (sent, said + text.encode() + b"\r\n")
        elif mark == "m <-":
            dialog.messages.append(octets(text))
        elif line == "s closes":
            dialog.closes = True
        elif line.startswith("! "):
            direct(dialog, line[2:])
        else:
            assert line.startswith("# "), line
    return dialog


def direct(dialog: Dialog, line: str) -> None:
    """Apply one ``!`` line."""
    name, _, text = line.partition(" ")
    value: Any = int(text) if text.isdigit() else text or True
    if name in ("lmtp", "wait"):
        setattr(dialog, name, True)
    elif name == "plaintext":
        dialog.offer = replace(dialog.offer, auth_tls=False)
    elif name == "auth":
        dialog.offer = replace(dialog.offer, auth=tuple(text.split()))
    elif name == "refuse":
        dialog.refuses |= {text}
    elif name.startswith("limits."):
        dialog.limits = replace(dialog.limits, **{name.removeprefix("limits."): value})
    else:
        assert name in {known.name for known in fields(Offer)}
        dialog.offer = replace(dialog.offer, **{name: value})


DIALOGS = [read(path) for path in sorted(FOLDER.glob("*.txt"))]


def play(dialog: Dialog, arrival: str) -> None:
    """Play *dialog* with a client that waits for its replies."""
    driver = dialog.driver()
    (nothing, banner), *turns = dialog.turns
    assert nothing == b""
    driver.engine.open(BANNER)
    assert banner == driver.drain()
    for sent, said in turns:
        segments = next(ARRIVALS[arrival](sent))
        assert said == b"".join(driver.feed(segment) for segment in segments)
    finish(dialog, driver)


def finish(dialog: Dialog, driver: Driver) -> None:
    """Check what *dialog* says of its end."""
    assert dialog.closes == driver.closed
    assert dialog.messages == driver.accepted


@pytest.mark.parametrize("dialog", DIALOGS, ids=lambda dialog: dialog.name)
def test_dialog_waiting_for_replies(dialog: Dialog) -> None:
    """Each dialog goes as written, whole turns and byte by byte."""
    play(dialog, "whole")
    if not dialog.wait:
        play(dialog, "bytewise")


@pytest.mark.parametrize("arrival", ARRIVALS)
@pytest.mark.parametrize("dialog", [dialog for dialog in DIALOGS if not dialog.wait], ids=lambda dialog: dialog.name)
def test_dialog_waiting_for_nothing(dialog: Dialog, arrival: str) -> None:
    """Each dialog goes as written when no answer is given before all the client's octets are in."""
    data = b"".join(sent for sent, _ in dialog.turns)
    for segments in ARRIVALS[arrival](data):
        driver = dialog.driver()
        driver.engine.offer = pipelined(dialog.offer)
        driver.engine.open(BANNER)
        assert b"".join(said for _, said in dialog.turns) == driver.drain() + driver.feed_withheld(segments), segments
        finish(dialog, driver)


def test_there_are_dialogs() -> None:
    """The folder is found."""
    assert len(DIALOGS) >= 14
