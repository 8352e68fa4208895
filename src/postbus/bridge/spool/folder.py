"""The spool's folder: who owns it, where files lie, what is free. Everything here blocks; call it off the loop."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from postbus.bridge.spool.faults import SpoolFailed, SpoolFault, SpoolFull, SpoolRefused

MOUNTS = Path("/proc/self/mountinfo")
NETWORK = frozenset(
    {"9p", "afs", "beegfs", "ceph", "cifs", "fuse.ceph", "fuse.glusterfs", "fuse.s3fs", "fuse.sshfs", "gfs2", "glusterfs", "lustre"}
    | {"ncpfs", "nfs", "nfs4", "ocfs2", "smb3", "smbfs"}
)
"""File systems on which locks or fsync do not mean what the spool needs (https://www.sqlite.org/howtocorrupt.html s2.1)."""
NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


@contextmanager
def disk_faults(doing: str) -> Iterator[None]:
    """Turn an ``OSError`` into the spool's own fault."""
    try:
        yield
    except OSError as error:
        fault: type[SpoolFault] = SpoolFull if error.errno in NO_ROOM else SpoolFailed
        raise fault(f"{doing}: {error}") from error


def file_system(path: str, mounts: str) -> str:
    """Return the type of the file system that holds *path* (absolute, resolved), ``""`` if *mounts* does not tell.

    Args:
        path: absolute, without links.
        mounts: text of /proc/self/mountinfo (proc(5)): field 5 is the mount point, the type follows `` - ``.
    """
    best, kind = -1, ""
    for line in mounts.splitlines():
        left, dash, right = line.partition(" - ")
        fields = left.split(" ")
        if not dash or len(fields) < 5:
            continue
        point = fields[4].replace("\\040", " ")
        inside = path == point or path.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= best:  # a later mount on the same point hides the earlier
            best, kind = len(point), right.split(" ")[0]
    return kind


class Folder:
    """The folder of one spool. ``open`` makes and locks it; ``close`` lets it go."""

    def __init__(self, root: Path, ballast_octets: int) -> None:
        self.root = root
        self.database = root / "spool.db"
        self.bodies = root / "bodies"
        self.spill = root / "spill"
        self.ballast = root / "ballast"
        self.damaged = root / "damaged"
        self._ballast_octets = ballast_octets
        self._lock: int | None = None
        self._bodies_descriptor = -1

    def open(self) -> None:
        """Make the folder if it is missing, and become its one owner.

        Raises:
            SpoolRefused: it lies on a network file system, or somebody else owns it.
            SpoolFailed, SpoolFull: the disk says no.
        """
        with disk_faults("cannot make the spool folder"):
            for folder in (self.root, self.bodies, self.spill):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                folder.chmod(0o700)
        self._refuse_network()
        self._take_lock()
        with disk_faults("cannot open the spool folder"):
            self._bodies_descriptor = os.open(self.bodies, os.O_RDONLY | os.O_DIRECTORY)
            os.close(os.open(self.database, os.O_RDWR | os.O_CREAT, 0o600))
            self.database.chmod(0o600)
            self._sync_folder(self.root)

    def close(self) -> None:
        """Let the folder go. Harmless when it is not open."""
        for descriptor in (self._bodies_descriptor, self._lock):
            if descriptor is not None and descriptor >= 0:
                os.close(descriptor)
        self._bodies_descriptor, self._lock = -1, None

    def free_octets(self) -> int:
        """Return what is free for us on the file system."""
        with disk_faults("cannot read the free space"):
            state = os.statvfs(self.root)
        return state.f_bavail * state.f_frsize

    def spilled_octets(self) -> int:
        """Return the size of all files that are still being received."""
        total = 0
        with os.scandir(self.spill) as entries:
            for entry in entries:
                with suppress(FileNotFoundError):  # taken or discarded meanwhile
                    total += entry.stat(follow_symlinks=False).st_size
        return total

    # --- body files

    def keep(self, source: Path, name: str) -> None:
        """Make the spilled file *source* durable as body *name*: sync it, rename it, sync the folder. Nothing is tried twice.

        Raises:
            SpoolFull, SpoolFailed: the file is gone then, or still at *source*; there is no body *name*.
        """
        target = self.bodies / name
        with disk_faults("cannot keep a message's file"):
            descriptor = os.open(source, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            source.rename(target)
            try:
                os.fsync(self._bodies_descriptor)
            except OSError:
                target.unlink(missing_ok=True)
                raise

    def write(self, octets: bytes, name: str) -> None:
        """Make *octets* durable as body *name*, for a body in memory that is too large for a row."""
        source = self.spill / name
        try:
            with disk_faults("cannot write a message's file"):
                descriptor = os.open(source, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
                with open(descriptor, "wb", buffering=0) as file:  # noqa: PTH123 - a descriptor, not a path
                    rest = memoryview(octets)
                    while rest:
                        rest = rest[file.write(rest) :]
            self.keep(source, name)
        finally:
            with suppress(OSError):  # renamed, or swept at the next start
                source.unlink()

    def remove(self, names: Collection[str]) -> None:
        """Unlink bodies whose rows are gone. What fails is an orphan, swept at the next start."""
        for name in names:
            with suppress(OSError):
                (self.bodies / name).unlink()

    def sweep(self, kept: Collection[str]) -> int:
        """Unlink bodies without a row and files of receptions that died; return how many bodies it were."""
        orphans = 0
        with disk_faults("cannot sweep the spool folder"):
            for file in self.spill.iterdir():
                file.unlink()
            for file in self.bodies.iterdir():
                if file.name not in kept:
                    file.unlink()
                    orphans += 1
        return orphans

    def quarantine(self, name: str) -> Path:
        """Move an unreadable database and its bodies to ``damaged/<name>``, so that a new one can start; return that folder."""
        place = self.damaged / name
        with disk_faults("cannot set the damaged spool aside"):
            place.mkdir(mode=0o700, parents=True)
            for file in self.root.glob("spool.db*"):
                file.rename(place / file.name)
            self.bodies.rename(place / "bodies")
        self.close()
        self.open()
        return place

    # --- ballast

    def fill_ballast(self) -> bool:
        """Allocate the ballast file unless it is there; return whether it is. A disk without room for it goes without."""
        if not self._ballast_octets:
            return True
        with suppress(FileNotFoundError):
            if self.ballast.stat().st_size == self._ballast_octets:
                return True
        try:
            descriptor = os.open(self.ballast, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            try:
                os.posix_fallocate(descriptor, 0, self._ballast_octets)
            finally:
                os.close(descriptor)
        except OSError:
            self.drop_ballast()
            return False
        return True

    def drop_ballast(self) -> None:
        """Give the ballast's room back."""
        with suppress(OSError):
            self.ballast.unlink()

    # --- ownership

    def _refuse_network(self) -> None:
        try:
            mounts = MOUNTS.read_text(encoding="utf-8", errors="surrogateescape")
        except OSError:  # no proc here: nothing known against it
            return
        kind = file_system(str(self.root.resolve()), mounts)
        if kind in NETWORK:
            raise SpoolRefused(f"the spool folder {self.root} lies on a network file system ({kind}): give the spool a local volume")

    def _take_lock(self) -> None:
        path = self.root / "lock"
        with disk_faults("cannot lock the spool folder"):
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            # A record lock: unlike flock it is not inherited by a worker process that outlives us.
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            owner = os.pread(descriptor, 64, 0).decode("ascii", "replace").strip() or "unknown"
            os.close(descriptor)
            raise SpoolRefused(
                f"the spool folder {self.root} is in use by process {owner}: stop that one, or give this one another folder"
            ) from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        self._lock = descriptor

    @staticmethod
    def _sync_folder(path: Path) -> None:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
