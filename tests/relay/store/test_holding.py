"""What keeps deletions, told by `sealwire-relay holds`; and that `clean` forgets them once nothing does."""

import json

import pytest

from sealwire_protocol.ids import START, Author, DeviceKey, Position, StreamId, Term, TermStart, VaultId
from sealwire_protocol.links import Role
from sealwire_protocol.messages import StreamKind
from sealwire_relay.cli import _held as in_words
from sealwire_relay.holding import Holder, held
from sealwire_relay.retention import DAY_SECONDS, Retention
from sealwire_relay.store.cleaning import AckedPosition, Mark, Reader, Tombstones
from tests.relay.logs import make_log, record
from tests.relay.store.places import ADMIN, PostgresPlace
from tests.support.aio import asyncio_test
from tests.support.program import Program

KEPT = Retention(30 * DAY_SECONDS, 90 * DAY_SECONDS)
TERM = Term(1, b"\x01" * 8)
NOW = 1_000 * DAY_SECONDS


def device(number: int, seq: int, *, term: Term = TERM, days: int = 0) -> Reader:
    position = Position(term, seq)
    return Reader(Author(number), DeviceKey(bytes([number]) * 32), Role.WRITER, position, NOW - days * DAY_SECONDS)


def tombstones(*readers: Reader, oldest: int = 50, days: int = 31) -> Tombstones:
    names = VaultId(b"\xab" * 16), StreamId(b"\x01" * 8), StreamKind.OPEN
    marks = (Mark(90, NOW - days * DAY_SECONDS),)
    return Tombstones(*names, 100, 90, 40, 5, oldest, marks, (TermStart(TERM, 0),), readers, NOW)


def test_devices_that_hold_are_named_the_one_furthest_behind_first() -> None:
    told = held(tombstones(device(1, 70), device(2, 45, days=2), device(3, 90), device(4, 1, days=91)), KEPT)
    assert told[:8] == (
        "ab" * 16,
        "01" * 8,
        5,
        50,
        90,
        40,
        90,
        "a device that is waited for does not know the oldest yet",
    )
    assert told.holders == (
        Holder(
            *(2, "02" * 32, 45, "1972-09-25T00:00:00+00:00"),
            "it has acknowledged the stream up to 45; it is waited for until 1972-12-24T00:00:00+00:00 unless it is "
            "heard from",
        ),
        Holder(
            *(1, "01" * 32, 70, "1972-09-27T00:00:00+00:00"),
            "it has acknowledged the stream up to 70; it is waited for until 1972-12-26T00:00:00+00:00 unless it is "
            "heard from",
        ),
    )


def test_a_device_of_a_lost_history_is_told_as_that() -> None:
    [holder] = held(tombstones(device(1, 70, term=Term(2, b"\x02" * 8))), KEPT).holders
    assert holder.known == 0
    assert holder.why.startswith("it stands at 70 of a history that the relay has lost")


def test_what_is_told_to_people_has_a_line_for_each_thing() -> None:
    assert in_words(held(tombstones(device(2, 45, days=2)), KEPT)).splitlines() == [
        "stream 0101010101010101 of vault " + "ab" * 16,
        "  5 deletions, from seq 50 on",
        "  a device that is waited for does not know the oldest yet",
        "  device " + "02" * 32 + " (member 2)",
        "    heard from last 1972-09-25T00:00:00+00:00",
        "    it has acknowledged the stream up to 45",
        "    it is waited for until 1972-12-24T00:00:00+00:00 unless it is heard from",
    ]


@pytest.mark.parametrize(
    ("found", "why", "holders"),
    [
        (tombstones(device(1, 70), days=29), "older than the retention of 30 days", 0),
        (tombstones(device(1, 70)), "one of its next looks", 1),
        (tombstones(device(1, 70), days=91), "one of its next looks", 0),
        (tombstones(device(1, 90)), "one of its next looks", 0),
        (tombstones(), "one of its next looks", 0),
        (tombstones(oldest=91), "older than the retention of 30 days", 0),
    ],
)
def test_why_the_oldest_is_remembered_is_told(found: Tombstones, why: str, holders: int) -> None:
    told = held(found, KEPT)
    assert why in told.why
    assert len(told.holders) == holders


@asyncio_test
async def test_deletions_are_forgotten_by_hand_and_it_is_told_what_holds_the_others(postgres: PostgresPlace) -> None:
    fresh = PostgresPlace(postgres.server, await postgres.server.database("migrated"), False)
    url = fresh.server.dsn(fresh.database)

    def said(*arguments: str) -> str:
        code, output, errors = Program(*arguments, SEALWIRE_DATABASE_URL=url).finished()
        assert (code, errors) == (0, "")
        return output

    assert said("holds") == "No deletion is remembered, as far as logs have been cleaned.\n"
    assert said("holds", "--json") == ""
    async with fresh.opened() as store:
        gone = [record(entry, 1, tombstone=True) for entry in (1, 2)]
        log = await make_log(store, [gone[0]], [gone[1], record(3, 1)])
        place = log.vault.id, log.vault.stream, log.vault.admin
        await store.acked([AckedPosition(*place, START)])
        assert "2 deletions in 1 stream remembered still; `sealwire-relay holds` says why." in said("clean", "--all")
        assert "none is known to be older than the retention of 30 days" in said("holds")
        known = Position(await store.current_term(), 1)
        await store.acked([AckedPosition(*place, known)])
        told = said("clean", "--retention-days", "0")
        assert told.endswith(
            "1 deletion in 1 stream forgotten. 1 deletion in 1 stream remembered still; `sealwire-relay holds` says "
            "why.\n"
        )
        assert sorted(await log.left()) == [2, 3]
        [line] = said("holds", "--retention-days", "0", "--json").splitlines()
        told_as_json = json.loads(line)
        assert told_as_json["stream"] == log.vault.stream.hex()
        assert (told_as_json["tombstones"], told_as_json["oldest"], told_as_json["floor"]) == (1, 2, 1)
        assert [(h["author"], h["device"]) for h in told_as_json["holders"]] == [(ADMIN, log.vault.admin.hex())]
        lines = said("holds", "--retention-days", "0").splitlines()
        assert lines[0] == f"stream {log.vault.stream.hex()} of vault {log.vault.id.hex()}"
        assert lines[1] == "  1 deletion, from seq 2 on"
        assert lines[3] == f"  device {log.vault.admin.hex()} (member 1)"
        told_as_json = json.loads(said("clean", "--retention-days", "0", "--cutoff-days", "0", "--json"))
        assert (told_as_json["purged_tombstones"], told_as_json["kept_tombstones"]) == (1, 0)
        assert sorted(await log.left()) == [3]
