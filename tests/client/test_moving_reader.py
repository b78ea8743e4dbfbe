"""A reader at the relay to which its vault has moved: it can bring nothing, and waits for who can."""

from pathlib import Path

import pytest
import trio

from sealwire_client.status import State
from sealwire_protocol.limits import PUSH_RECORDS_MAX
from sealwire_protocol.links import Role
from sealwire_protocol.messages import REFILL, CreateStream, Message, Push
from tests.client.party import Note, asked_of, comes, founded, in_step, joined, put_many, returned, told
from tests.client.test_moving import NEW, OLD, Opens, Relays
from tests.support.virtual import virtual


@pytest.fixture
def relays() -> Relays:
    return Relays(OLD, NEW)


@pytest.fixture
def opens(tmp_path: Path, relays: Relays) -> Opens:
    return Opens(tmp_path, relays)


@virtual
async def test_a_reader_that_comes_first_waits_for_a_writer_and_says_so(opens: Opens, relays: Relays) -> None:
    async with opens("host") as first, opens("reader") as second:
        host = await founded(first)
        await host.vault.synced()
        reader = await joined(second, host.vault, Role.READER)
        await host.notes.put("a", Note("one"))
        await in_step([host, reader])
    with asked_of(relays[NEW], CreateStream, swallowed=True):
        async with opens("host") as first:
            host = await returned(first)
            await host.vault.move(NEW)
    async with opens("reader") as second:
        reader = await returned(second)
        await comes(lambda: reader.vault.origin == NEW)
        await told(reader, "it waits for one that may write, which brings it there")
        await trio.sleep(600)
        status = await reader.vault.status()
        assert status.state is State.RECONCILING and status.last_error and "may not create" not in status.last_error
        assert reader.dump() == {"a": "one"}, "it may be the only one that has it"
        async with opens("host") as first:
            host = await returned(first)
            await host.notes.put("b", Note("two"))
            await in_step([host, reader])
        assert reader.dump() == {"a": "one", "b": "two"}
        assert (await reader.vault.status()).last_error is None


@virtual
async def test_a_reader_that_comes_while_a_writer_still_gives_back_has_all_of_it_in_the_end_and_no_error(
    opens: Opens, relays: Relays
) -> None:
    async with opens("host") as first, opens("reader") as second:
        host = await founded(first)
        await host.vault.synced()
        reader = await joined(second, host.vault, Role.READER)
        await put_many(host, "note ", 2 * PUSH_RECORDS_MAX)
        await in_step([host, reader])
        given: list[Push] = []

        def after_the_first(message: Message) -> list[Message]:
            if not isinstance(message, Push) or not message.flags & REFILL:
                return [message]
            given.append(message)
            return [message] if len(given) == 1 else []

        relays[NEW].mishear = after_the_first
        await host.vault.move(NEW)
        await comes(lambda: len(given) > 1 and reader.vault.origin == NEW)
        await trio.sleep(120)
        status = await reader.vault.status()
        assert (status.last_error, status.stuck) == (None, 0)
        relays[NEW].mishear = None
        relays[NEW].cut()
        await in_step([host, reader])
        assert len(reader.dump()) == 2 * PUSH_RECORDS_MAX
