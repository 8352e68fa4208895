"""Where the CPU of an accepted and dropped message goes, ours and smtp-sink's: ``python -m tests.bench.profile [--plain]``.

Samples both with Linux's perf under the loads of the accept rows, and shares the CPU out by program and library: the kernel's part is what
any server pays for the same system calls, the rest is what stands between us and the aim.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests import compiled, peers
from tests.bench.accept import LOADS
from tests.bench.measuring import Load, Server, listener, measure, send, smtp_sink

HERTZ = 1999
WARM = 2_000
LEAST_US = 0.5
"""Parts below this are summed up as other."""
PARTS = {
    "kernel": r"^\[",
    "interpreter": r"python3",
    "compiled code": r"__mypyc",
    "uvloop": r"^loop\.",
    "C library": r"^libc\.",
    "smtp-sink": r"smtp-sink|libpostfix",
}
"""What a program or library counts as: the first that fits, else its own name."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a table for each load: microseconds of CPU per message, ours beside smtp-sink's."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.profile", description=__doc__.partition("\n")[0])
    parser.add_argument("--plain", action="store_true", help="the sources as they are, not compiled as in the image")
    if not parser.parse_args(arguments).plain:
        os.environ["PYTHONPATH"] = str(compiled.tree())
    for name, load in LOADS.items():
        with listener("plain") as ours:
            mine = _profiled(ours, load)
        with smtp_sink() as theirs:
            others = _profiled(theirs, load)
        print(f"{name}: {load.messages:,} messages of {load.size_octets:,} octets")
        for part in dict.fromkeys([*mine, *others]):
            print(f"  {part:20}{mine.get(part, 0.0):8.1f} us{others.get(part, 0.0):8.1f} us")
        print(f"  {'sum':20}{sum(mine.values()):8.1f} us{sum(others.values()):8.1f} us", flush=True)
    return 0


def shares(report: str) -> dict[str, float]:
    """Return the percentages of *report*, as ``perf report --sort dso`` prints it, by part."""
    found: dict[str, float] = {}
    for percent, name in re.findall(r"^\s*([0-9.]+)%\s+(\S+)", report, re.MULTILINE):
        part = next((part for part, pattern in PARTS.items() if re.search(pattern, name)), name)
        found[part] = found.get(part, 0.0) + float(percent)
    return found


def _profiled(server: Server, load: Load) -> dict[str, float]:
    """Return microseconds per message by part, the largest first."""
    send(server.address, Load(WARM, load.size_octets, load.reuse))
    with tempfile.TemporaryDirectory(prefix="postbus-profile-") as folder:
        data = Path(folder) / "perf.data"
        with _recording(server, data):
            spent_us = measure(server, load).cpu_us
        command = [_perf(), "report", "-i", str(data), "--sort", "dso", "--stdio", "-g", "none"]
        report = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    parts = {part: spent_us * percent / 100 for part, percent in shares(report).items()}
    told = {part: spent for part, spent in sorted(parts.items(), key=lambda pair: -pair[1]) if spent >= LEAST_US}
    return {**told, "other": spent_us - sum(told.values())}


@contextmanager
def _recording(server: Server, data: Path) -> Iterator[None]:
    command = [_perf(), "record", "-o", str(data), "-F", str(HERTZ), "-e", "cpu-clock", "-p", str(server.process.pid)]
    recorder = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        recorder.send_signal(signal.SIGINT)
        recorder.wait()


def _perf() -> str:
    return peers.need("perf", "apt-get install linux-perf")


if __name__ == "__main__":
    sys.exit(main())
