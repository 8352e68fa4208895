"""swaks, a client that every mail administrator knows, talks to every kind of listener."""

from __future__ import annotations

import base64
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.certificates import Authority
from tests.e2e.harness import Postbus, running, tree, unique
from tests.e2e.tee import tee
from tests.peers import need

REMEDY = "install swaks with libnet-ssleay-perl and libio-socket-ssl-perl"


@pytest.fixture(scope="module")
def postbus(tmp_path_factory: pytest.TempPathFactory, authority: Authority) -> Iterator[Postbus]:
    """One postbus with a listener of each kind."""
    folder = tmp_path_factory.mktemp("swaks")
    pair = authority.issue("swaks")
    listeners = {
        "mx": {"address": "127.0.0.1:0"},
        "starttls": {"address": "127.0.0.1:0", "tls": pair.tls("starttls")},
        "require": {"address": "127.0.0.1:0", "tls": pair.tls("require")},
        "implicit": {"address": "127.0.0.1:0", "tls": pair.tls("implicit")},
        "lmtp": {"address": "127.0.0.1:0", "protocol": "lmtp"},
        "socket": {"address": f"unix:{folder}/lmtp.sock", "protocol": "lmtp"},
        "behind": {"address": "127.0.0.1:0", "proxy": {"header": True, "trusted": ["127.0.0.0/8"]}},
        "behind_tls": {"address": "127.0.0.1:0", "proxy": {"header": True, "trusted": ["127.0.0.0/8"]}, "tls": pair.tls("implicit")},
        "speaking": {"address": "127.0.0.1:0", "proxy": {"xclient": ["127.0.0.0/8"]}},
    }
    with running(folder, tree(listeners=listeners)) as started:
        yield started


