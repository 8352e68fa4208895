"""What came out, compared with what senders were told: no event lost, none half-written, none under two ids."""

from __future__ import annotations

import base64
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from tests.e2e.senders import Key, Traffic


@dataclass
class Published:
    """Events by what they are about; each with its ids and how often each id came.

    Attributes:
        ids: for each key (content's digest, recipient), its event ids; dedupe_keys: likewise.
        transactions: for each key, the transactions that its events name.
        order: for each recipient, digests in the order in which they came first.
        events: how many came, duplicates counted.
    """

    ids: dict[Key, Counter[str]] = field(default_factory=dict)
    dedupe_keys: dict[Key, set[str]] = field(default_factory=dict)
    transactions: dict[Key, set[str]] = field(default_factory=dict)
    order: dict[str, list[str]] = field(default_factory=dict)
    events: int = 0

    def take(self, attributes: Mapping[str, Any], data: Mapping[str, Any]) -> None:
        """Take one event of mode ``both``: its octets must be what it says of them."""
        raw = base64.b64decode(data["raw"]["base64"], validate=True)
        digest = sha256(raw).hexdigest()
        assert digest == data["raw"]["sha256"] == data["message"]["sha256"], "the octets are not what was accepted"
        recipient = data["envelope"]["recipient"]
        key = (digest, recipient)
        if key not in self.ids:
            self.order.setdefault(recipient, []).append(digest)
        self.ids.setdefault(key, Counter())[attributes["id"]] += 1
        self.dedupe_keys.setdefault(key, set()).add(attributes["dedupekey"])
        self.transactions.setdefault(key, set()).add(data["transactionId"])
        self.events += 1

    def take_structured(self, events: Iterable[Mapping[str, Any]]) -> Published:
        """Take structured events, as the file sink writes and webhooks carry them."""
        for event in events:
            self.take(event, event["data"])
        return self

    @property
    def duplicates(self) -> int:
        """How many events came again with their id."""
        return self.events - sum(len(ids) for ids in self.ids.values())

    @property
    def renamed(self) -> list[Key]:
        """What came under more than one id."""
        return [key for key, ids in self.ids.items() if len(ids) > 1]

    def lost(self, traffic: Traffic) -> set[Key]:
        """Return what was acknowledged and did not come."""
        return traffic.acknowledged.keys() - self.ids.keys()

    def strangers(self, traffic: Traffic) -> set[Key]:
        """Return what came though nobody sent it whole."""
        return self.ids.keys() - {key for letter in traffic.sent.values() for key in letter.keys}

    def misnamed(self, traffic: Traffic) -> list[Key]:
        """Return what came, but not under the transaction that its sender was told."""
        return [key for key, told in traffic.acknowledged.items() if key in self.ids and told not in self.transactions[key]]


class Lines:
    """Reads a file of JSON lines as it grows; a line without its end is not there yet."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._offset = 0

    def take(self) -> list[dict[str, Any]]:
        """Return the events that came since the last call. Every line must be whole JSON."""
        if not self.path.exists():
            return []
        with self.path.open("rb") as file:
            file.seek(self._offset)
            octets = file.read()
        whole = octets[: octets.rfind(b"\n") + 1]
        self._offset += len(whole)
        return [json.loads(line) for line in whole.splitlines()]

    def discard(self, beyond_octets: int) -> None:
        """Remove the file when all of it was taken and it is larger than *beyond_octets*; only while nobody writes."""
        if self._offset > beyond_octets and self.path.stat().st_size == self._offset:
            self.path.unlink()
            self._offset = 0
