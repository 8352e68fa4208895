"""What an interop row asks of a client, and what the client says became of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Road = Literal["plain", "starttls", "implicit", "lmtp"]
USER = "tim"
PASSWORD = "correct horse battery staple"
ENVID = "QQ314159"
"""DSN's envelope id (RFC 3461 s4.4): letters and digits alone, so that every client may write it as it is."""
NAME = "mx.postbus.test"
"""What certificates say."""


@dataclass(frozen=True, slots=True)
class Errand:
    """One mail to bring.

    Attributes:
        road: how the server is reached; port: where, on 127.0.0.1.
        ca: PEM file of the authority to trust.
        sender, recipients: addresses as they are.
        octets: the message, lines ending in CRLF, with all headers an MTA would add otherwise.
        auth: PLAIN or LOGIN, as ``USER`` with ``PASSWORD``.
        utf8: SMTPUTF8 is needed; eight: BODY=8BITMIME; dsn: RET=HDRS, ENVID, NOTIFY=SUCCESS,FAILURE and ORCPT.
        folder: for files of the client's.
    """

    road: Road
    port: int
    ca: Path
    sender: str
    recipients: tuple[str, ...]
    octets: bytes
    folder: Path
    auth: str = ""
    utf8: bool = False
    eight: bool = False
    dsn: bool = False

    @property
    def mail_options(self) -> list[str]:
        """Parameters of MAIL, for clients that are told them."""
        dsn = ["RET=HDRS", f"ENVID={ENVID}"] if self.dsn else []
        return [*(["BODY=8BITMIME"] if self.eight or self.utf8 else []), *(["SMTPUTF8"] if self.utf8 else []), *dsn]

    def rcpt_options(self, recipient: str) -> list[str]:
        """Parameters of one RCPT, likewise."""
        return ["NOTIFY=SUCCESS,FAILURE", f"ORCPT=rfc822;{recipient}"] if self.dsn else []


@dataclass(frozen=True, slots=True)
class Result:
    """What the client believes: who has his mail, who never will (with the server's words), and its own words for a failed test."""

    taken: frozenset[str]
    refused: dict[str, str]
    said: str = ""


Client = Callable[[Errand], Result]
