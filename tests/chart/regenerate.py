"""Write what is generated of the chart: ``python -m tests.chart.regenerate``.

The sub-schema of ``config`` comes from the application's settings classes; the table of the README from the
comments of values.yaml; the golden render is the chart's own values rendered.
"""

from __future__ import annotations

import json
from typing import Any

from postbus import config
from tests.chart.chart import CHART, GOLDEN, Tree, golden_text, render
from tests.chart.table import table

SCHEMA = CHART / "values.schema.json"
README = CHART / "README.md"
MARK = "<!-- values: python -m tests.chart.regenerate -->\n"
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


def readme() -> str:
    """Return the text of the chart's README: what is in the file, with the table of values made anew."""
    return README.read_text().partition(MARK)[0] + MARK + "\n" + table((CHART / "values.yaml").read_text())


def main() -> None:
    """Write the README, the schema, then the golden render, which the schema may refuse."""
    README.write_text(readme())
    SCHEMA.write_text(schema())
    GOLDEN.mkdir(exist_ok=True)
    (GOLDEN / "default.yaml").write_text(golden_text(render()))


if __name__ == "__main__":
    main()
