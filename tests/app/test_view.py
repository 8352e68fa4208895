"""What the sidecar is told of the process."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from postbus.app.view import View
from postbus.bridge.load import Load
from postbus.config import load

FILE = """
routes:
- {name: ann, match: [canary@example.org, '/canary-.+/'], sinks: [hook]}
- {name: all, match: ['*@example.org', postmaster], sinks: [hook]}
sinks: {hook: {kind: webhook, url: 'https://hook.example.org/canary'}}
"""


def test_the_open_page_names_nobody(tmp_path: Path) -> None:
    """Routes show their names, domains and sinks; neither addresses nor the secret parts of a URL nor the words of a bad file."""
    file = tmp_path / "postbus.yaml"
    file.write_text(FILE)
    loaded = load(file, {})
    sinks = {"hook": SimpleNamespace(kind="webhook", health=lambda: SimpleNamespace(ok=True, detail="posting"))}
    process: dict[str, Any] = {"state": "serving", "started_s": 0.0, "file": file, "loaded": loaded, "settings": loaded.settings}
    process |= {
        "problems": ("canary: wrong",),
        "listeners": {},
        "sinks": sinks,
        "dispatcher": None,
        "spool": None,
        "load": Load(used=lambda: 1 << 20, limit=lambda: None),
    }
    shown = View(cast("Any", SimpleNamespace(**process))).numbers()
    assert "canary" not in json.dumps(shown)
    assert {"ann": "***@example.org /***/", "all": "*@example.org postmaster"} == {
        name: route["match"] for name, route in cast("dict[str, dict[str, str]]", shown["routes"]).items()
    }
    assert {"hook": "POST to https://hook.example.org/***"} == {
        name: sink["place"] for name, sink in cast("dict[str, dict[str, str]]", shown["sinks"]).items()
    }
