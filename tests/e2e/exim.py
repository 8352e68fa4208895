"""Exim as a client: unpacked beside Postfix, whose package excludes its own, with configuration, spool and log in one folder.

Nothing is installed and nobody need be root: the packages are fetched by apt-get and unpacked into the user's cache, libraries that are
not here are found beside the program, and the user it was built to look for is made up for it (libnss-wrapper).
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

from tests.e2e.errands import PASSWORD, USER, Errand, Result
from tests.e2e.harness import wait_until
from tests.peers import missing, need

PACKAGES = ("exim4-daemon-light", "libidn12", "libnss-wrapper")
"""The program, and what a machine without it is likely to lack; the other libraries come with Postfix and GnuTLS."""
REMEDY = "on Debian, run apt-get update, and install libgnutls-dane0, libdb5.3, libnsl2, libpcre2-8-0"
NOBODY = 65534
TIMEOUT_S = 20

CONFIGURATION = """\
exim_path = {program}
spool_directory = {folder}/spool
log_file_path = {folder}/%slog
primary_hostname = relay.exim.test
keep_environment = ^LD_ : ^NSS_WRAPPER_
deliver_drop_privilege = true
ignore_bounce_errors_after = 0s
untrusted_set_sender = *
local_from_check = false
smtp_enforce_sync = false
message_size_limit = 40M
chunking_advertise_hosts =
dsn_advertise_hosts = *
smtputf8_advertise_hosts = *
tls_advertise_hosts =
acl_smtp_rcpt = accept
acl_smtp_mail = accept
split_spool_directory = false
begin acl
accept:
  accept
begin routers
all:
  driver = manualroute
  route_list = * 127.0.0.1
  self = send
  transport = out
begin transports
out:
  driver = smtp
  port = {port}
  hosts_override
  allow_localhost
  helo_data = client.test
  max_rcpt = 0
  hosts_try_fastopen =
{options}
begin retry
* * F,1h,5m
begin authenticators
{authenticator}
"""

ROADS = {
    "plain": "  hosts_avoid_tls = *\n",
    "starttls": "  hosts_require_tls = *\n  tls_verify_certificates = {ca}\n  tls_verify_cert_hostnames =\n  tls_verify_hosts = *\n",
    "implicit": "  protocol = smtps\n  tls_verify_certificates = {ca}\n  tls_verify_cert_hostnames =\n  tls_verify_hosts = *\n",
    "lmtp": "  protocol = lmtp\n  hosts_avoid_tls = *\n",
}
SECRETS = {"PLAIN": f"^{USER}^{PASSWORD}", "LOGIN": f": {USER} : {PASSWORD}"}
SPOKEN = re.compile(r"^\S+ \S+ \S+ (?P<mark>=>|->|\*\*|==) (?P<to>\S+)(?P<rest>.*)$", re.MULTILINE)


def unpacked() -> Path:
    """Return the folder with Exim in it, fetched when it is not in the cache; the test ends when it cannot be had."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "postbus-tests" / "exim"
    if not (cache / "complete").exists():
        cache.mkdir(parents=True, exist_ok=True)
        fetched = subprocess.run(
            [need("apt-get", REMEDY), "-qq", "download", *PACKAGES], cwd=cache, capture_output=True, text=True, timeout=120, check=False
        )
        if fetched.returncode != 0:
            missing("Exim", f"{REMEDY}: {fetched.stderr[-500:]}")
        for package in sorted(cache.glob("*.deb")):
            subprocess.run([need("dpkg-deb", REMEDY), "-x", str(package), str(cache)], check=True, timeout=60)
        (cache / "complete").touch()
    tried = subprocess.run(
        [cache / "usr/sbin/exim4", "--version"], env=_libraries(cache), capture_output=True, text=True, timeout=30, check=False
    )
    if "error while loading shared libraries" in tried.stderr:
        missing("what Exim is linked to", f"{REMEDY}: {tried.stderr.strip()}")
    return cache


def _libraries(home: Path) -> dict[str, str]:
    """Return an environment in which the loader finds what was unpacked."""
    return {**os.environ, "LD_LIBRARY_PATH": os.pathsep.join(str(path) for path in (home / "usr/lib").glob("*-linux-gnu*"))}


