"""What one device is asked to do: operations, mostly in bursts, on collections of every kind."""

from collections.abc import Sequence
from dataclasses import replace
from random import Random
from typing import TYPE_CHECKING, Any, Final

import trio

from sealwire_client.sending import StrictError
from tests.simulation.history import Call, Transfer
from tests.simulation.parting import AWAY_SECONDS_MAX, leave
from tests.simulation.things import (
    ACCOUNT_KEYS,
    ACCOUNTS,
    BALANCE,
    CARD_KEYS,
    CARDS,
    KEYS,
    NOTES,
    SCHEMAS,
    Account,
    Card,
    Note,
)

if TYPE_CHECKING:
    from tests.simulation.device import SimDevice
    from tests.simulation.world import World

OPERATIONS_OF_DEVICE: Final = 60
ABSENT_CHANCE: Final = 0.25
"""How often a device disappears, in the midst of its work, for longer than others wait for it."""

CLEARED_MAX: Final = 8
"""Notes that a device deletes at most when it has done its work: nobody writes them any more."""

IDLE_CHANCE: Final = 0.05
"""How often a device pauses before an operation; what it does without a pause gathers in its outbox."""

IDLE_SECONDS_MAX: Final = 8.0

CONNECTS_SECONDS_MAX: Final = 8.0
"""Before the host is connected it opens no accounts; it is within some two seconds, if nothing goes wrong."""

OPENING_EVERY: Final = 5
"""The host tries to open the accounts at every fifth operation, so that the others can move something."""

HURRIED: Final = ("transfer", "transfer", "edit card", "put")
"""What a device does first that has missed what a restore took, and writes before it comes back."""

HURRIED_OPERATIONS: Final = 4
"""How many things a device does at once that has just been let go."""

MARKS_MAX: Final = 6
"""Marks of a card beyond which an edit takes some out."""

PATIENCE_SECONDS: Final = 40.0
"""How long an app waits for a strict write before it gives up, and does not know."""

OPERATIONS: Final = (
    ("get", 0.13),
    ("put", 0.26),
    ("delete", 0.06),
    ("put_many", 0.09),
    ("edit card", 0.24),
    ("delete card", 0.05),
    ("transaction", 0.08),
    ("transfer", 0.06),
    ("offline", 0.015),
    ("wake", 0.015),
)


