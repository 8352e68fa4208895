"""``postbus selftest``: its options, and how it shows what came of each case."""

from __future__ import annotations

import asyncio
import json
import os
import ssl
import sys
from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from postbus.cli import show
from postbus.selftest.fitting import Names
from postbus.selftest.played import Played
from postbus.selftest.player import Patience
from postbus.selftest.run import PARALLEL, Result, chosen, counts, passed, report, results
from postbus.selftest.target import Target, UnusableError, is_local, learn
from postbus.selftest.vectors import Row
from postbus.selftest.wire import Address

EXAMPLES = (
    "postbus selftest 127.0.0.1:2525",
    "postbus selftest 127.0.0.1:25 --recipient you@example.org --refused nobody@example.org",
    "postbus selftest unix:/run/postbus/lmtp.sock --lmtp --json report.json",
    "postbus selftest mx.example.org:465 --tls --recipient you@example.org --yes-this-is-mine",
    "postbus selftest 127.0.0.1:2525 --only 'eod-*'",
    "postbus selftest --list",
)

SENT_MAX_CHARACTERS, SENT_ON_TERMINAL_CHARACTERS = 60, 24
"""Of what was sent, on a line of a pipe or a terminal; the JSON report has all of it."""

HEADS = ("verdict", "case", "sent", "expected", "got", "why")


def selftest(
    server: Annotated[
        str | None, typer.Argument(metavar="HOST:PORT", help="The server, or unix:PATH. Yours: see above.", show_default=False)
    ] = None,
    recipient: Annotated[
        str, typer.Option(metavar="ADDRESS", help="A recipient the server takes. It will get a few short mails.")
    ] = "b@mx.test",
    refused: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="A recipient it refuses; without one, cases that need it are skipped.")
    ] = None,
    sender: Annotated[str, typer.Option(metavar="ADDRESS", help="The envelope sender.")] = "a@client.example",
    test_user: Annotated[
        bool, typer.Option("--test-user", help="The server knows the user test with the password 1234: play the cases about AUTH.")
    ] = False,
    lmtp: Annotated[bool, typer.Option("--lmtp", help="The server speaks LMTP.")] = False,
    tls: Annotated[bool, typer.Option("--tls", help="TLS from the first octet.")] = False,
    starttls: Annotated[bool, typer.Option("--starttls", help="Play inside TLS by STARTTLS what is not about plain text.")] = False,
    insecure: Annotated[bool, typer.Option("--insecure", help="Take any certificate.")] = False,
    ca: Annotated[Path | None, typer.Option("--ca", metavar="FILE", help="Trust the authorities in this PEM file.")] = None,
    only: Annotated[str, typer.Option("--only", metavar="GLOB", help="Only cases whose id, or section, is like this.")] = "*",
    listing: Annotated[bool, typer.Option("--list", help="List the cases and end.")] = False,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write a report for programs; - is standard output, and nothing else.")
    ] = None,
    timeout: Annotated[float, typer.Option("--timeout", metavar="SECONDS", min=0.1, help="How long to wait for a reply.")] = 10.0,
    parallel: Annotated[int, typer.Option("--parallel", metavar="N", min=1, max=50, help="Connections at a time.")] = PARALLEL,
    yes: Annotated[bool, typer.Option("--yes-this-is-mine", "--yes", help="The server is yours, though not on this machine.")] = False,
) -> None:
    """Attack a mail server of your own, and say how it stood.

    Plays the table of attacks that postbus itself is tested with: mails smuggled behind false ends, commands behind STARTTLS, control
    octets in addresses, floods, commands out of turn. Only for servers you run yourself: for a server that is not on this machine you are
    asked, or say --yes-this-is-mine. What it accepts is delivered as any mail.

    The verdicts: pass, the listed answer; safe, another one that refuses or hangs up as well; lenient, it took what the table refuses,
    and no danger showed on the wire; FAIL, danger showed (something smuggled was read, state was kept, an answer never came); skipped,
    with the reason.

    Exits 1 when a case failed, or the server could not be tested.
    """
    table = chosen(only)
    if not table:
        _fail(f"no case is like {only}", "see --list", code=2)
    if listing:
        show.table(("case", "section", "protocol", "about"), [(row.id, row.section, row.protocol, row.title) for row in table])
        return
    if server is None:
        _fail("no server was named", "say HOST:PORT or unix:PATH", code=2)
    if tls and starttls:
        _fail("--tls and --starttls exclude each other", "say one of them", code=2)
    quiet = json_file is not None and str(json_file) == "-"
    if json_file is not None and not quiet and not _writable(json_file):
        _fail(f"{json_file} cannot be written", "check the path", code=2)
    address = _address(server)
    _own(address, certain=yes)
    target = Target(
        address,
        "lmtp" if lmtp else "smtp",
        "implicit" if tls else "starttls" if starttls else "none",
        _context(ca, verify=not insecure),
        names=Names(recipient, refused, sender),
        patience=Patience(reply_s=timeout),
        test_user=test_user,
    )
    try:
        found, document = asyncio.run(_run(target, table, parallel, quiet=quiet))
    except UnusableError as error:
        _fail(error.what, error.remedy)
    if json_file is not None:
        _write(json_file, document)
    if not quiet:
        _summary(target, found)
    raise typer.Exit(0 if passed(found) else 1)


