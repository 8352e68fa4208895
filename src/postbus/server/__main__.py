"""A server on the command line, to try a handler or to test a mail client: ``python -m postbus.server -n -c package.Handler WORD ...``.

The options are aiosmtpd's. The handler is made by its class' ``from_cli(parser, *words)``, if it has one. Serves until SIGTERM or Ctrl-C.
"""

from __future__ import annotations

import argparse
import importlib
import io
import os
import pwd
import re
import signal
import sys
from collections.abc import Sequence
from typing import Any

from postbus.server.controller import Controller
from postbus.server.smtp import DATA_SIZE_DEFAULT

HOST, PORT = "localhost", 8025
USER = "nobody"
ENDS = {signal.SIGINT, signal.SIGTERM}
STOCK = "postbus.server.handlers"  # where a class without a module is looked for


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve as *arguments* say (None: the process's own), until a signal ends it; return the exit code."""
    parser = _parser()
    said = parser.parse_args(arguments)
    handler = _handler(said.handler, said.words, parser)
    if not said.nosetuid:
        _become_nobody(parser)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # what a handler prints is to be seen now, into a pipe too
    controller = Controller(handler, *said.listen, enable_SMTPUTF8=said.smtputf8, data_size_limit=said.size)
    signal.pthread_sigmask(signal.SIG_BLOCK, ENDS)  # before the thread is made, which inherits it: ``sigwait`` below is to have them
    try:
        controller.start()
    except OSError as error:
        parser.exit(1, f"{parser.prog}: cannot listen on {controller.address()}: {error.strerror or error}\n")
    print(f"{type(handler).__name__} serves on {controller.address()}", file=sys.stderr, flush=True)
    signal.sigwait(ENDS)
    controller.stop()
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m postbus.server", description="Serve SMTP with a handler class.")
    parser.add_argument("-n", "--nosetuid", action="store_true", help=f"stay who you are, rather than become {USER}, which only root can")
    parser.add_argument(
        "-c",
        "--class",
        dest="handler",
        metavar="CLASSPATH",
        type=_class,
        default="Debugging",
        help=f"the handler's class, as package.module.Class; a bare name is one of {STOCK} (default: %(default)s)",
    )
    parser.add_argument("-s", "--size", type=int, default=DATA_SIZE_DEFAULT, help="largest message in octets (default: %(default)s)")
    parser.add_argument("-u", "--smtputf8", action="store_true", help="offer SMTPUTF8 (RFC 6531)")
    parser.add_argument(
        "-l", "--listen", type=_place, default=f"{HOST}:{PORT}", metavar="[HOST][:PORT]", help="where to listen (default: %(default)s)"
    )
    parser.add_argument("words", nargs="*", metavar="WORD", help="for the handler's class")
    return parser


def _class(path: str) -> Any:
    """Return the class at the dotted *path*."""
    module, _, name = path.rpartition(".")
    try:
        return getattr(importlib.import_module(module or STOCK), name)
    except (ImportError, AttributeError) as error:
        raise argparse.ArgumentTypeError(f"no class {path!r}: {error}") from error


def _place(text: str) -> tuple[str, int]:
    """Return (host, port) of ``[HOST][:PORT]``."""
    found = re.fullmatch(r"(?:\[([^]]*)\]|([^:]*))(?::(\d{1,5}))?", text)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no [HOST][:PORT]; an IPv6 address goes in brackets")
    return found[1] or found[2] or HOST, int(found[3] or PORT)


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


if __name__ == "__main__":
    sys.exit(main())
