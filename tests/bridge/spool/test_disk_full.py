"""A disk that really runs full, and gets room again."""

from __future__ import annotations

import asyncio
import hashlib
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from postbus.bridge.spool import Delivery, Held, Spool, SpoolFull, slots_of
from postbus.bridge.spool_settings import SpoolSettings
from tests import peers
from tests.bridge.mails import in_memory, mail, spilled, until

DISK_OCTETS = 48 * 1024 * 1024


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 48 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = peers.need("mount", "install the package mount")
    done = subprocess.run([mount, "-t", "tmpfs", "-o", f"size={DISK_OCTETS}", "tmpfs", folder], capture_output=True, check=False)
    if done.returncode:
        peers.missing("a small file system", f"run as a user who may mount one ({done.stderr.decode().strip()})")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.mark.parametrize("size", [pytest.param(4_000, id="rows"), pytest.param(400_000, id="files")])
async def test_disk_runs_full_and_recovers(disk: Path, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mail gets SpoolFull, deliveries can still be recorded, room lets mail in again, and nothing acknowledged is lost."""
    spool = Spool(SpoolSettings(folder=disk / "spool", free_min_octets=0, ballast_octets=20 * 1024 * 1024))
    await spool.open()
    content = random.Random(size).randbytes(size)
    held: list[Held] = []

    async def fill() -> None:
        while True:
            name = f"m{len(held)}-{id(asyncio.current_task())}-{random.random()}"
            record = mail(name, content)
            body = in_memory(content) if size < 100_000 else spilled(spool.spill_folder, content, f"spill-{name}")
            held.append(await spool.commit(record, slots_of(record), body))

    with monkeypatch.context() as patch:
        patch.setattr(spool.folder, "free_octets", lambda: 1 << 40)  # somebody else takes the room: it is SQLite that meets the wall
        spool.numbers.free_octets = 1 << 40
        results = await asyncio.gather(*(fill() for _ in range(20)), return_exceptions=True)
    # A file that cannot be spilled is the listener's to tell, before there is a commit.
    assert all(isinstance(result, SpoolFull | OSError) for result in results), results
    if size < 100_000:
        assert "full" == spool.gate(), (results, spool.numbers)
        assert "SQLITE_FULL" in str(results[0])
    for one in held[: len(held) * 3 // 4]:
        spool.done(Delivery(one, 0))
    await spool.flush()
    for file in spool.spill_folder.iterdir():
        file.unlink()
    await until(lambda: spool.gate() is None, "the end of the disk's being full")
    await until(lambda: len(list(spool.folder.bodies.iterdir())) in (0, len(held) - len(held) * 3 // 4), "the unlinking of files")
    record = mail("last", b"last")
    held.append(await spool.commit(record, slots_of(record), in_memory(b"last")))
    rest = {one.mail.id: one.mail.sha256 for one in held[(len(held) - 1) * 3 // 4 :]}
    await spool.close()
    spool = Spool(SpoolSettings(folder=disk / "spool", free_min_octets=0, ballast_octets=0))
    await spool.open()
    page = await spool.fresh("out", 0, 100_000, 1 << 40)
    assert rest == {one.held.mail.id: hashlib.sha256(await spool.read(one.held)).hexdigest() for one in page.deliveries}
    await spool.close()
