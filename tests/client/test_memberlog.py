"""A vault's membership log on a device, while the relay shows one end after another."""

from pathlib import Path

from sealwire_client import cipher
from sealwire_client.memberlog import MemberLog
from sealwire_client.replica import InlineWriter, Replica
from sealwire_protocol.ids import MEMBERSHIP, Author, Position, Term
from sealwire_protocol.links import FIRST_AUTHOR, Role, encode_links, link_hash, vault_id_of
from sealwire_protocol.membership import membership_of
from sealwire_protocol.messages import Deliver
from tests.protocol.examples import T1, T2, add_device, genesis, key_of, signer
from tests.support.virtual import virtual

ADMIN = signer(1)
FIRST = genesis(ADMIN)
VAULT = vault_id_of(FIRST)


def added(log: list[bytes], number: int) -> list[bytes]:
    """The log, with a link more."""
    key = key_of(signer(number))
    return [*log, add_device(ADMIN, FIRST_AUTHOR, VAULT, len(log) + 1, link_hash(log[-1]), key, Role.WRITER)]


def delivered(term: Term, prev: int, *links: bytes) -> Deliver:
    return Deliver(VAULT, MEMBERSHIP, term, 0, 0, 0, 0, prev, prev + len(links), encode_links(links))


async def held_by(writer: InlineWriter[Replica], known: list[bytes]) -> MemberLog:
    """A log that a device holds."""

    def hold(replica: Replica) -> int:
        held = replica.vaults.add(VAULT, "home", "wss://relay.test", Author(1))
        replica.vaults.add_links(held.number, 1, known)
        return held.number

    return MemberLog(await writer.run(hold), membership_of(known, cipher.verify), writer)


@virtual
async def test_r15_an_end_is_not_added_to_another_one_that_was_read_before_it(tmp_path: Path) -> None:
    writer = InlineWriter(lambda: Replica(tmp_path))
    known = added(added([FIRST], 2), 3)
    log = await held_by(writer, known)
    log.read_anew()
    one, other = added(known[:2], 4), added(added(known[:2], 5), 6)
    await log.take(delivered(T1, 2, one[2]))  # it was on its way
    for place, raw in enumerate(other):
        assert await log.take(delivered(T2, place, raw)) == Position(T2, place + 1)
    assert log.rival is not None
    assert (log.rival.base.head, log.rival.links) == (2, other[2:])
    await writer.aclose()


@virtual
async def test_r15_a_link_that_comes_while_a_device_goes_over_to_the_others_is_told_again(tmp_path: Path) -> None:
    writer = InlineWriter(lambda: Replica(tmp_path))
    known = added(added([FIRST], 2), 3)
    log = await held_by(writer, known)
    other = added(added(known[:2], 5), 6)
    log.read_anew()
    await log.take(delivered(T2, 0, *other[:3]))
    assert log.rival is not None
    judged = log.rival.membership.copy()
    await log.take(delivered(T2, 3, other[3]))
    log.go_over(judged)
    assert log.listen_from() == Position(T2, 3)
    await writer.aclose()
