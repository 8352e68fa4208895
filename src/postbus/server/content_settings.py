"""What an operator sets about message content on a listener: how it may be framed, and who may send it broken."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from postbus.server.networks import NETWORK_FORMS, Entries


class ContentSettings(BaseModel):
    """How content may come."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    chunking: bool = Field(default=True, description="Offer CHUNKING: content by BDAT, framed by count (RFC 3030).")
    binarymime: bool = Field(default=True, description="Offer BINARYMIME (RFC 3030); nothing without `chunking`.")
    stray_allowed_from: Entries = Field(
        default=(), description=f"Peers for whom the listener's `stray` is `allow`, whatever it is for others: {NETWORK_FORMS}."
    )
