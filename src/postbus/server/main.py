"""A server on the command line, to try a handler or to test a mail client: ``python -m postbus.server -n -c package.Handler WORD ...``.

The options are aiosmtpd's. The handler is made by its class' ``from_cli(parser, *words)``, if it has one. Serves until SIGTERM or Ctrl-C.
"""

from __future__ import annotations

import argparse
import errno
import importlib
import io
import os
import pwd
import re
import signal
import ssl
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from postbus import __version__, telemetry
from postbus.server.controller import Controller
from postbus.server.smtp import DATA_SIZE_DEFAULT, machine_name
from postbus.server.tls import TlsUnusable, server_context

DEFAULT_HOST, DEFAULT_PORT = "localhost", 8025
DEFAULT_CLASS = "Debugging"
PROGRAM = "python -m postbus.server"
USER = "nobody"
TROUBLES = {
    errno.EADDRINUSE: "something else listens there already; choose another port with -l, or 0 for any free one",
    errno.EACCES: "this user may not; ports below 1024 are root's: choose another with -l",
    errno.EADDRNOTAVAIL: "this machine has no such address; choose another with -l",
}
ENDS = {signal.SIGINT, signal.SIGTERM}
STOCK = "postbus.server.handlers"  # where a class without a module is looked for
PORT_MAX = 65_535
EXAMPLES = (
    "{program}                                  print each message, on localhost:8025",
    "{program} -c package.Handler WORD WORD     serve it; its module is looked for here first",
    "{program} -l :2525 -c Mailbox ./maildir    keep mail in a maildir",
)
LEVELS: tuple[Literal["error"], Literal["info"], Literal["debug"]] = ("error", "info", "debug")  # by how many -d


def main(args: Sequence[str] | None = None, *, program: str = PROGRAM) -> int:
    """Serve as *args* say (None: the process's own), until a signal ends it; return the exit code. *program* is named in usage lines."""
    here = str(Path.cwd())
    if here not in sys.path:  # as for ``python -m``: a handler stands where one works
        sys.path.insert(0, here)
    parser, said = parseargs(args, program=program)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # what a handler prints is to be seen now, into a pipe too
    telemetry.configure(level=LEVELS[min(said.debug, len(LEVELS) - 1)], log_format="auto", addresses="full")
    controller = Controller(
        said.handler,
        said.host,
        said.port,
        ssl_context=_context(parser, said.smtpscert, said.smtpskey),
        enable_SMTPUTF8=said.smtputf8,
        data_size_limit=said.size,
        tls_context=_context(parser, said.tlscert, said.tlskey),
        require_starttls=said.requiretls,
    )
    if said.setuid:
        machine_name()  # nobody may be unable to read what asking for it takes
        _become_nobody(parser)  # the keys are read
    if said.debug >= len(LEVELS):
        controller.loop.set_debug(True)
    signal.pthread_sigmask(signal.SIG_BLOCK, ENDS)  # before the thread is made, which inherits it: ``sigwait`` below is to have them
    try:
        controller.start()
    except OSError as error:
        place = f"[{said.host}]" if ":" in said.host else said.host
        why = TROUBLES.get(error.errno or 0, error.strerror or error)
        parser.exit(1, f"{parser.prog}: cannot listen on {place}:{said.port}: {why}\n")
    print(f"{type(said.handler).__name__} serves on {_place_of(controller)}", file=sys.stderr, flush=True)
    signal.sigwait(ENDS)
    controller.stop()
    telemetry.flush()
    return 0


def parseargs(args: Sequence[str] | None = None, *, program: str = PROGRAM) -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    """Return the parser and what *args* (None: the process's own) say, with ``handler``, made, ``host`` and ``port`` in it.

    Raises:
        SystemExit: they are wrong, or ask for help or the version; it has been said.
    """
    parser = _parser(program)
    said = parser.parse_args(args)
    said.host, said.port = said.listen
    said.handler = _handler(said.made_by, said.classargs, parser)
    for certificate, key in (("smtpscert", "smtpskey"), ("tlscert", "tlskey")):
        if bool(getattr(said, certificate)) != bool(getattr(said, key)):
            parser.error(f"--{certificate} and --{key} must be specified together")
    return parser, said


