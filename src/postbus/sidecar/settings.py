"""What an operator sets on the sidecar's HTTP server."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, field_validator

ADDRESS_FORMS = "host:port, [v6]:port or :port (all interfaces)"


def address_of(text: str) -> tuple[str, int]:
    """Return (host, port); host ``""`` means all interfaces, IPv4 and IPv6.

    Raises:
        ValueError: *text* is none of ``host:port``, ``[v6]:port``, ``:port``.
    """
    host, colon, port = text.rpartition(":")
    if not colon or not port.isdecimal() or int(port) > 65535:
        raise ValueError(f"{text!r}: expected {ADDRESS_FORMS}")
    bracketed = host.startswith("[") and host.endswith("]")
    if ":" in host and not bracketed:
        raise ValueError(f"{text!r}: an IPv6 address goes in brackets, as in [::1]:8080")
    host = host[1:-1] if bracketed else host
    return ("" if host == "*" else host), int(port)


class SidecarSettings(BaseModel):
    """Probes, status, metrics, configuration and dead letters over HTTP."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    enabled: bool = Field(default=True, description="Serve HTTP at all.")
    address: str = Field(default="127.0.0.1:8080", description=f"Where to listen: {ADDRESS_FORMS}. Port 0: any free port.")
    token_file: Path | None = Field(
        default=None,
        description="File with the bearer token for dead letters and for what changes state; read at every use. Unset: those are off.",
    )
    token_env: str | None = Field(
        default=None, description="Name of the environment variable that holds the bearer token, where no file does."
    )
    connections_max: int = Field(default=100, ge=4, description="Open connections; one more closes the one that has been slow for longest.")
    request_max_octets: int = Field(default=16_384, ge=1_024, description="Largest request head; h11's own default is 16 KiB.")
    request_timeout_s: float = Field(default=15.0, gt=0, description="A whole request must arrive, and its answer be read, within this.")
    loop_lag_max_s: float = Field(default=5.0, gt=0, description="/livez fails while the event loop is later than this.")

    @field_validator("address")
    @classmethod
    def _address_is_one(cls, text: str) -> str:
        address_of(text)
        return text
