"""What an operator sets about authentication on a listener."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Mechanism = Literal["PLAIN", "LOGIN", "EXTERNAL"]


class AuthSettings(BaseModel):
    """Who may authenticate, how, and whether everybody has to. Without a user file, and without EXTERNAL, AUTH is not offered."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    required: bool = Field(default=False, description="Mail only after AUTH has succeeded; before, 530 5.7.0.")
    mechanisms: tuple[Mechanism, ...] = Field(
        default=("PLAIN", "LOGIN"),
        min_length=1,
        description="PLAIN (RFC 4616) and LOGIN ask for a password, of `users`. EXTERNAL (RFC 4422): the client's certificate, verified "
        "by tls.client_ca, says who it is.",
    )
    users: Path | None = Field(
        default=None, description="File of users and their hashed passwords, made by `postbus passwd`; read again when it changes."
    )
    allow_plaintext: bool = Field(
        default=False, description="Offer AUTH without TLS too, so that passwords can be read on the way; else 538 5.7.11."
    )
    failures_max: int = Field(default=3, ge=1, description="Failed AUTH commands in a session; the last gets 421 4.7.0 (chasquid: 3).")
    failure_delay_s: float = Field(
        default=2.0, ge=0, le=10, description="The answer to a failure waits so long, times the failures so far; 10 s at most."
    )

    def offered(self, *, certificates: bool) -> tuple[Mechanism, ...]:
        """Return the mechanisms that can be offered; *certificates*: clients may show them."""
        return tuple(name for name in self.mechanisms if (certificates if name == "EXTERNAL" else self.users is not None))
