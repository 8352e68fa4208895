"""What is written for people is true: commands exist, links lead somewhere, examples load and run, tables agree with the code."""

from __future__ import annotations

import builtins
import json
import re
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from postbus.cli.main import CLI
from postbus.config import Settings, check, load
from postbus.config.shape import places
from postbus.event.cloudevents import attributes, kafka_binary
from postbus.event.model import Event
from postbus.sinks import Rejected, Retry, Sent
from postbus.sinks.settings import signing_key
from postbus.sinks.webhook.answers import outcome_of
from postbus.sinks.webhook.signing import signature
from tests.peers import need

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
PAGES = [README, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "helm" / "postbus" / "README.md"]
EXAMPLE = ROOT / "docs" / "examples" / "postbus.yaml"
by_name = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())


def fences(page: Path, language: str) -> list[str]:
    """Return the fenced blocks of *language*."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text("utf-8"), re.MULTILINE | re.DOTALL)


def section(page: Path, title: str) -> str:
    """Return what stands under the second-level heading *title*."""
    return page.read_text("utf-8").partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def rows(text: str) -> Iterator[list[str]]:
    """Yield the cells of every table row in *text*, heads and rules left out."""
    for line in re.findall(r"^\|(?!---)(.*)\|$", text, re.MULTILINE)[1:]:
        yield [cell.strip() for cell in line.split(" | ")]


def anchors(page: Path) -> set[str]:
    """Return the anchors a page's headings make."""
    heads = re.findall(r"^#+ (.*)$", page.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


def test_the_quick_start_has_two_command_lines() -> None:
    """One starts postbus, the other runs every test; each is the first thing done in a fresh clone."""
    blocks = re.findall(r"^```sh\n(.*?)^```$", section(README, "Quick start"), re.MULTILINE | re.DOTALL)
    lines = [block.strip() for block in blocks]
    assert [1, 1] == [len(line.splitlines()) for line in lines]
    assert all(line.startswith("python3 -m venv .venv && ") for line in lines)
    assert lines[0].endswith("&& .venv/bin/postbus run")
    assert lines[1].endswith("&& .venv/bin/python -m tests")
    assert all((ROOT / name).is_file() for line in lines for name in re.findall(r"-r (\S+)", line))


@by_name
def test_links_lead_somewhere(page: Path) -> None:
    """Within the repository: the file is there, and has the heading."""
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", page.read_text("utf-8")):
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), target


