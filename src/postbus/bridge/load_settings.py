"""When connections are refused before the banner because this process has taken on too much."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

MIB = 1024 * 1024
MEMORY_LEAST_OCTETS = 160 * MIB
"""An idle process has 110 MiB, one parser 40: with a bound below that nobody could ever connect."""


class LoadSettings(BaseModel):
    """When to shed load: 421 before the banner, so that senders try another pod, or later. Looked at once a second."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    memory_max_octets: int | None = Field(
        default=None,
        ge=MEMORY_LEAST_OCTETS,
        description="Resident memory of the process and its parsers from which on connections get 421 4.3.2; null: `memory_max_share` of "
        "its limit.",
    )
    memory_max_share: float = Field(
        default=0.9,
        gt=0,
        le=1,
        description="The same as a share of the memory that the container (control group) may have; without a limit nothing is shed.",
    )
