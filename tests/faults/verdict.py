"""What is right and what is wrong at the end of a proof with faults: the log, the notes, the replicas, the edits."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sealwire_protocol.errors import Outcome
from sealwire_protocol.ids import StreamId
from sealwire_protocol.segment import read_segment
from tests.faults import acks
from tests.faults.editor import CELL_SETS, FIELDS, TASK_SETS, cell_keys, note_keys, task_keys

EXAMPLES_MAX = 5


@dataclass
class Verdict:
    """Figures of a run. `wrong` has those that must be 0, `examples` shows some of what was found."""

    acked: int
    counted: dict[str, int]
    wrong: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)

    def add(self, what: str, example: str, count: int = 1) -> None:
        """Something is wrong."""
        self.wrong[what] += count
        if len(self.examples) < EXAMPLES_MAX:
            self.examples.append(f"{what}: {example}")

    @property
    def right(self) -> bool:
        """True if nothing is wrong."""
        return not self.wrong.total()

    @property
    def figures(self) -> dict[str, object]:
        """All of it, for programs."""
        told: dict[str, object] = {"acked": self.acked, **self.counted}
        told |= {name: self.wrong[name] for name in MUST_BE_0}
        return told | ({"examples": self.examples} if self.examples else {})


MUST_BE_0 = (
    "lost",
    "duplicated",
    "gaps",
    "verdicts_differing",
    "pushes_refused",
    "own_conflicts",
    "edits_lost",
    "edits_unknown",
    "entries_differing",
    "stuck",
)


def judge(
    segments: Sequence[Any],
    notes: Sequence[Path],
    durable: Sequence[int],
    replicas: Sequence[Mapping[str, Mapping[str, Any]]],
    streams: Mapping[str, bytes],
    stuck: int,
) -> Verdict:
    """Compare the stored segments (in order) with what devices noted, their replicas with each other, and with the
    rounds that were durable on each."""
    verdict = Verdict(0, {})
    held = _read_log(verdict, segments)
    _compare_notes(verdict, notes, held, streams)
    _compare_replicas(verdict, replicas)
    for device, rounds in enumerate(durable):
        _compare_edits(verdict, replicas[0], device, rounds)
    if stuck:
        verdict.add("stuck", f"{stuck} writes", stuck)
    verdict.counted |= {"log_records": len(held), "rounds_durable": sum(durable)}
    verdict.counted |= {"entries": sum(len(entries) for entries in replicas[0].values()), "replicas": len(replicas)}
    return verdict


Held = dict[tuple[bytes, int], tuple[bytes, bytes]]
"""Tag and rank by stream and seq."""


def _read_log(verdict: Verdict, segments: Sequence[Any]) -> Held:
    held: Held = {}
    ranks: set[tuple[bytes, bytes, bytes]] = set()
    reached: dict[bytes, int] = {}
    for signed, prev, last, body in segments:
        stream = signed.to_bytes(8, "big", signed=True)
        if prev != reached.get(stream, 0):
            verdict.add("gaps", f"stream {stream.hex()} at {prev}")
        reached[stream] = last
        for seq, record in read_segment(body, prev, last):
            rank = record.rank.pack()
            if (stream, record.tag, rank) in ranks:
                verdict.add("duplicated", f"stream {stream.hex()} at {seq}")
            ranks.add((stream, record.tag, rank))
            held[stream, seq] = record.tag, rank
    return held


def _compare_notes(verdict: Verdict, notes: Sequence[Path], held: Held, streams: Mapping[str, bytes]) -> None:
    """Each acknowledged record at its place; each told the same as often as it was told; of nobody's own a conflict."""
    places: dict[tuple[StreamId, bytes, bytes], int] = {}
    again = conflicts = 0
    for path in notes:
        for stream, seq, tag, rank in acks.read(path):
            if seq >= acks.WHOLE_PUSH:
                verdict.add("pushes_refused", f"a record of {path.parent.name}, {Outcome(seq - acks.WHOLE_PUSH).name}")
                continue
            told = places.get((stream, tag, rank))
            again += told == seq
            places[stream, tag, rank] = seq
            if told not in (None, seq):
                verdict.add("verdicts_differing", f"stream {stream.hex()}: {told}, then {seq}")
            if seq == acks.CONFLICT:
                conflicts += 1
                if stream != streams["cells"]:
                    verdict.add("own_conflicts", f"{path.parent.name} in {stream.hex()}")
            elif held.get((stream, seq)) != (tag, rank):
                verdict.add("lost", f"{path.parent.name}: stream {stream.hex()} at {seq}")
    verdict.acked = sum(seq != acks.CONFLICT for seq in places.values())
    verdict.counted |= {"told_again": again, "conflicts_merged": conflicts}


def _compare_replicas(verdict: Verdict, replicas: Sequence[Mapping[str, Mapping[str, Any]]]) -> None:
    first = replicas[0]
    for number, other in enumerate(replicas[1:], 1):
        for name, entries in first.items():
            for key in entries.keys() | other[name].keys():
                if entries.get(key) != other[name].get(key):
                    example = f"{name} {key}: {entries.get(key)} and, in replica {number}, {other[name].get(key)}"
                    verdict.add("entries_differing", example)


def _compare_edits(verdict: Verdict, held: Mapping[str, Mapping[str, Any]], device: int, rounds: int) -> None:
    """Everything up to the last durable round must be there; of the next one there may be some."""
    for number in range(1, rounds + 1):
        for key in note_keys(device, number):
            _expect(verdict, held["notes"].get(key), "round", number, number, f"notes {key}")
    extra = sum(key.startswith(f"{device}-") and int(key.split("-")[1]) > rounds + 1 for key in held["notes"])
    if extra:
        verdict.add("edits_unknown", f"notes of device {device}", extra)
    for at in range(TASK_SETS):
        low, high = _last(rounds, at, TASK_SETS), _last(rounds + 1, at, TASK_SETS)
        for key in task_keys(device, at) if low > 0 else ():
            _expect(verdict, held["tasks"].get(key), "round", low, high, f"tasks {key}")
    for at in range(CELL_SETS):
        low, high = _last(rounds, at, CELL_SETS), _last(rounds + 1, at, CELL_SETS)
        for key in cell_keys(at) if low > 0 else ():
            _expect(verdict, held["cells"].get(key), FIELDS[device], low, high, f"cells {key}")


def _last(rounds: int, at: int, sets: int) -> int:
    """The last of so many rounds that edited this set."""
    return rounds - (rounds - at) % sets


def _expect(verdict: Verdict, value: Any, name: str, low: int, high: int, what: str) -> None:
    found = getattr(value, name, 0)
    if found < low:
        verdict.add("edits_lost", f"{what}: {value}, not {name} {low}")
    elif found not in (low, high):
        verdict.add("edits_unknown", f"{what}: {value}, not {name} {low} or {high}")