@by_name
def test_commands_exist(page: Path) -> None:
    """Every `postbus ...` that is named, and every option of it."""
    root = typer.main.get_command(CLI)
    text = page.read_text("utf-8")
    named = re.findall(r"(?:`|^ {4}|bin/)postbus +([^`\n]+)", text, re.MULTILINE)
    for words in (line.split() for line in named):
        command: Any = root
        while hasattr(command, "commands") and words:
            word = words.pop(0)
            for choice in word.split("\\|"):
                if choice == "...":
                    break
                assert choice in command.commands, f"postbus {word}"
            else:
                command = command.commands[word.split("\\|")[0]]
                continue
            break
        options = {option for parameter in command.params for option in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= options, words


@pytest.mark.parametrize("text", [pytest.param(fences(README, "yaml")[0], id="README"), pytest.param(EXAMPLE.read_text(), id="docs")])
def test_configuration_examples_load(text: str, tmp_path: Path) -> None:
    """But for files that only the reader has, there is nothing to say about them."""
    file = tmp_path / "postbus.yaml"
    file.write_text(text)
    said = [str(finding) for finding in check(load(file, {})) if not re.search(r"does not exist|cannot be written", str(finding))]
    assert [] == said


def test_the_library_example_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """It starts and stops a server."""
    asked: list[str] = []
    monkeypatch.setattr(builtins, "input", asked.append)
    exec(compile(fences(README, "python")[0].replace("port=8025", "port=0"), "README.md", "exec"), {})
    assert ["Enter stops it."] == asked


def test_the_plug_in_example_runs() -> None:
    """It makes a sink, and says what it does not take."""
    names: dict[str, Any] = {}
    exec(compile(fences(ROOT / "docs" / "architecture.md", "python")[0], "architecture.md", "exec"), names)
    assert "notes" == names["make"]("notes", {"path": "x"}).name
    with pytest.raises(ValueError, match="say the path"):
        names["make"]("notes", {})


# --- docs/events.md

EVENTS = ROOT / "docs" / "events.md"
EVENT = Event(
    id="0198c0de-1234-7abc-8def-0123456789ab",
    type="dev.postbus.mail.received.v1",
    source="//mx",
    subject="all",
    time="2026-01-01T00:00:00.000Z",
    datacontenttype="application/json",
    dataschema="https://postbus.dev/schema",
    partitionkey="p",
    dedupekey="d",
    traceparent="00-1-2-01",
    data=b"{}",
    envelope=b"",
    mode="parsed",
    route="all",
)


def test_the_attributes_are_those_that_are_sent() -> None:
    """The table has every attribute and every Kafka header, and no other."""
    table = list(rows(section(EVENTS, "Attributes").partition("**Bindings")[0]))
    assert {*attributes(EVENT), "datacontenttype"} - {"specversion"} == {row[0].strip("`") for row in table}
    told = {name for row in table for name in re.findall(r"`([\w-]+)`", row[1])}
    assert {name for name, _ in kafka_binary(EVENT)[2]} - {"ce_specversion"} == told


def _python(secret: str, headers: Mapping[str, str], body: bytes) -> bool:
    names: dict[str, Any] = {}
    exec(compile(fences(EVENTS, "python")[0], "events.md", "exec"), names)
    verdict: bool = names["verified"](secret, headers, body)
    return verdict


def _javascript(secret: str, headers: Mapping[str, str], body: bytes) -> bool:
    program = need("node", "install nodejs")
    call = f"verified({json.dumps(secret)}, {json.dumps(headers)}, Buffer.from({json.dumps(list(body))}))"
    script = f"{fences(EVENTS, 'js')[0]}\nconsole.log({call})"
    done = subprocess.run([program, "-e", script], capture_output=True, text=True, timeout=30, check=True)
    return {"true": True, "false": False}[done.stdout.strip()]


@pytest.mark.parametrize("verify", [_python, _javascript], ids=["Python", "JavaScript"])
def test_signatures_are_verified_as_told(verify: Callable[[str, Mapping[str, str], bytes], bool]) -> None:
    """What postbus signs is taken, also while secrets are rotated; another body, secret or time is not."""
    ours, other = "whsec_" + "A" * 43 + "=", "whsec_" + "B" * 43 + "="
    body, now_s = '{"ü": 1}'.encode(), int(time.time())

    def headers(sent_s: int) -> dict[str, str]:
        signed = signature([signing_key(other), signing_key(ours)], EVENT.id, sent_s, body)
        return {"webhook-id": EVENT.id, "webhook-timestamp": str(sent_s), "webhook-signature": signed}

    assert verify(ours, headers(now_s), body)
    assert verify(other, headers(now_s), body)
    assert not verify("whsec_" + "C" * 43 + "=", headers(now_s), body)
    assert not verify(ours, headers(now_s), body + b" ")
    assert not verify(ours, headers(now_s - 1000), body)


def test_the_statuses_mean_what_is_told() -> None:
    """Row by row, as far as numbers are named."""
    words = {
        "done": lambda outcome: isinstance(outcome, Sent),
        "never sends": lambda outcome: isinstance(outcome, Rejected),
        "tries this event": lambda outcome: isinstance(outcome, Retry) and not outcome.sink_down,
        "takes the whole endpoint": lambda outcome: isinstance(outcome, Retry) and outcome.sink_down,
    }
    seen = set()
    for statuses, meaning in rows(section(EVENTS, "Webhooks").partition("**What your answer means.**")[2]):
        word = next(word for word in words if meaning.startswith(word))
        seen.add(word)
        for status in re.findall(r"\d\d\d", statuses.replace("2xx", "200").replace("3xx", "302")):
            assert words[word](outcome_of(int(status), None, datetime.now(UTC))), f"{status}: {meaning}"
    assert set(words) == seen


# --- docs/operations.md

OPERATIONS = ROOT / "docs" / "operations.md"


def test_metrics_that_are_named_exist() -> None:
    """So that no alert waits for ever."""
    known = (ROOT / "docs" / "metrics.md").read_text("utf-8")
    assert [] == [name for name in re.findall(r"postbus_[a-z_]+", OPERATIONS.read_text("utf-8")) if f"| `{name}` |" not in known]


@pytest.mark.parametrize("page", [README, OPERATIONS, EVENTS], ids=lambda page: page.name)
def test_settings_that_are_named_exist(page: Path) -> None:
    """By their end, as `spool.max_octets` or `drain_timeout_s`."""
    known = {".".join(str(part) for part in path if part not in {"<name>", 0}) for path, _, _ in places(Settings)}
    named = re.findall(r"`([a-z_]+(?:\.[a-z_]+)*_(?:s|ms|octets|max|file))`", page.read_text("utf-8"))
    assert [] == [name for name in named if not any(f".{path}".endswith(f".{name}") for path in known)]


def test_the_example_of_a_route_is_yaml() -> None:
    """Inline examples in braces are YAML, too."""
    for page in PAGES:
        for text in re.findall(r"`((?:sinks|listeners|routes): \{.*?\})`", page.read_text("utf-8")):
            assert isinstance(yaml.safe_load(text), dict)
