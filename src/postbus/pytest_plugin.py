"""Fixtures for pytest, found by it wherever postbus is installed: ``postbus_smtpd`` and ``postbus_smtpd_factory``.

Light to import, since every run of pytest does: the server comes with the first test that asks for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from postbus.testing import Smtpd

MARKER = "postbus_smtpd(**options): how the server of the fixture serves; see postbus.testing.Smtpd"


def pytest_configure(config: pytest.Config) -> None:
    """Make the marker known."""
    config.addinivalue_line("markers", MARKER)


@pytest.fixture
def postbus_smtpd_factory() -> Iterator[Callable[..., Smtpd]]:
    """Return a function that starts a server, with the options of ``postbus.testing.Smtpd``; all of them end with the test."""
    from postbus.testing import Smtpd  # noqa: PLC0415 - see above

    with ExitStack() as running:
        yield lambda **options: running.enter_context(Smtpd(**options))


@pytest.fixture
def postbus_smtpd(request: pytest.FixtureRequest, postbus_smtpd_factory: Callable[..., Smtpd]) -> Smtpd:
    """A running mail server on a free port: ``host``, ``port``, the ``messages`` it got, ``wait``, ``refuse``, ``hang_up``.

    ``@pytest.mark.postbus_smtpd(protocol="lmtp", tls="starttls", ...)`` says how it serves; for each option the nearest marker counts.
    """
    options: dict[str, Any] = {}
    for marker in request.node.iter_markers("postbus_smtpd"):
        options = {**marker.kwargs, **options}
    return postbus_smtpd_factory(**options)
