"""The commands of ``postbus``: read arguments, call what does the work, say what came of it.

Exit codes: 0 done, 1 it could not be done or was refused, 2 the command line or the configuration is wrong.
"""

from __future__ import annotations

import json
import smtplib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from postbus import __version__
from postbus.cli import admin, letter

OUT = Console(highlight=False, soft_wrap=True)
ERR = Console(stderr=True, highlight=False, soft_wrap=True)

CLI = typer.Typer(
    name="postbus",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    help="Inbound mail to events: SMTP and LMTP in, Kafka, webhooks and files out.\n\n"
    "Start with [bold]postbus run[/bold], then [bold]postbus send[/bold] in a second terminal.",
    epilog="Every setting: docs/configuration.md, or `postbus schema config`.",
)

ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config", "-c", metavar="FILE", help="YAML file; without it the embedded defaults. POSTBUS__... variables override both."
    ),
]
HttpOption = Annotated[str, typer.Option("--http", metavar="URL", help="Where the running postbus serves HTTP.", envvar="POSTBUS_HTTP")]
TokenOption = Annotated[Path | None, typer.Option("--token-file", metavar="FILE", help="File with the bearer token of the sidecar.")]
DEFAULT_HTTP = "http://127.0.0.1:8080"


@CLI.command()
def run(config: ConfigOption = None) -> None:
    """Take mail and publish events until SIGTERM or Ctrl-C; SIGHUP reloads routes, sinks and certificates.

    Events go to the configured sinks (by default JSON lines on standard output), the log to standard error.
    """
    from postbus import app  # noqa: PLC0415 - the other commands start faster without the servers' libraries

    raise typer.Exit(app.run(config))


@CLI.command()
def check(config: ConfigOption = None) -> None:
    """Say in one line each what is wrong with the configuration, where, and what would be right."""
    from postbus import config as configuration  # noqa: PLC0415

    try:
        known: configuration.Loaded | configuration.ConfigurationError = configuration.load(config)
    except configuration.ConfigurationError as error:
        known = error
    findings = configuration.check(known)
    for finding in findings:
        colour = "red" if finding.severity == "error" else "yellow"
        OUT.print(f"[{colour}]{finding.severity}[/{colour}]: {escape(str(finding))}")
    errors = sum(finding.severity == "error" for finding in findings)
    if not errors:
        OUT.print(f"{config or 'embedded defaults'}: fine" + (f", {len(findings)} to look at" if findings else ""))
    raise typer.Exit(2 if errors else 0)


@CLI.command()
def schema(what: Annotated[str, typer.Argument(help="`event` (what consumers get) or `config` (what operators set).")] = "event") -> None:
    """Print a JSON Schema: of the events, or of the configuration."""
    if what == "event":
        from postbus.event import model  # noqa: PLC0415

        document: Any = model.json_schema()
    elif what == "config":
        from postbus import config as configuration  # noqa: PLC0415

        document = configuration.schema()
    else:
        _fail(f"there is no schema called {what}", "ask for event or config", code=2)
    sys.stdout.write(json.dumps(document, indent=2) + "\n")


@CLI.command()
def send(
    recipients: Annotated[list[str] | None, typer.Argument(metavar="[TO]...", help="Recipients.", show_default=False)] = None,
    host: Annotated[str, typer.Option(help="Server to hand the mail to.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Its port.")] = 2525,
    path: Annotated[str | None, typer.Option("--socket", metavar="PATH", help="A Unix socket instead (LMTP).")] = None,
    lmtp: Annotated[bool, typer.Option("--lmtp", help="Speak LMTP: one answer per recipient.")] = False,
    starttls: Annotated[bool, typer.Option("--starttls", help="Upgrade to TLS first.")] = False,
    tls: Annotated[bool, typer.Option("--tls", help="TLS from the first octet.")] = False,
    insecure: Annotated[bool, typer.Option("--insecure", help="Take any certificate.")] = False,
    sender: Annotated[
        str, typer.Option("--from", metavar="ADDRESS", help="Envelope sender; empty for the null sender.")
    ] = "sender@example.org",
    subject: Annotated[str, typer.Option(help="Subject.")] = "A test mail from postbus send",
    text: Annotated[str, typer.Option(help="Plain text body.")] = "Hello from postbus send.",
    html: Annotated[str | None, typer.Option(help="HTML body, beside the text.")] = None,
    attach: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help="Attach a file; may be given again.", exists=True, dir_okay=False)
    ] = None,
    raw: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Send this file as it is, lines made CRLF, instead of a composed mail.", exists=True)
    ] = None,
) -> None:
    """Send a test mail and say what became of it."""
    to = recipients or ["test@example.org"]
    destination = letter.Destination(
        host=host,
        port=port,
        path=path,
        lmtp=lmtp or path is not None,
        encryption="implicit" if tls else "starttls" if starttls else "none",
        verify=not insecure,
    )
    octets = letter.canonical(
        raw.read_bytes() if raw else letter.compose(sender, to, subject=subject, text=text, html=html, attachments=attach or ()).as_bytes()
    )
    where = path or f"{host}:{port}"
    try:
        fates = letter.deliver(destination, sender, to, octets)
    except ConnectionRefusedError:
        _fail(f"nobody listens at {where}", "start postbus with `postbus run`, or name the listener with --host and --port")
    except (OSError, smtplib.SMTPException) as error:
        _fail(f"the conversation with {where} broke: {error}", "the server's log says why")
    _print_fates(fates, len(octets), where)
    raise typer.Exit(0 if all(fate.accepted for fate in fates) else 1)


