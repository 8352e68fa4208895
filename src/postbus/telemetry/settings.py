"""Settings of the log and of traces. Metrics have none: the sidecar serves them."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class TelemetrySettings(BaseModel):
    """What is logged and traced. The OTEL_* variables of the environment are honoured beside these."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    log_level: Literal["debug", "info", "warning", "error"] = Field(default="info", description="Least serious lines that are written.")
    log_format: Literal["auto", "json", "text"] = Field(
        default="auto", description="auto: readable text on a terminal, one JSON object a line elsewhere."
    )
    log_addresses: Literal["domain", "full", "hash", "none"] = Field(
        default="domain",
        description="How mail addresses appear in log lines. A hash joins lines; it does not hide an address from somebody who guesses it.",
    )
    trace_ratio: float = Field(default=0.01, ge=0, le=1, description="Share of sessions traced, where the sender has not decided.")
    otlp_endpoint: str | None = Field(
        default=None,
        description="OTLP/HTTP collector for spans; needs the extra otlp. Without it and without OTEL_EXPORTER_OTLP_ENDPOINT: no traces.",
    )
