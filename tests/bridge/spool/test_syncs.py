"""The order of system calls: for every acknowledgement the log's fdatasync, the body's fsync and its folder's had returned."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import peers
from tests.bridge.spool.children import committing, held_by, lines

MAILS = 60
TRACE = "trace=pwrite64,fdatasync,fsync,rename,renameat,renameat2,write"
START = re.compile(r"^(\d+) +(\w+)\((.*)$", re.DOTALL)
RESUMED = re.compile(r"^(\d+) +<\.\.\. (\w+) resumed>(.*)$", re.DOTALL)
DONE = re.compile(r"= 0$|= [1-9]\d*$")


def calls(log: Path) -> Iterator[tuple[str, str, bool]]:
    """Yield (system call, arguments, is this its return) in order of time; a call that was not interrupted is both at once."""
    under_way: dict[str, str] = {}
    for line in log.read_text(errors="replace").splitlines():
        if resumed := RESUMED.match(line):
            assert DONE.search(resumed[3]), line
            yield resumed[2], under_way.pop(resumed[1]), True
        elif start := START.match(line):
            process, call, rest = start.groups()
            if rest.endswith("<unfinished ...>"):
                under_way[process] = rest
                yield call, rest, False
            else:
                assert DONE.search(rest), line
                yield call, rest, False
                yield call, rest, True


class Ledger:
    """What is safe at a moment of the trace."""

    def __init__(self) -> None:
        self.in_log: set[str] = set()  # written to the log, not synced
        self.syncing: set[str] = set()  # was in the log when the sync began
        self.safe: set[str] = set()
        self.synced_files: set[str] = set()
        self.renamed: set[str] = set()
        self.safe_files: set[str] = set()
        self.folder_syncing: set[str] = set()
        self.acknowledged: list[str] = []

    def see(self, call: str, text: str, returned: bool) -> None:
        """Take one call, or its return, into account."""
        if call == "pwrite64" and "spool.db-wal" in text and returned:
            self.in_log.update(re.findall(r"(m\d+-0)", text))
        elif call == "fdatasync" and "spool.db-wal" in text:
            if returned:
                self.safe |= self.syncing
            else:
                self.syncing = set(self.in_log)
        elif call == "fsync" and "/spill/" in text and returned:
            self.synced_files.update(re.findall(r"spill-(m\d+)", text))
        elif call.startswith("rename") and "/bodies/" in text and returned:
            names = re.findall(r"spill-(m\d+)", text)
            assert set(names) <= self.synced_files, "renamed before its fsync had returned"
            self.renamed.update(names)
        elif call == "fsync" and "/bodies>" in text:
            if returned:
                self.safe_files |= self.folder_syncing
            else:
                self.folder_syncing |= self.renamed
        elif call == "write" and '"ack ' in text and not returned:
            (event,) = re.findall(r"ack (m\d+-0)", text)
            assert event in self.safe, f"{event} acknowledged before the log's fdatasync had returned"
            self.acknowledged.append(event)


def test_every_acknowledgement_follows_its_syncs(tmp_path: Path) -> None:
    """No acknowledgement is written before all that it rests on has been synced."""
    strace = peers.need("strace", "install the package strace")
    log = tmp_path / "trace"
    before = [strace, "-f", "-y", "-s", "40000", "-e", TRACE, "-e", "signal=none", "-o", str(log)]
    with committing(tmp_path / "spool", "m", 8, MAILS, 6, before=before) as process:
        said = list(lines(process))
    assert ["end"] == said[-1]
    ledger = Ledger()
    files = {f"m{number}" for number in range(0, MAILS, 6)}
    for call, text, returned in calls(log):
        ledger.see(call, text, returned)
        for event in ledger.acknowledged[-1:]:
            assert event[:-2] not in files or event[:-2] in ledger.safe_files, f"{event} acknowledged before its file was safe"
    assert MAILS == len(set(ledger.acknowledged))
    assert files <= ledger.safe_files


@pytest.mark.parametrize(("call", "when"), [("fdatasync", 20), ("fsync", 9)])
async def test_a_real_io_error(tmp_path: Path, call: str, when: int) -> None:
    """When a sync fails, those who waited are told; the spool opens again by itself, and all that was acknowledged is there once."""
    strace = peers.need("strace", "install the package strace")
    before = [strace, "-f", "-o", "/dev/null", "-e", f"trace={call}", "-e", f"inject={call}:error=EIO:when={when}"]
    acknowledged: dict[str, str] = {}
    failed: set[str] = set()
    with committing(tmp_path, "m", 8, MAILS, 6, before=before) as process:
        for words in lines(process):
            if words[0] == "ack":
                acknowledged[words[1]] = words[2]
            elif words[0] == "failed":
                failed.add(words[1])
    assert MAILS == len(acknowledged)
    assert failed
    assert acknowledged == await held_by(tmp_path)
