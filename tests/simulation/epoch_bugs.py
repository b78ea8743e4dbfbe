"""Planted bugs in how a vault's key is changed, and in what becomes of who was removed."""

from typing import Final

from sealwire_client import keyring, linkmaking, membering
from sealwire_client.agreeing import Agreeing
from sealwire_client.keyring import VaultKeys
from sealwire_client.replica.outbox import Outbox
from sealwire_relay.store.memory import MemoryStore
from sealwire_relay.view import Draft
from tests.simulation.planting import Bug, all_of, change

_ANY_EPOCH: Final = change(Draft, "_of_push", ("if (found.epoch, found.key_id) != self._key:", "if False:"))

EPOCH_BUGS: Final[dict[str, Bug]] = {
    "old_epoch": Bug("the relay takes records of an old epoch", _ANY_EPOCH),
    "epoch_race": Bug(
        "a new epoch is no condition of writes that were decided before it",
        change(MemoryStore, "_holds", (" or write.key != kept.state.key", "")),
    ),
    "removed_writes": Bug(
        "what a removed device sends is taken",
        all_of(_ANY_EPOCH, change(MemoryStore, "_add_link", ("del kept.members[author]", "pass"))),
    ),
    "stale_dropped": Bug(
        "what was refused for its epoch is dropped",
        change(
            Outbox,
            "answer",
            (
                "again, stuck = self._conflicted(vault, writes, {}, outcome.name.lower())",
                "again, stuck = 0, 0",
            ),
        ),
    ),
    "keys_forgotten": Bug(
        "with a new key the earlier ones are forgotten",
        change(
            VaultKeys,
            "take_in",
            ("newer.epochs, newer.current", "{newer.current.number: newer.current}, newer.current"),
        ),
    ),
    "any_key": Bug(
        "an admin hands over another key than the one that it has committed to, and nobody looks",
        all_of(
            change(
                linkmaking,
                "new_epoch_link",
                ("xor(secret.reveal(), pad)", "xor(secret.reveal() if member is signer else bytes(KEY_BYTES), pad)"),
            ),
            change(
                keyring,
                "_checked",
                ("if epoch_commitment(secret, epoch) != membership.commitment(epoch):", "if False:"),
            ),
        ),
    ),
    "owed_for_ever": Bug(
        "nobody changes the key that who has left still has",
        change(membering, "_is_to_pay", ("sync.membership.owes_epoch and", "False and")),
    ),
    "end_kept": Bug(
        "the relay keeps what was written in a vault that was deleted",
        change(MemoryStore, "_set_state", ("if state.ended:", "if False:")),
    ),
    "removal_undone": Bug(
        "who was removed by links that a restore took stays a member (R15)",
        change(Agreeing, "_lost", ("(member.removed and member.device in there - here)", "False")),
    ),
}
