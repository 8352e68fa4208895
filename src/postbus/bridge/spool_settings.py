"""What an operator may say about keeping mail until its sinks have it: spool, dispatch, retries.

Light to import: pydantic only.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

MIB = 1_048_576
WAL_OCTETS = 16 * MIB
"""The write-ahead log's usual size: 1,000 pages of 16 KiB, then it is folded into the database."""


class SpoolSettings(BaseModel):
    """The folder that holds accepted mail, and its bounds. One byte budget covers the mail and what is still being received."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    folder: Path = Field(default=Path("spool"), description="Folder of the spool, on a local file system; made (mode 0700) if missing.")
    max_octets: int = Field(default=8 * 1024 * MIB, ge=MIB, description="Octets of mail held, dead letters included; beyond: 452.")
    max_messages: int = Field(default=1_000_000, ge=1, description="Messages held, dead letters included; beyond: 452.")
    free_min_octets: int = Field(
        default=2 * WAL_OCTETS,
        ge=0,
        description=(
            "Free disk below which mail is answered 452 (421 where nothing is spooled: large content is held in a file). "
            "Twice the write-ahead log: deleting needs room too."
        ),
    )
    ballast_octets: int = Field(
        default=2 * WAL_OCTETS,
        ge=0,
        description="Size of a file that is given back when the disk is full, so that deliveries can be recorded.",
    )
    dead_letter_age_max_s: int = Field(default=30 * 86_400, ge=60, description="Dead letters older than this are dropped.")
    dead_letters_max: int = Field(
        default=100_000, ge=1, description="Dead letters kept; beyond: 452, until some are replayed, dropped or too old."
    )


class RetrySettings(BaseModel):
    """When a delivery is tried again, and when it is given up."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    first_delay_s: float = Field(default=1.0, gt=0, description="Pause after a first failure.")
    multiplier: float = Field(default=2.0, ge=1, description="Each further pause is this many times the one before.")
    max_delay_s: float = Field(default=300.0, gt=0, description="No pause of ours is longer.")
    jitter: float = Field(default=0.2, ge=0, le=1, description="Each pause is made longer or shorter by up to this share.")
    retry_after_max_s: float = Field(default=3_600.0, ge=0, description="A sink that asks for a longer pause (Retry-After) gets this one.")
    attempts_max: int = Field(
        default=10_000,
        ge=1,
        description=(
            "Failures of one event by itself before it is a dead letter. So many take longer than `age_max_s`: a receiver that fails over "
            "everything for a weekend costs no mail."
        ),
    )
    age_max_s: float = Field(
        default=5 * 86_400.0, gt=0, description="An event not delivered by this age is a dead letter at its next failure."
    )
    gone_sink_grace_s: float = Field(
        default=86_400.0,
        ge=0,
        description="How long events wait for a sink that has left the configuration (a rename by mistake) before they are dead letters.",
    )
    best_effort_attempts_max: int = Field(default=5, ge=1, description="The same for best-effort sinks, which leave no dead letter.")
    best_effort_age_max_s: float = Field(default=3_600.0, gt=0, description="The same for best-effort sinks, which leave no dead letter.")


class DispatchSettings(BaseModel):
    """What is held in memory on its way to the sinks."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    in_flight_max_octets: int = Field(
        default=64 * MIB,
        ge=MIB,
        description=(
            "Memory for mail: a third for what is queued, the rest for what is being sent, counting each message once and each of its "
            "events being sent twice (event, request). One larger message passes alone."
        ),
    )
    window_max_events: int = Field(default=2_000, ge=1, description="Events queued in memory for each sink; the rest waits in the spool.")
