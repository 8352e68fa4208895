"""A real ``postbus run`` in a process of its own, as an operator starts it: what every end-to-end test talks to.

    with running(folder, tree(sinks={...}, routes=[...])) as postbus:
        postbus.smtp("mx").sendmail(...)         # smtplib, connected
        postbus.wait_events(1)                   # what the file sink wrote, parsed
        postbus.log.wait("message.accepted")     # a log line, by name and keys
        postbus.get("/readyz?verbose")           # the sidecar
        assert postbus.terminate() == 0          # SIGTERM and wait

Everything a run needs is inside *folder*: ``postbus.yaml``, ``spool/``, ``events.jsonl``, ``log-1``, ``out-1`` (one pair for each start).
Listeners take free ports of loopback at the first start and keep them at every later one, so that a peer finds a restarted postbus.
Nothing sleeps: what takes time is waited for, on a condition and with a deadline, and the failure shows the end of the log.
"""

from __future__ import annotations

import copy
import itertools
import json
import os
import signal
import smtplib
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeVar

import psutil
import pytest
import yaml

from tests.ports import free_ports

POSTBUS = str(Path(sys.executable).with_name("postbus"))
START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 30.0
WAIT_TIMEOUT_S = 20.0
POLL_S = 0.02

T = TypeVar("T")
Tree = dict[str, Any]


def tree(**changes: Any) -> Tree:
    """Return a configuration: SMTP listener ``mx``, file sink ``file``, route ``everyone`` in mode ``both``; *changes* replace keys.

    The spool keeps no ballast, the log is JSON with whole addresses, nothing is watched: a test reloads by SIGHUP.
    """
    whole: Tree = {
        "hostname": "mx.postbus.test",
        "source": "//mx.postbus.test/postbus",
        "listeners": {"mx": {"address": "127.0.0.1:0"}},
        "sinks": {"file": {"kind": "file", "path": "{folder}/events.jsonl"}},
        "routes": [{"name": "everyone", "match": "*", "sinks": "file", "mode": "both"}],
        "spool": {"folder": "{folder}/spool", "ballast_octets": 0},
        "sidecar": {"address": "127.0.0.1:0"},
        "telemetry": {"log_format": "json", "log_addresses": "full"},
        "watch_interval_s": 0,
        "drain_timeout_s": 40,
    }
    return {**whole, **changes}


def wait_until(condition: Callable[[], T], what: str | Callable[[], str], timeout_s: float = WAIT_TIMEOUT_S, poll_s: float = POLL_S) -> T:
    """Return the first true answer of *condition*, asked every *poll_s*; fail with *what* when *timeout_s* is over."""
    deadline = time.monotonic() + timeout_s
    while True:
        if answer := condition():
            return answer
        if time.monotonic() > deadline:
            pytest.fail(f"not within {timeout_s:g} s: {what if isinstance(what, str) else what()}")
        time.sleep(poll_s)


@dataclass(frozen=True, slots=True)
class Answer:
    """What the sidecar answered."""

    code: int
    text: str

    def json(self) -> Any:
        """Return the body, parsed."""
        return json.loads(self.text)


class Log:
    """What one run wrote to standard error: JSON lines, and words for people between them."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def text(self) -> str:
        """All of it so far."""
        return self.path.read_text("utf-8", "replace") if self.path.exists() else ""

    @property
    def lines(self) -> list[dict[str, Any]]:
        """The whole lines that are JSON objects, in order; ``event`` is a line's name."""
        return [json.loads(line) for line in self.text.split("\n")[:-1] if line.startswith("{")]

    @property
    def words(self) -> list[str]:
        """The lines that are not JSON."""
        return [line for line in self.text.splitlines() if line and not line.startswith("{")]

    def find(self, event: str, **keys: Any) -> list[dict[str, Any]]:
        """Return the lines called *event* whose keys are so."""
        return [line for line in self.lines if line.get("event") == event and keys.items() <= line.items()]

    def wait(self, event: str, *, at_least: int = 1, timeout_s: float = WAIT_TIMEOUT_S, **keys: Any) -> list[dict[str, Any]]:
        """Return the lines called *event* whose keys are so, once there are *at_least* so many."""

        def enough() -> list[dict[str, Any]]:
            found = self.find(event, **keys)
            return found if len(found) >= at_least else []

        return wait_until(enough, lambda: f"{at_least} x {event} {keys}\n{self.tail()}", timeout_s)

    def tail(self, characters: int = 4000) -> str:
        """Return the end, for a failure's message."""
        return f"--- the end of {self.path}:\n{self.text[-characters:]}"


