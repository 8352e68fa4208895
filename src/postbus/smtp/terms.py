"""The terms a session runs under: what is offered to the peer, and how far its patience-trying may go."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Offer:
    """What the server advertises and accepts now; replaced as a value (``dataclasses.replace``).

    Attributes:
        hostname: our name, in the answers to HELO, EHLO and LHLO.
        size_octets: largest message (RFC 1870), or ``None`` for no limit and no SIZE keyword.
        smtputf8, eightbitmime, pipelining, enhanced, help: keyword advertised; SMTPUTF8 also decides over non-ASCII paths.
        chunking: BDAT is taken (RFC 3030); else its octets are skipped and it is answered with 502 5.5.1.
        binarymime: BODY=BINARYMIME is taken (RFC 3030 s3); nothing without ``chunking``.
        starttls: STARTTLS is possible (advertised while TLS is not active).
        require_tls: before TLS only the verbs the table marks so pass, others 530 5.7.0.
        auth: SASL mechanisms, upper-case, in the order in which they are announced (RFC 4954); none: there is no AUTH.
        auth_tls: AUTH only under TLS; before, it is not announced and gets 538 5.7.11.
        require_auth: before AUTH has succeeded only the verbs the table marks so pass, others 530 5.7.0.
        strict_pipelining: bytes behind a verb that ends a group (RFC 2920 s3.1), or before the banner: 554 5.5.0 and close.
        stray: bare CR, bare LF or NUL behind DATA: ``reject`` (550 5.5.2 after the real end) or ``allow`` (counted in ``defects``).
        lenient_paths: take paths without brackets and without a domain, and say so in ``defects``.
        xclient, xforward: this peer may replace the client's address, and say where a mail came from before (``xclient``); advertised.
        keywords: further EHLO lines, as sent; a keyword here also allows the parameter of its name.
        limits: what of ``Limits`` a sender can heed is advertised (RFC 9422).
        requiretls: REQUIRETLS is possible (RFC 8689; advertised and taken while TLS is active).
        deliverby_min_s: least time a sender may ask his mail to be returned after (RFC 2852 s2, min-by-time).
        unregistered: MAIL and RCPT parameters that nobody has registered: ``refuse`` (555 5.5.4) or ``record`` (ignored, and counted in
            ``defects``).
    """

    hostname: str
    size_octets: int | None = 33_554_432
    smtputf8: bool = True
    eightbitmime: bool = True
    pipelining: bool = True
    enhanced: bool = True
    help: bool = True
    chunking: bool = True
    binarymime: bool = True
    starttls: bool = False
    require_tls: bool = False
    auth: tuple[str, ...] = ()
    auth_tls: bool = True
    require_auth: bool = False
    strict_pipelining: bool = True
    stray: Literal["reject", "allow"] = "reject"
    lenient_paths: bool = False
    xclient: bool = False
    xforward: bool = False
    keywords: tuple[str, ...] = ()
    limits: bool = False
    requiretls: bool = False
    deliverby_min_s: int = 0
    unregistered: Literal["refuse", "record"] = "refuse"

    def __hash__(self) -> int:
        """Return what tells most offers apart: at each greeting its reply is looked up, and a hash of all fields takes microseconds."""
        return hash((self.hostname, self.size_octets, self.auth, self.xclient))


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one session.

    Attributes:
        command_octets: a command line with its CRLF, before the allowance its verb's extensions bring (RFC 5321 s4.5.3.1.4).
        endless_octets: a line without CRLF this far is hung up on; up to here it is discarded in constant memory.
        text_line_octets: a content line over ``text_line_flag_octets`` (RFC 5321 s4.5.3.1.6) is a defect, over this a refusal.
            1 MiB, because unwrapped base64 and generated HTML exist.
        overrun_factor: content over ``Offer.size_octets`` is read, dropped and refused; over this many times the size, and at
            least 1 MiB over it, it is hung up on.
        chunk_small_octets, small_chunks: a message may come in so many BDAT chunks below that size, the last one not counted, and no more:
            each costs us as much work as its sender, and an empty one brings a message nowhere. Real senders' chunks have kilobytes.
        mails: MAIL commands in one session, refused ones too (RFC 9422 s4.1); 0: no limit.
        recipients: accepted in one transaction (RFC 9422 s4.2); RFC 5321 s4.5.3.1.8 wants 100 at least, Postfix has 1000.
        recipient_domains: different domains of recipients named in one session (RFC 9422 s4.3); 0: no limit.
        recipients_overshoot: RCPTs past that limit which are no errors yet, as in Postfix: a sender may have pipelined them.
        errors: refused commands (not 4xx of ours) without a message accepted in between; Postfix's hard limit is 20.
        junk: NOOP, RSET, VRFY, EHLO and the like without a message accepted in between; Postfix has 100.
        errors_slow, junk_slow: beyond so many errors, or so much junk, each is a nuisance, to be answered slower
            (``Engine.nuisances``); Postfix has 10 for errors.
        auth_failures: AUTH commands answered 5xx in the whole session; the last of them gets 421 instead. chasquid takes 3.
        unknown: unknown verbs; chasquid takes 3, Postfix 20.
        backlog_octets: received while an answer is owed; a shell that stops reading at ``Engine.backlogged`` never meets it.
    """

    command_octets: int = 512
    endless_octets: int = 65_536
    text_line_flag_octets: int = 1000
    text_line_octets: int = 1_048_576
    overrun_factor: int = 4
    chunk_small_octets: int = 1024
    small_chunks: int = 1000
    mails: int = 0
    recipients: int = 1000
    recipient_domains: int = 0
    recipients_overshoot: int = 1000
    errors: int = 20
    junk: int = 100
    errors_slow: int = 10
    junk_slow: int = 50
    unknown: int = 5
    auth_failures: int = 3
    backlog_octets: int = 1_048_576

    def __hash__(self) -> int:
        """Return what tells most limits apart; see ``Offer``."""
        return hash((self.mails, self.recipients, self.recipient_domains))