def swaks(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run swaks to its end; its transcript is on standard output."""
    command = [need("swaks", REMEDY), "--helo", "client.test", "--from", "sender@example.net", "--timeout", "20", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def arrived(postbus: Postbus, recipient: str) -> dict[str, Any]:
    """Return the data of the one event for *recipient*."""
    postbus.wait_delivered()
    found = [event["data"] for event in postbus.events() if event["data"]["envelope"]["recipient"] == recipient]
    assert 1 == len(found), postbus.log.tail()
    data: dict[str, Any] = found[0]
    return data


@pytest.mark.parametrize(
    ("listener", "arguments", "protocol", "tls"),
    [
        pytest.param("mx", [], "esmtp", False, id="plain"),
        pytest.param("mx", ["--protocol", "SMTP"], "smtp", False, id="HELO"),
        pytest.param("mx", ["--pipeline"], "esmtp", False, id="pipelining"),
        pytest.param("starttls", ["--tls"], "esmtps", True, id="STARTTLS"),
        pytest.param("starttls", [], "esmtp", False, id="STARTTLS not taken"),
        pytest.param("starttls", ["--tls", "--pipeline"], "esmtps", True, id="STARTTLS and pipelining"),
        pytest.param("require", ["--tls"], "esmtps", True, id="STARTTLS required"),
        pytest.param("implicit", ["--tls-on-connect"], "esmtps", True, id="implicit TLS"),
        pytest.param("lmtp", ["--protocol", "LMTP"], "lmtp", False, id="LMTP on a port"),
        pytest.param("socket", ["--protocol", "LMTP"], "lmtp", False, id="LMTP on a Unix socket"),
    ],
)
def test_a_mail_by_each_kind_of_listener(
    postbus: Postbus, authority: Authority, listener: str, arguments: Sequence[str], protocol: str, tls: bool
) -> None:
    """The mail is taken, and its event says how it came."""
    recipient = f"{unique()}@example.org"
    address = postbus.address(listener)
    where = ["--socket", address] if address.startswith("/") else ["--server", "127.0.0.1", "--port", str(postbus.port(listener))]
    trust = ["--tls-verify", "--tls-ca-path", str(authority.file)] if tls else []
    done = swaks(*where, *arguments, *trust, "--to", recipient, "--header", "Subject: from swaks", "--body", "hello")
    assert 0 == done.returncode, done.stdout + done.stderr
    data = arrived(postbus, recipient)
    assert (protocol, tls) == (data["listener"]["protocol"], data["listener"]["tls"] is not None)
    assert "from swaks" == data["message"]["subject"]
    assert "hello" == data["body"]["text"].strip()
    assert "client.test" == data["client"]["helo"]


@pytest.mark.parametrize(
    ("listener", "arguments"),
    [
        pytest.param("behind", ["--proxy-version", "1"], id="PROXY v1"),
        pytest.param("behind", ["--proxy-version", "2"], id="PROXY v2"),
        pytest.param("behind_tls", ["--proxy-version", "1", "--tls-on-connect"], id="PROXY v1 before TLS"),
        pytest.param("behind_tls", ["--proxy-version", "2", "--tls-on-connect"], id="PROXY v2 before TLS"),
        pytest.param("speaking", ["--xclient-addr", "192.0.2.1", "--xclient-port", "40000"], id="XCLIENT"),
    ],
)
def test_the_client_behind_a_proxy_is_the_events_client(postbus: Postbus, listener: str, arguments: Sequence[str]) -> None:
    """The event names the client the proxy speaks for, and says so."""
    recipient = f"{unique()}@example.org"
    client = ["--proxy-source", "192.0.2.1", "--proxy-source-port", "40000", "--proxy-dest", "198.51.100.2", "--proxy-dest-port", "25"]
    more = [*client, "--proxy-family", "TCP4" if arguments[1] == "1" else "AF_INET"] if listener.startswith("behind") else []
    where = ["--server", "127.0.0.1", "--port", str(postbus.port(listener))]
    done = swaks(*where, *arguments, *more, "--to", recipient, "--header", "Subject: from swaks")
    assert 0 == done.returncode, done.stdout + done.stderr
    known = arrived(postbus, recipient)["client"]
    assert ("192.0.2.1", 40_000, True) == (known["ip"], known["port"], known["viaProxy"])


def test_without_a_proxy_nobody_gets_in_where_one_is_wanted(postbus: Postbus) -> None:
    """No banner, and soon no connection."""
    done = swaks("--server", "127.0.0.1", "--port", str(postbus.port("behind")), "--to", "x@example.org")
    assert 0 != done.returncode
    assert "<-  220" not in done.stdout


def test_mail_without_tls_is_refused_where_it_is_required(postbus: Postbus) -> None:
    """RFC 3207 s4: 530 until STARTTLS."""
    done = swaks("--server", "127.0.0.1", "--port", str(postbus.port("require")), "--to", "x@example.org")
    assert 0 != done.returncode
    assert "<** 530 5.7.0" in done.stdout


def test_several_recipients_over_lmtp_have_an_answer_each(postbus: Postbus) -> None:
    """RFC 2033 s4.2: as many replies after the dot as recipients."""
    recipients = [f"{unique()}@example.org" for _ in range(3)]
    done = swaks("--protocol", "LMTP", "--server", "127.0.0.1", "--port", str(postbus.port("lmtp")), "--to", ",".join(recipients))
    assert 0 == done.returncode, done.stdout + done.stderr
    assert {arrived(postbus, recipient)["transactionId"] for recipient in recipients} == {
        line.split("250 2.0.0 Ok: ")[1].strip() for line in done.stdout.splitlines() if "250 2.0.0 Ok: " in line
    }


def test_an_attachment_and_eight_bits(postbus: Postbus, tmp_path: Path) -> None:
    """A file arrives as it was, an 8-bit body too, and the raw octets are the wire's."""
    file = tmp_path / "picture.bin"
    file.write_bytes(bytes(range(256)) * 40)
    recipient = f"{unique()}@example.org"
    with tee(postbus.address()) as wire:
        host, _, port = wire.address.rpartition(":")
        attach = ["--attach-type", "application/octet-stream", "--attach-name", "picture.bin", "--attach", f"@{file}"]
        done = swaks("--server", host, "--port", port, "--to", recipient, "--attach-type", "text/plain", "--attach-body", "Grüße", *attach)
        assert 0 == done.returncode, done.stdout + done.stderr
        [sent] = wire.messages
    data = arrived(postbus, recipient)
    assert sent.octets == base64.b64decode(data["raw"]["base64"])
    assert sent.sha256 == data["message"]["sha256"]
    assert [("picture.bin", 10_240)] == [(part["filename"], part["sizeBytes"]) for part in data["attachments"]]
    assert file.read_bytes() == base64.b64decode(data["attachments"][0]["content"]["base64"])
