"""The commands of ``postbus``: read arguments, call what does the work, say what came of it.

Exit codes: 0 done, 1 it could not be done or was refused, 2 the command line or the configuration is wrong.
"""

from __future__ import annotations

import getpass
import inspect
import json
import smtplib
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar

import typer

from postbus import __version__
from postbus.cli import admin, letter, selftest, show

PLAIN = not (sys.stdout.isatty() and sys.stderr.isatty())
DEFAULT_HTTP = "http://127.0.0.1:8080"

CLI = typer.Typer(
    name="postbus",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None if PLAIN else "rich",
    pretty_exceptions_enable=False,
    help="Inbound mail to events: SMTP and LMTP in, Kafka, webhooks and files out.\n\n"
    "Start with `postbus run`, then `postbus send` in a second terminal.\n\n"
    "Exit codes: 0 done; 1 it could not be done, or was refused; 2 the command line or the configuration is wrong.",
    epilog="Every setting: docs/configuration.md, or `postbus schema config`.",
)

EXAMPLES: Mapping[str, Sequence[str]] = {
    "run": (
        "postbus run                                    everything to standard output",
        "postbus run -c postbus.yaml                    as the file says",
        "POSTBUS__LISTENERS__SMTP__ADDRESS=:25 postbus run",
        "postbus run > events.jsonl                     events to a file, the log to the terminal",
    ),
    "check": ("postbus check -c postbus.yaml", "POSTBUS__ACCEPTANCE=hold postbus check -c postbus.yaml"),
    "schema": ("postbus schema > event.schema.json", "postbus schema config > config.schema.json"),
    "passwd": (
        "postbus passwd users tim                       asks for the password twice",
        "pass show tim | postbus passwd users tim       reads a line instead",
        "postbus passwd users tim --delete",
        "postbus passwd users --list",
    ),
    "send": (
        "postbus send you@example.org",
        "postbus send you@example.org --html '<p>Hello</p>' --attach photo.jpg",
        "postbus send a@example.org b@example.org --socket /run/postbus/lmtp.sock",
        "postbus send you@example.org --host mx.example.org --port 25 --starttls",
        "postbus send you@example.org --port 587 --starttls --user tim",
        "postbus send you@example.org --from '' --raw bounce.eml",
    ),
    "status": ("postbus status", "postbus status --json | jq .sinks"),
    "healthcheck": ("postbus healthcheck && echo ready",),
    "reload": ("postbus reload --token-file /etc/postbus/admin/token",),
    "selftest": selftest.EXAMPLES,
    "list": ("postbus dead-letters list --token-file token", "postbus dead-letters list --sink orders --json | jq .reason"),
    "replay": ("postbus dead-letters replay --token-file token", "postbus dead-letters replay --sink orders --token-file token"),
    "drop": ("postbus dead-letters drop --event 0198c0de-... --token-file token",),
}
"""What ends each command's help."""

Command = TypeVar("Command", bound=Callable[..., None])


def command(group: typer.Typer, name: str, context_settings: dict[str, Any] | None = None) -> Callable[[Command], Command]:
    """Register a command whose help is its docstring and its examples."""

    def register(function: Command) -> Command:
        examples = "\n".join(["\b", "Examples:", *(f"  {example}" for example in EXAMPLES[name])])
        group.command(name, help=f"{inspect.getdoc(function)}\n\n{examples}", context_settings=context_settings)(function)
        return function

    return register


ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config", "-c", metavar="FILE", help="YAML file; without it the embedded defaults. POSTBUS__... variables override both."
    ),
]
HttpOption = Annotated[str, typer.Option("--http", metavar="URL", help="Where the running postbus serves HTTP.", envvar="POSTBUS_HTTP")]
TokenOption = Annotated[
    Path | None,
    typer.Option("--token-file", metavar="FILE", help="File with the sidecar's bearer token.", envvar="POSTBUS_TOKEN_FILE"),
]
JsonOption = Annotated[bool, typer.Option("--json", help="As JSON, for programs.")]


@command(CLI, "run")
def run(config: ConfigOption = None) -> None:
    """Take mail and publish events until SIGTERM or Ctrl-C.

    Events go to the configured sinks (by default JSON lines on standard output), the log to standard error.
    SIGHUP, or a change of the file, reloads. The first Ctrl-C drains: mail in transfer gets its answer. The second ends at once; what is
    in the spool stays there.
    """
    from postbus import app  # noqa: PLC0415 - the other commands start faster without the servers' libraries

    raise typer.Exit(app.run(config))


