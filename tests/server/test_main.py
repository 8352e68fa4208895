"""A server on the command line."""

from __future__ import annotations

import os
import signal
import smtplib
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from postbus import telemetry
from postbus.server import main as command
from postbus.server.handlers import Debugging, Sink
from tests.server.wire import authority, client_context

MINE = '''
class MyHandler:
    """Prints who got mail, behind the words it was made of."""

    def __init__(self, *words):
        self.words = words

    @classmethod
    def from_cli(cls, parser, *words):
        if len(words) != 2:
            parser.error("two words, please")
        return cls(*words)

    async def handle_DATA(self, server, session, envelope):
        print(*self.words, *envelope.rcpt_tos)
        return "250 OK"


class Wordless:
    pass


number = 1
'''


def started(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    """Run the command in *folder*, where the module ``mine`` is."""
    (folder / "mine.py").write_text(MINE)
    line = [sys.executable, "-m", "postbus.server", *arguments]
    return subprocess.Popen(line, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "Ctrl-C"])
def test_a_handler_is_made_of_words_and_served(end: signal.Signals, tmp_path: Path) -> None:
    """The talk's line: ``-n -c MyHandler arg1 arg2``; a signal ends it with 0."""
    with started(tmp_path, "-n", "-c", "mine.MyHandler", "-l", "127.0.0.1:0", "arg1", "arg2") as process:
        try:
            assert process.stderr is not None
            assert process.stdout is not None
            said = process.stderr.readline().strip()
            assert said.startswith("MyHandler serves on 127.0.0.1:")
            with smtplib.SMTP("127.0.0.1", int(said.rpartition(":")[2]), timeout=10) as client:
                assert {} == client.sendmail("a@client.example", ["b@mx.example", "c@mx.example"], "x\r\n")
                assert not client.has_extn("SMTPUTF8")
            assert "arg1 arg2 b@mx.example c@mx.example\n" == process.stdout.readline()
            process.send_signal(end)
            assert 0 == process.wait(10)
        finally:
            process.kill()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        pytest.param(["-c", "mine.MyHandler", "one"], "two words, please", id="the class refuses its words"),
        pytest.param(["-c", "mine.Wordless", "one"], "Wordless has no from_cli", id="words for nobody"),
        pytest.param(["-c", "mine.Nothing"], "no class 'mine.Nothing'", id="no such class"),
        pytest.param(["-c", "no.such.Handler"], "no class 'no.such.Handler'", id="no such module"),
        pytest.param(["-c", "mine.number"], "no class 'mine.number': it is of type int", id="no class at all"),
        pytest.param(["-c", ".Handler"], "no class '.Handler'", id="a relative path"),
        pytest.param(["-l", ":65536"], "':65536' is no [HOST][:PORT]; ports end at 65535", id="no port"),
        pytest.param(["-l", "a:b"], "'a:b' is no [HOST][:PORT]", id="no place"),
    ],
)
def test_mistakes_are_named(arguments: list[str], expected: str, tmp_path: Path) -> None:
    """Exit code 2, a usage line and what is wrong."""
    with started(tmp_path, "-n", *arguments) as process:
        said = process.communicate(timeout=20)[1]
    assert 2 == process.returncode
    assert "usage: python -m postbus.server" in said
    assert expected in said


def test_a_port_in_use_is_said(tmp_path: Path) -> None:
    """Exit code 1, where, and what to do; no traceback."""
    with socket.create_server(("127.0.0.1", 0)) as holder:
        place = f"127.0.0.1:{holder.getsockname()[1]}"
        with started(tmp_path, "-n", "-l", place, "-c", "Sink") as process:
            said = process.communicate(timeout=20)[1]
    assert (1, 1) == (process.returncode, len(said.splitlines()))
    assert f"cannot listen on {place}: something else listens there already; choose another port" in said


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("", ("localhost", 8025), id="neither"),
        pytest.param(":25", ("localhost", 25), id="port"),
        pytest.param("mx.example", ("mx.example", 8025), id="host"),
        pytest.param("[::1]:25", ("::1", 25), id="IPv6"),
        pytest.param("[::1]", ("::1", 8025), id="IPv6 without a port"),
    ],
)
def test_places(text: str, expected: tuple[str, int]) -> None:
    """What is left out is as aiosmtpd has it."""
    assert expected == command._parser().parse_args(["-l", text]).listen


def test_what_is_served_by_default() -> None:
    """On localhost:8025, by a handler that shows each message; a bare name is a stock handler."""
    said = command._parser().parse_args([])
    assert (Debugging, ("localhost", 8025), True) == (said.made_by, said.listen, said.setuid)
    assert Sink is command._parser().parse_args(["-c", "Sink"]).made_by


def denied(_: int) -> None:
    """Answer as the system does to who is not root."""
    raise PermissionError


