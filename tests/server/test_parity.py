"""Names and signatures are aiosmtpd's, but for what docs/moving-from-aiosmtpd.md says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.server.parity import MODULES, differences

NOT_YET = ("proxy_protocol", "smtp.SMTP(proxy_protocol_timeout)")

PAGE = Path(__file__).resolve().parents[2] / "docs" / "moving-from-aiosmtpd.md"


def explained() -> set[str]:
    """Return the names in the page's last table."""
    table = PAGE.read_text("utf-8").partition("## Names and signatures")[2]
    rows = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    return {name for cell in rows for name in re.findall(r"`([^`]+)`", cell)}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_every_difference_is_explained() -> None:
    """And nothing is explained that does not differ."""
    found = {name: what for name, what in differences() if not name.startswith(NOT_YET)}
    assert explained() == set(found), {name: what for name, what in found.items() if name not in explained()}


@pytest.mark.parametrize("module", [name for name in MODULES if name != "proxy_protocol"])
def test_modules_have_the_names_of_theirs(module: str) -> None:
    """What ``sed s/aiosmtpd/postbus.server/`` makes of an import works."""
    __import__(f"postbus.server.{module}")