@command(CLI, "check")
def check(config: ConfigOption = None) -> None:
    """Say what is wrong with the configuration.

    One line each: what, where, and what would be right. Nothing is started and nobody is asked: files, certificates and addresses are
    looked at here. Exits 2 when postbus would not start.
    """
    from postbus import config as configuration  # noqa: PLC0415

    try:
        known: configuration.Loaded | configuration.ConfigurationError = configuration.load(config)
    except configuration.ConfigurationError as error:
        known = error
    findings = configuration.check(known)
    for finding in findings:
        show.line(str(finding), "red" if finding.severity == "error" else "yellow")
    errors = sum(finding.severity == "error" for finding in findings)
    name = str(config or "embedded defaults")
    if isinstance(known, configuration.ConfigurationError) or errors:
        show.line(f"{name}: {_counted(errors, 'error')}, not usable", "bold red")
        raise typer.Exit(2)
    tree = known.settings
    parts = ((tree.listeners, "listener"), (tree.routes, "route"), (tree.sinks, "sink"))
    warned = f"; {_counted(len(findings), 'warning')}" if findings else ""
    show.line(f"{name}: fine, {', '.join(_counted(len(part), word) for part, word in parts)}{warned}", "green")


def _counted(count: int, word: str) -> str:
    return f"{count} {word}" if count == 1 else f"{count} {word}s"


@CLI.command(
    "smtpd",
    context_settings={
        "ignore_unknown_options": True, "allow_extra_args": True, "allow_interspersed_args": False, "help_option_names": [],
    },
)  # fmt: skip
def smtpd(arguments: Annotated[list[str] | None, typer.Argument()] = None) -> None:
    """Serve SMTP with a handler class of your own."""  # what --help says comes from the library, whose options these are
    from postbus.server import main as server  # noqa: PLC0415

    raise typer.Exit(server.main(["-n", *(arguments or ())], program="postbus smtpd"))


@command(CLI, "schema")
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


@command(CLI, "send")
def send(
    recipients: Annotated[list[str] | None, typer.Argument(metavar="[TO]...", help="Recipients.", show_default=False)] = None,
    host: Annotated[str, typer.Option(metavar="NAME", help="Server to hand the mail to.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Its port.")] = 2525,
    path: Annotated[str | None, typer.Option("--socket", metavar="PATH", help="A Unix socket instead (LMTP).")] = None,
    lmtp: Annotated[bool, typer.Option("--lmtp", help="Speak LMTP: one answer per recipient.")] = False,
    starttls: Annotated[bool, typer.Option("--starttls", help="Upgrade to TLS first.")] = False,
    tls: Annotated[bool, typer.Option("--tls", help="TLS from the first octet.")] = False,
    insecure: Annotated[bool, typer.Option("--insecure", help="Take any certificate.")] = False,
    user: Annotated[
        str | None,
        typer.Option("--user", metavar="NAME", help="Log in; the password is asked for, or is a line of standard input."),
    ] = None,
    sender: Annotated[
        str, typer.Option("--from", metavar="ADDRESS", help="Envelope sender; empty for the null sender.")
    ] = "sender@example.org",
    subject: Annotated[str, typer.Option(metavar="TEXT", help="Subject.")] = "A test mail from postbus send",
    text: Annotated[str, typer.Option(metavar="TEXT", help="Plain text body.")] = "Hello from postbus send.",
    html: Annotated[str | None, typer.Option(metavar="TEXT", help="HTML body, beside the text.")] = None,
    attach: Annotated[list[Path] | None, typer.Option(metavar="FILE", help="Attach a file; may be given again.")] = None,
    raw: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Send this file as it is, lines made CRLF, instead of a composed mail.")
    ] = None,
    http: Annotated[
        str | None,
        typer.Option(
            "--http",
            metavar="URL",
            envvar="POSTBUS_HTTP",
            help=f"Whom to ask what became of the mail. [default: {DEFAULT_HTTP} for a mail to this machine]".replace("[", "(").replace(
                "]", ")"
            ),
        ),
    ] = None,
    wait: Annotated[float, typer.Option("--wait", metavar="SECONDS", min=0, help="How long to wait for the events to be delivered.")] = 5.0,
) -> None:
    """Send a test mail and follow it to its sinks.

    Says what the server answered, and what became of the events when the sidecar can be asked (--http). Exits 1 when a recipient was
    refused, or an event became a dead letter.
    """
    to = recipients or ["test@example.org"]
    if tls and (starttls or lmtp or path):
        _fail("--tls is for SMTP from the first octet", "leave --starttls, --lmtp and --socket away", code=2)
    destination = letter.Destination(
        host=host,
        port=port,
        path=path,
        lmtp=lmtp or path is not None,
        encryption="implicit" if tls else "starttls" if starttls else "none",
        verify=not insecure,
        user=user,
        password="" if user is None else _password(user),
    )
    octets = _octets(raw, lambda: letter.compose(sender, to, subject=subject, text=text, html=html, attachments=attach or ()).as_bytes())
    with show.progress("sending", len(octets), octets=True) as bar:
        try:
            fates = letter.deliver(destination, sender, to, octets, bar)
        except (OSError, smtplib.SMTPException) as error:
            _fail(*letter.trouble(error, destination))
    show.line(f"{show.size(len(octets))} to {destination}")
    show.table(("recipient", "outcome", "server said"), [(fate.recipient, _outcome(fate), f"{fate.code} {fate.text}") for fate in fates])
    if user is None and any(fate.code == 530 for fate in fates):
        show.line("530 wants something first: --user NAME to log in, or --starttls", "yellow")
    asked = http or (DEFAULT_HTTP if path or host in {"127.0.0.1", "localhost", "::1"} else None)
    good = [_follow(transaction, asked, wait) for transaction in dict.fromkeys(fate.transaction_id for fate in fates) if transaction]
    raise typer.Exit(0 if all(good) and all(fate.accepted for fate in fates) else 1)


