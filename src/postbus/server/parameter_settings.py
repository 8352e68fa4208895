"""What an operator says of the parameters of MAIL and RCPT: which are announced, and what becomes of those nobody knows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Announced = Literal["DSN", "DELIVERBY", "MT-PRIORITY"]
"""Keywords that are announced where an operator asks for them. REQUIRETLS and LIMITS follow from the rest of the configuration."""


class ParameterSettings(BaseModel):
    """How parameters of MAIL and RCPT are treated."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    unregistered: Literal["refuse", "record"] = Field(
        default="refuse",
        description="A parameter that nobody has registered: 555 5.5.4, or ignored, recorded in the event and counted as a defect. "
        "Registered ones are recorded in any case, but for those that would bind us to what we do not do.",
    )
    deliverby_min_s: int = Field(
        default=0,
        ge=0,
        le=999_999_999,
        description="Least time after which a sender may ask his mail back, announced with DELIVERBY (RFC 2852); "
        "a shorter one gets 555 5.5.4.",
    )
    priority_profile: Literal["MIXER", "STANAG4406", "NSEP"] | None = Field(
        default=None, description="Profile of priorities announced with MT-PRIORITY (RFC 6710); null: none."
    )


def keywords(announce: Sequence[Announced], settings: ParameterSettings) -> tuple[str, ...]:
    """Return the EHLO lines for *announce*, with the values that *settings* give them."""
    values = {"DELIVERBY": str(settings.deliverby_min_s or ""), "MT-PRIORITY": settings.priority_profile or ""}
    return tuple(f"{word} {values.get(word, '')}".rstrip() for word in dict.fromkeys(announce))
