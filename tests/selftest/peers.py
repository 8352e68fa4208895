"""Servers of others on loopback, to be asked what ours is asked: Postfix and aiosmtpd, as they come, with TLS and one refused recipient."""

from __future__ import annotations

import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import trustme
from aiosmtpd.controller import Controller

from postbus.selftest.target import Target
from postbus.selftest.wire import Address
from tests.e2e.postfix import folder_for_postfix, postfix
from tests.ports import free_ports

OLD: dict[str, str] = {"smtpd_forbid_bare_newline": "no", "smtpd_forbid_unauth_pipelining": "no"}
"""The defaults before Postfix 3.9."""

NEW: dict[str, str] = {
    "smtpd_forbid_bare_newline": "normalize",
    "smtpd_forbid_bare_newline_exclusions": "",  # by default loopback is excluded
    "smtpd_forbid_unauth_pipelining": "yes",
}
"""The defaults since, which older ones can be told."""

POSTFIX: dict[str, str] = {
    # not its defaults: mail ends here instead of anywhere, and errors are not slowed down
    "mydestination": "mx.test",
    "local_transport": "discard:",
    "local_recipient_maps": "",
    "smtpd_relay_restrictions": "permit_mynetworks, reject",
    "default_transport": "discard:",
    "transport_maps": "",
    "smtpd_error_sleep_time": "0",
    "smtpd_tls_security_level": "may",
}


class Refusing:
    """A handler that refuses one recipient, and takes what else comes."""

    async def handle_RCPT(self, server: Any, session: Any, envelope: Any, address: str, rcpt_options: list[str]) -> str:
        """Refuse, or append."""
        if address == "nobody@mx.test":
            return "550 5.1.1 No such user"
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        """Take."""
        return "250 OK"


@contextmanager
def an_aiosmtpd(authority: trustme.CA) -> Iterator[Target]:
    """Run aiosmtpd."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(server)
    port = free_ports(1)[0]
    controller = Controller(Refusing(), hostname="127.0.0.1", port=port, tls_context=server)
    controller.start()
    try:
        yield target(port, authority)
    finally:
        controller.stop()


@contextmanager
def a_postfix(authority: trustme.CA, more: Mapping[str, str]) -> Iterator[Target]:
    """Run Postfix with *more* settings, or end the test where there is none."""
    with folder_for_postfix() as folder:
        certificate = authority.issue_cert("localhost")
        pem, ca = folder / "server.pem", folder / "authority.pem"
        certificate.private_key_and_cert_chain_pem.write_to_path(pem)
        authority.cert_pem.write_to_path(ca)
        pem.chmod(0o600)
        access = folder / "access"
        access.write_text("nobody@mx.test 550 5.1.1 No such user\n")
        settings = {
            **POSTFIX,
            **more,
            "smtpd_recipient_restrictions": f"check_recipient_access texthash:{access}, permit",
            "smtpd_tls_cert_file": str(pem),
            "smtpd_tls_key_file": str(pem),
        }
        with postfix(folder, {}, ca=ca, settings=settings) as running:
            yield target(running.port, authority)


def target(port: int, authority: trustme.CA) -> Target:
    """Return a server on loopback whose certificate is for localhost."""
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return Target(Address("127.0.0.1", port), context=context, name="localhost")
