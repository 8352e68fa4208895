"""The spool's folder: owner, modes, files, room."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from postbus.bridge.spool import SpoolFailed, SpoolFull, SpoolRefused
from postbus.bridge.spool import folder as module
from postbus.bridge.spool.folder import Folder, disk_faults, file_system

MOUNTS = """\
21 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
30 21 0:26 / /mnt rw shared:2 - nfs4 server:/export rw
31 30 0:27 / /mnt/local rw shared:3 - xfs /dev/vdb rw
32 21 0:28 / /with\\040space rw - cifs //server/share rw
33 21 0:29 / /over rw - nfs a:/b rw
34 33 0:30 / /over rw - ext4 /dev/vdc rw
broken line
"""


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        pytest.param("/var/spool", "ext4", id="root"),
        pytest.param("/mnt/spool", "nfs4", id="below a mount"),
        pytest.param("/mnt/local/spool", "xfs", id="the deepest mount counts"),
        pytest.param("/mntx", "ext4", id="a name is not a prefix"),
        pytest.param("/with space/spool", "cifs", id="escaped space"),
        pytest.param("/over", "ext4", id="the later mount hides the earlier"),
    ],
)
def test_file_system(path: str, expected: str) -> None:
    """The file system is that of the deepest mount point above the path."""
    assert expected == file_system(path, MOUNTS)


def test_unknown_file_system() -> None:
    """Without a table of mounts nothing is known."""
    assert file_system("/spool", "") == ""


def test_network_file_systems_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A spool on NFS is refused with words that say what to do."""
    mounts = tmp_path / "mountinfo"
    mounts.write_text(f"30 21 0:26 / {tmp_path.resolve()} rw shared:2 - nfs4 server:/export rw\n")
    monkeypatch.setattr(module, "MOUNTS", mounts)
    with pytest.raises(SpoolRefused, match=r"network file system \(nfs4\): give the spool a local volume"):
        Folder(tmp_path / "spool", 0).open()


def test_no_table_of_mounts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no /proc, nothing is known against the folder."""
    monkeypatch.setattr(module, "MOUNTS", tmp_path / "missing")
    folder = Folder(tmp_path / "spool", 0)
    folder.open()
    folder.close()


def test_modes(tmp_path: Path) -> None:
    """Mail is nobody else's business: folders 0700, files 0600, whatever was there before."""
    (tmp_path / "spool").mkdir(mode=0o755)
    folder = Folder(tmp_path / "spool", 4096)
    folder.open()
    folder.fill_ballast()
    modes = {path.name: path.stat().st_mode & 0o777 for path in [folder.root, *folder.root.iterdir()]}
    folder.close()
    assert {"spool": 0o700, "bodies": 0o700, "spill": 0o700, "spool.db": 0o600, "lock": 0o600, "ballast": 0o600} == modes


def test_one_owner(tmp_path: Path) -> None:
    """A second process is told who has the folder and what to do; when the first ends, the folder is free."""
    program = (
        "import sys; from pathlib import Path; from postbus.bridge.spool.folder import Folder\n"
        "folder = Folder(Path(sys.argv[1]), 0); folder.open(); print('mine', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={"PYTHONPATH": os.pathsep.join(sys.path)},
    ) as first:
        assert first.stdin is not None
        assert first.stdout is not None
        assert first.stdout.readline() == b"mine\n"
        second = Folder(tmp_path, 0)
        with pytest.raises(SpoolRefused, match=f"in use by process {first.pid}: stop that one, or give this one another folder"):
            second.open()
        first.kill()
        first.wait()
        second.open()
        second.close()


def test_folder_that_cannot_be_made(tmp_path: Path) -> None:
    """A file in the way is the disk's fault, told as such."""
    (tmp_path / "spool").write_text("in the way")
    with pytest.raises(SpoolFailed, match="cannot make the spool folder"):
        Folder(tmp_path / "spool", 0).open()


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        pytest.param(errno.ENOSPC, SpoolFull, id="no space"),
        pytest.param(errno.EDQUOT, SpoolFull, id="quota"),
        pytest.param(errno.EIO, SpoolFailed, id="I/O error"),
    ],
)
def test_disk_faults(code: int, expected: type[Exception]) -> None:
    """No room is another fault than a broken disk."""
    with pytest.raises(expected, match="doing: "), disk_faults("doing"):
        raise OSError(code, os.strerror(code))


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    """An open folder with a small ballast."""
    folder = Folder(tmp_path / "spool", 8192)
    folder.open()
    return folder


