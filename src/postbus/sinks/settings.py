"""What an operator may say about sinks: one class per ``kind``, secrets by reference.

Light to import: pydantic only. ``SinkSettings`` is the union that ``postbus.config`` puts under ``sinks.<name>``.
"""

from __future__ import annotations

import os
import re
from base64 import b64decode
from binascii import Error as Base64Error
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field, IPvAnyNetwork, Tag, model_validator

KIB = 1024
MIB = 1024 * KIB

SECRET_MAX_OCTETS = 64 * KIB
"""A secret is a password, a token or a key; a larger file is the wrong file."""

KAFKA_TOPIC = r"^[a-zA-Z0-9._-]+$"
"""Kafka's own rule for topic names, with at most 249 characters."""

Topic = Annotated[str, Field(pattern=KAFKA_TOPIC, max_length=249)]

HEADER_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
"""A token (RFC 9110 s5.6.2)."""

OWN_HEADERS = ("content-type", "content-length", "content-encoding", "transfer-encoding", "connection", "host", "expect", "upgrade")
"""Request headers that are the sink's own business, beside ``webhook-*`` and ``ce-*``."""


SIGNING_PREFIX = "whsec_"
"""How a Standard Webhooks secret begins; what follows is base64, padding optional."""
SIGNING_KEY_MIN_OCTETS, SIGNING_KEY_MAX_OCTETS = 24, 64
"""Standard Webhooks 1.0.0, symmetric keys."""

VARIABLE_NAME = re.compile(r"[A-Z_][A-Z0-9_]*")
"""How environment variables are named (POSIX.1-2017 s8.1). Anything else may be the secret itself, put where its place belongs."""


class SecretMissingError(ValueError):
    """A secret is not where the configuration says it is. The text names the place, never the content."""


class Secret(BaseModel):
    """A reference to a secret: ``{file: /path}`` or ``{env: NAME}``. Files are read again whenever a client is made."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    file: Path | None = Field(default=None, description="File that holds the secret; white space at its ends is not part of it.")
    env: str | None = Field(default=None, min_length=1, description="Environment variable that holds the secret.")

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if (self.file is None) == (self.env is None):
            raise ValueError("say where the secret is: either `file` or `env`")
        return self

    def read(self) -> str:
        """Return the secret as it is now.

        Raises:
            SecretMissingError: the file cannot be read, the variable is not set, or there is nothing in it.
        """
        text = self._file_text(self.file) if self.file is not None else os.environ.get(self.env or "", "")
        if not text.strip():
            place = self.file or f"the environment variable {variable_shown(self.env or '')}"
            raise SecretMissingError(f"no secret in {place}")
        return text.strip()

    @staticmethod
    def _file_text(path: Path) -> str:
        try:
            with path.open("rb") as file:
                return file.read(SECRET_MAX_OCTETS).decode("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise SecretMissingError(f"the secret file {path} cannot be read: {error}") from error


def variable_shown(name: str) -> str:
    """Return the name of an environment variable fit for logs and pages; asterisks for what does not look like one."""
    return name if VARIABLE_NAME.fullmatch(name) else "***"


def signing_key(secret: str) -> bytes:
    """Return the key in a Standard Webhooks *secret*.

    Raises:
        ValueError: it is none; the text does not repeat it.
    """
    if not secret.startswith(SIGNING_PREFIX):
        raise ValueError(f"a signing secret begins with {SIGNING_PREFIX}")
    text = secret.removeprefix(SIGNING_PREFIX).rstrip("=")
    try:
        key = b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (Base64Error, ValueError):
        raise ValueError(f"what follows {SIGNING_PREFIX} in a signing secret is base64") from None
    if not SIGNING_KEY_MIN_OCTETS <= len(key) <= SIGNING_KEY_MAX_OCTETS:
        raise ValueError(f"a signing secret has {SIGNING_KEY_MIN_OCTETS} to {SIGNING_KEY_MAX_OCTETS} octets, not {len(key)}")
    return key


class ClientTls(BaseModel):
    """TLS towards a sink. The far side's certificate is always checked against its name."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    ca: Path | None = Field(default=None, description="PEM file with the authorities trusted; unset: the system's.")
    certificate: Path | None = Field(default=None, description="PEM file with our certificate, where the far side asks for one.")
    key: Path | None = Field(default=None, description="PEM file with its private key; unset: it is in `certificate`.")

    @model_validator(mode="after")
    def _key_has_certificate(self) -> Self:
        if self.key is not None and self.certificate is None:
            raise ValueError("`key` without `certificate`")
        return self


