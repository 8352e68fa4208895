"""Clients that people send mail with, each brought to do one errand and to say what it believes became of it."""

from __future__ import annotations

import asyncio
import base64
import json
import smtplib
import ssl
import subprocess
from collections.abc import Sequence

import aiosmtplib

from tests.consumers.javascript import HERE, installed
from tests.e2e.errands import ENVID, PASSWORD, USER, Errand, Result
from tests.peers import need

TIMEOUT_S = 20


def by_smtplib(errand: Errand) -> Result:
    """Python's own client; LMTP's further replies (RFC 2033 s4.2), which it does not know, are read by hand."""
    trust = ssl.create_default_context(cafile=str(errand.ca))
    with _smtplib(errand, trust) as client:
        if errand.road == "starttls":
            client.starttls(context=trust)
        if errand.auth:
            client.ehlo()
            client.user, client.password = USER, PASSWORD
            client.auth(errand.auth, client.auth_plain if errand.auth == "PLAIN" else client.auth_login)
        if isinstance(client, smtplib.LMTP):
            return _by_lmtp(client, errand)
        options = errand.rcpt_options(errand.recipients[0])
        refused = client.sendmail(errand.sender, errand.recipients, errand.octets, errand.mail_options, options)
    taken = frozenset(errand.recipients) - set(refused)
    return Result(taken, {name: f"{code} {text.decode()}" for name, (code, text) in refused.items()})


def _smtplib(errand: Errand, trust: ssl.SSLContext) -> smtplib.SMTP:
    if errand.road == "implicit":
        return smtplib.SMTP_SSL("localhost", errand.port, "client.test", context=trust, timeout=TIMEOUT_S)
    if errand.road == "lmtp":
        return smtplib.LMTP("localhost", errand.port, "client.test", timeout=TIMEOUT_S)
    return smtplib.SMTP("localhost", errand.port, "client.test", timeout=TIMEOUT_S)


def _by_lmtp(client: smtplib.LMTP, errand: Errand) -> Result:
    client.ehlo()
    client.mail(errand.sender, errand.mail_options)
    said = {name: client.rcpt(name, errand.rcpt_options(name)) for name in errand.recipients}
    taken = [name for name, (code, _) in said.items() if code < 300]
    for position, name in enumerate(taken):
        said[name] = client.getreply() if position else client.data(errand.octets)
    refused = {name: f"{code} {text.decode()}" for name, (code, text) in said.items() if code >= 300}
    return Result(frozenset(said) - set(refused), refused)


def by_aiosmtplib(errand: Errand) -> Result:
    """The asyncio client that most programs use."""
    return asyncio.run(_by_aiosmtplib(errand))


async def _by_aiosmtplib(errand: Errand) -> Result:
    trust = ssl.create_default_context(cafile=str(errand.ca))
    client = aiosmtplib.SMTP(
        hostname="localhost",
        port=errand.port,
        use_tls=errand.road == "implicit",
        start_tls=errand.road == "starttls",
        tls_context=trust,
        local_hostname="client.test",
        timeout=TIMEOUT_S,
    )
    async with client:
        if errand.auth:
            await client.ehlo()
            await (client.auth_plain if errand.auth == "PLAIN" else client.auth_login)(USER, PASSWORD)
        options = errand.rcpt_options(errand.recipients[0])
        refused, said = await client.sendmail(
            errand.sender, list(errand.recipients), errand.octets, mail_options=errand.mail_options, rcpt_options=options
        )
    return Result(
        frozenset(errand.recipients) - set(refused), {name: f"{reply.code} {reply.message}" for name, reply in refused.items()}, said
    )


def by_swaks(errand: Errand) -> Result:
    """The tool of mail administrators, which pipelines if asked. It knows no parameters of MAIL and RCPT."""
    return _by_swaks(errand, [])


def by_swaks_pipelining(errand: Errand) -> Result:
    """The same, told to pipeline."""
    return _by_swaks(errand, ["--pipeline"])