def _print_fates(fates: Sequence[letter.Fate], size_octets: int, where: str) -> None:
    """Show what the server said of each recipient, and where to look next."""
    table = Table(
        "recipient",
        "outcome",
        "server said",
        title=f"{size_octets:,} octets to {where}",
        title_justify="left",
        box=None,
    )
    for fate in fates:
        outcome = "[green]accepted[/green]" if fate.accepted else "[yellow]try later[/yellow]" if fate.code < 500 else "[red]refused[/red]"
        table.add_row(escape(fate.recipient), outcome, escape(f"{fate.code} {fate.text}"))
    OUT.print(table)
    taken = {fate.transaction_id for fate in fates if fate.transaction_id}
    for transaction in sorted(taken):
        OUT.print(f'The events carry [bold]"transactionId":"{transaction}"[/bold]: look for it where the route\'s sinks lead.')


@CLI.command()
def status(http: HttpOption = DEFAULT_HTTP, as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False) -> None:
    """Show what the running postbus says of itself: listeners, sinks, spool, readiness."""
    with _asking(http):
        OUT.print_json(data=admin.get(http, "/statusz")) if as_json else OUT.print(escape(admin.text(http, "/statusz")), end="")


@CLI.command()
def healthcheck(http: HttpOption = DEFAULT_HTTP) -> None:
    """Exit 0 when the running postbus is ready, 1 when it is not: for containers outside Kubernetes."""
    with _asking(http):
        answer = admin.probe(http, "/readyz?verbose")
    sys.stdout.write(answer.text)
    raise typer.Exit(0 if answer.ok else 1)


@CLI.command()
def reload(http: HttpOption = DEFAULT_HTTP, token_file: TokenOption = None) -> None:
    """Ask the running postbus to read its configuration again, as SIGHUP does."""
    with _asking(http):
        OUT.print_json(data=admin.post(http, "/reload", admin.token(token_file)))


LETTERS = typer.Typer(no_args_is_help=True, help="Events that were given up: list them, deliver them again, drop them.")
CLI.add_typer(LETTERS, name="dead-letters")

EventOption = Annotated[str | None, typer.Option("--event", metavar="ID", help="Only this event.")]
SinkOption = Annotated[str | None, typer.Option("--sink", metavar="NAME", help="Only letters for this sink.")]


@LETTERS.command("list")
def list_letters(http: HttpOption = DEFAULT_HTTP, token_file: TokenOption = None, sink: SinkOption = None) -> None:
    """List dead letters with the reason each was given up."""
    table = Table("event", "sink", "recipient", "since", "attempts", "reason", box=None)
    with _asking(http):
        for row in admin.dead_letters(http, admin.token(token_file), sink):
            table.add_row(*(escape(str(cell)) for cell in row))
    if table.row_count:
        OUT.print(table)
    else:
        OUT.print("no dead letters")


@LETTERS.command()
def replay(http: HttpOption = DEFAULT_HTTP, token_file: TokenOption = None, event: EventOption = None, sink: SinkOption = None) -> None:
    """Deliver dead letters again, with their ids unchanged; all of them without --event and --sink."""
    with _asking(http):
        OUT.print(f"{admin.change_letters(http, admin.token(token_file), 'replay', event, sink)} queued for delivery")


@LETTERS.command()
def drop(http: HttpOption = DEFAULT_HTTP, token_file: TokenOption = None, event: EventOption = None, sink: SinkOption = None) -> None:
    """Forget dead letters for good: those of --event or --sink (one of them is needed)."""
    if event is None and sink is None:
        _fail("dropping every dead letter at once is not offered", "name --event ID or --sink NAME", code=2)
    with _asking(http):
        OUT.print(f"{admin.change_letters(http, admin.token(token_file), 'drop', event, sink)} dropped")


def _version(wanted: bool) -> None:
    if wanted:
        OUT.print(f"postbus {__version__}")
        raise typer.Exit


@CLI.callback()
def options(version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Say the version.")] = False) -> None:
    """Take the options that stand before the command."""


def _asking(http: str) -> admin.Trouble:
    """Return a context that ends the command with clear words when the sidecar cannot be asked or says no."""
    return admin.Trouble(http, _fail)


def _fail(what: str, remedy: str, code: int = 1) -> NoReturn:
    """Say what went wrong and what to do, and end the command."""
    ERR.print(f"[red]postbus:[/red] {escape(what)}; {escape(remedy)}")
    raise typer.Exit(code)


def main() -> None:
    """Run the command line."""
    CLI()
