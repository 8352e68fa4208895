"""Names and signatures are aiosmtpd's, but for what docs/moving-from-aiosmtpd.md says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import postbus
from tests.server.parity import MODULES, differences

PAGE = Path(__file__).resolve().parents[2] / "docs" / "moving-from-aiosmtpd.md"


def explained() -> set[str]:
    """Return the names in the page's last table."""
    table = PAGE.read_text("utf-8").partition("## Names and signatures")[2]
    rows = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    return {name for cell in rows for name in re.findall(r"`([^`]+)`", cell)}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_every_difference_is_explained() -> None:
    """And nothing is explained that does not differ."""
    found = dict(differences())
    assert explained() == set(found), {name: what for name, what in found.items() if name not in explained()}


@pytest.mark.parametrize("module", MODULES)
def test_modules_have_the_names_of_theirs(module: str) -> None:
    """What ``sed s/aiosmtpd/postbus.server/`` makes of an import works."""
    __import__(f"postbus.server.{module}")


def test_names_with_an_underscore_that_programs_import() -> None:
    """``_Missing`` is what annotations of ``_call_handler_hook`` and ``challenge_auth`` name."""
    from postbus.server.smtp import MISSING, _Missing

    assert isinstance(MISSING, _Missing)


def test_a_typed_program_is_checked_strictly(tmp_path: Path) -> None:
    """As in a project of one's own, where postbus is a package that says ``py.typed``: nothing in it is Any by mistake."""
    source = Path(postbus.__file__).parent
    assert (source / "py.typed").exists()
    program = tmp_path / "consumer.py"
    program.write_text(
        (Path(__file__).parent / "consumer.py").read_text("utf-8") + '\n\nreveal_type(Smtpd().wait()[0].tls)\nSMTP(timeout="x")\n'
    )
    line = [sys.executable, "-m", "mypy", "--strict", "--config-file", os.devnull, "--cache-dir", str(tmp_path / "cache"), str(program)]
    environment = {**os.environ, "MYPYPATH": str(source.parent)}
    said = subprocess.run(line, cwd=tmp_path, env=environment, check=False, capture_output=True, text=True).stdout
    lines = [row for row in said.splitlines() if row.startswith("consumer.py")]
    assert ["note", "error", "error"] == [row.split(": ")[1] for row in lines], said
    assert 'Revealed type is "postbus.server.session.Tls | None"' in lines[0].replace(
        "Union[postbus.server.session.Tls, None]", "postbus.server.session.Tls | None"
    )