class Exim:
    """One Exim for one errand, in *folder*, which others may enter."""

    def __init__(self, folder: Path, errand: Errand, options: str = "") -> None:
        self.folder = folder
        home = Path(shutil.copytree(unpacked(), folder / "program", ignore=shutil.ignore_patterns("*.deb", "share", "doc")))
        self._program = home / "usr/sbin/exim4"
        user, group = (NOBODY, NOBODY) if os.geteuid() == 0 else (os.geteuid(), os.getegid())
        (folder / "passwd").write_text(f"root:x:0:0::/:/bin/sh\nDebian-exim:x:{user}:{group}::/:/bin/false\n")
        (folder / "group").write_text(f"root:x:0:\nDebian-exim:x:{group}:\n")
        (folder / "ca.pem").write_bytes(errand.ca.read_bytes())
        authenticator = ""
        if errand.auth:
            options += "  hosts_require_auth = *\n"
            authenticator = f"it:\n  driver = plaintext\n  public_name = {errand.auth}\n  client_send = {SECRETS[errand.auth]}\n"
        road = ROADS[errand.road].format(ca=folder / "ca.pem")
        text = CONFIGURATION.format(
            program=self._program, folder=folder, port=errand.port, options=road + options, authenticator=authenticator
        )
        (folder / "exim.conf").write_text(text)
        (folder / "spool").mkdir()
        os.chown(folder, user, -1)
        os.chown(folder / "spool", user, -1)
        folder.chmod(0o755)
        [wrapper] = (home / "usr/lib").glob("*/libnss_wrapper.so")
        self._environment = _libraries(home) | {
            "LD_PRELOAD": str(wrapper),
            "NSS_WRAPPER_PASSWD": str(folder / "passwd"),
            "NSS_WRAPPER_GROUP": str(folder / "group"),
        }

    @property
    def log(self) -> str:
        """What it said so far."""
        return "".join(f"-- {file.name}\n{file.read_text('utf-8', 'replace')}" for file in sorted(self.folder.glob("*log")))

    @property
    def queue(self) -> list[str]:
        """The messages it has not done with."""
        return [file.name for file in (self.folder / "spool" / "input").glob("*-H")]

    def submit(self, dialog: bytes) -> str:
        """Speak SMTP to it on a pipe (``-bs``), and return what it said; it delivers before it ends (``-odi``)."""
        command = [str(self._program), "-C", str(self.folder / "exim.conf"), "-odi", "-bs"]
        done = subprocess.run(command, input=dialog, env=self._environment, capture_output=True, timeout=TIMEOUT_S, check=False)
        return (done.stdout + done.stderr).decode("utf-8", "replace")


def by_exim(errand: Errand, *, options: str = "") -> Result:
    """Hand the errand to an Exim, and wait until its queue is empty; *options* of its smtp transport."""
    folder = errand.folder / "exim"
    folder.mkdir()
    exim = Exim(folder, errand, options)
    said = exim.submit(_dialog(errand))
    spoken: list[re.Match[str]] = []

    def done() -> bool:
        spoken[:] = [match for match in SPOKEN.finditer(exim.log) if match["to"] in errand.recipients]
        return {match["to"] for match in spoken} >= set(errand.recipients) and not exim.queue

    assert not (exim.folder / "paniclog").exists(), exim.log
    wait_until(done, lambda: f"Exim has {exim.queue}\n{said}\n{exim.log}", TIMEOUT_S)
    refused = {match["to"]: match["rest"] for match in spoken if match["mark"] in {"**", "=="}}
    return Result(frozenset(match["to"] for match in spoken if match["mark"] in {"=>", "->"}), refused, exim.log)


def _dialog(errand: Errand) -> bytes:
    lines = ["EHLO client.test", " ".join([f"MAIL FROM:<{errand.sender}>", *errand.mail_options])]
    lines += [" ".join([f"RCPT TO:<{name}>", *errand.rcpt_options(name)]) for name in errand.recipients]
    content = (b"\r\n" + errand.octets).replace(b"\r\n.", b"\r\n..")[2:]
    return "".join(f"{line}\r\n" for line in [*lines, "DATA"]).encode() + content + b".\r\nQUIT\r\n"
