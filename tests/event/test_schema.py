"""The published schema."""

from __future__ import annotations

from typing import Any

import jsonschema
import pytest

from postbus.event.schema import SCHEMA_ID, json_schema


def test_it_is_a_valid_schema_that_says_who_it_is() -> None:
    """JSON Schema 2020-12 with ``$id``."""
    schema = json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    assert ("https://json-schema.org/draft/2020-12/schema", SCHEMA_ID) == (schema["$schema"], schema["$id"])


def test_every_object_is_closed_and_documented() -> None:
    """So that no word slips into events by accident, and no reader has to guess."""
    objects = _objects(json_schema())
    assert len(objects) > 15
    for name, tree in objects.items():
        assert tree["additionalProperties"] is False, name
        assert tree["description"], name
        assert sorted(tree["properties"]) == sorted({*tree["required"], *(["raw"] if name == "Header" else [])}), name


def _objects(schema: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {**schema["$defs"], "MailReceived": schema}


def test_names_are_camel_case() -> None:
    """As JSON readers expect; ``from`` is a word of Python only."""
    names = {name for tree in _objects(json_schema()).values() for name in tree["properties"]}
    assert not [name for name in names if "_" in name]
    assert {"from", "sizeBytes", "recipientNormalized", "clientCertSubject"} <= names


@pytest.mark.parametrize("tree", [{}, {"mode": "parsed"}])
def test_half_an_event_is_refused(tree: dict[str, Any]) -> None:
    """Every field but one is required."""
    assert not jsonschema.Draft202012Validator(json_schema()).is_valid(tree)