def _by_swaks(errand: Errand, more: Sequence[str]) -> Result:
    file = errand.folder / "swaks.eml"
    file.write_bytes(errand.octets.removesuffix(b"\r\n"))  # it doubles leading dots, and ends the last line
    road = {
        "plain": [],
        "starttls": ["--tls", "--tls-verify", "--tls-ca-path", str(errand.ca)],
        "implicit": ["--tls-on-connect", "--tls-verify", "--tls-ca-path", str(errand.ca)],
        "lmtp": ["--protocol", "LMTP"],
    }[errand.road]
    auth = ["--auth", errand.auth, "--auth-user", USER, "--auth-password", PASSWORD] if errand.auth else []
    command = [
        *(need("swaks", "install swaks with libnet-ssleay-perl and libio-socket-ssl-perl"), *road, *auth, *more),
        *("--server", "127.0.0.1", "--port", str(errand.port), "--helo", "client.test", "--timeout", "50"),
        *("--from", errand.sender or "<>", "--to", ",".join(errand.recipients), "--data", f"@{file}"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    said = done.stdout[:4000] + done.stdout[-4000:] + done.stderr
    if errand.road == "lmtp":
        return _told_by_line(errand, [line for line in done.stdout.rpartition("\n -> .\n")[2].splitlines() if line.startswith("<")], said)
    return Result(frozenset(errand.recipients if done.returncode == 0 else ()), {}, said)


def _told_by_line(errand: Errand, lines: Sequence[str], said: str) -> Result:
    """Return what the lines behind the dot say: one for each recipient, in order (RFC 2033 s4.2)."""
    replies = [line.partition(" ")[2].strip() for line in lines][: len(errand.recipients)]
    refused = {name: reply for name, reply in zip(errand.recipients, replies, strict=False) if not reply.startswith("2")}
    return Result(frozenset(errand.recipients[: len(replies)]) - set(refused), refused, said)


def by_curl(errand: Errand) -> Result:
    """curl, as scripts send mail."""
    file = errand.folder / "curl.eml"
    file.write_bytes(errand.octets)
    scheme = "smtps" if errand.road == "implicit" else "smtp"
    auth = ["--user", f"{USER}:{PASSWORD}", "--login-options", f"AUTH={errand.auth}"] if errand.auth else []
    command = [
        *(need("curl", "install curl"), "--silent", "--show-error", "--cacert", str(errand.ca), "--max-time", str(TIMEOUT_S)),
        *(["--ssl-reqd"] if errand.road == "starttls" else []),
        *(*auth, "--url", f"{scheme}://localhost:{errand.port}/client.test", "--mail-from", errand.sender, "--upload-file", str(file)),
        *(word for name in errand.recipients for word in ("--mail-rcpt", name)),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S + 5, check=False)
    return Result(frozenset(errand.recipients if done.returncode == 0 else ()), {}, done.stderr)


def by_nodemailer(errand: Errand) -> Result:
    """What programs in JavaScript use."""
    dsn = {"ret": "HDRS", "envid": ENVID, "notify": "SUCCESS,FAILURE", "orcpt": f"rfc822;{errand.recipients[0]}"}
    question = {
        "transport": {
            "host": "127.0.0.1",
            "port": errand.port,
            "secure": errand.road == "implicit",
            "ignoreTLS": errand.road == "plain",
            "requireTLS": errand.road == "starttls",
            "lmtp": errand.road == "lmtp",
            **({"auth": {"user": USER, "pass": PASSWORD}, "authMethod": errand.auth} if errand.auth else {}),
        },
        "ca": str(errand.ca),
        "envelope": {
            "from": errand.sender,
            "to": errand.recipients,
            "use8BitMime": errand.eight or errand.utf8,
            **({"dsn": dsn} if errand.dsn else {}),
        },
        "octets": base64.b64encode(errand.octets).decode(),
    }
    command = [installed(), "send.js"]
    done = subprocess.run(command, cwd=HERE, input=json.dumps(question), capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    refused = dict(zip(said["rejected"], said["errors"], strict=True)) if said["rejected"] else {}
    return Result(frozenset(said["accepted"]), refused, done.stdout)