async def _run(target: Target, table: Sequence[Row], parallel: int, *, quiet: bool) -> tuple[list[Result], dict[str, Any]]:
    """Play *table*; return the results and the report. A terminal gets a bar, then a table; a pipe gets lines as they come."""
    known = await learn(target)
    found: list[Result] = []
    lines = not (quiet or show.OUT.is_terminal)
    with show.progress("attacking", len(table), least=1) as bar:
        async for one in results(target, known, table, parallel=parallel):
            found.append(one)
            bar(len(found))
            if lines:
                show.line("  ".join(_cells(one)).rstrip())
    if not quiet and not lines:
        show.table(HEADS, [_cells(one) for one in found])
    return found, report(target, known, found)


def _cells(one: Result) -> tuple[str, ...]:
    """Return what stands on a case's line."""
    sent, expected, got = _said(one.row, one.played)
    if not show.OUT.is_terminal:
        sent, expected, got = f"sent {sent}", f"expected {expected}", f"got {got}"
        return (one.verdict.word.ljust(7), one.row.id.ljust(32), sent, expected, got, one.verdict.why)
    return (one.verdict.word, one.row.id, sent, expected, got, one.verdict.why)


def _said(row: Row, played: Played | None) -> tuple[str, str, str]:
    """Return what was sent, expected and got, short."""
    octets = b"".join(step.octets if step.kind == "send" else b"" for step in row.steps)
    sent = "".join(chr(octet) if 32 <= octet < 127 else repr(chr(octet))[1:-1] for octet in octets[: 4 * SENT_MAX_CHARACTERS])
    most = SENT_ON_TERMINAL_CHARACTERS if show.OUT.is_terminal else SENT_MAX_CHARACTERS
    if len(sent) > most:
        sent = sent[: most - 3] + "..."
    expected = [code for step in row.steps for code in step.expect]
    got = [] if played is None else played.codes("row")[1]
    ended = played is not None and played.end == "closed"
    return sent, _codes(expected, closed=row.closes), _codes(got, closed=ended)


def _codes(codes: Iterable[str], *, closed: bool) -> str:
    words = [code if count == 1 else f"{count} x {code}" for code, count in ((code, len(list(run))) for code, run in groupby(codes))]
    return ", ".join([*words, "end"] if closed else words) or "-"


def _summary(target: Target, found: Sequence[Result]) -> None:
    tally = counts(found)
    said = ", ".join(f"{count} {word}" for word, count in tally.items())
    judged = sum(tally.values()) - tally["skipped"]
    if not judged:
        show.line(f"{target.address}: nothing was tested, {said}", "bold red")
    else:
        show.line(f"{target.address}: {said}", "green" if passed(found) else "bold red")


def _writable(path: Path) -> bool:
    """Return whether a report can be written to *path*, as far as that shows beforehand."""
    return not path.is_dir() and os.access(path if path.exists() else path.parent, os.W_OK)


def _write(path: Path, document: dict[str, Any]) -> None:
    text = json.dumps(document, indent=1) + "\n"
    if str(path) == "-":
        sys.stdout.write(text)
        return
    try:
        path.write_text(text, "utf-8")
    except OSError as error:
        _fail(f"{path} cannot be written: {(error.strerror or 'unknown').lower()}", "check the path", code=2)


def _address(server: str) -> Address:
    """Read HOST:PORT, [IPv6]:PORT or unix:PATH."""
    if server.startswith("unix:"):
        return Address(path=server.removeprefix("unix:"))
    host, _, port = server.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if not host or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65_536 or (":" in host and not bracketed):
        _fail(f"{server} is no address", "say HOST:PORT, [IPV6]:PORT or unix:PATH", code=2)
    return Address(host.strip("[]"), int(port))


def _own(address: Address, *, certain: bool) -> None:
    """End the command unless the server is here, or its owner is asking."""
    try:
        local = is_local(address)
    except OSError:
        _fail(f"the name {address.host} cannot be resolved", "check it", code=2)
    if local or certain:
        return
    if sys.stdin.isatty() and typer.confirm(f"{address} is not on this machine. Do you run that server yourself?"):
        return
    _fail(f"{address} is not on this machine", "attack only servers you run yourself: then say --yes-this-is-mine", code=2)


def _context(ca: Path | None, *, verify: bool) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=str(ca) if ca else None)
    except OSError as error:
        _fail(f"{ca} cannot be read: {(error.strerror or 'no certificates in PEM').lower()}", "name a PEM file with --ca", code=2)
    if not verify:
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def _fail(what: str, remedy: str, code: int = 1) -> NoReturn:
    show.complain(what, remedy)
    raise typer.Exit(code)