def test_keep_takes_the_file(folder: Folder) -> None:
    """A kept file is renamed, so its octets are not copied."""
    source = folder.spill / "spill-1"
    source.write_bytes(b"octets")
    inode = source.stat().st_ino
    folder.keep(source, "body")
    assert not source.exists()
    assert inode == (folder.bodies / "body").stat().st_ino


def test_keep_of_a_missing_file(folder: Folder) -> None:
    """A file that is gone is the disk's fault."""
    with pytest.raises(SpoolFailed, match="cannot keep"):
        folder.keep(folder.spill / "gone", "body")


def test_keep_undoes_the_rename_when_the_folder_cannot_be_synced(folder: Folder) -> None:
    """Without the folder's fsync there is no body: it is taken away rather than synced again."""
    source = folder.spill / "spill-1"
    source.write_bytes(b"octets")
    folder._bodies_descriptor, real = os.open("/dev/null", os.O_RDONLY), folder._bodies_descriptor  # fsync of it is EINVAL
    with pytest.raises(SpoolFailed):
        folder.keep(source, "body")
    os.close(folder._bodies_descriptor)
    folder._bodies_descriptor = real
    assert [] == list(folder.bodies.iterdir())


def test_write_makes_a_body(folder: Folder) -> None:
    """Octets in memory that are too large for a row become a file like any other."""
    folder.write(b"octets", "body")
    assert (folder.bodies / "body").read_bytes() == b"octets"
    assert [] == list(folder.spill.iterdir())


def test_write_that_fails_leaves_nothing(folder: Folder) -> None:
    """A body that cannot be written leaves no file behind."""
    folder.spill.rmdir()
    folder.spill.write_text("in the way")
    with pytest.raises(SpoolFailed):
        folder.write(b"octets", "body")
    assert [] == list(folder.bodies.iterdir())


def test_sweep(folder: Folder) -> None:
    """Receptions that died and bodies without a row go; bodies with a row stay."""
    (folder.spill / "spill-1").write_bytes(b"half")
    (folder.bodies / "kept").write_bytes(b"row")
    (folder.bodies / "orphan").write_bytes(b"no row")
    assert folder.sweep({"kept"}) == 1
    assert ["kept"] == [path.name for path in folder.bodies.iterdir()]
    assert [] == list(folder.spill.iterdir())


def test_remove_tolerates_missing_bodies(folder: Folder) -> None:
    """What is gone needs no removing."""
    (folder.bodies / "one").write_bytes(b"")
    folder.remove(["one", "gone"])
    assert [] == list(folder.bodies.iterdir())


def test_ballast(folder: Folder) -> None:
    """The ballast takes real room, once, and gives it back."""
    assert folder.fill_ballast()
    assert folder.fill_ballast()
    assert folder.ballast.stat().st_blocks * 512 >= 8192
    folder.drop_ballast()
    folder.drop_ballast()
    assert not folder.ballast.exists()


def test_ballast_without_room(folder: Folder) -> None:
    """A disk without room for the ballast goes without, and no half of it stays."""
    folder._ballast_octets = 1 << 60
    assert not folder.fill_ballast()
    assert not folder.ballast.exists()


def test_no_ballast_wanted(tmp_path: Path) -> None:
    """A ballast of 0 octets is always there."""
    assert Folder(tmp_path, 0).fill_ballast()


def test_room(folder: Folder) -> None:
    """Free room is the file system's; spilled octets are those still being received."""
    (folder.spill / "spill-1").write_bytes(b"12345")
    assert folder.free_octets() > 0
    assert folder.spilled_octets() == 5


def test_quarantine(folder: Folder) -> None:
    """A damaged database goes aside with its bodies, and a new one can start in the same folder."""
    folder.database.write_bytes(b"rubbish")
    (folder.bodies / "body").write_bytes(b"octets")
    place = folder.quarantine("now")
    assert (place / "spool.db").read_bytes() == b"rubbish"
    assert (place / "bodies" / "body").read_bytes() == b"octets"
    assert folder.database.stat().st_size == 0
    folder.write(b"octets", "new")
    folder.close()
    folder.close()