class Postbus:
    """One postbus: its folder, its configuration and the process that runs now, if any.

    Attributes:
        folder: everything of it; config: the tree, written at each ``start`` and ``reload`` (``{folder}`` in texts is replaced).
        log: of the run that goes on, or of the last one; runs: how often it was started.
        process: the child; ``None`` before the first start.
    """

    def __init__(self, folder: Path, config: Mapping[str, Any] | None = None, *, environment: Mapping[str, str] | None = None) -> None:
        self.folder = folder
        self.config: Tree = copy.deepcopy(dict(config if config is not None else tree()))
        self.environment = dict(environment or {})
        self.process: subprocess.Popen[bytes] | None = None
        self.runs = 0
        self.log = Log(folder / "log-0")
        self._bound: dict[str, str] = {}
        self._http = ""

    # --- life

    def start(self, *, ready: bool = True, prefix: Sequence[str] = ()) -> Self:
        """Start the process; with *ready* return once /readyz says 200. *prefix* is a command that runs it, such as ``strace ...``."""
        assert not self.alive, "it runs already"
        self.runs += 1
        self.log = Log(self.folder / f"log-{self.runs}")
        self.write_config()
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("POSTBUS", "OTEL_"))}
        environment |= {"PYTHONUNBUFFERED": "1", **self.environment}
        command = [*prefix, POSTBUS, "run", "--config", str(self.config_file)]
        with self.out.open("wb") as out, self.log.path.open("wb") as errors:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=errors, cwd=self.folder, env=environment)
        if ready:
            self.wait_ready()
        return self

    def wait_ready(self, timeout_s: float = START_TIMEOUT_S) -> None:
        """Return once the process has bound its listeners and /readyz says 200."""
        assert self.process is not None

        def ready() -> bool:
            assert self.process is not None
            if self.process.poll() is not None:
                pytest.fail(f"postbus ended with {self.process.returncode}\n{self.log.tail()}")
            return bool(self.log.find("app.started")) and self.get("/readyz").code == 200

        wait_until(ready, lambda: f"postbus is not ready\n{self.log.tail()}", timeout_s)
        self._bound = {line["listener"]: line["address"] for line in self.log.find("listener.bound")}

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self.process is not None and self.process.poll() is None

    @property
    def pid(self) -> int:
        """The process's id."""
        assert self.process is not None
        return self.process.pid

    def signal(self, number: signal.Signals) -> None:
        """Send the process a signal."""
        assert self.process is not None
        self.process.send_signal(number)

    def terminate(self, timeout_s: float = STOP_TIMEOUT_S) -> int:
        """Send SIGTERM; return the exit code."""
        self.signal(signal.SIGTERM)
        return self.wait(timeout_s)

    def wait(self, timeout_s: float = STOP_TIMEOUT_S) -> int:
        """Return the exit code once the process has ended."""
        assert self.process is not None
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            pytest.fail(f"postbus did not end within {timeout_s:g} s\n{self.log.tail()}")

    def kill(self) -> None:
        """End the process with SIGKILL, as the kernel or a power cut would, and wait until its children have noticed."""
        assert self.process is not None
        children = psutil.Process(self.pid).children(recursive=True) if self.alive else []
        self.process.kill()
        self.process.wait()
        self.reap(children)

    def reap(self, children: Sequence[psutil.Process], timeout_s: float = 10.0) -> None:
        """Wait until *children* have ended by themselves; fail when one has not (and end it)."""
        _, left = psutil.wait_procs(children, timeout=timeout_s)
        for child in left:
            child.kill()
        assert not left, f"left behind: {left}"

    def close(self) -> None:
        """End the process whatever it does, and its children; for teardown."""
        if self.process is None or not self.alive:
            return
        children = psutil.Process(self.pid).children(recursive=True)
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        for child in psutil.wait_procs(children, timeout=5)[1]:
            child.kill()

    # --- configuration

    @property
    def config_file(self) -> Path:
        """The YAML file it reads."""
        return self.folder / "postbus.yaml"

    def write_config(self) -> None:
        """Write ``config`` to the file. Port 0 becomes a free one; listeners that were bound once keep their address."""
        for part in (*self.config["listeners"].values(), self.config.get("sidecar", {})):
            if part.get("address") == "127.0.0.1:0":  # the kernel's choice may be a client's when we come back for it
                part["address"] = f"127.0.0.1:{free_port()}"
        for name, address in self._bound.items():
            if name in self.config["listeners"]:
                self.config["listeners"][name]["address"] = address
        if self._http and "sidecar" in self.config:
            self.config["sidecar"]["address"] = self._http
        text = yaml.safe_dump(self.config, sort_keys=False, width=1000).replace("{folder}", str(self.folder))
        beside = self.config_file.with_suffix(".new")
        beside.write_text(text)
        beside.replace(self.config_file)

    def reload(self) -> dict[str, Any]:
        """Write ``config``, send SIGHUP, and return the log line that answers: ``config.reloaded``, or the last ``config.refused``."""
        before = len(self._verdicts())
        self.write_config()
        self.signal(signal.SIGHUP)
        wait_until(lambda: len(self._verdicts()) > before, lambda: f"no answer to SIGHUP\n{self.log.tail()}")
        return self._verdicts()[-1]

    def _verdicts(self) -> list[dict[str, Any]]:
        return [line for line in self.log.lines if line["event"] in {"config.reloaded", "config.refused"}]

    # --- addresses

    def address(self, listener: str = "mx") -> str:
        """Return where *listener* is bound: ``host:port`` or a path."""
        return self._bound[listener]

    def port(self, listener: str = "mx") -> int:
        """Return *listener*'s port on 127.0.0.1."""
        return int(self._bound[listener].rpartition(":")[2])

    @property
    def http(self) -> str:
        """Where the sidecar listens, ``host:port``; ``""`` while it does not."""
        if not self._http:
            started = self.log.find("sidecar.started")
            self._http = started[0]["address"] if started else ""
        return self._http

    # --- clients

    def smtp(self, listener: str = "mx", timeout_s: float = 60.0) -> smtplib.SMTP:
        """Return a connected client, for ``with``; LMTP where the listener speaks it."""
        lmtp = self.config["listeners"][listener].get("protocol") == "lmtp"
        return connect(self.address(listener), lmtp=lmtp, timeout_s=timeout_s)

    def get(self, path: str, accept: str = "*/*") -> Answer:
        """Return the sidecar's answer to GET; code 0 while nobody answers."""
        return self._ask(urllib.request.Request(f"http://{self.http}{path}", headers={"Accept": accept}))

    def post(self, path: str, token: str = "") -> Answer:
        """Return the sidecar's answer to POST with the bearer *token*."""
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        return self._ask(urllib.request.Request(f"http://{self.http}{path}", data=b"", headers=headers, method="POST"))

    def _ask(self, request: urllib.request.Request) -> Answer:
        if not self.http:
            return Answer(0, "")
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return Answer(answer.status, answer.read().decode())
        except urllib.error.HTTPError as error:
            with error:
                return Answer(error.code, error.read().decode())
        except OSError as error:
            return Answer(0, str(error))

    def status(self) -> dict[str, Any]:
        """Return /statusz."""
        answer = self.get("/statusz", "application/json")
        assert answer.code == 200, answer
        found: dict[str, Any] = answer.json()
        return found

    def metric(self, name: str, **labels: str) -> float:
        """Return the sum of the samples of *name* that carry *labels*; 0 where there are none."""
        total = 0.0
        for line in self.get("/metrics").text.splitlines():
            if line.startswith((f"{name}{{", f"{name} ")) and all(f'{label}="{value}"' in line for label, value in labels.items()):
                total += float(line.split(" # ")[0].rpartition(" ")[2])
        return total

    # --- what came out

    @property
    def out(self) -> Path:
        """Standard output of the run."""
        return self.folder / f"out-{self.runs}"

    def events(self, name: str = "events.jsonl") -> list[dict[str, Any]]:
        """Return the events in the file *name* of the folder: structured CloudEvents, in order. A line being written is not one yet."""
        path = self.folder / name
        if not path.exists():
            return []
        return [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]

    def wait_events(self, count: int, name: str = "events.jsonl", timeout_s: float = WAIT_TIMEOUT_S) -> list[dict[str, Any]]:
        """Return the events in the file *name* once there are at least *count*."""
        path = self.folder / name
        wait_until(
            lambda: path.exists() and path.read_bytes().count(b"\n") >= count,
            lambda: f"{len(self.events(name))} of {count} events\n{self.log.tail()}",
            timeout_s,
        )
        return self.events(name)

    def wait_delivered(self, timeout_s: float = WAIT_TIMEOUT_S, poll_s: float = POLL_S) -> None:
        """Return once the spool is empty: everything accepted is with its sinks or a dead letter.

        Look every *poll_s*; fail when no fewer are owed after *timeout_s*.
        """
        fewest, since = self._owed(), time.monotonic()
        while fewest:
            time.sleep(poll_s)
            if (owed := self._owed()) < fewest:
                fewest, since = owed, time.monotonic()
            elif time.monotonic() > since + timeout_s:
                pytest.fail(f"{fewest} deliveries are owed, no fewer after {timeout_s:g} s: {self.status()['sinks']}\n{self.log.tail()}")

    def _owed(self) -> int:
        return sum(sink.get("owed") or 0 for sink in self.status()["sinks"].values())

    def rss_octets(self) -> int:
        """Return the resident memory of the process and its children, shared pages counted in each."""
        return sum(member.memory_info().rss for member in self.family())

    def family(self) -> Iterator[psutil.Process]:
        """Yield the process and its children, as far as they are there when asked."""
        parent = psutil.Process(self.pid)
        for member in (parent, *parent.children(recursive=True)):
            if member.is_running():
                yield member


