"""Loads, renders and takes apart the chart, without a helm binary or a cluster."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import helm_python
import yaml

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "helm" / "postbus"
GOLDEN = Path(__file__).parent / "golden"
RELEASE = "postbus"
NAMESPACE = "mail"

Tree = dict[str, Any]
WORKLOADS = ("Deployment", "StatefulSet")


@dataclass(frozen=True, slots=True)
class Release:
    """What a set of values renders to.

    Attributes:
        texts: rendered text by template, NOTES.txt included.
        documents: every Kubernetes object, in the order of the templates.
    """

    texts: Mapping[str, str]
    documents: tuple[Tree, ...]

    def all(self, kind: str) -> list[Tree]:
        """Return the objects of *kind*."""
        return [document for document in self.documents if document["kind"] == kind]

    def one(self, kind: str, name: str = RELEASE) -> Tree:
        """Return the object of *kind* called *name*; there must be one."""
        (found,) = [document for document in self.all(kind) if document["metadata"]["name"] == name]
        return found

    def workload(self) -> Tree:
        """Return the Deployment or StatefulSet; there must be one of both together."""
        (found,) = [document for document in self.documents if document["kind"] in WORKLOADS]
        return found

    def pod(self) -> Tree:
        """Return the workload's pod template."""
        return dict(self.workload()["spec"]["template"])

    def container(self) -> Tree:
        """Return the pod's container; there must be one."""
        (found,) = self.pod()["spec"]["containers"]
        return dict(found)

    def config(self) -> str:
        """Return the text of the application's configuration file."""
        (found,) = self.all("ConfigMap")
        return str(found["data"]["postbus.yaml"])

    def notes(self) -> str:
        """Return what Helm tells the operator after an installation."""
        return self.texts["postbus/templates/NOTES.txt"]


def render(values: Tree | None = None, *, upgrade: bool = False, name: str = RELEASE) -> Release:
    """Render the chart with *values* over its own.

    Raises:
        helm_python.HelmError: the values break the schema, or a cross-check of the chart.
    """
    with helm_python.Chart.load(CHART) as chart:
        chart.validate_schema(values or {})
        texts = chart.render(values or {}, name=name, namespace=NAMESPACE, is_install=not upgrade, is_upgrade=upgrade)
    return Release(texts, tuple(document for path, text in sorted(texts.items()) if path.endswith(".yaml") for document in documents(text)))


def documents(text: str) -> Iterator[Tree]:
    """Yield the objects of *text*, split as Helm splits: ``---`` at the start of a line, whatever follows it."""
    for part in re.split(r"(?:^|\s*\n)---\s*", text):
        document = yaml.safe_load(part)
        if document is not None:
            yield document


def golden_text(release: Release) -> str:
    """Return all of *release* as one text, templates in order, to be kept and compared."""
    return "".join(f"# {path}\n{text.strip()}\n" for path, text in sorted(release.texts.items()) if text.strip())


def cases() -> dict[str, Tree]:
    """Return the sets of values the chart is tested with: its own, and every file under ``ci``."""
    files = sorted((CHART / "ci").glob("*-values.yaml"))
    return {"default": {}} | {path.name.removesuffix("-values.yaml"): yaml.safe_load(path.read_text()) for path in files}
