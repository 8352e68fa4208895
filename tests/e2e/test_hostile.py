"""Hostile MIME into a running postbus: accepted, published within seconds, in bounded memory, and nobody else's mail waits for it."""

from __future__ import annotations

import base64
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from statistics import median
from typing import Any, Self

import psutil
import pytest

from tests.e2e.harness import Postbus, deliver, running, tree, unique

pytestmark = pytest.mark.timeout(120)

MIB = 1024 * 1024
PUBLISHED_WITHIN_S = 20.0
"""The parser's own limit is 5 s of CPU; the rest is for a busy machine."""
HEAD = b"From: a@example.net\r\nSubject: hostile\r\nMIME-Version: 1.0\r\n"


def nested_multiparts(levels: int) -> bytes:
    """Return multiparts in multiparts: 10,300 of them once exhausted a stack of 8 MiB."""
    return HEAD + b"".join(b"Content-Type: multipart/mixed; boundary=b%d\r\n\r\n--b%d\r\n" % (n, n) for n in range(levels)) + b"\r\nin\r\n"


def nested_messages(levels: int) -> bytes:
    """Return letters in letters: parsers that copy each level need memory by the square."""
    return HEAD + b"Content-Type: message/rfc822\r\n\r\n" * levels + b"Subject: innermost\r\n\r\nbody\r\n" + b"x" * 76 + b"\r\n"


def digest(levels: int) -> bytes:
    """Return digests in digests, whose parts are letters without saying so."""
    return HEAD + b"".join(b"Content-Type: multipart/digest; boundary=d%d\r\n\r\n--d%d\r\n\r\n" % (n, n) for n in range(levels)) + b"x\r\n"


def encoded_words(field: bytes, octets: int) -> bytes:
    """Return a header field of encoded words that never end: 1 MB took a parser 47 s."""
    line = b" " + b"=?" * 400 + b"\r\n"
    return HEAD + field + b":\r\n" + line * (octets // len(line)) + b"\r\nbody\r\n"


def tiny_parts(count: int) -> bytes:
    """Return a multipart of so many parts of nothing."""
    return HEAD + b"Content-Type: multipart/mixed; boundary=b\r\n\r\n" + b"--b\r\n\r\n" * count + b"--b--\r\n"


def broken_base64() -> bytes:
    """Return a good part and one of base64 with strangers in it and no end."""
    good = b"--b\r\nContent-Type: text/plain\r\n\r\ngood text\r\n"
    bad = b"--b\r\nContent-Type: application/pdf; name=a.pdf\r\nContent-Transfer-Encoding: base64\r\n\r\n" + b"!!!!=AB=C*D\r\n" * 20_000
    return HEAD + b"Content-Type: multipart/mixed; boundary=b\r\n\r\n" + good + bad + b"--b--\r\n"


def parameters(count: int) -> bytes:
    """Return one part whose file name comes in so many continuations (RFC 2231)."""
    pieces = b"".join(b";\r\n filename*%d*=%%41" % n for n in range(count))
    return HEAD + b"Content-Disposition: attachment" + pieces + b"\r\nContent-Type: application/pdf\r\n\r\nx\r\n"


def addresses(count: int) -> bytes:
    """Return a To field of nested comments and groups."""
    return HEAD + b"To: " + b",\r\n ".join([b"(" * 50 + b"g:;<@a,@b:c@d>"] * count) + b"\r\n\r\nbody\r\n"


def base64_bomb() -> bytes:
    """Return 24 MiB in one base64 part, twice nested in letters."""
    inner = base64.encodebytes(bytes(18 * MIB)).replace(b"\n", b"\r\n")
    letters = b"Content-Type: message/rfc822\r\n\r\n" * 2
    return HEAD + letters + b"Content-Type: application/octet-stream\r\nContent-Transfer-Encoding: base64\r\n\r\n" + inner


# What is made, and the code of a defect that must be told; "" where the mail is only odd.
HOSTILE: dict[str, tuple[Callable[[], bytes], str]] = {
    "20,000 nested multiparts": (lambda: nested_multiparts(20_000), "mime.parts"),
    "999 nested multiparts": (lambda: nested_multiparts(999), "mime."),
    "20,000 nested messages": (lambda: nested_messages(20_000), "mime.parts"),
    "999 nested messages": (lambda: nested_messages(999), "mime.malformed"),
    "900 nested digests": (lambda: digest(900), "mime."),
    "1 MB of encoded words": (lambda: encoded_words(b"Subject", MIB), "header.block_too_large"),
    "250 KB of encoded words": (lambda: encoded_words(b"X-Words", 250_000), "mime.encoded_words"),
    "40 KB of encoded words": (lambda: encoded_words(b"To", 40_000), ""),
    "a million tiny parts": (lambda: tiny_parts(1_000_000), "mime."),
    "900 tiny parts": (lambda: tiny_parts(900), ""),
    "broken base64": (broken_base64, "base64.invalid"),
    "a name in 5,000 pieces": (lambda: parameters(5_000), ""),
    "2,000 strange addresses": (lambda: addresses(2_000), ""),
    "24 MiB in letters": (base64_bomb, ""),
}


@pytest.fixture(scope="module")
def postbus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Postbus]:
    """One postbus for all of it: if one mail ended it, the next would tell."""
    routes = [
        {"name": "held", "match": "held-*@*", "sinks": "file", "acceptance": "hold"},
        {"name": "spooled", "match": "*", "sinks": "file", "acceptance": "spool"},
    ]
    with running(tmp_path_factory.mktemp("hostile"), tree(routes=routes)) as started:
        yield started