@pytest.mark.parametrize(
    ("setuid", "ends"), [pytest.param(lambda _: None, False, id="root"), pytest.param(denied, True, id="somebody else")]
)
def test_root_is_given_up_first(
    setuid: Callable[[int], None], ends: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Groups, group, user; who cannot is told of -n."""
    order: list[str] = []

    def noting(name: str, call: Callable[[Any], None]) -> Callable[[Any], None]:
        def noted(value: Any) -> None:
            order.append(name)
            call(value)

        return noted

    for name, call in {"setgroups": lambda _: None, "setgid": lambda _: None, "setuid": setuid}.items():
        monkeypatch.setattr(os, name, noting(name, call))
    if ends:
        with pytest.raises(SystemExit, match="1"):
            command._become_nobody(command._parser())
        assert "try again with -n" in capsys.readouterr().err
    else:
        command._become_nobody(command._parser())
    assert ["setgroups", "setgid", "setuid"] == order


FLAGS = ["-v", "--version", "-n", "--nosetuid", "-c", "--class", "-s", "--size", "-u", "--smtputf8", "-d", "--debug", "-l", "--listen",
         "--smtpscert", "--smtpskey", "--tlscert", "--tlskey", "--no-requiretls"]  # fmt: skip


def test_the_flags_are_aiosmtpds() -> None:
    """All of them, asked of its own parser, and no others."""
    from aiosmtpd.main import _parser as theirs

    def flags(parser: Any) -> set[str]:
        return {flag for action in parser._actions for flag in action.option_strings} - {"-h", "--help"}

    assert flags(theirs()) == flags(command._parser()) == set(FLAGS)


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[str, str]:
    """Return the names of a certificate's and a key's file."""
    issued = authority().issue_cert("localhost", "127.0.0.1")
    issued.private_key_pem.write_to_path(tmp_path / "key.pem")
    for pem in issued.cert_chain_pems:
        pem.write_to_path(tmp_path / "cert.pem", append=True)
    return str(tmp_path / "cert.pem"), str(tmp_path / "key.pem")


def test_starttls_is_required_unless_told_otherwise(tmp_path: Path, certificate: tuple[str, str]) -> None:
    """--tlscert and --tlskey offer it; mail comes behind it."""
    files = ("--tlscert", certificate[0], "--tlskey", certificate[1])
    for more, code in (((), 530), (("--no-requiretls",), 250)):
        with started(tmp_path, "-n", "-c", "Sink", "-l", "127.0.0.1:0", *files, *more) as process:
            try:
                assert process.stderr is not None
                with smtplib.SMTP("127.0.0.1", int(process.stderr.readline().rpartition(":")[2]), timeout=10) as client:
                    client.ehlo("x")
                    assert code == client.mail("a@x")[0]
                    client.rset()
                    client.starttls(context=client_context())
                    client.ehlo("x")
                    assert 250 == client.mail("a@x")[0]
            finally:
                process.kill()


def test_tls_from_the_first_octet(tmp_path: Path, certificate: tuple[str, str]) -> None:
    """--smtpscert and --smtpskey; -d logs each session."""
    files = ("--smtpscert", certificate[0], "--smtpskey", certificate[1])
    with started(tmp_path, "-n", "-d", "-c", "Sink", "-l", "127.0.0.1:0", *files) as process:
        try:
            assert process.stderr is not None
            port = int(next(line for line in process.stderr if "serves on" in line).rpartition(":")[2])
            with smtplib.SMTP_SSL("localhost", port, timeout=10, context=client_context()) as client:
                assert 250 == client.noop()[0]
            assert any('"session.closed"' in line for line in iter(process.stderr.readline, ""))
        finally:
            process.kill()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        pytest.param(["--tlscert", "cert.pem"], "--tlscert and --tlskey must be specified together", id="no key"),
        pytest.param(["--smtpskey", "key.pem"], "--smtpscert and --smtpskey must be specified together", id="no certificate"),
        pytest.param(["--tlscert", "none.pem", "--tlskey", "none.pem"], "none.pem: no such file", id="no such file"),
    ],
)
def test_certificates_that_cannot_be_used(arguments: list[str], expected: str, tmp_path: Path) -> None:
    """Exit code 2, before anything is served."""
    with started(tmp_path, "-n", *arguments) as process:
        said = process.communicate(timeout=20)[1]
    assert 2 == process.returncode
    assert expected in said


def test_three_times_debug_sees_what_the_loop_complains_of(monkeypatch: pytest.MonkeyPatch) -> None:
    """-ddd; the class is made with its words before anything is bound."""
    made = command.parseargs(["-ddd", "-c", "Sink"])[1]
    assert (3, True, "localhost", 8025) == (made.debug, made.setuid, made.host, made.port)
    assert isinstance(made.handler, Sink)


def test_a_handler_is_looked_for_where_one_works(tmp_path: Path) -> None:
    """By ``postbus smtpd`` too, whose program lies elsewhere."""
    (tmp_path / "mine.py").write_text(MINE)
    program = "import sys; from postbus.cli.main import main; sys.path.remove(''); main(['smtpd', '-c', 'mine.MyHandler', 'one'])"
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert (2, "postbus smtpd: error: two words, please") == (done.returncode, done.stderr.splitlines()[-1])


def test_the_machines_name_is_asked_before_root_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who has become nobody may not read what asking needs: an installation in root's own folder."""
    order: list[str] = []

    def become(parser: Any) -> None:
        order.append("nobody")
        parser.exit(3)

    monkeypatch.setattr(command, "machine_name", lambda: order.append("name"))
    monkeypatch.setattr(command, "_become_nobody", become)
    monkeypatch.setattr(telemetry, "configure", lambda **_: None)  # the process's log stays where it was
    with pytest.raises(SystemExit, match="3"):
        command.main(["-c", "Sink", "-l", "127.0.0.1:0"])
    assert ["name", "nobody"] == order