class Work:
    """The operations of one device."""

    def __init__(self, world: "World", device: "SimDevice", random: Random) -> None:
        self._world, self._device, self._random = world, device, random
        self._history = world.history

    async def run(self) -> None:
        """All of them, also across deaths of the device."""
        world, device, random = self._world, self._device, self._random
        late_at = random.randrange(OPERATIONS_OF_DEVICE // 3)
        absent_at = random.randrange(OPERATIONS_OF_DEVICE) if random.random() < ABSENT_CHANCE else None
        if device is world.host:
            await world.agenda.rest(random.uniform(0, CONNECTS_SECONDS_MAX))
        for number in range(OPERATIONS_OF_DEVICE):
            if world.history.broken:
                return  # nothing more is to be learnt
            if random.random() < IDLE_CHANCE:
                await world.agenda.rest(random.uniform(0, IDLE_SECONDS_MAX))
            await device.until_ready()
            while device.paused:
                await world.agenda.rest(1)
                await device.until_ready()
            device.left = OPERATIONS_OF_DEVICE - number
            parting = world.partings.get(device.place)
            if parting is not None and parting.at <= number and not device.removed:
                del world.partings[device.place]
                if await leave(world, device):
                    if not parting.returns:
                        device.left = 0
                        return
                    await world.agenda.rest(random.uniform(0, AWAY_SECONDS_MAX))
                    device.returns.set()
                    await device.until_ready()
            if number == late_at:
                device.names.add(CARDS)
                world.did(device, "open late")
                await device.during(lambda: device.open_collection(CARDS))
                continue
            if number == absent_at:
                world.did(device, "absent")
                world.absent(device, random)
            what = random.choices([name for name, _ in OPERATIONS], [weight for _, weight in OPERATIONS])[0]
            if device.hurries:
                device.hurries -= 1
                what = random.choice(HURRIED)
            elif number % OPENING_EVERY == 0 and device is world.host and device.open[ACCOUNTS].get("a") is None:
                what = "transfer"
            world.did(device, what)
            await self.operation(what)
        device.left = 0
        await self._clear()

    async def _clear(self) -> None:
        """Delete what nobody is going to write again, which is forgotten some day."""
        await self._device.until_ready()
        for _ in range(self._random.randint(0, CLEARED_MAX)):
            self._world.did(self._device, "clear")
            await self._device.until_ready()
            await self.edit_notes([(f"key {self._random.randrange(3 * KEYS)}", None)])

    async def operation(self, what: str) -> None:
        """Do one thing. Returns when it is done, or the device has died over it."""
        world, device, random = self._world, self._device, self._random
        if what == "offline":
            world.away(device, random.uniform(1, 40), random.random() < 0.5)
        elif what == "wake":
            if device.device is not None:
                device.device.wake()
        elif what == "transfer":
            await self._transfer()
        elif what in ("edit card", "delete card", "transaction") and CARDS in device.open:
            await device.during(getattr(self, "_" + what.replace(" ", "_")))
        elif what == "get":
            self._get()
        else:
            await self._notes(what)

    # --- notes

    async def _notes(self, what: str) -> None:
        random = self._random
        if what == "put_many":
            keys = [f"key {k}" for k in random.sample(range(3 * KEYS), random.randint(2, 5))]
            await self.edit_notes([(key, self._note()) for key in keys])
        else:
            await self.edit_notes([(f"key {random.randrange(KEYS)}", None if what == "delete" else self._note())])

    async def edit_notes(self, items: Sequence[tuple[str, Note | None]]) -> None:
        """Put notes; delete where there is None."""
        notes = self._device.open[NOTES]
        for key, note in items:
            self._call(NOTES, key, note)
        puts = [(key, note) for key, note in items if note is not None]
        if len(puts) > 1:
            await self._device.during(lambda: notes.put_many(puts))
        elif puts:
            await self._device.during(lambda: notes.put(*puts[0]))
        else:
            await self._device.during(lambda: notes.delete(items[0][0]))

    def _note(self) -> Note:
        return Note(f"{self._world.number()} of {self._device.name}")

    def _call(self, name: str, key: str, value: Any) -> None:
        raw = None if value is None else SCHEMAS[name].encode(value)
        place = (self._device.stream(name), key)
        self._history.calls.append(Call(self._device.name, place, raw, self._history.step))

    def _get(self) -> None:
        """A device sees its own edits from the moment on in which they are durable."""
        key = f"key {self._random.randrange(KEYS)}"
        note = self._device.open[NOTES].get(key)
        mine = self._history.unsealed(self._device.name, (self._device.stream(NOTES), key))
        if mine is not None and mine.certain:
            shown = None if note is None else SCHEMAS[NOTES].encode(note)
            if shown != mine.value:
                self._history.fail(f"a device sees its own edits: {self._device.name} does not see its edit of {key}")

    # --- cards

    def _card_key(self) -> str:
        return f"card {self._random.randrange(CARD_KEYS)}"

    async def _edit_card(self) -> None:
        await self._change(self._card_key())

    async def _change(self, key: str) -> None:
        cards, name = self._device.open[CARDS], str(self._world.number())
        card: Card = cards.get(key) or Card()
        fields = {field: name for field in ("title", "color") if self._random.random() < 0.4}
        kept = card.marks
        if len(kept) > MARKS_MAX:
            kept = frozenset(self._random.sample(sorted(kept), MARKS_MAX // 2))  # take some out
        card = replace(card, marks=kept | {name}, **fields)
        self._call(CARDS, key, card)
        await cards.put(key, card)

    async def _delete_card(self) -> None:
        key = self._card_key()
        self._call(CARDS, key, None)
        await self._device.open[CARDS].delete(key)

    async def _transaction(self) -> None:
        device, random = self._device, self._random
        assert device.vault is not None
        async with device.vault.transaction():
            for number in random.sample(range(CARD_KEYS), random.randint(1, 2)):
                await self._change(f"card {number}")
            if random.random() < 0.7:
                key, note = f"key {random.randrange(KEYS)}", self._note()
                self._call(NOTES, key, note)
                await device.open[NOTES].put(key, note)

    # --- accounts

    async def _transfer(self) -> None:
        """Move something from one account to another; the host opens them, if they are not there yet."""
        device = self._device
        transfer = Transfer(device.name, f"transfer {self._world.number()}", False)
        self._history.transfers.append(transfer)
        await device.during(lambda: self._move(transfer))

    async def _move(self, transfer: Transfer) -> None:
        accounts, vault = self._device.open[ACCOUNTS], self._device.vault
        assert vault is not None
        amount = self._random.randint(1, 50)
        one, other = self._random.sample(ACCOUNT_KEYS, 2)
        try:
            with trio.move_on_after(PATIENCE_SECONDS):
                async with vault.transaction():
                    after = {
                        one: self._moved(accounts.get(one), -amount, transfer.name),
                        other: self._moved(accounts.get(other), amount, transfer.name),
                    }
                    if None in after.values():
                        opens = self._device is self._world.host
                        missing = [key for key in ACCOUNT_KEYS if accounts.get(key) is None]
                        after = {key: self._moved(Account(0, 0, ""), BALANCE, transfer.name) for key in missing}
                        if not opens or len(missing) < len(ACCOUNT_KEYS):
                            return
                    for key, account in after.items():
                        self._call(ACCOUNTS, key, account)
                        await accounts.put(key, account)
                    transfer.done = None
                transfer.done = True
        except StrictError:
            transfer.done = False

    @staticmethod
    def _moved(account: Account | None, amount: int, by: str) -> Account | None:
        return None if account is None else Account(account.balance + amount, amount, by)