RECIPIENT = re.compile(rb'"recipient":"([^"]+)"')


class Published:
    """The events in the file so far, by recipient; each octet of the file is read once."""

    def __init__(self, postbus: Postbus) -> None:
        self._postbus = postbus
        self._file = postbus.folder / "events.jsonl"
        self._read = 0
        self._rest = b""
        self._lines: dict[str, bytes] = {}

    def wait(self, recipient: str) -> dict[str, Any]:
        """Return the data of the event for *recipient*, once it is there."""
        deadline = time.monotonic() + PUBLISHED_WITHIN_S
        while recipient not in self._lines:
            assert time.monotonic() < deadline, f"no event for {recipient}\n{self._postbus.log.tail()}"
            if not self._more():
                time.sleep(0.02)
        data: dict[str, Any] = json.loads(self._lines[recipient])["data"]
        return data

    def _more(self) -> bool:
        """Read what was appended; say whether there was anything."""
        if not self._file.exists():
            return False
        with self._file.open("rb") as file:
            file.seek(self._read)
            octets = file.read()
        self._read += len(octets)
        *lines, self._rest = (self._rest + octets).split(b"\n")
        for line in lines:
            found = RECIPIENT.search(line, 0, 8192)
            assert found is not None, line[:1000]
            assert found[1].decode() not in self._lines, "published twice"
            self._lines[found[1].decode()] = line
        return bool(octets)


@pytest.fixture(scope="module")
def published(postbus: Postbus) -> Published:
    """The events of the one postbus."""
    return Published(postbus)


def send(postbus: Postbus, recipient: str, octets: bytes) -> int:
    """Return the code for one mail in a session of its own."""
    with postbus.smtp() as client:
        return deliver(client, [recipient], octets)[0].code


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("acceptance", ["spooled", "held"])
def test_it_is_accepted_and_published(postbus: Postbus, published: Published, name: str, acceptance: str) -> None:
    """250, and the event comes with its defect; the same process goes on, and nothing of postbus crashed."""
    make, defect = HOSTILE[name]
    octets, recipient, pid = make(), f"{acceptance}-{unique()}@example.org", postbus.pid
    began = time.monotonic()
    assert 250 == send(postbus, recipient, octets)
    data = published.wait(recipient)
    assert time.monotonic() - began < PUBLISHED_WITHIN_S
    codes = [found["code"] for found in data["defects"]]
    assert any(code.startswith(defect) for code in codes) if defect else data["mode"] == "parsed", (data["mode"], codes)
    if data["mode"] == "raw":
        assert octets == base64.b64decode(data["raw"]["base64"])
    assert (True, pid) == (postbus.alive, postbus.pid)
    assert [] == [line for line in postbus.log.lines if line["level"] == "error"]


def test_good_parts_beside_a_broken_one_are_read(postbus: Postbus, published: Published) -> None:
    """One bad part costs only itself."""
    recipient = f"{unique()}@example.org"
    assert 250 == send(postbus, recipient, broken_base64())
    assert "good text" == published.wait(recipient)["body"]["text"].strip()


class Watch:
    """Looks at the memory of a family of processes while a block runs."""

    def __init__(self, postbus: Postbus) -> None:
        self._postbus = postbus
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self.main_octets = self.family_octets = 0

    def _look(self) -> None:
        main = psutil.Process(self._postbus.pid)
        while not self._over.wait(0.05):
            self.main_octets = max(self.main_octets, main.memory_info().rss)
            try:
                self.family_octets = max(self.family_octets, self._postbus.rss_octets())
            except psutil.NoSuchProcess:  # a parser ended between two questions
                continue

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()


def test_other_mail_is_not_delayed(postbus: Postbus, published: Published) -> None:
    """While all of it comes again, four at a time, a plain mail is published as ever, and memory stays bounded."""
    mails = [make() for make, _ in HOSTILE.values()]
    before = psutil.Process(postbus.pid).memory_info().rss
    latencies: list[float] = []
    with Watch(postbus) as watch, ThreadPoolExecutor(4) as pool:
        sent = [
            pool.submit(send, postbus, f"{acceptance}-{unique()}@example.org", mail) for mail in mails for acceptance in ("spooled", "held")
        ]
        while not all(future.done() for future in sent) or len(latencies) < 5:
            recipient = f"plain-{unique()}@example.org"
            began = time.monotonic()
            assert 250 == send(postbus, recipient, b"Subject: plain\r\n\r\nplain\r\n")
            published.wait(recipient)
            latencies.append(time.monotonic() - began)
        postbus.wait_delivered(60)
    assert {250} == {future.result() for future in sent}
    assert median(latencies) < 2.0, latencies  # waiting for its turn among them would take many times the parser's 5 s
    assert max(latencies) < 8.0, latencies
    assert watch.main_octets - before < 400 * MIB
    assert watch.family_octets < before + 400 * MIB + 2 * 512 * MIB  # parsing.workers x parsing.memory_max_octets
