"""A real Postfix of its own: configuration, queue and log in one folder, loopback only, ended by the id of its master."""

from __future__ import annotations

import os
import pwd
import re
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tests.e2e.harness import free_port, wait_until
from tests.peers import missing, need

REMEDY = "install postfix, and run the tests as root: its master wants to be"

# Names that RFC 2606 keeps for us are relayed to wherever a test says; nothing is ever looked up in DNS.
MAIN = """\
compatibility_level = 3.6
queue_directory = {folder}/queue
data_directory = {folder}/data
maillog_file = {folder}/maillog
maillog_file_prefixes = {folder}
daemon_directory = {daemons}
command_directory = {commands}
myhostname = relay.postfix.test
mydestination =
mynetworks = 127.0.0.0/8
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
alias_maps =
alias_database =
disable_dns_lookups = yes
smtp_host_lookup = native
default_transport = smtp:[127.0.0.1]:1
transport_maps = texthash:{folder}/transport
smtputf8_enable = yes
smtputf8_autodetect_classes = all
notify_classes =
message_size_limit = 40000000
smtp_tls_CAfile = {ca}
smtp_tls_session_cache_database =
smtp_tls_loglevel = 1
smtp_fallback_relay =
smtp_pix_workarounds =
default_destination_concurrency_limit = 5
minimal_backoff_time = 1000s
"""

MASTER = """\
127.0.0.1:{port} inet n - n - - smtpd
pickup unix n - n 1 1 pickup
cleanup unix n - n - 0 cleanup
qmgr unix n - n 300 1 qmgr
tlsmgr unix - - n 1000? 1 tlsmgr
rewrite unix - - n - - trivial-rewrite
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
trace unix - - n - 0 bounce
verify unix - - n - 1 verify
flush unix n - n 1000? 0 flush
proxymap unix - - n - - proxymap
proxywrite unix - - n - 1 proxymap
smtp unix - - n - - smtp
tlssmtp unix - - n - - smtp -o smtp_tls_security_level=secure -o smtp_tls_secure_cert_match=mx.postbus.test
showq unix n - n - - showq
error unix - - n - - error
retry unix - - n - - error
discard unix - - n - - discard
lmtp unix - - n - - lmtp
anvil unix - - n - 1 anvil
scache unix - - n - 1 scache
postlog unix-dgram n - n - 1 postlogd
"""

DELIVERY = re.compile(r"postfix/\w+\[\d+\]: (?P<id>\w+): to=<(?P<to>[^>]*)>.*? status=(?P<status>\w+) \((?P<said>.*)\)$", re.MULTILINE)


class Postfix:
    """A running Postfix.

    Attributes:
        folder: everything of it, readable for its own user; port: of its smtpd on 127.0.0.1.
    """

    def __init__(self, folder: Path, port: int, sendmail: str) -> None:
        self.folder = folder
        self.port = port
        self._sendmail = sendmail

    @property
    def log(self) -> str:
        """What it said so far."""
        file = self.folder / "maillog"
        return file.read_text("utf-8", "replace") if file.exists() else ""

    def sendmail(self, sender: str, recipients: list[str], octets: bytes) -> None:
        """Hand over a mail as local programs do, lines ending in LF."""
        command = [self._sendmail, "-C", str(self.folder / "etc"), "-i", "-f", sender, "--", *recipients]
        done = subprocess.run(command, input=octets.replace(b"\r\n", b"\n"), capture_output=True, timeout=30, check=False)
        assert done.returncode == 0, done.stderr.decode()

    @property
    def queue(self) -> list[str]:
        """The messages it has not done with."""
        names = ("incoming", "active", "deferred", "hold", "corrupt")
        return [file.name for name in names for file in (self.folder / "queue" / name).rglob("*") if file.is_file()]

    def deliveries(self) -> dict[str, tuple[str, str]]:
        """Return what became of each recipient so far: (sent, bounced or deferred; what the server said)."""
        return {found["to"]: (found["status"], found["said"]) for found in DELIVERY.finditer(self.log)}

    def wait(self, recipients: list[str], timeout_s: float = 30.0) -> dict[str, tuple[str, str]]:
        """Return what became of *recipients*, once something did of each."""
        wait_until(
            lambda: set(recipients) <= set(self.deliveries()),
            lambda: f"{set(recipients) - set(self.deliveries())} not delivered\n{self.log[-6000:]}",
            timeout_s,
        )
        known = self.deliveries()
        return {recipient: known[recipient] for recipient in recipients}


