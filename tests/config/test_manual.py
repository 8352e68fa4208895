"""The tree described for programs and for people."""

from __future__ import annotations

from pathlib import Path

import jsonschema
import pytest
import yaml

from postbus.config import manual, schema
from postbus.config.shape import places
from postbus.config.tree import EMBEDDED, Settings

DOCS = Path(__file__).parents[2] / "docs"


def test_the_committed_manual_is_current() -> None:
    """docs/configuration.md is what the settings classes say.

    Made by: python -c "from postbus.config import manual; print(manual(), end='')" > docs/configuration.md
    """
    assert manual() == (DOCS / "configuration.md").read_text("utf-8")


def test_every_key_is_described() -> None:
    """Each key says what it means, in a sentence."""
    silent = [path for path, _, field in places(Settings) if not (field.description or "").rstrip().endswith((".", "?"))]
    assert [] == silent


def test_every_key_is_in_the_manual() -> None:
    """No key is left out."""
    text = manual()
    assert [] == [path for path, _, _ in places(Settings) if f"| `{path[-1]}` |" not in text]


@pytest.mark.parametrize(
    "tree",
    [pytest.param(EMBEDDED, id="embedded"), pytest.param(yaml.safe_load((DOCS / "examples" / "postbus.yaml").read_text()), id="example")],
)
def test_the_schema_takes_what_loads(tree: object) -> None:
    """The JSON Schema is one, and takes the defaults and the example."""
    jsonschema.Draft202012Validator.check_schema(schema())
    jsonschema.validate(tree, schema())


@pytest.mark.parametrize(
    "tree",
    [
        pytest.param({"routs": []}, id="unknown key"),
        pytest.param({"routes": []}, id="no route"),
        pytest.param({"listeners": {"Bad Name": {}}}, id="bad name"),
        pytest.param({"sinks": {"a": {"kind": "no kind"}}}, id="not a kind"),
        pytest.param({"sinks": {"a": {"kind": "file", "subject": "mail"}}}, id="another kind's key"),
        pytest.param({"drain_timeout_s": "2m"}, id="unit"),
    ],
)
def test_the_schema_refuses_what_does_not(tree: object) -> None:
    """The schema is closed."""
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(tree, schema())
