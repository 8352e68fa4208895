"""The published schema of ``data``, version 1, as models: what an event says, field by field.

Sizes are in octets, times RFC 3339 in UTC. The models are closed, so that a test finds every word the encoder lets slip;
consumers must ignore fields they do not know, since fields are added without a new ``type`` (the schema's own URI then
counts up). Parse time is left out on purpose: a retry must render the same bytes.

File names, Content-Type, From, Message-ID and everything else from the message itself are the sender's word, unverified.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

SCHEMA_ID = "https://postbus.dev/schema/mail.received/1.0.json"
"""``dataschema`` of every event with JSON data, and ``$id`` of the schema. Its last number counts compatible additions."""

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Octets = Annotated[int, Field(ge=0)]
Base64 = Annotated[str, Field(pattern=r"^[A-Za-z0-9+/]*={0,2}$", json_schema_extra={"contentEncoding": "base64"})]


class _Closed(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", alias_generator=to_camel, populate_by_name=True)


class Tls(_Closed):
    """What TLS was negotiated."""

    version: str = Field(description="Protocol version, such as TLSv1.3.")
    cipher: str = Field(description="Cipher suite, OpenSSL's name.")
    client_cert_subject: str | None = Field(description="Subject of the client's verified certificate.")


class Authentication(_Closed):
    """Who the client proved to be (RFC 4954)."""

    mechanism: str = Field(description="SASL mechanism.")
    identity: str = Field(description="Authenticated identity.")


class Listener(_Closed):
    """The listener that took the message."""

    name: str = Field(description="Its name in the configuration.")
    protocol: str = Field(
        description="Keyword of RFC 3848 in lower case: smtp, esmtp, esmtps, esmtpa, esmtpsa, lmtp, lmtps, lmtpa, lmtpsa."
    )
    tls: Tls | None = Field(description="Null without TLS.")
    auth: Authentication | None = Field(description="Null when the client did not authenticate.")


class Forwarded(_Closed):
    """Where a mail came from before it came to the client, by the client's word (XFORWARD), which it is trusted for; null: not said."""

    name: str | None = Field(description="Host name.")
    address: str | None = Field(description="Network address, of IP as a rule.")
    port: int | None = Field(ge=0, description="Port.")
    protocol: str | None = Field(description="How the mail was sent: SMTP, ESMTP or another.")
    helo: str | None = Field(description="What the host called itself.")
    ident: str | None = Field(description="What the client calls the message, such as a queue id.")
    source: str | None = Field(description="LOCAL: it began with the client, or its own network; REMOTE: anywhere else.")


class Client(_Closed):
    """The sending host as the listener saw it, or as a proxy it trusts said."""

    ip: str = Field(description="IPv4 or IPv6 address; empty on a Unix socket, or where a proxy does not know it.")
    port: int = Field(ge=0, description="Its port; 0 on a Unix socket, or where it is not known.")
    ptr: str | None = Field(description="Host name by reverse look-up, when that is done: by a proxy (XCLIENT).")
    helo: str | None = Field(description="What it called itself, unverified.")
    via_proxy: bool = Field(description="Address and port come from a PROXY header or XCLIENT.")
    forwarded: Forwarded | None = Field(description="Null unless the client said XFORWARD.")


class DeliverBy(_Closed):
    """BY (RFC 2852): what the sender wants to happen once the time is over. Nothing here makes it happen."""

    seconds: int = Field(description="From the moment it was said; negative: over already.")
    mode: Literal["notify", "return"] = Field(description="The sender wants a notice, or the mail back.")
    trace: bool = Field(description="He wants to be told of each hop.")


class OtherParams(_Closed):
    """Parameters without a field of their own, by keyword in upper case; null: the keyword stood alone."""

    mail: dict[str, str | None] = Field(description="Of MAIL.")
    rcpt: dict[str, str | None] = Field(description="Of this event's RCPT.")


