"""What an operator sets against clients that ask for too much: counts and rates per client network, and who is spared."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from postbus.server.networks import NETWORK_FORMS, Entries

LOCAL_NETWORKS = ("127.0.0.0/8", "::1", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16", "fc00::/7", "fe80::/10", "unix")
"""Addresses that nobody on the open internet can have: this machine, private networks (RFC 1918, RFC 4193), links (RFC 3927, RFC 4291).

They are spared because behind a balancer that hides its clients, or a Kubernetes node that translates their addresses, all mail comes
from one of them: a limit per network would then be a limit for everybody."""


class ClientSettings(BaseModel):
    """How much one client network may ask for, and who is spared. Where clients come by a balancer, let it tell their addresses (PROXY)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    ipv4_prefix_bits: int = Field(
        default=32, ge=8, le=32, description="So much of an IPv4 address names a client network: 32 is one address."
    )
    ipv6_prefix_bits: int = Field(
        default=64, ge=16, le=128, description="So much of an IPv6 address names a client network: 64 is what one customer usually has."
    )
    connections_max: int = Field(
        default=50, ge=0, description="Open connections of one client network; one more gets 421 4.7.0 (Postfix: 50). 0: no limit."
    )
    connection_rate_max: int = Field(
        default=600, ge=0, description="New connections of one client network per `rate_interval_s`; more get 421 4.7.1. 0: no limit."
    )
    message_rate_max: int = Field(
        default=6_000, ge=0, description="MAIL commands of one client network per `rate_interval_s`; more get 450 4.7.1. 0: no limit."
    )
    recipient_rate_max: int = Field(
        default=60_000, ge=0, description="RCPT commands of one client network per `rate_interval_s`; more get 450 4.7.1. 0: no limit."
    )
    auth_failure_rate_max: int = Field(
        default=10,
        ge=0,
        description="Failed AUTH commands of one client network per `rate_interval_s`, over all its sessions; while it has used them up, "
        "AUTH gets 454 4.7.0 and nobody looks at the password. 0: no limit.",
    )
    rate_interval_s: float = Field(
        default=60.0, gt=0, le=86_400, description="What rates refer to. A whole interval's worth may come at once; it is refilled evenly."
    )
    remembered_max: int = Field(
        default=10_000,
        ge=1,
        description="Client networks whose rates are remembered while they are not connected; of more, those gone longest are forgotten.",
    )
    exempt: Entries = Field(
        default=LOCAL_NETWORKS,
        description="Who is spared all limits of this section, the greet delay and slower answers after errors: "
        f"{NETWORK_FORMS}. By default those that nobody on the open internet comes from.",
    )
    pipelining_exempt: Entries = Field(
        default=(), description=f"Who may talk out of turn where `strict_pipelining` forbids it, for old software: {NETWORK_FORMS}."
    )