def need_postfix() -> str:
    """Return the path of Postfix's command, or end the test."""
    program = need("postfix", REMEDY)
    if os.geteuid() != 0:
        missing("root, to run Postfix,", REMEDY)
    return program


@contextmanager
def folder_for_postfix() -> Iterator[Path]:
    """Yield a folder that Postfix's own user can reach, as pytest's are not; sockets for it belong here."""
    with tempfile.TemporaryDirectory(prefix="postbus-postfix-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        folder.chmod(0o755)
        yield folder


@contextmanager
def postfix(
    folder: Path, transports: Mapping[str, str], *, ca: Path, settings: Mapping[str, str] | None = None, services: str = ""
) -> Iterator[Postfix]:
    """Yield a Postfix in *folder* that relays each domain of *transports* by its transport (transport(5)).

    Args:
        folder: of ``folder_for_postfix``.
        transports: such as ``{"example.org": "smtp:[127.0.0.1]:2525"}``.
        ca: authority that ``tlssmtp`` trusts.
        settings: more of main.cf (postconf(5)); they win.
        services: more of master.cf (master(5)), whole lines.
    """
    program = need_postfix()
    port = free_port()
    daemons = _setting(program, "daemon_directory")
    etc, user = folder / "etc", pwd.getpwnam("postfix")
    for name in ("etc", "queue", "data"):
        (folder / name).mkdir()
    os.chown(folder / "data", user.pw_uid, user.pw_gid)
    (folder / "ca.pem").write_bytes(ca.read_bytes())
    (folder / "transport").write_text("".join(f"{domain} {transport}\n" for domain, transport in transports.items()))
    commands = str(Path(program).parent)
    own = MAIN.format(folder=folder, daemons=daemons, commands=commands, ca=folder / "ca.pem")
    (etc / "main.cf").write_text(_settled(own, settings or {}))
    (etc / "master.cf").write_text(MASTER.format(port=port) + services)
    checked = subprocess.run([program, "-c", str(etc), "check"], capture_output=True, text=True, timeout=60, check=False)
    assert checked.returncode == 0, checked.stderr
    with (folder / "master.log").open("wb") as log:  # -s: stay the process we started, so that its id is ours to end
        master = subprocess.Popen([f"{daemons}/master", "-c", str(etc), "-s"], stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    instance = Postfix(folder, port, str(Path(program).with_name("sendmail")))
    try:
        wait_until(
            lambda: "daemon started" in instance.log or master.poll() is not None,
            lambda: f"Postfix does not start: {instance.log}{(folder / 'master.log').read_text()}",
        )
        assert master.poll() is None, instance.log + (folder / "master.log").read_text()
        yield instance
    finally:
        master.send_signal(signal.SIGTERM)  # it ends its children
        try:
            master.wait(10)
        except subprocess.TimeoutExpired:
            master.kill()
            master.wait()


def _settled(main: str, settings: Mapping[str, str]) -> str:
    """Return *main* with *settings* in the place of its own."""
    kept = [line for line in main.splitlines() if line.partition("=")[0].strip() not in settings]
    return "\n".join([*kept, *(f"{name} = {value}" for name, value in settings.items()), ""])


def _setting(program: str, name: str) -> str:
    """Return a setting of the installed Postfix."""
    postconf = Path(program).with_name("postconf")
    return subprocess.run([postconf, "-hd", name], capture_output=True, text=True, check=True, timeout=30).stdout.strip()
