"""What happened when a row was played: facts, without a judgement."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from postbus.selftest.reading import Reading, read

End = Literal["open", "closed", "silent", "left", "no tls"]
"""How it ended: the server was still talking; it had hung up; it owed an answer and gave none in time; we left; TLS could not be begun."""

Part = Literal["prologue", "row", "probe"]
"""Why octets were sent: to come to where the attack begins, as the attack, or to see afterwards what became of it."""


@dataclass(frozen=True, slots=True)
class Exchange:
    """What was sent (``None``: a TLS handshake), the replies the table expects, and those that came; codes such as ``"250 2.1.0"``."""

    part: Part
    sent: bytes | None
    expected: tuple[str, ...] = ()
    got: tuple[str, ...] = ()

    @property
    def agreed(self) -> bool:
        """Every expected reply came, and was of the expected class."""
        return [code[:1] for code in self.expected] == [code[:1] for code in self.got]


@dataclass(frozen=True)
class Played:
    """One row as it was played.

    Attributes:
        exchanges: in order; a reply stands with what was sent last before it.
        greeting: the banner's code, ``None`` if none came; rows that talk early have it as their first reply instead.
        end: how it ended.
    """

    exchanges: tuple[Exchange, ...]
    end: End
    lmtp: bool = False
    early: bool = False
    greeting: str | None = "220"

    @cached_property
    def replies(self) -> tuple[str, ...]:
        """All replies, in order."""
        return tuple(code for exchange in self.exchanges for code in exchange.got)

    @cached_property
    def got(self) -> Reading:
        """What was sent, read by the replies that came."""
        return read((exchange.sent for exchange in self.exchanges), self.replies, lmtp=self.lmtp, early=self.early)

    @cached_property
    def expected(self) -> Reading:
        """What was sent, read by the replies that the table expects."""
        codes = (code for exchange in self.exchanges for code in exchange.expected)
        return read((exchange.sent for exchange in self.exchanges), codes, lmtp=self.lmtp, early=self.early)

    def codes(self, part: Part) -> tuple[list[str], list[str]]:
        """Return the replies expected and those that came to one *part*."""
        chosen = [exchange for exchange in self.exchanges if exchange.part == part]
        return [code for one in chosen for code in one.expected], [code for one in chosen for code in one.got]
