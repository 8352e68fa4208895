"""Checks as text, the way Kubernetes' own components answer (kubernetes.io, "API health endpoints"). Pure."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from postbus.sidecar.status import Check


@dataclass(frozen=True, slots=True)
class Verdict:
    """A probe's answer; the status code is the contract, the text is for people."""

    ok: bool
    text: str

    @property
    def code(self) -> int:
        """200, or 503: not now, ask again."""
        return 200 if self.ok else 503


def one_line(text: str) -> str:
    """Return *text* as one printable line, so that a detail cannot fake another check's line."""
    return "".join(character if character.isprintable() else " " for character in text)


def _line(check: Check, excluded: bool) -> str:
    if excluded:
        return f"[+]{check.name} excluded: ok"
    detail = one_line(check.detail)
    if check.ok:
        return f"[+]{check.name} ok" + (f": {detail}" if detail else "")
    return f"[-]{check.name} failed: {detail}" if check.counts else f"[~]{check.name} degraded: {detail}"


def judge(probe: str, checks: Sequence[Check], *, verbose: bool = False, exclude: Collection[str] = ()) -> Verdict:
    """Return the verdict of *probe* (``readyz``) over *checks*: ``ok``, or one line per check if it failed or *verbose* is set.

    A name in *exclude* does not count; a check that does not count shows as degraded (``[~]``) where it fails.
    """
    ok = all(check.ok or not check.counts or check.name in exclude for check in checks)
    if ok and not verbose:
        return Verdict(ok, "ok\n")
    lines = [_line(check, check.name in exclude) for check in checks]
    if set(exclude) - {check.name for check in checks}:
        lines.append("warn: no check has one of the names to exclude")
    lines.append(f"{probe} check {'passed' if ok else 'failed'}")
    return Verdict(ok, "\n".join(lines) + "\n")


def judge_one(checks: Sequence[Check], name: str) -> Verdict | None:
    """Return the verdict of the one check called *name*, or ``None`` if there is none."""
    for check in checks:
        if check.name == name:
            return Verdict(check.ok, _line(check, excluded=False) + "\n")
    return None
