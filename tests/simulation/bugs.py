"""Planted bugs: single changes to the real code, made while it runs, each of which the simulation must find."""

import itertools
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Final
from unittest import mock

from sealwire_client import sending
from sealwire_client.batching import Batcher
from sealwire_client.receiving import Receiving
from sealwire_client.replica import Replica, StoredBatch, edits
from sealwire_client.replica.edits import Edits
from sealwire_client.replica.outbox import Outbox
from sealwire_client.replica.positions import Positions
from sealwire_client.sending import Sending
from sealwire_protocol import conditions
from sealwire_protocol.client_session import CLIENT_MESSAGES, ClientSession, ClientState
from sealwire_protocol.events import PageRead
from sealwire_protocol.ids import MEMBERSHIP, StreamId, VaultId
from sealwire_protocol.messages import Deliver
from sealwire_protocol.relay_session import RELAY_EVENTS, RelaySession, RelayState
from sealwire_relay import compaction
from sealwire_relay.cleaner import _Step
from sealwire_relay.compaction import Survivors
from sealwire_relay.store.interface import Page
from sealwire_relay.store.memory import MemoryStore
from sealwire_relay.view import Draft
from sealwire_relay.writer import Writer
from tests.simulation.epoch_bugs import EPOCH_BUGS
from tests.simulation.forks import FORKS
from tests.simulation.history_bugs import HISTORY_BUGS
from tests.simulation.planting import CALLS, Bug, change, put, rewritten, text
from tests.simulation.relay import RelayProcess
from tests.simulation.store import FaultyStore


def _no_dedup(stack: ExitStack) -> None:
    change(
        Draft,
        "_judge",
        ("if kept is not None:", "if False:"),
        ("if push.batch <= last:", "if False:"),
        ("if push.batch != last + 1 and in_this_term:", "if False:"),
    )(stack)


def _cursor_first(stack: ExitStack) -> None:
    """The cursor is moved in a transaction of its own, before the one with the data."""
    apply = Receiving._apply_records

    def moved_first(self: Receiving, replica: Replica, delivers: list[Deliver]) -> Any:
        connection = replica.database.connection
        numbers = [(self._streams[deliver.stream].collection.number, deliver) for deliver in delivers]
        before = [(replica.positions.standing(number).cursor.seq, number) for number, _ in numbers]
        for number, deliver in numbers:
            with replica.transaction():
                move = "UPDATE _collection SET cursor_seq = max(cursor_seq, ?) WHERE id = ?"
                connection.execute(move, (deliver.last, number))
        with replica.transaction():
            connection.executemany("UPDATE _collection SET cursor_seq = ? WHERE id = ?", before)
            return apply(self, replica, delivers)

    put(stack, Receiving, "_apply_records", moved_first)


def _sealed_anew(stack: ExitStack) -> None:
    """What has no verdict is sealed again after every reconnect, under the number that it had."""
    online, connected = Sending.online, set[int]()

    def note(self: Sending) -> None:
        online(self)
        connected.add(id(vars(self._writer)["_store"]))

    def forget(replica: Replica, vault: int, after: int) -> list[StoredBatch]:
        batches = replica.outbox.sent.unanswered(vault, after)
        if id(replica) not in connected:
            return batches
        connected.discard(id(replica))
        with replica.transaction():
            for batch in batches:
                writes = replica.outbox.sent.withdraw(vault, batch.number)
                replica.outbox._conflicted(vault, writes, {})
                for table, column in (("_group", "batch"), ("_batch", "number")):
                    statement = f"DELETE FROM {table} WHERE vault = ? AND {column} = ?"
                    replica.database.connection.execute(statement, (vault, batch.number))
            if batches:
                again = "UPDATE _vault SET next_batch = ? WHERE id = ?"
                replica.database.connection.execute(again, (batches[0].number, vault))
        return []

    put(stack, Sending, "online", note)
    put(stack, sending, "_unanswered", forget)


def _credit_kept(stack: ExitStack) -> None:
    changed = rewritten(
        vars(ClientSession)["_delivered"],
        (
            "if message.last <= listening.position.seq:\n        return self._give_back(size, event.now)",
            "if message.last <= listening.position.seq:\n        return []",
        ),
    )
    stack.enter_context(mock.patch.dict(CLIENT_MESSAGES, {(ClientState.READY, Deliver): changed}))


def _live_too_early(stack: ExitStack) -> None:
    changed = rewritten(
        vars(RelaySession)["_paged"], ("listener.live = listener.cursor >= event.head", "listener.live = True")
    )
    stack.enter_context(mock.patch.dict(RELAY_EVENTS, {(RelayState.READY, PageRead): changed}))


def _versions_forgotten(stack: ExitStack) -> None:
    """A version is one above those that the device has sealed itself, whatever it has received or was told."""
    received = ("(term, delivery.last, version, collection)", "(term, delivery.last, 0, collection)")
    change(Positions, "advance", received)(stack)
    change(Edits, "group", ("max(seen, top) + 1", "seen + 1"))(stack)


def _salt_ignored(stack: ExitStack) -> None:
    holds: Any = conditions.holds
    changed = rewritten(
        holds,
        ("(version, salt) == (current.version, current.salt)", "version == current.version"),
        (
            "(condition.version, condition.salt) == (current.version, current.salt)",
            "condition.version == current.version",
        ),
    )
    put(stack, conditions, "holds", changed)