class Sasl(BaseModel):
    """How we prove to the Kafka broker who we are."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = Field(description="As the broker's listener is set up.")
    username: str = Field(min_length=1, description="User name.")
    password: Secret = Field(description="Where the password is.")


class KafkaSettings(BaseModel):
    """Events as records of a Kafka topic, acknowledged by all in-sync replicas."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["kafka"] = Field(description="This sink is Kafka.")
    bootstrap: tuple[str, ...] = Field(min_length=1, description="Brokers to ask first, as `host:port`; one that answers is enough.")
    topic: Topic = Field(description="Topic of every route that `topics` does not name. It must exist: postbus creates none.")
    topics: Mapping[str, Topic] = Field(default_factory=dict, description="Topic by route name, where it is another one.")
    mode: Literal["binary", "structured"] = Field(
        default="binary",
        description="CloudEvents mode. `binary`: attributes as headers, raw mail as its own octets. `structured`: one JSON object.",
    )
    tls: ClientTls | None = Field(default=None, description="Speak TLS; `{}` is TLS with the system's authorities. Unset: plain TCP.")
    sasl: Sasl | None = Field(default=None, description="User name and password, where the broker wants them.")
    client_id: str = Field(default="postbus", min_length=1, max_length=200, description="Our name in the broker's logs and quotas.")
    compression: Literal["none", "gzip", "snappy", "lz4", "zstd"] = Field(
        default="none", description="Compression of record batches; all but `none` and `gzip` need the package `cramjam`."
    )
    linger_ms: int = Field(default=1, ge=0, le=1000, description="How long a batch waits for company before it is sent.")
    idempotence: bool = Field(
        default=False,
        description=(
            "Let the broker drop duplicates of the client's own retries. Off: a batch expires with the request timeout, "
            "instead of being tried for as long as the broker is away. Consumers see duplicates either way (at least once)."
        ),
    )
    max_request_octets: int = Field(
        default=MIB,
        ge=64 * KIB,
        le=256 * MIB,
        description="Largest record, uncompressed, with key and headers; not above the topic's `max.message.bytes`.",
    )
    request_timeout_s: float = Field(default=8.0, gt=0, le=120, description="One request to a broker, and the life of a batch.")
    send_timeout_s: float = Field(
        default=20.0, gt=0, le=600, description="One attempt to deliver an event, whatever happens. Above twice `request_timeout_s`."
    )
    in_flight_max_octets: int = Field(default=32 * MIB, ge=MIB, description="Octets handed to the client and not yet acknowledged.")
    concurrency: int = Field(default=200, ge=1, le=10_000, description="Events in flight at once.")

    @model_validator(mode="after")
    def _times_fit(self) -> Self:
        if self.send_timeout_s <= 2 * self.request_timeout_s:
            raise ValueError("`send_timeout_s` must be more than twice `request_timeout_s`: a batch lives that long")
        if self.in_flight_max_octets < self.max_request_octets:
            raise ValueError("`in_flight_max_octets` must hold one event of `max_request_octets`")
        return self


def _checked_url(text: str) -> str:
    """Return *text* when it is a URL that can be posted to."""
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"{text!r}: expected http://host/path or https://host/path")
    if parts.username or parts.password:
        raise ValueError("a user name or password in the URL would end up in logs: use `authorization`")
    if parts.fragment:
        raise ValueError("a fragment (#...) is never sent")
    _ = parts.port  # raises ValueError for a port that is none
    return text


def _checked_headers(headers: Mapping[str, str]) -> Mapping[str, str]:
    """Return *headers* when each can be sent and none is the sink's own."""
    for name, value in headers.items():
        low = name.lower()
        if not HEADER_NAME.fullmatch(name) or low in OWN_HEADERS or low.startswith(("webhook-", "ce-")):
            raise ValueError(f"{name!r}: not a header that can be set")
        if not value.isprintable() or not value.isascii():
            raise ValueError(f"{name!r}: its value must be printable ASCII")
    return headers


