"""The image builds without a container engine, and turns a mail into an event as a container would run it."""

from __future__ import annotations

import http.client
import json
import os
import signal
import smtplib
import socket
import stat
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from email.message import EmailMessage
from pathlib import Path

import pytest

from tests import builds
from tests.chart.chart import cases, render
from tests.image.builder import BASE, REVISION, Image

pytestmark = [pytest.mark.slow, pytest.mark.timeout(builds.TIMEOUT_S + 120)]

START_TIMEOUT_S = 30
USER = 65532
SPOOL = "/var/spool/postbus"


@pytest.fixture
def spool(tmp_path: Path) -> Path:
    """Return a volume as Kubernetes hands it over for ``fsGroup``: root's, writable for the group."""
    folder = tmp_path / "spool"
    folder.mkdir()
    os.chown(folder, 0, USER)
    folder.chmod(0o2775)
    return folder


def inside(image: Image, spool: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run *arguments* in a container of its own, to their end."""
    command = image.command(arguments, {SPOOL: spool}, {})
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def free_ports(count: int) -> list[int]:
    """Return ports nobody listens at."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def test_what_the_image_says_of_itself(image: Image) -> None:
    """The user is numeric, the entry point is no shell line, SIGTERM ends it, and the labels say what it is."""
    assert f"{USER}:{USER}" == image.config["User"]
    assert (["postbus"], "run") == (image.config["Entrypoint"], image.config["Cmd"][0])
    assert "SIGTERM" == image.config["StopSignal"]
    assert ["CMD", "postbus", "healthcheck"] == image.config["Healthcheck"]["Test"]
    assert {"2525/tcp", "8080/tcp"} == set(image.config["ExposedPorts"])
    assert {"/var/spool/postbus"} == set(image.config["Volumes"])
    labels = {name.removeprefix("org.opencontainers.image."): value for name, value in image.config["Labels"].items()}
    assert {"title": "postbus", "licenses": "Apache-2.0", "revision": REVISION, "base.name": BASE}.items() <= labels.items()


def test_the_hot_rooms_are_machine_code(image: Image, spool: Path) -> None:
    """The engine and the rendering of events run compiled."""
    said = inside(image, spool, "python3", "-c", "from postbus import event, smtp; print(smtp.engine.__file__, event.__path__[0])")
    assert (0, "") == (said.returncode, said.stderr)
    assert said.stdout.split()[0].endswith(".so")


def test_no_tool_to_build_with_is_left(image: Image) -> None:
    """No compiler, no package installer of our own and no trace of the build secret is in the final stage."""
    names = {path.name for folder in ("usr/bin", "usr/local/bin", "opt/postbus/bin") for path in (image.tree / folder).glob("*")}
    assert not names & {"gcc", "cc", "g++", "make", "ld", "as"}
    assert not list((image.tree / "opt/postbus").glob("lib/python3.*/site-packages/pip"))
    assert not (image.tree / "build").exists()
    assert not (image.tree / "etc/pip.conf").exists()


def test_the_user_can_change_nothing_of_the_program(image: Image) -> None:
    """Program and configuration are root's, and nobody else may write to them; only the spool's folder is the user's."""
    for folder in ("opt/postbus", "etc/postbus"):
        for path in [image.tree / folder, *(image.tree / folder).rglob("*")]:
            found = path.lstat()
            assert 0 == found.st_uid, path
            assert path.is_symlink() or not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH), path
    assert USER == (image.tree / "var/spool/postbus").stat().st_uid


def test_the_root_is_read_only(image: Image, spool: Path) -> None:
    """The tests' container is what it claims to be: the image's user, a read-only root, a /tmp and a volume to write to."""
    program = (
        "import os, errno\n"
        "def kept(path):\n"
        "    try: open(path, 'w').close()\n"
        "    except OSError as error: return errno.errorcode[error.errno]\n"
        "print(os.getuid(), os.getgroups(), kept('/etc/x'), kept('/opt/postbus/x'), kept('/tmp/x'), kept('/var/spool/postbus/x'))\n"
    )
    done = inside(image, spool, "python3", "-c", program)
    assert f"{USER} [] EROFS EROFS None None" == done.stdout.strip(), done.stderr


