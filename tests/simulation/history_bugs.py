"""Planted bugs in how a history is shortened, lost and given back: each "else" of the rules from R7 on."""

from contextlib import ExitStack
from typing import Final
from unittest import mock

from sealwire_client import agreeing
from sealwire_client.agreeing import Agreeing
from sealwire_client.replica import Replica, reconciling
from sealwire_client.replica.edits import Edits
from sealwire_client.replica.reconciling import Reconciling
from sealwire_client.replica.refills import Refills
from sealwire_protocol import client_session, history
from sealwire_protocol.client_session import CLIENT_MESSAGES, ClientSession, ClientState
from sealwire_protocol.messages import Deliver, Push
from sealwire_protocol.relay_session import RELAY_MESSAGES, RelaySession, RelayState
from sealwire_relay import purging, view
from sealwire_relay.dataplane import DataPlane
from sealwire_relay.store import kept
from sealwire_relay.store.memory import MemoryStore
from sealwire_relay.store.memory_cleaning import MemoryCleaning
from sealwire_relay.terms import Terms
from sealwire_relay.view import Draft
from tests.simulation.planting import Bug, all_of, change, rewritten
from tests.simulation.store import FaultyStore


def _any_term(stack: ExitStack) -> None:
    change(DataPlane, "_new_term", ("self._gateway.new_term(term)", "pass"))(stack)
    changed = rewritten(
        vars(ClientSession)["_delivered"],
        ("if message.term != listening.term or message.prev", "if message.prev"),
    )
    stack.enter_context(mock.patch.dict(CLIENT_MESSAGES, {(ClientState.READY, Deliver): changed}))


def _any_push(stack: ExitStack) -> None:
    changed = rewritten(
        vars(RelaySession)["_push"],
        ("if term is None or message.batch > self._refused_from.get(message.vault, message.batch):", "if False:"),
        ("if message.term != term:", "if False:"),
    )
    stack.enter_context(mock.patch.dict(RELAY_MESSAGES, {(RelayState.READY, Push): changed}))


_OFTEN_REFILLED: Final = ("if not is_lost(one.line[0], state):", "if False:")

HISTORY_BUGS: Final[dict[str, Bug]] = {
    "top_ignored": Bug(
        "versions do not rise above those that the relay knows of (R2)",
        change(Edits, "group", ("max(seen, top) + 1", "seen + 1")),
    ),
    "restore_unnoticed": Bug(
        "a relay goes on under its term after a restore (R7)",
        all_of(
            change(DataPlane, "server_changed", ("self._terms.doubt()", "pass")),
            change(FaultyStore, "_connect", ("self._past.era, True", "self._past.era, False")),
        ),
    ),
    "term_of_a_process": Bug(
        "each relay process writes under a term of its own (R7)",
        all_of(
            change(Terms, "_read", ("if term == self._term:\n        return term", "return self._term")),
            change(MemoryStore, "_holds", ("write.term != data.term or ", "")),
            change(MemoryStore, "create_vault", (" or term != data.term", "")),
            change(MemoryStore, "append_link", (" or term != data.term", "")),
            change(kept.KeptStream, "takes", ("self.term == term or self.term.number < term.number", "True")),
        ),
    ),
    "any_term": Bug("nobody is told of a new term, and a delivery under another one is applied (R8)", _any_term),
    "cursor_ignored": Bug(
        "a device goes on from a position that the relay has lost (R9)",
        change(
            client_session,
            "why_history_is_lost",
            ('(("stands at", cursor), ("was served a log', '(("was served a log'),
            ('cleaned to", served))', 'cleaned to", served),)'),
        ),
    ),
    "floor_ignored": Bug(
        "a device goes on though deletions passed it by that were forgotten since (R10)",
        all_of(
            *(
                change(owner, "why_incomplete", ("if cursor == 0 or floor", "if True or floor"))
                for owner in (history, client_session)
            )
        ),
    ),
    "forgotten_at_once": Bug(
        "a replica drops tombstones before the relay says so (R11)",
        change(
            Replica,
            "apply",
            (
                "cursor = self.positions.begin(number, delivery)",
                "delivery = delivery._replace(floor=delivery.last); cursor = self.positions.begin(number, delivery)",
            ),
        ),
    ),
    "purge_unlocked": Bug(
        "tombstones are purged although the head has moved (R11)",
        change(
            MemoryCleaning,
            "swap",
            ("cleaned_to <= log.head == (purge.head if purge else log.head)", "cleaned_to <= log.head"),
        ),
    ),
    "acks_ignored": Bug(
        "tombstones are purged that an active device has not acknowledged (R11)",
        change(purging, "may_go", ("kept_seconds), waited_for)", "kept_seconds))")),
    ),
    "retention_ignored": Bug(
        "tombstones are purged that a backup may be older than (R11)",
        change(purging, "may_go", ("older_than(found, retention.kept_seconds), waited", "waited")),
    ),
    "purged_ignored": Bug(
        "the relay takes versions that may be of what was purged (R11)",
        change(Draft, "_of_push", ("found.lowest <= head.purged", "False")),
    ),
    "answers_lost": Bug(
        "answered writes that a restore took are not given back (R12)",
        change(Reconciling, "_withdraw_answered", ("s._seq IS NOT NULL AND", "FALSE AND")),
    ),
    "lost_dropped": Bug(
        "what the relay has lost is dropped (R13)",
        change(Reconciling, "_choose", ("WHERE d.place >= 0 AND", "WHERE FALSE AND")),
    ),
    "superseded_returned": Bug(
        "what was superseded is given back, and the relay does not look whether it was lost (R13, R14)",
        all_of(
            change(reconciling.Reconciling, "_choose", ("AND {_GONE.format('c.')}", "AND TRUE")),
            change(view, "judge_returned", _OFTEN_REFILLED),
        ),
    ),
    "since_overwritten": Bug(
        "what was given back replaces what was written since by who knew nothing of it (R14)",
        change(view, "judge_returned", ("current.seq > loss_before(one.line, state)", "False")),
    ),
    "links_lost": Bug(
        "links of the membership log that a restore took are not given back (R15)",
        change(Agreeing, "_give_back", ("links[after:]", "() if after else links")),
    ),
    "links_skipped": Bug(
        "of the links that a restore took the first one is not given back (R15)",
        change(Agreeing, "_give_back", ("[after:]", "[after + bool(after) :]")),
    ),
    "wrong_end": Bug(
        "of two ends of a membership log a device holds the one that does not stand (R15)",
        change(Agreeing, "_judge", ("ours.outranks(theirs)", "theirs.outranks(ours)")),
    ),
    "former_member": Bug(
        "a device goes over to another end of the membership log and stays the member that it was (R15)",
        change(agreeing, "_gone_over", ("if author != before.author:", "if False:")),
    ),
    "strict_in_parts": Bug(
        "of a strict collection each lost record is given back alone (R14)",
        change(Refills, "store", ("REFILL | ATOMIC if policy == STRICT_POLICY else REFILL", "REFILL")),
    ),
    "gaps_refused": Bug(
        "a device's numbers must have no gaps under a new term either (R16)",
        change(Draft, "_judge", ("if push.batch != last + 1 and in_this_term:", "if push.batch != last + 1:")),
    ),
    "queue_goes_on": Bug(
        "pushes of an older term, or that follow a refused one, are carried out (R16)",
        all_of(change(Draft, "_judge", ("if push.term != self.term:", "if False:")), _any_push),
    ),
}
