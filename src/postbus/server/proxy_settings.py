"""What an operator says of the proxies in front of a listener: who may speak for others, and how."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from postbus.server.networks import NETWORK_FORMS, Entries


class ProxySettings(BaseModel):
    """Load balancers and mail proxies in front of a listener: whose word for the client's address is taken. By default nobody's."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    header: bool = Field(
        default=False,
        description="Every connection must begin with a PROXY header (HAProxy's protocol, version 1 or 2), before TLS and before any SMTP; "
        "one without is closed. Never guessed: give clients that come without a proxy a listener of their own.",
    )
    trusted: Entries = Field(
        default=(),
        description=f"Who may send PROXY headers: {NETWORK_FORMS}. All others are closed before the banner. Needed with `header`.",
    )
    header_timeout_s: float = Field(default=5.0, gt=0, le=60, description="From the connection to the whole PROXY header.")
    xclient: Entries = Field(
        default=(),
        description=f"Who may replace the client's address by XCLIENT (NGINX and Postfix send it): {NETWORK_FORMS}. "
        "All others get 550 5.7.0 and do not see it announced.",
    )
    xforward: Entries = Field(
        default=(), description=f"Who may record by XFORWARD where a mail came from before: {NETWORK_FORMS}. All others get 550 5.7.0."
    )