class EnvelopeParams(_Closed):
    """Parameters of MAIL and of this event's RCPT, all that were said; values as sent."""

    size: int | None = Field(description="SIZE as announced (RFC 1870).")
    body: Literal["7BIT", "8BITMIME", "BINARYMIME"] = Field(description="BODY (RFC 6152, RFC 3030); 7BIT when not given.")
    smtputf8: bool = Field(description="SMTPUTF8 was given (RFC 6531).")
    envid: str | None = Field(description="ENVID (RFC 3461), xtext as sent.")
    ret: str | None = Field(description="RET (RFC 3461).")
    notify: list[str] = Field(description="NOTIFY (RFC 3461).")
    orcpt: str | None = Field(description="ORCPT (RFC 3461, RFC 6533), encoded as sent.")
    require_tls: bool = Field(description="REQUIRETLS was given (RFC 8689): pass the mail on by TLS alone.")
    priority: int | None = Field(ge=-9, le=9, description="MT-PRIORITY (RFC 6710), -9 to 9.")
    by: DeliverBy | None = Field(description="BY (RFC 2852).")
    auth: str | None = Field(description="AUTH (RFC 4954 s5), xtext as sent: the submitter in the sending host's word; <> when unknown.")
    other: OtherParams


class Envelope(_Closed):
    """The SMTP envelope, with this event's recipient alone."""

    mail_from: str = Field(description="Reverse-path; empty for the null sender.")
    recipient: str = Field(description="Forward-path as the client sent it.")
    recipient_normalized: str = Field(
        description="Needless quotes off, local part in ASCII lower case, +tag kept, domain in lower-case A-labels."
    )
    index: int = Field(ge=0, description="Position among the accepted recipients, from 0.")
    count: int = Field(ge=1, description="How many recipients were accepted.")
    params: EnvelopeParams


class Route(_Closed):
    """The route that took the recipient."""

    name: str = Field(description="Its name in the configuration.")
    pattern: str = Field(description="The pattern that matched.")
    tag: str | None = Field(description="What follows + in the local part, where the route asks for it.")
    captures: dict[str, str] = Field(description="Named captures of a regular expression.")


class Mailbox(_Closed):
    """One mailbox of an address header, unverified."""

    name: str | None = Field(description="Display name, decoded.")
    address: str = Field(description="Address, or the text found in its place.")
    group: str | None = Field(description="Name of the group it stands in (RFC 5322 s3.4).")
    valid: bool = Field(description="The address is an addr-spec of RFC 5322 or 6532.")


class Message(_Closed):
    """The message as a whole. Facts from headers are null, or empty lists, where the headers are silent or were not read (mode raw)."""

    size_bytes: Octets = Field(description="Size as received after un-dotting, before any header of ours.")
    sha256: Sha256 = Field(description="Of the same octets.")
    content_type: str | None = Field(description="Media type in lower case.")
    message_id: str | None = Field(description="Message-ID with its angle brackets.")
    date: str | None = Field(description="Date in UTC; null when it cannot be read.")
    date_raw: str | None = Field(description="Date as sent.")
    subject: str | None = Field(description="Subject, decoded.")
    from_: list[Mailbox] = Field(alias="from", description="Authors. Not verified.")
    sender: list[Mailbox] = Field(description="Sender, when it differs from From.")
    reply_to: list[Mailbox] = Field(description="Where answers are wanted.")
    to: list[Mailbox] = Field(description="To; not the envelope.")
    cc: list[Mailbox] = Field(description="Cc.")
    in_reply_to: list[str] = Field(description="Message ids answered.")
    references: list[str] = Field(description="Message ids of the thread.")
    list_id: str | None = Field(description="List-Id without brackets (RFC 2919).")
    auto_submitted: str | None = Field(description="Keyword of Auto-Submitted (RFC 3834).")
    is_bounce: bool = Field(description="A delivery status report, or null sender and a mailer as author. A guess.")
    is_auto_reply: bool = Field(description="Written by a vacation program or the like. A guess.")


class Header(_Closed):
    """One header field."""

    name: str = Field(description="Name as sent.")
    value: str = Field(description="Unfolded, decoded (RFC 2047, UTF-8), controls replaced.")
    lossy: bool = Field(description="The value may not be what was written; raw has the octets.")
    raw: Base64 | None = Field(default=None, description="The unfolded value's octets; only when not pure ASCII or lossy.")