def _withheld(stack: ExitStack) -> None:
    """Each fifth page that a relay reads for its devices lacks the records of its last segment."""
    read, pages = MemoryStore.read, itertools.count(1)

    async def leaves_out(
        self: MemoryStore, vault: VaultId, stream: StreamId, after: int, bytes_max: int
    ) -> Page | None:
        page = await read(self, vault, stream, after, bytes_max)
        serves = isinstance(self, FaultyStore) and isinstance(self._process, RelayProcess) and stream != MEMBERSHIP
        if not serves or page is None or not page.segments or next(pages) % 5:
            return page
        *segments, last = page.segments
        return page._replace(segments=(*segments, last._replace(body=b"")))

    put(stack, MemoryStore, "read", leaves_out)


BUGS: Final[dict[str, Bug]] = {
    "withheld": Bug("a relay leaves records out of what it shows some devices", _withheld),
    "no_dedup": Bug("the relay carries out a repeated batch again", _no_dedup),
    "cursor_first": Bug("the cursor is durable before the records are", _cursor_first),
    "versions": Bug("versions do not rise above those received", _versions_forgotten),
    "two_in_flight": Bug(
        "a key's next write is sealed before the last one was answered (R4)",
        text(edits, "_FREE", ("(s.seq IS NULL OR c.kind", "(c.kind")),
    ),
    "sealed_anew": Bug("a batch without a verdict is sealed anew under its old number", _sealed_anew),
    "credit": Bug("credit is not returned for repeated frames", _credit_kept),
    "early_entry": Bug(
        "an answered write becomes an entry at PUSHED (R12)",
        change(Positions, "passed", ("return list(passed.items())", "return [(n, 1 << 60) for n in passed]")),
    ),
    "forgotten_outcomes": Bug(
        "a relay that starts forgets the outcomes of batches",
        change(
            MemoryStore,
            "open_term",
            (
                "return data.term",
                "[m.outcomes.clear() for v in data.vaults.values() for m in v.members.values()]\n    return data.term",
            ),
        ),
    ),
    "backlog_backwards": Bug(
        "what has no verdict is sent again in the wrong order",
        change(Sending, "_send", ("self._backlog.popleft()", "self._backlog.pop()")),
    ),
    "ack_first": Bug(
        "a commit of unknown outcome counts as done",
        change(
            Writer,
            "_write",
            (
                "self._metrics.unknown_outcomes.inc()\n        return set()",
                "self._metrics.unknown_outcomes.inc()\n        return {write.vault for write in writes}",
            ),
        ),
    ),
    "salt_ignored": Bug("a condition is compared by version alone (R5)", _salt_ignored),
    "refusal_accepted": Bug(
        "what the relay refused counts as accepted",
        change(Outbox, "answer", ("again, stuck = self._conflicted(vault, writes, named)\n", "again, stuck = 0, 0\n")),
    ),
    "mine_lost": Bug(
        "a refused edit forgets what it was based on",
        change(Outbox, "_put_back", ("edit.since, edit.base)", "edit.since, edit.value)")),
    ),
    "theirs_lost": Bug(
        "a refused edit is sealed again as it was, over what came first",
        change(Batcher, "_prepared", ("self._merged(stream, edit, said) if", "(edit, '') if")),
    ),
    "atomic_in_part": Bug(
        "of an atomic push the relay appends what it can",
        change(Draft, "_append", ("bool(admitted.push.flags & ATOMIC)", "False")),
    ),
    "transaction_in_parts": Bug(
        "a transaction is not marked as atomic",
        change(Edits, "take", ("together, ATOMIC)", "together, 0)")),
    ),
    "strict_blind": Bug(
        "a strict write is sealed on what is there now, not on what its app has read",
        change(Batcher, "_decided", ("if not same_write or said.value", "if seen.local and said.value")),
    ),
    "guards_forgotten": Bug(
        "what a guarded stream holds is not committed with the records",
        change(MemoryStore, "_write", ("log.guards.update(stream.guards)", "pass")),
    ),
    "refusals_forgotten": Bug(
        "the kept outcome of a batch says nothing of what was refused",
        change(
            Draft,
            "_judge",
            (
                "encoded = codec.encode(answer)",
                "encoded = codec.encode(Pushed(self.vault, push.batch, 0, (), ()))",
            ),
        ),
    ),
    "newest_wins": Bug(
        "the cleaner leaves out an older record of greater rank (R1)",
        change(Survivors, "stays", ("if rank > best[0]:", "if False:")),
    ),
    "seqs_move": Bug(
        "records move into the places of those that the cleaner left out",
        change(compaction, "_swap", ("encode_varint(first - at - 1)", "encode_varint(0)")),
    ),
    "half_a_step": Bug(
        "the cleaner takes a step for done before the tail is cleaned",
        change(_Step, "run", ("await self._rewrite(start, end, end)", "pass")),
    ),
    "live_early": Bug("a listener is live before it was sent everything", _live_too_early),
    **HISTORY_BUGS,
    **EPOCH_BUGS,
    **FORKS,
}


@contextmanager
def planted(name: str) -> Iterator[None]:
    """While the block lasts, the code has this bug. Raises LookupError if it has changed too much for it."""
    CALLS.clear()
    with ExitStack() as stack:
        BUGS[name].plant(stack)
        yield
