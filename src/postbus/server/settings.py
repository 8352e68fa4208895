"""What an operator sets on a listener: where it listens, how it speaks TLS, how much it takes, how long it waits.

Light to import (pydantic only), frozen, every field with default, unit and reason. ``address_of`` reads the one text form an address has.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from postbus.server.auth_settings import AuthSettings
from postbus.server.client_settings import ClientSettings
from postbus.server.content_settings import ContentSettings
from postbus.server.parameter_settings import Announced, ParameterSettings
from postbus.server.proxy_settings import ProxySettings

KIB = 1024
MIB = 1024 * KIB

ADDRESS_FORMS = "host:port, [v6]:port, :port (all interfaces) or unix:/path"


def address_of(text: str) -> tuple[str, int] | Path:
    """Return (host, port), or the path of a Unix socket; host ``""`` means all interfaces.

    Raises:
        ValueError: *text* is none of ``host:port``, ``[v6]:port``, ``:port``, ``unix:/path``, ``/path``.
    """
    if text.startswith(("unix:", "/")):
        path = Path(text.removeprefix("unix:"))
        if not path.is_absolute():
            raise ValueError(f"{text!r}: a Unix socket needs an absolute path, as in unix:/run/postbus/lmtp.sock")
        return path
    host, colon, port = text.rpartition(":")
    if not colon or not port.isdecimal() or int(port) > 65535:
        raise ValueError(f"{text!r}: expected {ADDRESS_FORMS}")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ValueError(f"{text!r}: an IPv6 address goes in brackets, as in [::1]:2525")
    return ("" if host == "*" else host), int(port)


def _checked(text: str) -> str:
    address_of(text)
    return text


Address = Annotated[str, AfterValidator(_checked)]


def octal(value: object) -> object:
    """Return *value* as a number when it is octal digits behind a zero (``0660``, ``0o660``), as file modes are written."""
    digits = value.removeprefix("0o") if isinstance(value, str) else ""
    return int(digits, 8) if digits and str(value).startswith("0") and set(digits) <= set("01234567") else value


class TlsSettings(BaseModel):
    """Certificate and key of a listener, and when TLS is spoken."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    mode: Literal["none", "starttls", "require", "implicit"] = Field(
        default="starttls",
        description="none: no TLS. starttls: offered (RFC 3207). require: mail only after STARTTLS. implicit: TLS from the first octet.",
    )
    certificate: Path | None = Field(
        default=None, description="PEM file with the certificate and its chain. ECDSA costs half of RSA per handshake."
    )
    key: Path | None = Field(default=None, description="PEM file with the private key; none: it is in the certificate's file.")
    client_ca: Path | None = Field(
        default=None, description="PEM file of authorities; when set, a client may show a certificate, checked against it."
    )
    client_certificate: Literal["optional", "required"] = Field(
        default="optional", description="optional: a client may show one. required: without one signed by client_ca there is no TLS."
    )

    @model_validator(mode="after")
    def _has_certificate(self) -> Self:
        if self.mode != "none" and self.certificate is None:
            raise ValueError(f"mode {self.mode} needs a certificate: name its PEM file, or set mode to none")
        if self.client_certificate == "required" and self.client_ca is None:
            raise ValueError("client_certificate required needs client_ca: name the PEM file of the authorities that sign them")
        return self