class Charset(_Closed):
    """How a body became text."""

    declared: str | None = Field(description="Label as sent.")
    used: str = Field(description="Canonical name (WHATWG) of what decoded it; us-ascii is its own.")
    lossy: bool = Field(description="It did not fit its declaration, or characters were replaced.")


class Body(_Closed):
    """The readable bodies: the first text/plain and the first text/html that are no attachments. Line ends as sent."""

    text: str | None = Field(description="Plain text.")
    html: str | None = Field(description="HTML, not sanitised.")
    text_charset: Charset | None
    html_charset: Charset | None
    text_truncated: bool = Field(description="The text was cut.")
    html_truncated: bool = Field(description="The HTML was cut or left out.")


class Reference(_Closed):
    """Where an object store holds the octets. Not emitted yet."""

    bucket: str
    key: str
    url: str | None
    expires_at: str | None


Kind = Literal["inline", "reference", "omitted"]
Reason = Literal["too_large", "undecodable"]


class Content(_Closed):
    """The octets of an attachment."""

    kind: Kind = Field(description="inline: in base64; reference: in a store (not emitted yet); omitted: left out for the reason given.")
    base64: Base64 | None
    ref: Reference | None
    reason: Reason | None = Field(description="too_large: the event would exceed what its sinks carry.")


class Attachment(_Closed):
    """One part that is not a body; a nested message/rfc822 is one attachment. Everything but size and hash is the sender's word."""

    index: int = Field(ge=0)
    part_id: str = Field(description="Part number as IMAP counts, such as 1.2.")
    filename: str | None = Field(description="As declared: may hold slashes and dots; never use it as a path.")
    content_type: str = Field(description="As declared, lower case.")
    disposition: Literal["attachment", "inline"] | None
    content_id: str | None = Field(description="Without angle brackets.")
    size_bytes: Octets | None = Field(description="Decoded.")
    sha256: Sha256 | None = Field(description="Of the decoded octets.")
    content: Content


class Raw(_Closed):
    """The whole message's octets: after un-dotting, CRLF kept, before any header of ours."""

    kind: Kind
    base64: Base64 | None
    ref: Reference | None
    reason: Reason | None
    size_bytes: Octets
    sha256: Sha256


class Verdict(_Closed):
    """One result in words of RFC 8601. Not emitted yet."""

    result: str
    domain: str | None
    reason: str | None


class Auth(_Closed):
    """Sender authentication. All null: nothing is verified yet, and From proves nothing."""

    spf: Verdict | None
    dkim: list[Verdict] | None
    dmarc: Verdict | None
    arc: Verdict | None


class Defect(_Closed):
    """One thing about the message, or about its way here, that is not as it should be. Never a reason to drop mail."""

    code: str = Field(description="Dotted name; the list is documented and grows.")
    part_id: str | None = Field(description="The part it is about.")
    detail: str = Field(description="A few words for people.")


class Limits(_Closed):
    """What the bounds did to this event."""

    parts_seen: int = Field(ge=0, description="MIME parts, multiparts included; 0 when not parsed.")
    truncated_fields: list[str] = Field(description="Paths of fields that are not whole.")


class MailReceived(_Closed):
    """Data of dev.postbus.mail.received.v1: one message for one recipient."""

    mode: Literal["parsed", "raw", "both", "reference"] = Field(
        description="What is here. Mail that cannot be parsed comes as raw on every route. reference is not emitted yet."
    )
    transaction_id: str = Field(description="Id of the SMTP transaction, told to the sender in the reply.")
    listener: Listener
    client: Client
    envelope: Envelope
    route: Route
    message: Message
    headers: list[Header] | None = Field(description="In order, duplicates kept. Null in mode raw.")
    body: Body | None = Field(description="Null in mode raw.")
    attachments: list[Attachment] | None = Field(description="Null in mode raw.")
    raw: Raw | None = Field(description="Null in mode parsed.")
    auth: Auth
    defects: list[Defect]
    limits: Limits


def json_schema() -> dict[str, Any]:
    """Return the schema of ``data`` as JSON Schema 2020-12, with ``$id``."""
    tree = MailReceived.model_json_schema(by_alias=True, mode="validation")
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": SCHEMA_ID,
        **tree,
        "title": "Mail received, version 1",
    }