def _parser(program: str = PROGRAM) -> argparse.ArgumentParser:
    call = f"{PROGRAM} -n" if program == PROGRAM else program
    examples = "\n".join(f"  {example}" for example in EXAMPLES).format(program=call)
    parser = argparse.ArgumentParser(
        prog=program,
        description="Serve SMTP with a handler class, until Ctrl-C or SIGTERM.",
        epilog=f"Examples:\n{examples}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("-v", "--version", action="version", version=f"%(prog)s {__version__}", help="say the version")
    parser.add_argument(
        "-n", "--nosetuid", dest="setuid", action="store_false", help=f"stay who you are, rather than become {USER}, which only root can"
    )
    parser.add_argument(
        "-c",
        "--class",
        dest="made_by",
        metavar="CLASSPATH",
        type=_class,
        default=DEFAULT_CLASS,
        help=f"the handler's class, as package.module.Class; a bare name is one of {STOCK} (default: %(default)s)",
    )
    parser.add_argument("-s", "--size", type=int, default=DATA_SIZE_DEFAULT, help="largest message in octets (default: %(default)s)")
    parser.add_argument("-u", "--smtputf8", action="store_true", help="offer SMTPUTF8 (RFC 6531)")
    parser.add_argument(
        "-d", "--debug", action="count", default=0, help="log more: sessions (-d), everything (-dd), the event loop's complaints too (-ddd)"
    )
    parser.add_argument(
        "-l",
        "--listen",
        type=_place,
        nargs="?",
        const=f"{DEFAULT_HOST}:{DEFAULT_PORT}",
        default=f"{DEFAULT_HOST}:{DEFAULT_PORT}",
        metavar="[HOST][:PORT]",
        help="where to listen (default: %(default)s)",
    )
    for protocol, words in (("smtps", "TLS from the first octet"), ("tls", "STARTTLS (RFC 3207)")):
        parser.add_argument(
            f"--{protocol}cert", type=Path, metavar="CERTFILE", help=f"PEM file with the certificate and its chain: {words}"
        )
        parser.add_argument(f"--{protocol}key", type=Path, metavar="KEYFILE", help="PEM file with its private key")
    parser.add_argument("--no-requiretls", dest="requiretls", action="store_false", help="with --tlscert: take mail without STARTTLS too")
    parser.add_argument("classargs", nargs="*", metavar="CLASSARGS", help="words for the handler's class")
    return parser


def _class(path: str) -> Any:
    """Return the class at the dotted *path*."""
    module, _, name = path.rpartition(".")
    try:
        made_by = getattr(importlib.import_module(module or STOCK), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise argparse.ArgumentTypeError(f"no class {path!r}: {error}") from error
    if not callable(made_by):
        raise argparse.ArgumentTypeError(f"no class {path!r}: it is of type {type(made_by).__name__}")
    return made_by


def _place(text: str) -> tuple[str, int]:
    """Return (host, port) of ``[HOST][:PORT]``."""
    found = re.fullmatch(r"(?:\[([^]]*)\]|([^:]*))(?::(\d{1,5})?)?", text)
    if found is None or int(found[3] or 0) > PORT_MAX:
        raise argparse.ArgumentTypeError(f"{text!r} is no [HOST][:PORT]; ports end at {PORT_MAX}, an IPv6 address goes in brackets")
    return found[1] or found[2] or DEFAULT_HOST, int(found[3] or DEFAULT_PORT)


def _place_of(controller: Controller) -> str:
    """Return where *controller* listens, as ``host:port``."""
    host = f"[{controller.hostname}]" if ":" in controller.hostname else controller.hostname
    return f"{host}:{controller.port}"


def _context(parser: argparse.ArgumentParser, certificate: Path | None, key: Path | None) -> ssl.SSLContext | None:
    """Return a context of the two files, or None without a certificate."""
    if certificate is None:
        return None
    try:
        return server_context(certificate, key)
    except TlsUnusable as error:
        parser.error(str(error))


def _handler(made_by: Any, words: Sequence[str], parser: argparse.ArgumentParser) -> Any:
    """Return the handler that the class *made_by* makes of *words*."""
    if hasattr(made_by, "from_cli"):
        return made_by.from_cli(parser, *words)
    if words:
        parser.error(f"{made_by.__name__} has no from_cli, so it takes no words")
    return made_by()


def _become_nobody(parser: argparse.ArgumentParser) -> None:
    """Give up root before the first octet from outside."""
    user = pwd.getpwnam(USER)
    try:
        os.setgroups([])
        os.setgid(user.pw_gid)
        os.setuid(user.pw_uid)
    except PermissionError:
        parser.exit(1, f"{parser.prog}: only root can become {USER}; try again with -n\n")