def _password(user: str) -> str:
    return getpass.getpass(f"Password for {user}: ") if sys.stdin.isatty() else sys.stdin.readline().rstrip("\r\n")


def _octets(raw: Path | None, compose: Callable[[], bytes]) -> bytes:
    """Return the mail to send, its lines ended by CRLF."""
    try:
        return letter.canonical(raw.read_bytes() if raw else compose())
    except OSError as error:
        _fail(f"{error.filename} cannot be read: {(error.strerror or 'unknown').lower()}", "check the path", code=2)
    except ValueError as error:
        _fail(f"no mail can be made of that: {error}", "check subject and addresses", code=2)


def _outcome(fate: letter.Fate) -> str:
    return "accepted" if fate.accepted else "try later" if fate.code < 500 else "refused"


def _follow(transaction: str, http: str | None, wait_s: float) -> bool:
    """Show what became of the events of *transaction*; return whether none of them came to a bad end."""
    events = admin.fates(http, transaction, wait_s) if http else None
    if not events:
        show.line(f'transaction {transaction}: every event carries it as "transactionId"')
        reason = f"{http} does not know it" if http else "no sidecar was asked"
        show.line(
            f"what became of the events is not known here, {reason}; name the sidecar with --http, or look where the routes' sinks lead"
        )
        return True
    sinks = _sinks(str(http))
    show.line(f"transaction {transaction}")
    show.table(
        ("route", "sink", "event", "outcome", "look at"),
        [(row["route"], row["sink"], row["event_id"], _word(row), sinks.get(row["sink"], {}).get("place", "")) for row in events],
    )
    late = dict.fromkeys(row["sink"] for row in events if not row["decided"])
    for name in late:
        show.line(f"sink {name} says: {sinks.get(name, {}).get('detail', 'nothing')}", "yellow")
    if late:
        show.line("what waits is safe in the spool and will be tried again: see `postbus status`", "yellow")
    return not any(row["required"] and row["word"] in {"dead letter", "given up", "damaged"} for row in events)


def _word(row: Mapping[str, Any]) -> str:
    return f"{row['word']} ({row['detail']})" if row["detail"] else str(row["word"])


def _sinks(http: str) -> Mapping[str, Mapping[str, Any]]:
    """Return what /statusz says of each sink; nothing where it cannot be asked."""
    try:
        found: Mapping[str, Mapping[str, Any]] = admin.status(http)["sinks"]
    except (OSError, ValueError):
        return {}
    return found


@command(CLI, "passwd")
def passwd(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The user file (listeners.NAME.auth.users); made if it is not there.")],
    user: Annotated[str | None, typer.Argument(metavar="[USER]", help="Whose password.", show_default=False)] = None,
    delete: Annotated[bool, typer.Option("--delete", help="Remove the user.")] = False,
    listed: Annotated[bool, typer.Option("--list", help="Print the users' names.")] = False,
) -> None:
    """Set a user's password in a file of salted hashes (argon2id).

    On a terminal the password is asked for twice, without echo; else it is a line of standard input. The file is replaced at once, readable
    by its owner only; a running postbus reads it again by itself.
    """
    from postbus.cli import passwd as passwords  # noqa: PLC0415 - the other commands start faster without the library that hashes

    if (user is None) != listed or (delete and listed):
        _fail("name a user, or say --list", "as in: postbus passwd FILE USER", code=2)
    if user is None:
        passwords.listed(file, _fail)
    elif delete:
        passwords.delete(file, user, _fail)
    else:
        passwords.change(file, user, _fail)


