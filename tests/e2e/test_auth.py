"""Authentication in the running process: real clients against a user file, and what becomes of the file's changes."""

from __future__ import annotations

import smtplib
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.certificates import Authority
from tests.e2e.harness import Postbus, running, tree, unique
from tests.e2e.test_swaks import arrived, swaks
from tests.peers import need

PASSWORD = "correct horse battery staple"


def passwd(file: Path, *arguments: str, password: str = "") -> str:
    """Run ``postbus passwd``; return what it says."""
    command = [sys.executable, "-c", "from postbus.cli import main; main()", "passwd", str(file), *arguments]
    return subprocess.run(command, input=f"{password}\n", capture_output=True, text=True, timeout=60, check=True).stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of everything here."""
    return tmp_path_factory.mktemp("auth")


@pytest.fixture(scope="module")
def postbus(folder: Path, authority: Authority) -> Iterator[Postbus]:
    """One postbus whose listeners want authentication, by user file or certificate."""
    pair = authority.issue("auth")
    users = folder / "users"
    passwd(users, "tim", password=PASSWORD)
    auth = {"required": True, "users": str(users), "failure_delay_s": 0.1}
    external = {"required": True, "mechanisms": ["EXTERNAL"]}
    listeners = {
        "mx": {"address": "127.0.0.1:0", "auth": auth, "tls": pair.tls("starttls")},
        "implicit": {"address": "127.0.0.1:0", "auth": auth, "tls": pair.tls("implicit")},
        "lmtp": {"address": "127.0.0.1:0", "auth": {**auth, "allow_plaintext": True}, "protocol": "lmtp"},
        "relays": {"address": "127.0.0.1:0", "auth": external, "tls": {**pair.tls("implicit"), "client_ca": str(authority.file)}},
    }
    with running(folder, tree(listeners=listeners)) as started:
        yield started


@pytest.mark.parametrize("mechanism", ["PLAIN", "LOGIN"])
@pytest.mark.parametrize(
    ("listener", "arguments", "protocol"),
    [
        pytest.param("mx", ["--tls"], "esmtpsa", id="STARTTLS"),
        pytest.param("implicit", ["--tls-on-connect"], "esmtpsa", id="implicit TLS"),
        pytest.param("lmtp", ["--protocol", "LMTP"], "lmtpa", id="LMTP in plain text"),
    ],
)
def test_swaks(postbus: Postbus, listener: str, arguments: list[str], protocol: str, mechanism: str) -> None:
    """Each mechanism, over each kind of listener; the event says who it was."""
    recipient = f"{unique()}@example.org"
    where = ["--server", "127.0.0.1", "--port", str(postbus.port(listener)), *arguments, "--to", recipient]
    done = swaks(*where, "--auth", mechanism, "--auth-user", "tim", "--auth-password", PASSWORD)
    assert 0 == done.returncode, done.stdout + done.stderr
    data = arrived(postbus, recipient)
    assert protocol == data["listener"]["protocol"]
    assert {"mechanism": mechanism, "identity": "tim"} == data["listener"]["auth"]


def test_swaks_with_a_wrong_password(postbus: Postbus) -> None:
    """535, and no mail without authentication; nothing of it is in the log."""
    where = ["--server", "127.0.0.1", "--port", str(postbus.port()), "--tls", "--to", "x@example.org"]
    done = swaks(*where, "--auth", "PLAIN", "--auth-user", "tim", "--auth-password", "not this one")
    assert 0 != done.returncode
    assert "535 5.7.8" in done.stdout
    assert "530 5.7.0" in swaks(*where).stdout
    assert postbus.metric("postbus_authentications_total", listener="mx", mechanism="PLAIN", outcome="failure") >= 1
    assert postbus.log.find("auth.told", outcome="failure")
    for secret in ("not this one", PASSWORD):
        assert secret not in postbus.log.text


def test_curl_with_a_certificate(postbus: Postbus, authority: Authority, tmp_path: Path) -> None:
    """EXTERNAL by curl: the event names the certificate's subject."""
    leaf = authority._ca.issue_cert("relay.example", common_name="relay.example")
    shown = tmp_path / "client.pem"
    shown.write_bytes(leaf.private_key_and_cert_chain_pem.bytes())
    mail = tmp_path / "mail"
    mail.write_bytes(b"Subject: by certificate\r\n\r\nx\r\n")
    recipient = f"{unique()}@example.org"
    command = [
        *(need("curl", "install curl"), "--silent", "--show-error", "--cacert", str(authority.file), "--cert", str(shown)),
        *("--url", f"smtps://localhost:{postbus.port('relays')}", "--login-options", "AUTH=EXTERNAL", "--user", ":"),
        *("--mail-from", "a@example.net", "--mail-rcpt", recipient, "--upload-file", str(mail)),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert 0 == done.returncode, done.stderr + postbus.log.tail()
    auth = arrived(postbus, recipient)["listener"]["auth"]
    assert "EXTERNAL" == auth["mechanism"]
    assert auth["identity"].startswith("CN=relay.example")


def logged_in(postbus: Postbus, trust: ssl.SSLContext, user: str, password: str) -> int:
    """Return the code of a login."""
    with smtplib.SMTP_SSL("localhost", postbus.port("implicit"), context=trust, timeout=20) as client:
        client.ehlo()
        client.user, client.password = user, password
        try:
            return client.auth("PLAIN", client.auth_plain)[0]
        except smtplib.SMTPAuthenticationError as error:
            return error.smtp_code


def test_changes_of_the_user_file(postbus: Postbus, folder: Path, authority: Authority) -> None:
    """Users come and go by reload; a damaged file changes nothing and says so in log, metric and /readyz?verbose."""
    users, trust = folder / "users", authority.client()
    assert "added ann" in passwd(users, "ann", password="hers")
    assert 535 == logged_in(postbus, trust, "ann", "hers")
    assert "config.reloaded" == postbus.reload()["event"]
    assert 235 == logged_in(postbus, trust, "ann", "hers")
    good = users.read_text()
    users.write_text("ann:hers\n")
    before = postbus.metric("postbus_reloads_total", outcome="refused")
    refused = postbus.reload()
    assert "config.refused" == refused["event"]
    assert ".auth.users: " in refused["problem"]
    assert "line 1: no hash of argon2 behind the name" in refused["problem"]
    assert before + 1 <= postbus.metric("postbus_reloads_total", outcome="refused")
    assert "[~]configuration degraded: " in postbus.get("/readyz?verbose").text
    assert 235 == logged_in(postbus, trust, "ann", "hers")
    users.write_text(good)
    assert "removed ann" in passwd(users, "ann", "--delete")
    assert "tim\n" == passwd(users, "--list")
    assert "config.reloaded" == postbus.reload()["event"]
    assert "configuration" not in postbus.get("/readyz?verbose").text
    assert 535 == logged_in(postbus, trust, "ann", "hers")
    assert 235 == logged_in(postbus, trust, "tim", PASSWORD)
