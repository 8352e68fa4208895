"""What an operator may say about parsing mail in processes of its own.

Light to import: pydantic only.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

MIB = 1_048_576


class ParsingSettings(BaseModel):
    """Mail that is not small and plain is parsed in processes that may die of it; these are their bounds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    workers: int = Field(
        default=2,
        ge=1,
        le=64,
        description="Parser processes at most, each started when first needed. Of several, one never parses mail that looks costly.",
    )
    memory_max_octets: int = Field(
        default=512 * MIB,
        ge=128 * MIB,
        description="Address space of one parser process; a mail that needs more is published raw. Honest mail needs six times its size.",
    )
    cpu_max_s: int = Field(default=5, ge=1, le=60, description="CPU time for one mail; beyond, it is published raw.")
    wall_max_s: float = Field(
        default=20.0, gt=0, le=300, description="Time for one mail; beyond, it is tried again later. Well above the CPU time."
    )
    jobs_max: int = Field(
        default=1000, ge=1, description="A parser process is replaced after this many mails, so that its memory cannot creep."
    )
