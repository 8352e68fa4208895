"""The tree described: as JSON Schema for programs and the chart, as a table for people."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from postbus.config import shape
from postbus.config.finding import Path
from postbus.config.tree import EMBEDDED, Settings
from postbus.config.wording import unit

SCHEMA_DIALECT = "https://json-schema.org/draft/2020-12/schema"

_HEAD = """# Configuration

<!-- Made from the settings classes by `postbus.config.manual`; a test keeps the two equal. -->

Postbus runs without any configuration: mail comes in on 127.0.0.1:2525, events go to standard output. To change that, write a YAML
file and name it with `--config`; variables of the environment override it key by key. `postbus check` says what is wrong, where, and
what would be right. A whole file to start from: [examples/postbus.yaml](examples/postbus.yaml).

- **Environment.** `POSTBUS__` and the path, with `__` between its parts: `POSTBUS__LISTENERS__SMTP__ADDRESS=0.0.0.0:2525`. Items of
  a list are counted from 0: `POSTBUS__ROUTES__0__MODE=raw`. A list or map can be given whole, as JSON: `POSTBUS__ROUTES='[{...}]'`.
- **Defaults.** `listeners`, `sinks` and `routes` have the defaults named below as a whole: a file with its own `listeners` replaces
  them, a file with its own `sinks` brings its own `routes`. Every other key keeps its default until it is set.
- **Secrets** are never in this tree, only where to find them: `{file: /run/secrets/token}` or `{env: TOKEN}`.
- **Unknown keys** are errors, in the file and after `POSTBUS__`.
- **YAML** is read as people mean it: `no`, `on`, `12:30` and `0600` are text, a key given twice is an error, there are no merge keys.
- **Units** are the end of a key's name: `_s` seconds, `_ms` milliseconds, `_octets` octets; numbers are plain, `26214400`, not `25MiB`.
- `<name>` stands for a name of your own, out of `a-z`, `0-9` and single `_`.
"""

_PATTERNS = """## Recipient patterns

Routes are tried in order, and the patterns of a route in order; the first that fits takes the recipient. Addresses and patterns are
compared in one form: needless quotes gone, local part in lower case, domain as lower-case A-labels.

| Pattern | Takes |
|---|---|
| `support@example.org` | this address |
| `*@example.org` | every address of the domain, not of its sub-domains |
| `orders-*@*.example.org` | `*` is any run of characters, also none; `*.example.org` is every sub-domain, not `example.org` itself |
| `support+*@example.org` | addresses with a tag, which the event names |
| `/(?P<team>[a-z]+)-team@example\\.org/` | a regular expression that fits the whole address; named groups become the event's `captures` |
| `postmaster` | the address without a domain, which RFC 5321 s4.5.1 allows for this name alone; `postmaster@...` takes it too |
| `*` | everyone |

The **tag** is what follows the first `+` of a local part. With `tags: true` a route compares addresses without their tag, so that
`support@example.org` takes `support+4711@example.org` too, and the event says `4711`. A pattern with a `+` of its own is compared with
the tag in place. A regular expression sees the whole address; its group `tag`, if it has one, is the tag.

**Regular expressions** are Python's, without look-around, back-references and flags. One that a hostile address could keep busy, such as
`([a-z]+)+@x` or `.*-.*@.*`, is refused when the file is read: let repeats that follow each other take different characters (`[^-@]*`), or
make them possessive (`[a-z]++`). An address of more than 320 characters fits no expression.
"""


def schema() -> dict[str, Any]:
    """Return the JSON Schema of the tree, as ``/config/schema`` serves it and the chart uses it for its ``config:``.

    A file may leave out every key, so nothing is required at the top; what is embedded is the default there.
    """
    made = Settings.model_json_schema(mode="validation")
    made.pop("required", None)
    for key, default in EMBEDDED.items():
        made["properties"][key]["default"] = default
        if "patternProperties" in made["properties"][key]:
            made["properties"][key]["additionalProperties"] = False  # pydantic says what a name is like, not that there is no other
    return {"$schema": SCHEMA_DIALECT, **made}


def manual() -> str:
    """Return docs/configuration.md: every key with its default, unit and meaning, in the order of the tree.

    Each class is one section, headed by every place it stands at.
    """
    parents: dict[type[BaseModel], dict[str, None]] = {}
    rows: dict[type[BaseModel], dict[str, str]] = {}
    for path, model, field in shape.places(Settings):
        parents.setdefault(model, {})[_path(path[:-1])] = None
        rows.setdefault(model, {}).setdefault(str(path[-1]), _row(path, field))
    sections = ["\n".join([*_heading(model, parents[model]), *rows[model].values(), ""]) for model in rows]
    return "\n".join([_HEAD, *sections, _PATTERNS])


def _heading(model: type[BaseModel], parents: Iterable[str]) -> Iterator[str]:
    named = ", ".join(f"`{parent}`" for parent in parents if parent)
    kind = shape.choices(shape.below((model,), "kind"))
    told = f", kind {kind[0]}" if kind else ", any other kind" if "kind" in model.model_fields else ""
    yield f"## {named or 'Top level'}{told}"
    yield ""
    yield _first_sentence(model)
    yield ""
    yield "| Key | Default | Unit | Meaning |"
    yield "|---|---|---|---|"


def _first_sentence(model: type[BaseModel]) -> str:
    return (model.__doc__ or "").strip().split("\n\n")[0].replace("\n", " ")


def _row(path: Path, field: FieldInfo) -> str:
    default = _example(str(path[0])) if len(path) == 1 and path[0] in EMBEDDED else _default(field)
    return f"| `{path[-1]}` | {default} | {unit(path)} | {_cell(field.description or '')}{_range(field)} |"


def _example(key: str) -> str:
    return f"`{json.dumps(EMBEDDED[key])}`"


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True, validated_data={})
    if value is None:
        return "unset"
    if isinstance(value, BaseModel):
        return "see below"
    if isinstance(value, tuple | list | dict):
        return f"`{json.dumps(value)}`" if value else "none"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f"`{value:.10g}`" if isinstance(value, float) else f"`{value}`"


def _range(field: FieldInfo) -> str:
    """Return the words or the numbers the key takes, as the end of its description."""
    words = shape.choices(shape.shape_of(field.annotation))
    if words and len(words) > 1:
        return f" One of {', '.join(f'`{word}`' for word in words)}."
    signs = {"ge": "at least", "gt": "more than", "le": "at most", "lt": "less than"}
    found = {name: value for item in field.metadata for name in signs if (value := getattr(item, name, None)) is not None}
    told = [f"{signs[name]} {value}" for name, value in found.items() if not (name == "gt" and value == 0)]
    return f" {' and '.join(told).capitalize()}." if told else ""


def _cell(text: str) -> str:
    return re.sub(r"\s+", " ", text.replace("|", "\\|"))


def _path(path: Path) -> str:
    text = ""
    for part in path:
        text += "[]" if isinstance(part, int) else f".{part}" if text else part
    return text