def connect(address: str, *, lmtp: bool = False, timeout_s: float = 60.0) -> smtplib.SMTP:
    """Return a client connected to ``host:port`` or to a Unix socket's path (LMTP)."""
    if address.startswith("/"):
        return smtplib.LMTP(address, local_hostname="client.test", timeout=timeout_s)
    host, _, port = address.rpartition(":")
    kind = smtplib.LMTP if lmtp else smtplib.SMTP
    return kind(host, int(port), local_hostname="client.test", timeout=timeout_s)


@contextmanager
def running(folder: Path, config: Mapping[str, Any] | None = None, *, environment: Mapping[str, str] | None = None) -> Iterator[Postbus]:
    """Yield a started postbus in *folder* (made if missing), and end it whatever happens."""
    folder.mkdir(parents=True, exist_ok=True)
    postbus = Postbus(folder, config, environment=environment)
    try:
        yield postbus.start()
    finally:
        postbus.close()


def free_port() -> int:
    """Return a port of loopback that nobody listened on a moment ago."""
    return free_ports(1)[0]


_SERIAL = itertools.count(1)


def unique(stem: str = "m") -> str:
    """Return a name not given before in this run of the tests."""
    return f"{stem}{next(_SERIAL)}"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a server said of one recipient in the end: of RCPT when that was refused, else after the dot."""

    code: int
    text: str


def deliver(
    client: smtplib.SMTP,
    recipients: Sequence[str],
    octets: bytes,
    *,
    sender: str = "sender@example.net",
    options: Sequence[str] = (),
) -> list[Verdict]:
    """Send one mail in one transaction and return a verdict per recipient, in order. Never raises for what a server says.

    smtplib's own ``sendmail`` knows neither LMTP's several replies (RFC 2033 s4.2) nor which recipient was meant.
    """
    client.ehlo_or_helo_if_needed()
    utf8 = "SMTPUTF8" in {option.upper() for option in options}
    client.command_encoding = "utf-8" if utf8 else "ascii"
    said = client.mail(sender, list(options))
    if said[0] >= 300:
        client.rset()
        return [_verdict(said)] * len(recipients)
    answers = [client.rcpt(recipient) for recipient in recipients]
    taken = [index for index, (code, _) in enumerate(answers) if code < 300]
    if taken:
        final = client.data(octets) if octets else _empty(client)
        for position, index in enumerate(taken):
            again = isinstance(client, smtplib.LMTP) and position > 0 and final[0] != 503
            final = client.getreply() if again else final
            answers[index] = final
    else:
        client.rset()
    return [_verdict(answer) for answer in answers]


def _empty(client: smtplib.SMTP) -> tuple[int, bytes]:
    """Send a message of no octets at all, which smtplib would give a line."""
    code, text = client.docmd("DATA")
    return client.docmd(".") if code == 354 else (code, text)


def _verdict(said: tuple[int, bytes]) -> Verdict:
    return Verdict(said[0], said[1].decode("utf-8", "replace"))