class WebhookSettings(BaseModel):
    """Events as HTTP POST requests, one each."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["webhook"] = Field(description="This sink is an HTTP endpoint.")
    url: Annotated[str, AfterValidator(_checked_url)] = Field(description="Where to POST: `https://host/path`.")
    mode: Literal["structured", "binary"] = Field(
        default="structured",
        description=(
            "CloudEvents mode. `structured`: one JSON object, all of it signed. "
            "`binary`: attributes as `ce-` headers, which no signature covers."
        ),
    )
    signing_secrets: tuple[Secret, ...] = Field(
        default=(),
        max_length=8,
        description=(
            "Standard Webhooks secrets (`whsec_` and base64 of 24 to 64 octets). Several: signed with each, so that secrets can be rotated."
        ),
    )
    authorization: Secret | None = Field(default=None, description="Value of the Authorization header, such as `Bearer ...`.")
    headers: Annotated[Mapping[str, str], AfterValidator(_checked_headers)] = Field(
        default_factory=dict,
        description="Further request headers. No secrets here: they would stand in the configuration file. `/config` shows only the names.",
    )
    tls: ClientTls = Field(default_factory=ClientTls, description="Authorities and client certificate of an https URL.")
    private: bool | None = Field(
        default=None,
        description=(
            "Whether the URL may lead to private and loopback addresses. Unset: only when the URL itself names such a place "
            "(a private address, `localhost`, a name without a dot, or one under `.svc`, `.cluster.local`, `.internal`, `.local` "
            "or `.localhost`), so that a public name can never be pointed inwards. "
            "Link-local addresses, where clouds keep their credentials, are never allowed."
        ),
    )
    allow: tuple[IPvAnyNetwork, ...] = Field(
        default=(), description="Networks allowed whatever `private` says, in CIDR form; never link-local."
    )
    timeout_s: float = Field(
        default=20.0, gt=0, le=300, description="One whole attempt: connecting, sending, and the answer's status and body."
    )
    connect_timeout_s: float = Field(default=5.0, gt=0, le=60, description="Connecting, TLS included.")
    response_max_octets: int = Field(
        default=16 * KIB, ge=0, le=MIB, description="How much of an answer's body is read before the connection is closed."
    )
    event_max_octets: int = Field(
        default=36 * MIB, ge=16 * KIB, le=256 * MIB, description="Largest event posted; 25 MiB of mail in base64 fit into 36."
    )
    in_flight_max_octets: int = Field(default=64 * MIB, ge=MIB, description="Octets of events being posted at once.")
    concurrency: int = Field(default=32, ge=1, le=1000, description="Requests, and so connections, at once.")

    @model_validator(mode="after")
    def _one_fits(self) -> Self:
        if self.in_flight_max_octets < self.event_max_octets:
            raise ValueError("`in_flight_max_octets` must hold one event of `event_max_octets`")
        return self


class FileSettings(BaseModel):
    """Events as JSON lines in a file, or on standard output; a process of its own writes them (11 MiB, and what it is writing)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["file"] = Field(description="This sink is a file.")
    path: str = Field(
        default="-",
        min_length=1,
        description=(
            "File to append to; `-` is standard output. A file moved away is made anew; leave it alone for a second, since events may "
            "still be on their way into it. It is locked: one sink of one process writes to it."
        ),
    )
    fsync: bool = Field(default=True, description="Acknowledge only what has reached the disk; no effect on standard output.")
    timeout_s: float = Field(
        default=10.0, gt=0, le=300, description="How long one event may wait for a slow disk, or for a pipe nobody reads."
    )
    event_max_octets: int = Field(default=64 * MIB, ge=16 * KIB, le=256 * MIB, description="Largest event written.")
    in_flight_max_octets: int = Field(default=128 * MIB, ge=MIB, description="Octets waiting to be written.")
    concurrency: int = Field(default=200, ge=1, le=10_000, description="Events in flight at once.")

    @model_validator(mode="after")
    def _one_fits(self) -> Self:
        if self.in_flight_max_octets < self.event_max_octets:
            raise ValueError("`in_flight_max_octets` must hold one event of `event_max_octets`")
        return self


OWN_KINDS = ("kafka", "webhook", "file")
"""Kinds whose settings are classes of this module."""


class PluginSettings(BaseModel):
    """A sink of a kind that another installed package brings, by an entry point of the group `postbus.sinks`.

    Every other key is that package's: it is not looked at here, handed over as ``options``, and never shown.
    """

    model_config = ConfigDict(frozen=True, extra="allow")

    kind: str = Field(
        pattern=r"^[a-z0-9]+([._-][a-z0-9]+)*$",
        max_length=63,
        json_schema_extra={"not": {"enum": list(OWN_KINDS)}},
        description="The entry point's name. Every other key is the package's own; `postbus check` says when it is not installed.",
    )

    @property
    def options(self) -> Mapping[str, Any]:
        """The other keys, as they are in the file: the second argument of the entry point's function."""
        return dict(self.model_extra or {})


def _tag(said: object) -> str | None:
    """Return which class of the union *said* is for; ``None`` when it has no kind."""
    kind = said.get("kind") if isinstance(said, Mapping) else getattr(said, "kind", None)
    return kind if kind in OWN_KINDS else "plug-in" if isinstance(kind, str) else None


SinkSettings = Annotated[
    Annotated[KafkaSettings, Tag("kafka")]
    | Annotated[WebhookSettings, Tag("webhook")]
    | Annotated[FileSettings, Tag("file")]
    | Annotated[PluginSettings, Tag("plug-in")],
    Discriminator(_tag),
]
"""Settings of one sink; ``kind`` says which."""


def over_tls(sink: SinkSettings) -> bool:
    """Return whether what is handed to *sink* leaves this machine by TLS alone, or not at all (RFC 8689 s4.2).

    A file is the end of the way: we send it nowhere. Standard output is not, since whoever collects it carries it on, we know not how; nor
    is a sink that another package brings, of which we know nothing.
    """
    match sink:
        case KafkaSettings():
            return sink.tls is not None
        case WebhookSettings():
            return urlsplit(sink.url).scheme == "https"
        case FileSettings():
            return sink.path != "-"
        case _:
            return False
