"""What this process has taken on: its memory and the disk under what it holds, looked at once a second; and whether that is too much.

Memory is the resident set of the process and its parsers against a bound: as set, or a share of what the control group may have (Linux;
elsewhere only what is set counts, and only where /proc tells). Once the bound is passed connections are refused until memory is a little
below it again. An allocator does not give back everything by itself, so it is asked to while load is shed: else one peak could last for
ever.
"""

from __future__ import annotations

import ctypes
import gc
import resource
from collections.abc import Callable, Iterator
from pathlib import Path

from postbus import telemetry
from postbus.bridge.load_settings import LoadSettings
from postbus.server.clients import Refusal
from postbus.smtp.replies import Reply

RECOVERED_SHARE = 0.95
"""Of the bound: below it, connections are taken again."""
RELEASE_INTERVAL_S = 10.0
"""How often the allocator is asked for memory back."""
NO_LIMIT_OCTETS = 1 << 60
"""Version 1 of control groups says so much, or more, for no limit."""

OVERLOADED = Refusal(Reply(421, "Too busy, try again later", "4.3.2"), "memory")
DISK_FULL = Refusal(Reply(421, "Service not available, try again later", "4.3.1"), "disk")

_FILES = {"": ("sys/fs/cgroup", "memory.max"), "memory": ("sys/fs/cgroup/memory", "memory.limit_in_bytes")}
"""Where a hierarchy is mounted, and the file with its limit: version 2, which has no name, and version 1."""


def resident_octets(root: Path = Path("/")) -> int | None:
    """Return the resident memory of the process and of its children, who parse mail or write files; None where the system does not tell.

    They live in one control group, so its limit is one for all. What they share is counted in each.
    """
    own = _resident(root / "proc/self/statm")
    if own is None:
        return None
    return own + sum(_resident(root / "proc" / child / "statm") or 0 for child in _children(root))


def _resident(statm: Path) -> int | None:
    try:
        return int(statm.read_text().split()[1]) * resource.getpagesize()
    except (OSError, IndexError):  # it has ended meanwhile
        return None


def _children(root: Path) -> Iterator[str]:
    """Yield the numbers of the processes that threads of this one have started; none where the kernel does not list them."""
    for listed in (root / "proc/self/task").glob("*/children"):
        try:
            yield from listed.read_text().split()
        except OSError:
            continue  # the thread has ended meanwhile


def limit_octets(root: Path = Path("/")) -> int | None:
    """Return the memory that the control groups of the process leave it, the narrowest of them; None: as much as there is."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return None
    found: list[int] = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        for name in {"memory"} & set(controllers.split(",")) or ({""} if not controllers else set()):
            mount, file = _FILES[name]
            found += _limits(root / mount, path, file)
    return min(found, default=None)


def _limits(mount: Path, path: str, file: str) -> list[int]:
    """Return the limits from *mount* down to *path*; inside a container only the mount itself may be there."""
    folder, found = mount, []
    for part in ("", *path.strip("/").split("/")):
        folder = folder / part
        try:
            text = (folder / file).read_text().strip()
        except OSError:
            continue
        if text.isdecimal() and int(text) < NO_LIMIT_OCTETS:
            found.append(int(text))
    return found


def bound_octets(settings: LoadSettings, limit: int | None) -> int | None:
    """Return how much memory is too much, or None: nothing is."""
    if settings.memory_max_octets is not None:
        return settings.memory_max_octets
    return None if limit is None else int(limit * settings.memory_max_share)


def too_much(used: int | None, bound: int | None, *, before: bool) -> bool:
    """Return whether *used* octets are too much, where they were *before*."""
    if used is None or bound is None:
        return False
    return used >= bound * (RECOVERED_SHARE if before else 1)


def release() -> None:
    """Give back to the system what is free in the process; some milliseconds, more with much in it."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's; musl has none
    if trim is not None:
        trim(0)


class Load:
    """What was found at the last look.

    Attributes:
        used_octets, bound_octets: resident memory, the parsers' too, and how much would be too much; None: unknown, or no bound.
        refusal: what connections are refused with now, or None.
    """

    def __init__(
        self,
        *,
        used: Callable[[], int | None] = resident_octets,
        limit: Callable[[], int | None] = limit_octets,
        release: Callable[[], None] = release,
    ) -> None:
        self.used_octets: int | None = None
        self.bound_octets: int | None = None
        self.refusal: Refusal | None = None
        self._used = used
        self._limit = limit
        self._release = release
        self._released_at: float | None = None

    def look(self, settings: LoadSettings, now: float, *, disk_short: bool) -> None:
        """Look again.

        Args:
            settings: of the moment.
            now: seconds.
            disk_short: nothing large can be held any more.
        """
        self.used_octets, self.bound_octets = self._used(), bound_octets(settings, self._limit())
        before = self.refusal
        heavy = too_much(self.used_octets, self.bound_octets, before=before is OVERLOADED)
        self.refusal = DISK_FULL if disk_short else OVERLOADED if heavy else None
        if heavy and (self._released_at is None or now - self._released_at >= RELEASE_INTERVAL_S):
            self._released_at = now
            self._release()
        if before is not self.refusal:
            self._tell(before)

    def _tell(self, before: Refusal | None) -> None:
        if before is not None:
            telemetry.load_shed(reason=before.reason, begins=False, detail=self.detail)
        if self.refusal is not None:
            telemetry.load_shed(reason=self.refusal.reason, begins=True, detail=self.detail)

    @property
    def detail(self) -> str:
        """The last look in words, for status pages and the log."""
        memory = "memory unknown" if self.used_octets is None else f"{self.used_octets >> 20} MiB in memory"
        bound = "" if self.bound_octets is None else f", {self.bound_octets >> 20} MiB would be too much"
        return f"shedding for want of {self.refusal.reason}: {memory}{bound}" if self.refusal is not None else memory + bound
