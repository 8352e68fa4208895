"""Where and with what a bench ran: figures without it mean nothing."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

from tests import brokers, peers

PACKAGES = ("postbus", "uvloop", "aiosmtpd", "aiohttp", "httpx", "httpx-aiohttp", "aiokafka", "fast-mail-parser", "orjson", "pydantic")


def machine() -> dict[str, Any]:
    """Return cores, memory, processor, kernel and the file system that the queues lie on."""
    return {
        "cores": os.cpu_count(),
        "memory_octets": psutil.virtual_memory().total,
        "cpu": _processor(),
        "kernel": platform.release(),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
    }


def versions() -> dict[str, str]:
    """Return the versions of postbus, of what it stands on and of its peers; ``not installed`` where one is missing."""
    found = {name: _version(name) for name in PACKAGES}
    return {**found, "postfix": _postfix(), "kafka": brokers.IMAGE.rpartition(":")[2], "commit": _commit()}


def load_average() -> list[float]:
    """Return how busy the machine is, over 1, 5 and 15 minutes: others' work makes rates small and CPU dear."""
    return [round(value, 2) for value in os.getloadavg()]


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _postfix() -> str:
    program = peers.find("postconf")
    return _said(program, "-d", "-h", "mail_version") if program else "not installed"


def _commit() -> str:
    git = peers.find("git")
    return _said(git, "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD") if git else ""


def _said(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=10).stdout.strip()