@dataclass(frozen=True, slots=True)
class Case:
    """One way to run the image: see ``Image.command``."""

    arguments: tuple[str, ...]
    volumes: dict[str, Path]
    environment: dict[str, str]


def own(image: Image, spool: Path) -> Case:
    """Return the image as it comes, with a volume for its spool."""
    return Case((), {SPOOL: spool}, {})


def charts(image: Image, spool: Path) -> Case:
    """Return what the chart's pod runs, with the volumes it mounts, for values that write events to standard output."""
    release = render(cases()["trial"])
    folder = spool.parent / "config"
    folder.mkdir()
    (folder / "postbus.yaml").write_text(release.config())
    container = release.container()
    variables = {variable["name"]: variable["value"] for variable in container["env"] if "value" in variable}
    return Case((*image.config["Entrypoint"], *container["args"]), {SPOOL: spool, "/etc/postbus/config": folder}, variables)


@pytest.mark.parametrize("case", [own, charts])
def test_a_mail_becomes_an_event(image: Image, spool: Path, tmp_path: Path, case: Callable[[Image, Path], Case]) -> None:
    """A mail sent into the running image comes out as an event on standard output, the probes agree, and SIGTERM ends it with 0."""
    smtp, admin = free_ports(2)
    how = case(image, spool)
    addresses = {"POSTBUS__LISTENERS__SMTP__ADDRESS": f"127.0.0.1:{smtp}", "POSTBUS__SIDECAR__ADDRESS": f"127.0.0.1:{admin}"}
    command = image.command(how.arguments, how.volumes, how.environment | addresses)
    log = tmp_path / "log"
    with log.open("w") as errors, subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True) as process:
        try:
            assert process.stdout is not None
            wait_for_listener(smtp, process, log)
            send(smtp)
            event = json.loads(process.stdout.readline())
            assert "1.0" == event["specversion"]
            assert "crew@example.org" in json.dumps(event["data"]["envelope"])
            assert "Does the image work?" in json.dumps(event["data"])
            assert [200] * 3 == [probe(admin, path) for path in ("/startupz", "/livez", "/readyz")], log.read_text()[-4000:]
            health = inside(image, spool, "postbus", "healthcheck", "--http", f"http://127.0.0.1:{admin}")
            assert 0 == health.returncode, health.stdout + health.stderr
            os.kill(only_child(process.pid), signal.SIGTERM)
            assert 0 == process.wait(timeout=60), log.read_text()[-4000:]
        finally:
            process.kill()


def probe(port: int, path: str) -> int:
    """Return the status the sidecar answers to the kubelet's question."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    finally:
        connection.close()


def only_child(pid: int) -> int:
    """Return the process that runs under *pid*: process 1 of the container under ``unshare``."""
    (child,) = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return int(child)


def wait_for_listener(port: int, process: subprocess.Popen[str], log: Path) -> None:
    """Return once somebody listens at *port*; fail, with the log, when the process has ended or takes too long."""
    end = time.monotonic() + START_TIMEOUT_S
    while process.poll() is None and time.monotonic() < end:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    pytest.fail(f"nobody listens at {port} (exit status {process.poll()}):\n{log.read_text()[-4000:]}")


def send(port: int) -> None:
    """Send one mail as any program would."""
    mail = EmailMessage()
    mail["From"], mail["To"], mail["Subject"] = "captain@example.com", "crew@example.org", "Does the image work?"
    mail.set_content("It does when you read this as an event.\n")
    with smtplib.SMTP("127.0.0.1", port, timeout=30) as client:
        assert {} == client.send_message(mail)
