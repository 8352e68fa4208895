"""Ports of loopback for peers that a test stops and starts again.

They lie below the range from which the kernel takes the near ends of outgoing connections. A port from that range may be gone when its
owner wants it back: given to somebody's client, or to one that knocks at the very port while nobody listens, and then talks to itself
(a TCP simultaneous open; https://sgros.blogspot.com/2013/08/tcp-client-self-connect.html).
"""

from __future__ import annotations

import random
import socket
from contextlib import ExitStack
from pathlib import Path

LEAST = 10_000
EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")
EPHEMERAL_LEAST = 32_768
"""Where that range begins, if the kernel does not say (Linux's default)."""


def free_ports(count: int) -> list[int]:
    """Return *count* ports of loopback that nobody listened on a moment ago, and that no client will be given."""
    end = int(EPHEMERAL.read_text().split()[0]) if EPHEMERAL.exists() else EPHEMERAL_LEAST
    candidates = random.SystemRandom().sample(range(LEAST, max(end, LEAST + 1000)), 1000)
    ports: list[int] = []
    with ExitStack() as stack:
        for port in candidates:
            if len(ports) == count:
                return ports
            holder = stack.enter_context(socket.socket())
            try:
                holder.bind(("127.0.0.1", port))
            except OSError:
                continue
            ports.append(port)
    raise OSError(f"no {count} free ports on loopback")
