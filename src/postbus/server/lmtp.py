"""An LMTP server's side of one connection (RFC 2033): LHLO instead of HELO and EHLO, and after the dot one reply per accepted recipient."""

from __future__ import annotations

from typing import ClassVar

from postbus.server.plan import syntax
from postbus.server.smtp import SMTP

__all__ = ["LMTP", "SMTP", "syntax"]


class LMTP(SMTP):
    """One LMTP session. ``handle_EHLO`` is asked about LHLO too; ``handle_DATA`` may return a list, one outcome per recipient in order."""

    lmtp: ClassVar[bool] = True
    show_smtp_greeting: bool = False  # aiosmtpd's; nothing depends on it

    @syntax("LHLO hostname")
    async def smtp_LHLO(self, arg: str | None) -> None:
        """LHLO (RFC 2033 s4.1)."""
        await self._perform("LHLO", arg)
