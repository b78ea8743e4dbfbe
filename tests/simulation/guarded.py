"""What must be true of guarded streams: every record replaces exactly what it says, merging loses nobody's edit, and
money is neither made nor lost.

In such a stream the records of a key form a chain. Each is held against the one before it and against the edits of its
author that it stands for: it must say what they say, and leave everything else as it was. What was given back after a
loss replaces what it was once made from, or something in between.
"""

import functools
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from sealwire_protocol.conditions import NOTHING, Condition, Names
from sealwire_protocol.ids import StreamId
from sealwire_protocol.segment import Rank
from tests.simulation.checker import Checker, Logged
from tests.simulation.history import Edit, Violation, by_device
from tests.simulation.things import ACCOUNT_KEYS, ACCOUNTS, BALANCE, CARDS, SCHEMAS, Account, Card

FIELDS = ("title", "color")

_CARD = SCHEMAS[CARDS]
_ACCOUNT = SCHEMAS[ACCOUNTS]


def check_guarded(checker: Checker) -> None:
    """All promises of guarded streams. Raises Violation."""
    for stream, log in checker.logs.items():
        name = checker.names[stream]
        if name not in (CARDS, ACCOUNTS):
            continue
        _replaces_what_it_names(checker, stream, log)
        if name == CARDS:
            Merges(checker, stream, log).check()
        else:
            _money_is_kept(checker, log)


def _replaces_what_it_names(checker: Checker, stream: StreamId, log: list[Logged]) -> None:
    held: dict[str, Logged] = {}
    for record in log:
        before = held.get(record.key)
        held[record.key] = record
        if (stream, record.rank) in checker.history.returned:
            continue
        if (stream, record.rank) in checker.origins:
            # What was lost may come back, be superseded, and be sealed anew under the key that it has come to again.
            if (
                before is None
                or before.value != record.value
                or (record.rank < before.rank and not checker.history.restores)
            ):
                raise Violation(f"what is sealed anew replaces itself: {record.key} at {record.seq} does not")
            continue
        condition = checker.history.conditions.get((stream, record.rank))
        if condition is None or not _names(condition, before):
            raise Violation(f"a guarded write replaces what it names: {record.key} at {record.seq} does not")
        if before is not None and record.rank[:8] <= before.rank[:8]:
            raise Violation(f"versions rise in a guarded stream: {record.key}'s at {record.seq} does not")


def _names(condition: Condition, before: Logged | None) -> bool:
    if condition == NOTHING or before is None:
        return before is None or (condition == NOTHING and before.value is None)
    rank = Rank.unpack(before.rank)
    names = Names.TOMBSTONE if before.value is None else Names.ENTRY
    return condition == Condition(names, rank.version, rank.salt)


class Merges:
    """The cards of a run: what became of every edit."""

    def __init__(self, checker: Checker, stream: StreamId, log: list[Logged]) -> None:
        self._checker, self._stream, self._log = checker, stream, log
        self._edits = by_device([edit for edit in checker.history.edits if edit.place[0] == stream])
        self._merged = by_device([edit for edit in checker.history.merged if edit.place[0] == stream])
        self._sealed_by = checker.sealed_by
        self._given_back = checker.history.returned.keys() | checker.history.resealed
        """Also what was sealed anew: nobody wrote anything by either."""

    def check(self) -> None:
        """Every record says what its author's edits say and leaves the rest; no mark is lost in the end."""
        held: dict[str, Card | None] = {}
        # A lost mark may come by another device, and have been taken out, before its author puts it in again.
        stood: dict[str, set[str]] = defaultdict(set)
        said: dict[str, set[Card | None]] = defaultdict(lambda: {Card()})
        for record in self._checker.ended.lost.get(self._stream, ()):
            said[record.key].add(_card(record.value))
        for record in self._log:
            if (self._stream, record.rank) in self._given_back:
                held[record.key] = _card(record.value)
                said[record.key].add(held[record.key])
                stood[record.key] |= _marks(held[record.key])
                continue
            seal = self._sealed_by[self._stream, record.rank]
            made = self._edits.get((seal.device, seal.place), [])
            # The number of an edit that a crash has undone is used again.
            stood_for = {edit.n: edit for edit in made if seal.first <= edit.n <= seal.n and edit.step <= seal.step}
            lost = self._merged.get((seal.device, seal.place), [])
            edits = [edit for edit in lost if seal.first <= edit.n <= seal.n and edit.step <= seal.step]
            outlived = {None} if edits else set[Card | None]()  # merged from nothing, as after a delete
            edits += [stood_for[n] for n in sorted(stood_for)]
            now = _card(record.value)
            why = _unexplained(held.get(record.key), now, edits, said[record.key] | outlived, stood[record.key])
            if why is not None:
                raise Violation(f"merging loses nothing: {seal.device}'s {record.key} at {record.seq} {why}")
            held[record.key] = now
            said[record.key].add(now)
            stood[record.key] |= _marks(now)
        winners = self._checker.winners.items()
        self._every_mark_is_there({key: _card(one.value) for (stream, key), one in winners if stream == self._stream})

    def _every_mark_is_there(self, held: dict[str, Card | None]) -> None:
        """Of what a restore took from a device that is no member any more, perhaps nobody else has heard."""
        gone = self._checker.gone if self._checker.history.restores else ()
        for key, edits in self._by_key():
            taken_out = frozenset().union(*(_removed(edit) for edit in edits))
            put_in = frozenset().union(*(_added(edit) for edit in edits if edit.certain and edit.device not in gone))
            lost = put_in - taken_out - _marks(held.get(key)) - self._kept(key)
            if lost:
                raise Violation(f"nothing unsent is lost: mark {min(lost)} is not in {key}, and nobody took it out")

    def _kept(self, key: str) -> frozenset[str]:
        """Marks that could not be sent, and are shown where they were made."""
        shown = [kept.get((self._stream, key)) for kept in self._checker.gone.values()]
        return frozenset().union(*(_marks(_card(value)) for value in shown))

    def _by_key(self) -> Iterator[tuple[str, list[Edit]]]:
        found: dict[str, list[Edit]] = defaultdict(list)
        for (_, (_, key)), edits in self._edits.items():
            found[key] += edits
        yield from found.items()


