"""What an operator may say about the bridge: routes, and how mail is kept until its sinks have it.

Light to import: pydantic only. ``postbus.config`` composes these classes into the whole tree and checks what concerns
more than one of them.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

NAME_PATTERN = r"^[a-z0-9]+(_[a-z0-9]+)*$"
"""Names of routes, sinks and listeners: they are metric labels and parts of environment variables, where ``__`` nests."""

PATTERN_MAX_CHARACTERS = 512
"""A recipient pattern is longer than an address (64 + 1 + 255) only when it is a regular expression; this leaves room for one."""

Name = Annotated[str, Field(pattern=NAME_PATTERN, max_length=63)]
Pattern = Annotated[str, Field(min_length=1, max_length=PATTERN_MAX_CHARACTERS)]
Acceptance = Literal["spool", "hold"]


def listed(value: object) -> object:
    """Return one text as a list of one: ``match: x`` says the same as ``match: [x]``."""
    return (value,) if isinstance(value, str) else value


class RouteSettings(BaseModel):
    """Which recipients go to which sinks. Routes are tried in order; the first whose pattern fits takes the recipient."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Name = Field(description="Name of the route: the event's subject, a log key and a metric label.")
    match: Annotated[tuple[Pattern, ...], BeforeValidator(listed, json_schema_input_type=Pattern | tuple[Pattern, ...])] = Field(
        min_length=1,
        description=(
            "Recipient patterns, one or a list: an exact address, `*` for any run of characters (`*@example.org`), "
            "`/a regular expression/` with named captures, `postmaster` for the address without a domain, or `*` for everyone."
        ),
    )
    sinks: Annotated[tuple[Name, ...], BeforeValidator(listed, json_schema_input_type=Name | tuple[Name, ...])] = Field(
        min_length=1, description="Required sinks, by name: the event counts as delivered when all of them have it."
    )
    best_effort: Annotated[tuple[Name, ...], BeforeValidator(listed, json_schema_input_type=Name | tuple[Name, ...])] = Field(
        default=(), description="Further sinks that get the event too, without anybody waiting for them."
    )
    mode: Literal["parsed", "raw", "both"] = Field(
        default="parsed", description="What the event carries: the mail taken apart, its octets, or both."
    )
    acceptance: Acceptance | None = Field(
        default=None,
        description="What must have happened before the sender gets its 250 (`spool` or `hold`); unset: the top-level `acceptance`.",
    )
    tags: bool = Field(
        default=False,
        description="Let `support@example.org` take `support+tag@example.org` too, and say the tag in the event.",
    )


class HoldSettings(BaseModel):
    """How a sender waits while the sinks of a ``hold`` route take the event."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    timeout_s: float = Field(
        default=25.0, gt=0, description="How long required sinks may take; then 451. Keep it below the listeners' `answer_timeout_s`."
    )
    in_flight_max_octets: int = Field(
        default=256 * 1024 * 1024,
        ge=1024 * 1024,
        description=(
            "Memory for events being sent while senders wait, counting each three times (message, event, request). A message whose "
            "events do not fit together has them sent one after another; one that finds no room gets 452; one larger passes alone."
        ),
    )