@command(CLI, "status")
def status(http: HttpOption = DEFAULT_HTTP, as_json: JsonOption = False) -> None:
    """Show listeners, routes, sinks and spool."""
    with _asking(http):
        found = admin.status(http)
        if as_json:
            sys.stdout.write(json.dumps(found, indent=2) + "\n")
        else:
            show.status(found)


@command(CLI, "healthcheck")
def healthcheck(http: HttpOption = DEFAULT_HTTP) -> None:
    """Exit 0 when postbus is ready, 1 when not.

    For containers outside Kubernetes, which has probes of its own.
    """
    with _asking(http):
        answer = admin.probe(http, "/readyz?verbose")
    sys.stdout.write(answer.text)
    raise typer.Exit(0 if answer.ok else 1)


@command(CLI, "reload")
def reload(http: HttpOption = DEFAULT_HTTP, token_file: TokenOption = None) -> None:
    """Have the configuration read again, as by SIGHUP.

    Says what changed, and what only a restart changes. A configuration that is wrong changes nothing; exits 2 then.
    """
    with _asking(http):
        found = admin.reload(http, admin.token(token_file))
    for problem in found["problems"]:
        show.line(problem, "red")
    if found["problems"]:
        show.line("nothing changed", "bold red")
        raise typer.Exit(2)
    for path in found["changed"]:
        show.line(f"changed: {path}", "green")
    for path in found["needs_restart"]:
        show.line(f"needs a restart: {path}", "yellow")
    if not found["changed"] and not found["needs_restart"]:
        show.line("nothing differs; certificates were read again")


command(CLI, "selftest")(selftest.selftest)


LETTERS = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None if PLAIN else "rich",
    help="List, replay or drop events that were given up.\n\nNeeds the sidecar's bearer token (sidecar.token_file).",
)
CLI.add_typer(LETTERS, name="dead-letters")

EventOption = Annotated[str | None, typer.Option("--event", metavar="ID", help="Only this event.")]
SinkOption = Annotated[str | None, typer.Option("--sink", metavar="NAME", help="Only letters for this sink.")]


@command(LETTERS, "list")
def list_letters(
    http: HttpOption = DEFAULT_HTTP, token_file: TokenOption = None, sink: SinkOption = None, as_json: JsonOption = False
) -> None:
    """List them, oldest first, with the reasons."""
    with _asking(http):
        letters = admin.dead_letters(http, admin.token(token_file), sink)
        if as_json:
            for row in letters:
                sys.stdout.write(json.dumps(row) + "\n")
            return
        rows = [
            (row["event_id"], row["sink"], row["recipient"], show.instant(row["dead_since_ms"]), row["attempts"], row["reason"])
            for row in letters
        ]
    if rows:
        show.table(("event", "sink", "recipient", "since (UTC)", "attempts", "reason"), rows)
    else:
        show.line("no dead letters")


@command(LETTERS, "replay")
def replay(http: HttpOption = DEFAULT_HTTP, token_file: TokenOption = None, event: EventOption = None, sink: SinkOption = None) -> None:
    """Deliver them again, with their ids unchanged.

    All of them without --event and --sink.
    """
    show.line(f"{_counted(_change('replay', http, token_file, event, sink), 'event')} queued for delivery")


@command(LETTERS, "drop")
def drop(http: HttpOption = DEFAULT_HTTP, token_file: TokenOption = None, event: EventOption = None, sink: SinkOption = None) -> None:
    """Forget them for good: --event or --sink says which."""
    if event is None and sink is None:
        _fail("dropping every dead letter at once is not offered", "name --event ID or --sink NAME", code=2)
    show.line(f"{_counted(_change('drop', http, token_file, event, sink), 'event')} dropped")


def _change(action: str, http: str, token_file: Path | None, event: str | None, sink: str | None) -> int:
    """Change dead letters, with a progress bar on a terminal; return how many."""
    count = 0
    with _asking(http):
        bearer = admin.token(token_file)
        total = 1 if event else admin.dead_letters_total(http, bearer, sink)
        with show.progress(action, total) as bar:
            for count in admin.change_letters(http, bearer, action, event, sink):
                bar(count)
    return count


def _version(wanted: bool) -> None:
    if wanted:
        show.line(f"postbus {__version__}")
        raise typer.Exit


@CLI.callback()
def options(version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Say the version.")] = False) -> None:
    """Take the options that stand before the command."""


def _asking(http: str) -> admin.Trouble:
    """Return a context that ends the command with clear words when the sidecar cannot be asked or says no."""
    return admin.Trouble(http, _fail)


def _fail(what: str, remedy: str, code: int = 1) -> NoReturn:
    """Say what went wrong and what to do, and end the command."""
    show.complain(what, remedy)
    raise typer.Exit(code)


def main(arguments: Iterable[str] | None = None) -> None:
    """Run the command line."""
    CLI(None if arguments is None else list(arguments))