@functools.lru_cache(4_096)
def _card(raw: bytes | None) -> Card | None:
    return None if raw is None else _CARD.decode(raw)


def _marks(card: Card | None) -> frozenset[str]:
    return frozenset() if card is None else card.marks


def _added(edit: Edit) -> frozenset[str]:
    return _marks(_card(edit.value)) - _marks(_card(edit.before))


def _removed(edit: Edit) -> frozenset[str]:
    """What an edit takes out: all that was seen, if it deletes."""
    return _marks(_card(edit.before)) - _marks(_card(edit.value))


def _unexplained(
    before: Card | None, now: Card | None, edits: list[Edit], said: set[Card | None], stood: set[str]
) -> str | None:
    """Why a record does not follow from the one before it and its author's edits; None: it does. `said`: all that the
    log said of the key before, `stood`: marks that were in it before and are not lost."""
    if not edits:
        return "follows from no edit"
    removed = frozenset().union(*(_removed(edit) for edit in edits))
    overwritten = _marks(before) - removed - _marks(now)
    if overwritten:
        return f"takes out what its author never saw: {min(overwritten)}"
    if now is None:
        put_back = edits[-1].certain and edits[-1].value is not None
        return "deletes what was put after the delete" if put_back else None
    deletes = [place for place, edit in enumerate(edits) if edit.value is None]
    since = edits[deletes[-1] + 1 :] if deletes else edits
    missing = frozenset().union(*(_added(edit) for edit in since if edit.certain)) - removed - stood - _marks(now)
    if missing:
        return f"lacks what its author put in: {min(missing)}"
    for field in FIELDS:
        if not _field_follows(field, before, now, since, bool(deletes), said):
            return f"has a {field} that neither its author nor the record before it has"
    return None


def _field_follows(
    field: str, before: Card | None, now: Card, edits: list[Edit], deleted: bool, said: set[Card | None]
) -> bool:
    values: list[tuple[Any, bool]] = []
    for edit in edits:
        was, card = _card(edit.before), _card(edit.value)
        assert card is not None
        if was is None or getattr(was, field) != getattr(card, field):
            values.append((getattr(card, field), edit.certain))
    value = getattr(now, field)
    if values and values[-1][1]:
        if value == values[-1][0]:
            return True
        if values[-1][0] not in [getattr(card, field) for card in said if card is not None]:
            return False
        # What says the same as a record that the device has seen since changes nothing.
    elif before is None or deleted:
        return True  # the whole card is its author's
    # An edit that has outlived a delete stands for the whole card, and for what it was merged with before.
    cards = [*said, *(_card(edit.value) for edit in edits)] if None in said else []
    whole = [getattr(card, field) for card in (before, *cards) if card is not None]
    return value in whole or value in [each for each, _ in values]


def _money_is_kept(checker: Checker, log: list[Logged]) -> None:
    """Every transfer starts from the balances before it, moves nothing into or out of the whole, and is where its app
    was told that it is. What was lost and not given back, because others came first, was set aside as a whole."""
    balances: dict[str, int] = {}
    moved: set[str] = set()
    for record in log:
        account = _account(record)
        name = checker.stream(ACCOUNTS), record.rank
        straight = checker.went_straight(name) and name not in checker.origins
        if straight and account.balance != balances.get(record.key, 0) + account.moved:
            raise Violation(f"a strict write knows what it replaces: {record.key} at {record.seq} does not")
        balances[record.key] = account.balance
        moved.add(account.by)
    opened = BALANCE * len(ACCOUNT_KEYS) if log else 0
    if sum(balances.values()) != opened:
        raise Violation(f"the sum of all accounts never changes: it is {sum(balances.values())}, and was {opened}")
    lost = {_account(record).by for record in checker.ended.lost.get(checker.stream(ACCOUNTS), ())}
    for transfer in checker.history.transfers:
        # One that was lost may be refused when it is sent again, and come back by another device that has read it.
        told_otherwise = transfer.done is not (transfer.name in moved) and transfer.name not in lost
        if transfer.done is not None and told_otherwise:
            told = "made" if transfer.done else "not made"
            raise Violation(f"a strict write is what it is told to be: {transfer.name} is told to be {told}")


def _account(record: Logged) -> Account:
    account = None if record.value is None else _ACCOUNT.decode(record.value)
    if not isinstance(account, Account):
        raise Violation(f"nobody closes an account: {record.key} at {record.seq}")
    return account
