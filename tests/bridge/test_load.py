"""How much is too much, and how it is found out."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import pytest

from postbus.bridge.load import DISK_FULL, OVERLOADED, Load, bound_octets, limit_octets, release, resident_octets, too_much
from postbus.bridge.load_settings import LoadSettings
from postbus.telemetry.numbers import NUMBERS

MIB = 1 << 20


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        pytest.param({}, None, id="no control groups"),
        pytest.param({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "1000\n"}, 1000, id="a container, version 2"),
        pytest.param({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "max\n"}, None, id="no limit, version 2"),
        pytest.param(
            {"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/memory.max": "5", "sys/fs/cgroup/a/b/memory.max": "9"}, 5, id="narrowest"
        ),
        pytest.param({"proc/self/cgroup": "0::/kubepods/x\n", "sys/fs/cgroup/memory.max": "7"}, 7, id="a path of the host"),
        pytest.param(
            {"proc/self/cgroup": "4:memory:/x\n0::/\n", "sys/fs/cgroup/memory/memory.limit_in_bytes": "3000\n"}, 3000, id="version 1"
        ),
        pytest.param(
            {"proc/self/cgroup": "4:cpu,memory:/\n", "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712"},
            None,
            id="no limit, version 1",
        ),
        pytest.param({"proc/self/cgroup": "1:cpu:/x\n", "sys/fs/cgroup/memory/memory.limit_in_bytes": "1"}, None, id="another controller"),
    ],
)
def test_what_the_control_groups_allow(files: dict[str, str], expected: int | None, tmp_path: Path) -> None:
    """The least of the limits that can be seen."""
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert expected == limit_octets(tmp_path)


def test_our_own_memory(tmp_path: Path) -> None:
    """As the system tells; None where it does not. Giving memory back works here."""
    assert 5 * MIB < (resident_octets() or 0) < 10_000 * MIB
    assert resident_octets(tmp_path) is None
    release()


def test_parsers_count_too(tmp_path: Path) -> None:
    """Whatever thread has started them; one that ends while we look is nothing."""
    page = resource.getpagesize()
    files = {"self/statm": "99 10 5", "self/task/1/children": "7 8 ", "self/task/2/children": "9 ", "7/statm": "9 3 1", "9/statm": ""}
    for name, text in files.items():
        path = tmp_path / "proc" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (tmp_path / "proc/self/task/3/children").mkdir(parents=True)
    assert 13 * page == resident_octets(tmp_path)


def test_a_child_of_ours_counts() -> None:
    """As the kernel lists it, where it does."""
    if not list(Path("/proc/self/task").glob("*/children")):
        pytest.skip("this kernel lists no children")
    before = resident_octets() or 0
    program = "x = b'x' * (64 << 20); print(len(x), flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        grown = (resident_octets() or 0) - before
        child.communicate(b"\n")
    assert grown > 48 * MIB


@pytest.mark.parametrize(
    ("said", "limit", "expected"),
    [
        pytest.param({}, 1000, 900, id="a share of the limit"),
        pytest.param({}, None, None, id="no limit"),
        pytest.param({"memory_max_octets": 160 * MIB}, 1000, 160 * MIB, id="as said"),
        pytest.param({"memory_max_share": 0.5}, 1000, 500, id="another share"),
    ],
)
def test_the_bound(said: dict[str, float], limit: int | None, expected: int | None) -> None:
    """What is set wins."""
    assert expected == bound_octets(LoadSettings.model_validate(said), limit)


@pytest.mark.parametrize(
    ("used", "bound", "before", "expected"),
    [
        pytest.param(99, 100, False, False, id="below"),
        pytest.param(100, 100, False, True, id="at it"),
        pytest.param(96, 100, True, True, id="not yet back"),
        pytest.param(94, 100, True, False, id="back"),
        pytest.param(None, 100, False, False, id="unknown"),
        pytest.param(100, None, True, False, id="unbounded"),
    ],
)
def test_too_much(used: int | None, bound: int | None, before: bool, expected: bool) -> None:
    """Once too much, it has to become a little less than enough."""
    assert expected == too_much(used, bound, before=before)


def shown() -> dict[tuple[str, ...], float]:
    """Return the gauge."""
    reading = NUMBERS.reading("postbus_load_shedding")
    return {labels: reading[labels] for labels in [("memory",), ("disk",)] if labels in reading}


def test_load_is_shed_and_taken_on_again() -> None:
    """Memory is asked back at once and now and then; the gauge and the words follow."""
    used, released = [50], []
    load = Load(used=lambda: used[0] * MIB, limit=lambda: 100 * MIB, release=lambda: released.append(1))
    settings = LoadSettings()

    def look(now: float, megabytes: int, *, disk_short: bool = False) -> tuple[str | None, int]:
        used[0] = megabytes
        load.look(settings, now, disk_short=disk_short)
        return (load.refusal.reason if load.refusal else None), len(released)

    assert look(0, 50) == (None, 0)
    assert load.detail == "50 MiB in memory, 90 MiB would be too much"
    assert look(1, 91) == ("memory", 1)
    assert load.refusal is OVERLOADED
    assert load.detail.startswith("shedding for want of memory: 91 MiB")
    assert shown()["memory",] == 1
    assert [look(now, 88) for now in (2, 10, 11)] == [("memory", 1), ("memory", 1), ("memory", 2)]
    assert look(12, 91, disk_short=True) == ("disk", 2)
    assert load.refusal is DISK_FULL
    assert shown() == {("memory",): 0, ("disk",): 1}
    assert look(13, 50) == (None, 2)
    assert shown() == {("memory",): 0, ("disk",): 0}


def test_what_is_unknown_is_said_so() -> None:
    """Where the system tells nothing, nothing is shed."""
    load = Load(used=lambda: None, limit=lambda: None)
    load.look(LoadSettings(memory_max_octets=160 * MIB), 0, disk_short=False)
    assert load.refusal is None
    assert load.detail == "memory unknown, 160 MiB would be too much"
