"""The judge of the proof with faults finds each thing that can be wrong."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sealwire_protocol.errors import Outcome
from sealwire_protocol.ids import Author, KeyId, StreamId, Tag
from sealwire_protocol.segment import MAC_BYTES, Record, encode_segment
from tests.faults import acks, verdict
from tests.faults.editor import CELL_SETS, DEVICES, FIELDS, TASK_SETS, Cell, Note, cell_keys, note_keys, task_keys

STREAMS = {name: bytes([number]) * 8 for number, name in enumerate(("notes", "tasks", "cells"), 1)}
ROUNDS = TASK_SETS + 2


def record(number: int) -> Record:
    return Record(Tag(bytes([number]) * 16), number, Author(1), 1, KeyId(bytes(4)), 0, bytes(8), bytes(16 + MAC_BYTES))


class Ending:
    """All that the judge is given: right as long as a test breaks nothing."""

    def __init__(self, folder: Path) -> None:
        self.notes = [folder / f"acks-{device}" for device in range(DEVICES)]
        notes, tasks, cells = dict[str, Any](), dict[str, Any](), dict[str, Any]()
        for number in range(1, ROUNDS + 1):
            for device in range(DEVICES):
                notes |= dict.fromkeys(note_keys(device, number), Note(device, number))
                tasks |= dict.fromkeys(task_keys(device, number), Note(device, number))
                for key in cell_keys(number):
                    mine: dict[str, Any] = {FIELDS[device]: number}
                    cells[key] = replace(cells.get(key, Cell()), **mine)
        self.replicas = [{"notes": dict(notes), "tasks": dict(tasks), "cells": dict(cells)} for _ in range(DEVICES)]
        self.durable = [ROUNDS] * DEVICES
        self.segments = [(stream, 0, 3, [record(1), record(2), record(3)]) for stream in STREAMS.values()]
        self.told = [(stream, seq, record(seq)) for stream in STREAMS.values() for seq in (1, 2, 3)]
        self.stuck = 0

    def everywhere(self, collection: str, key: str, value: Any) -> None:
        for replica in self.replicas:
            replica[collection][key] = value

    def judged(self) -> verdict.Verdict:
        self.notes[0].write_bytes(b"".join(acks.packed(StreamId(stream), seq, each) for stream, seq, each in self.told))
        segments = [
            (int.from_bytes(stream, "big", signed=True), prev, last, encode_segment(records))
            for stream, prev, last, records in self.segments
        ]
        return verdict.judge(segments, self.notes, self.durable, self.replicas, STREAMS, self.stuck)


Break = Callable[[Ending], object]

BROKEN: dict[str, list[Break]] = {
    "lost": [
        lambda x: x.told.append((STREAMS["notes"], 4, record(4))),
        lambda x: x.segments.__setitem__(0, (STREAMS["notes"], 0, 3, [record(1), record(2), record(9)])),
    ],
    "duplicated": [lambda x: x.segments.append((STREAMS["notes"], 3, 4, [record(2)]))],
    "gaps": [lambda x: x.segments.append((STREAMS["notes"], 4, 5, [record(5)]))],
    "verdicts_differing": [
        lambda x: x.told.append((STREAMS["cells"], acks.CONFLICT, record(3))),
        lambda x: x.told.insert(0, (STREAMS["notes"], 2, record(1))),
    ],
    "pushes_refused": [lambda x: x.told.append((STREAMS["notes"], acks.WHOLE_PUSH + Outcome.CLONED, record(4)))],
    "own_conflicts": [lambda x: x.told.append((STREAMS["tasks"], acks.CONFLICT, record(4)))],
    "edits_lost": [
        lambda x: x.everywhere("notes", note_keys(1, ROUNDS)[5], None),
        lambda x: x.everywhere("tasks", task_keys(2, ROUNDS)[5], Note(2, ROUNDS - TASK_SETS)),
        lambda x: x.everywhere("cells", cell_keys(ROUNDS)[0], Cell(ROUNDS, ROUNDS - CELL_SETS, ROUNDS)),
        lambda x: x.durable.__setitem__(0, ROUNDS + 1),
    ],
    "edits_unknown": [
        lambda x: x.everywhere("notes", note_keys(1, ROUNDS + 2)[0], Note(1, ROUNDS + 2)),
        lambda x: x.everywhere("tasks", task_keys(2, ROUNDS)[5], Note(2, ROUNDS + TASK_SETS)),
        lambda x: x.everywhere("cells", cell_keys(ROUNDS)[0], Cell(ROUNDS, ROUNDS + CELL_SETS, ROUNDS)),
    ],
    "entries_differing": [lambda x: x.replicas[2]["notes"].pop(note_keys(1, 1)[0])],
    "stuck": [lambda x: setattr(x, "stuck", 1)],
}


def test_what_is_right_is_found_right(tmp_path: Path) -> None:
    found = Ending(tmp_path).judged()
    assert found.right, found.figures
    assert found.acked == 9 and found.counted["log_records"] == 9


def test_a_verdict_that_is_told_again_and_a_conflict_that_was_merged_are_right(tmp_path: Path) -> None:
    outcome = Ending(tmp_path)
    outcome.told += [outcome.told[0], (STREAMS["cells"], acks.CONFLICT, record(4))]
    found = outcome.judged()
    assert found.right and (found.acked, found.counted["told_again"], found.counted["conflicts_merged"]) == (9, 1, 1)


def test_of_a_round_that_was_cut_there_may_be_some(tmp_path: Path) -> None:
    outcome = Ending(tmp_path)
    outcome.everywhere("notes", note_keys(0, ROUNDS + 1)[0], Note(0, ROUNDS + 1))
    outcome.everywhere("tasks", task_keys(0, ROUNDS + 1)[0], Note(0, ROUNDS + 1))
    assert outcome.judged().right


def test_everything_that_must_be_0_is_broken_here() -> None:
    assert set(BROKEN) == set(verdict.MUST_BE_0)


@pytest.mark.parametrize("what,breaks", [(what, each) for what, all_ in BROKEN.items() for each in all_])
def test_what_is_wrong_is_found(tmp_path: Path, what: str, breaks: Break) -> None:
    outcome = Ending(tmp_path)
    breaks(outcome)
    found = outcome.judged()
    assert not found.right and found.wrong[what], found.figures
    assert any(example.startswith(what) for example in found.figures["examples"])  # type: ignore[attr-defined]
