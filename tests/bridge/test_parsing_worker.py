"""The inside of a parser process, run here on streams of our own."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import pytest

from postbus.bridge.parsing_worker import MISSING, PARSED, SUSPECT, answer, job, serve
from postbus.event import mime, parsed
from postbus.event.parsed import Defect
from tests.event.samples import PLAIN, nested


@pytest.fixture(autouse=True)
def _our_own_limits() -> Iterator[None]:
    """Serving sets the CPU limit of its process, which is ours."""
    limits = resource.getrlimit(resource.RLIMIT_CPU)
    yield
    resource.setrlimit(resource.RLIMIT_CPU, limits)


def served(*jobs: bytes) -> bytes:
    """Return the answers to *jobs*."""
    answers = BytesIO()
    serve(BytesIO(b"".join(jobs)), answers, 100_000)
    return answers.getvalue()


def test_jobs_are_answered_in_order(tmp_path: Path) -> None:
    """Octets, a file, a file that is gone, and mail that no place may parse."""
    file = tmp_path / "body"
    file.write_bytes(PLAIN)
    whole = answer(PARSED, parsed.to_bytes(mime.parse(PLAIN)))
    refused = answer(PARSED, parsed.to_bytes(parsed.unreadable(Defect("mime.parts", None, "content-type fields"))))
    jobs = (job(None, PLAIN, 100), job(str(file), b"", 100), job(str(tmp_path / "gone"), b"", 100), job(None, nested(1001), 100))
    assert whole + whole + answer(MISSING, b"") + refused == served(*jobs)


def test_a_suspect_is_no_plain_mail() -> None:
    """Asked for plain mail alone, it says so at once; asked again, it parses."""
    suspect = b"Content-Type: message/rfc822\r\n\r\nSubject: inner\r\n\r\nbody"
    whole = answer(PARSED, parsed.to_bytes(mime.parse(suspect)))
    assert answer(SUSPECT, b"") + whole == served(job(None, suspect, 100, plain=True), job(None, suspect, 100))
    assert answer(PARSED, parsed.to_bytes(mime.parse(PLAIN))) == served(job(None, PLAIN, 100, plain=True))


def test_the_end_of_jobs_is_the_end() -> None:
    """Nothing is said unasked."""
    assert b"" == served()


def test_running_out_of_memory_is_a_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    """And the next job is answered."""

    def exhaust(octets: bytes, *, inline_max_octets: int) -> None:
        raise MemoryError

    monkeypatch.setattr(mime, "parse", exhaust)
    verdict = answer(PARSED, parsed.to_bytes(parsed.unreadable(Defect("parser.memory", None, "memory limit"))))
    assert verdict + verdict == served(job(None, PLAIN, 100), job(None, PLAIN, 100))
