"""Write what is generated of the chart: ``python -m tests.chart.regenerate``.

The sub-schema of ``config`` comes from the application's settings classes; the golden render is the chart's own values rendered.
"""

from __future__ import annotations

import json
from typing import Any

from postbus import config
from tests.chart.chart import CHART, GOLDEN, Tree, golden_text, render

SCHEMA = CHART / "values.schema.json"
OWN_DEFINITIONS = ("quantity",)
"""Definitions of the schema that the chart writes by hand; the others are the application's."""


def schema() -> str:
    """Return the text of values.schema.json: what is in the file, with the application's part made anew."""
    text: Tree = json.loads(SCHEMA.read_text())
    settings = closed(config.schema())
    definitions = settings.pop("$defs", {})
    for key in ("$schema", "$id", "title"):
        settings.pop(key, None)
    text["properties"]["config"] = settings
    text["$defs"] = {name: text["$defs"][name] for name in OWN_DEFINITIONS} | definitions
    return json.dumps(text, indent=2, ensure_ascii=False) + "\n"


def closed(schema: Any) -> Any:
    """Return *schema* with every map by name closed: pydantic says what such names look like, and lets others pass."""
    if isinstance(schema, list):
        return [closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    shut = {"additionalProperties": False} if isinstance(schema.get("patternProperties"), dict) else {}
    return {key: closed(item) for key, item in schema.items()} | shut


def main() -> None:
    """Write the schema, then the golden render, which it may refuse."""
    SCHEMA.write_text(schema())
    GOLDEN.mkdir(exist_ok=True)
    (GOLDEN / "default.yaml").write_text(golden_text(render()))


if __name__ == "__main__":
    main()