class LimitSettings(BaseModel):
    """How much one listener, one session and one message may take."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    connections_max: int = Field(
        default=2000, ge=1, description="Open connections; one more gets 421 4.3.2. Kept below the process's limit on open files at start."
    )
    message_max_octets: int | None = Field(
        default=32 * MIB, ge=1024, description="Largest message, announced as SIZE (RFC 1870); null: no limit of the listener's own."
    )
    recipients_max: int = Field(
        default=1000,
        ge=100,
        description="Recipients per message (RFC 5321 s4.5.3.1.8: at least 100); one more gets 452 4.5.3; announced as RCPTMAX (RFC 9422).",
    )
    line_max_octets: int = Field(
        default=MIB,
        ge=1000,
        description="Longest content line; a longer one refuses the message (RFC 5321 asks for 1000; unwrapped base64 exists).",
    )
    errors_max: int = Field(default=20, ge=1, description="Refused commands in a session before 421 4.7.0 (Postfix: 20).")
    junk_max: int = Field(
        default=100, ge=1, description="Commands without mail between them (NOOP, RSET, VRFY, EHLO) before 421 4.7.0 (Postfix: 100)."
    )
    errors_slow: int = Field(
        default=10,
        ge=0,
        description="From so many refused commands on, answers get slower, by `timeouts.error_delay_s` each (Postfix: 10).",
    )
    junk_slow: int = Field(default=50, ge=0, description="From so many commands without mail between them on, answers get slower too.")
    unknown_max: int = Field(default=5, ge=1, description="Unknown commands in a session before 421 4.7.0.")
    recipient_domains_max: int = Field(
        default=0,
        ge=0,
        description="Different domains of recipients in a session; one more gets 452 4.5.3; announced as RCPTDOMAINMAX (RFC 9422). "
        "0: no limit.",
    )
    messages_max: int = Field(
        default=0, ge=0, description="MAIL commands per session, then 421 4.7.0; announced as MAILMAX (RFC 9422); 0: no limit."
    )
    session_max_octets: int = Field(
        default=1024 * MIB,
        ge=0,
        description="Octets received in one session; once they are exceeded, 421 4.7.0 after the message in transfer, which gets its true "
        "answer. 0: no limit.",
    )


class TimeoutSettings(BaseModel):
    """How long a listener waits. Peer timers stand still while we owe an answer or have paused reading."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    handshake_timeout_s: float = Field(default=10.0, gt=0, description="TLS handshake.")
    command_timeout_s: float = Field(
        default=300.0, gt=0, description="From our last reply to a whole command (RFC 5321 s4.5.3.2.7: 5 minutes)."
    )
    data_timeout_s: float = Field(
        default=180.0, gt=0, description="Content may be silent, or behind the minimum rate, for so long (RFC 5321 s4.5.3.2.5)."
    )
    data_rate_min_octets_s: int = Field(default=500, ge=1, description="Minimum rate of content (Postfix smtpd_min_data_rate: 500).")
    transaction_timeout_s: float = Field(default=3600.0, gt=0, description="From MAIL to the end of its message.")
    session_timeout_s: float = Field(default=7200.0, gt=0, description="A whole session.")
    greet_delay_s: float = Field(
        default=0.0,
        ge=0,
        le=60,
        description="The banner waits so long, and up to a second, for clients that talk before it (554 5.5.0); 0: it does not wait. "
        "Networks in `clients.exempt` are spared.",
    )
    error_delay_s: float = Field(
        default=1.0, ge=0, le=60, description="How much slower answers get, once there were `limits.errors_slow` errors; 0: no slower."
    )
    answer_timeout_s: float = Field(
        default=30.0, gt=0, description="Our own answer to a command or message; then 451. Keep it below the drain deadline."
    )


class ListenerSettings(BaseModel):
    """One listener."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    address: Address = Field(default="127.0.0.1:2525", description=f"Where to listen: {ADDRESS_FORMS}. Port 0: any free port.")
    protocol: Literal["smtp", "lmtp"] = Field(default="smtp", description="smtp (RFC 5321) or lmtp (RFC 2033: one reply per recipient).")
    hostname: str | None = Field(
        default=None, min_length=1, max_length=255, description="Name in the banner and EHLO; null: the machine's."
    )
    ident: str = Field(default="postbus", max_length=200, description="Words after the name in the banner.")
    smtputf8: bool = Field(default=True, description="Offer SMTPUTF8 (RFC 6531).")
    stray: Literal["reject", "allow"] = Field(
        default="reject",
        description="A CR or LF alone, or a NUL, in content: 550 5.5.2, or kept and recorded as a defect. Behind BDAT always kept.",
    )
    strict_pipelining: bool = Field(
        default=True,
        description="Octets before the banner, or behind EHLO, DATA, STARTTLS and their like (RFC 2920): 554 5.5.0 and close.",
    )
    lenient_paths: bool = Field(default=False, description="Take paths without angle brackets, as some devices send them.")
    announce: tuple[Announced, ...] = Field(
        default=(),
        description="Keywords to announce for senders that insist: DSN (RFC 3461), DELIVERBY (RFC 2852), MT-PRIORITY (RFC 6710). Their "
        "parameters are recorded in any case; postbus never sends mail, so nobody is ever notified.",
    )
    parameters: ParameterSettings = Field(default=ParameterSettings(), description="Parameters of MAIL and RCPT.")
    backlog: int = Field(default=1024, ge=1, description="Connections the kernel queues for us.")
    socket_mode: Annotated[int, BeforeValidator(octal)] = Field(
        default=0o660, ge=0, le=0o777, description="Permissions of a Unix socket, in octal as chmod takes them: `0660` is 432, the default."
    )
    spill_threshold_octets: int = Field(default=256 * KIB, ge=4 * KIB, description="Content beyond this goes to a file.")
    content: ContentSettings = Field(default=ContentSettings(), description="How content may come.")
    tls: TlsSettings = Field(default=TlsSettings(mode="none"), description="Certificate, key and mode.")
    proxy: ProxySettings = Field(default=ProxySettings(), description="Load balancers and mail proxies in front.")
    auth: AuthSettings = Field(default=AuthSettings(), description="Who may authenticate (RFC 4954), and who has to.")
    limits: LimitSettings = Field(default=LimitSettings(), description="How much is taken.")
    clients: ClientSettings = Field(default=ClientSettings(), description="How much one client network may ask for.")
    timeouts: TimeoutSettings = Field(default=TimeoutSettings(), description="How long is waited.")
