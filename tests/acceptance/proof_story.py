"""Three people, five devices, two vaults: what happens to all who share something, from the first invite on.

Each device is a folder in which `sealwire` is run as its person would run it, each command a process; the relay is a
process too, with a Postgres of its own, and the devices' way to it can be cut. So is the one to which a vault moves.

Ada has a laptop and a phone, Ben a desktop and a tablet, Cleo a laptop. *family* belongs to all, *work* to Ada alone.
"""

import shutil
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Final

import trio

from demo.processes import StoryError
from tests.acceptance.commanding import WAIT, Answer, Machine, at_once
from tests.faults.site import Site, site

LIMIT_S = 900
LIMIT_SHORT_S = 900

FAMILY: Final = "family"
WORK: Final = "work"
NOTES: Final = "notes"

SECRET: Final = "written when the phone was out"
"""What the lost phone must never hold."""

ENTRIES: Final = 5_000
ENTRIES_SHORT: Final = 200
"""What is in the family's vault besides."""


class Story:
    """The people's devices, and what was shown of them so far."""

    def __init__(self, folder: Path, place: Site, elsewhere: Site) -> None:
        self.laptop, self.phone = Machine(folder, "ada-laptop"), Machine(folder, "ada-phone")
        self.desktop, self.tablet = Machine(folder, "ben-desktop"), Machine(folder, "ben-tablet")
        self.cleo, self.new = Machine(folder, "cleo-laptop"), Machine(folder, "ada-new")
        self.place, self.elsewhere = place, elsewhere
        self.shown: list[str] = []
        self.words: dict[str, str] = {}
        self.fingerprints: dict[str, str] = {}

    def show(self, what: str, holds: bool, told: object = "") -> None:
        """Note what has been shown. Raises StoryError if it does not hold."""
        if not holds:
            raise StoryError(f"It does not hold that {what}: {told}")
        self.shown.append(what)

    async def same(self, vault: str, machines: Sequence[Machine]) -> dict[str, Answer]:
        """What these devices show alike, once they are in step."""
        first, *others = await at_once(partial(machine.shows, NOTES, vault) for machine in machines)
        for machine, other in zip(machines[1:], others, strict=True):
            if other != first:
                raise StoryError(f"{machine.name} shows something else of {vault} than {machines[0].name}")
        return first

    # --- the steps

    async def begin(self, entries: int) -> None:
        """Ada makes two vaults, lets her phone into both with one approval, and writes her recovery words down."""
        origin = self.place.origin
        await self.laptop.do("init", "--relay", origin, "--vault", FAMILY, "--name", self.laptop.name, *WAIT)
        await self.laptop.do("init", "--relay", origin, "--vault", WORK, "--name", self.laptop.name, *WAIT)
        lines = "\n".join(f'{{"key": "entry {n}", "value": {{"n": {n}}}}}' for n in range(entries))
        fill = ("import", NOTES, "-", "--vault", FAMILY, "--policy", "merge", *WAIT)
        await self.laptop.do(*fill, given=lines)
        await self.laptop.puts(NOTES, "contract", {"text": "signed"}, WORK)
        joined = await self.laptop.invites(self.phone, "--all-vaults")
        self.show("one approval lets Ada's phone into both vaults", sorted(joined["vaults"]) == [FAMILY, WORK], joined)
        for vault in (FAMILY, WORK):
            answer = await self.laptop.do("recovery", "show", "--yes", "--vault", vault, *WAIT)
            self.words[vault] = answer["words"]

    async def share(self) -> None:
        """Ben and Cleo are invited, with a code that two people compare; Ben lets his tablet in himself."""
        same = await self.laptop.shares(self.desktop, "--role", "admin", "--vault", FAMILY)
        same = await self.laptop.shares(self.cleo, "--vault", FAMILY) and same
        self.show("two people see the same six digits", same)
        await self.desktop.invites(self.tablet, "--all-vaults")
        family = [self.laptop, self.phone, self.desktop, self.tablet, self.cleo]
        await at_once(partial(each.puts, NOTES, each.name, {"from": each.name}, FAMILY) for each in family)
        shown = await self.same(FAMILY, family)
        self.show("all five devices show what each has written", {each.name for each in family} <= shown.keys())
        refused = await self.cleo.try_to("get", NOTES, "contract", "--vault", WORK)
        self.show("who was let into one vault knows nothing of the other", refused.code != 0, refused)

    async def edit_offline(self) -> None:
        """Nobody reaches the relay; two edit the same entry, each another field of it, and all comes together."""
        await self.laptop.puts(NOTES, "party", {"when": "?", "where": "?"}, FAMILY)
        await self.same(FAMILY, [self.laptop, self.phone, self.desktop])
        self.place.front.lead_to()
        edits = [
            (self.phone, "party", {"when": "Friday", "where": "?"}),
            (self.desktop, "party", {"when": "?", "where": "at Ben's"}),
            (self.phone, "offline", {"from": self.phone.name}),
        ]
        for machine, key, value in edits:
            told = await machine.puts(NOTES, key, value, FAMILY, wait=False)
            self.show(f"{machine.name} keeps {key} without the relay", told["saved"] and not told["sent"], told)
        self.place.lead()
        for machine in (self.phone, self.desktop):
            await machine.do("status", "--vault", FAMILY, *WAIT)
        shown = await self.same(FAMILY, [self.desktop, self.phone, self.tablet, self.cleo])
        merged = {"when": "Friday", "where": "at Ben's"}
        self.show("both edits of one entry are in it", shown["party"] == merged, shown["party"])
        self.show("what was written without the relay arrived", "offline" in shown)

    async def lose_a_phone(self) -> None:
        """Ada's phone is lost, with a note that it has not sent. She removes it from both vaults."""
        self.place.front.lead_to()
        await self.phone.puts(NOTES, "unsent", {"from": "the finder"}, FAMILY, wait=False)
        self.place.lead()
        for vault in (FAMILY, WORK):
            await self.laptop.do("vault", "remove", self.phone.name, "--yes", "--vault", vault, *WAIT)
        await self.laptop.puts(NOTES, "after", {"text": SECRET}, FAMILY)
        await self.desktop.shows(NOTES, FAMILY)
        members = await self.desktop.try_to("vault", "members", "--vault", FAMILY)
        names = {member["name"] for member in members.told}
        self.show("who was removed is in nobody's list", self.phone.name not in names and len(names) == 5, names)

    async def show_that_it_is_out(self) -> None:
        """What the phone writes and reads now, whoever has it."""
        told = await self.phone.puts(NOTES, "later", {"from": "the finder"}, FAMILY)
        clear = not told["sent"] and told["pending"] == 2 and "was removed" in str(told["why"])
        self.show("what a removed device writes stays unsent, and it is told why", clear, told)
        read = await self.phone.try_to("get", NOTES, "after", "--fresh", "--vault", FAMILY, *WAIT)
        clear = read.code != 0 and "was removed" in read.said
        self.show("what is written then it cannot read, and it is told why", clear, read)
        self.show("no file of it holds what is written then", not self.phone.holds_text(SECRET))
        self.show("files of the others do", self.laptop.holds_text(SECRET) and self.desktop.holds_text(SECRET))
        shown = await self.same(FAMILY, [self.laptop, self.desktop])
        self.show("nobody has got what it wrote", not {"unsent", "later"} & shown.keys())

    async def rotate(self) -> None:
        """Ben, an admin, changes the key once more; who was away at that goes on."""
        await self.desktop.do("vault", "rotate", "--vault", FAMILY, *WAIT)
        await self.tablet.puts(NOTES, "rotated", {"from": self.tablet.name}, FAMILY)
        shown = await self.same(FAMILY, [self.cleo, self.tablet])
        self.show("who was away when the key changed writes and reads under the new one", "rotated" in shown)

    async def recover(self) -> None:
        """Ada's laptop is gone too. On an empty machine she types what is on her two sheets of paper."""
        before = {vault: await self.laptop.shows(NOTES, vault) for vault in (FAMILY, WORK)}
        shutil.rmtree(self.laptop.folder)
        for vault in (FAMILY, WORK):
            use = ("recovery", "use", "--relay", self.place.origin, "--name", self.new.name)
            await self.new.do(*use, *WAIT, given=self.words[vault])
        for vault, entries in before.items():
            recovered = await self.new.shows(NOTES, vault)
            self.show(f"the words bring back all of {vault} on an empty machine", recovered == entries)
            await self.new.do("vault", "remove", self.laptop.name, "--yes", "--vault", vault, *WAIT)
        await self.new.puts(NOTES, "recovered", {"from": self.new.name}, FAMILY)

    async def move(self) -> None:
        """Ben takes the family's vault to another relay, and the others follow. Then the first relay is gone."""
        family = [self.desktop, self.new, self.tablet, self.cleo]
        before = await self.desktop.shows(NOTES, FAMILY)
        moved = await self.desktop.do("vault", "move", "--relay", self.elsewhere.origin, "--vault", FAMILY, *WAIT)
        self.show("a vault moves to another relay", moved["relay"] == self.elsewhere.origin and moved["synced"], moved)
        told = await at_once(partial(each.do, "status", "--vault", FAMILY, *WAIT) for each in family)
        self.show("its devices follow", {each["relay"] for each in told} == {self.elsewhere.origin}, told)
        await self.place.kill(self.place.relays[0])
        await self.cleo.puts(NOTES, "moved", {"from": self.cleo.name}, FAMILY)
        shown = await self.same(FAMILY, family)
        same = {key: value for key, value in shown.items() if key != "moved"} == before and "moved" in shown
        self.show("all is there, and goes on without the first relay", same)

    async def end(self) -> None:
        """All who belong to the family hold the very same, and so does the relay."""
        family = [self.new, self.desktop, self.tablet, self.cleo]
        reports = await at_once(partial(each.do, "doctor", "--vault", FAMILY, *WAIT) for each in family)
        for machine, report in zip(family, reports, strict=True):
            (found,) = [each for each in report["vaults"][0]["collections"] if each["collection"] == NOTES]
            self.fingerprints[machine.name] = found["here"]["fingerprint"]
            self.fingerprints["relay"] = found["relay"]["fingerprint"]
        same = len(set(self.fingerprints.values())) == 1
        self.show("all devices and the relay end with equal fingerprints", same, self.fingerprints)
        words = await at_once(partial(each.do, "vault", "head", "--vault", FAMILY) for each in family)
        self.show("all show the same eight words", len({each["words"] for each in words}) == 1, words)
        lost = await self.phone.try_to("doctor", "--vault", FAMILY, *WAIT)
        self.show("the lost phone is not in step with them", lost.answer["verdict"] != "in_sync", lost.answer)

    async def leave(self) -> None:
        """Cleo leaves, and holds nothing of it any more; the others go on."""
        self.show("Cleo's laptop holds what it has read", self.cleo.holds_text(SECRET))
        await self.cleo.do("vault", "leave", "--yes", "--vault", FAMILY, *WAIT)
        self.show("who has left holds nothing of it any more", not self.cleo.holds_text(SECRET))
        await self.desktop.puts(NOTES, "left", {"from": self.desktop.name}, FAMILY)
        shown = await self.same(FAMILY, [self.new, self.tablet])
        self.show("the others go on", "left" in shown)


async def prove(folder: Path, entries: int) -> dict[str, object]:
    """The whole story; what it has shown."""
    async with site() as place, site() as elsewhere:
        await at_once([partial(each.start, each.relays[0]) for each in (place, elsewhere)])
        story, seconds = Story(folder, place, elsewhere), dict[str, float]()
        steps: Iterable[Callable[[], Awaitable[None]]] = (
            partial(story.begin, entries),
            story.share,
            story.edit_offline,
            story.lose_a_phone,
            story.show_that_it_is_out,
            story.rotate,
            story.recover,
            story.move,
            story.end,
            story.leave,
        )
        problem = None
        for step in steps:
            began = time.monotonic()
            name = (step.func if isinstance(step, partial) else step).__name__
            try:
                await step()
            except StoryError as error:
                problem = f"{name}: {error}"
                break
            seconds[name] = round(time.monotonic() - began, 1)
            print(f"story: {name.replace('_', ' ')}, {seconds[name]} s", flush=True)
    return {
        "ok": problem is None,
        "problem": problem,
        "people": 3,
        "devices": 5,
        "vaults": 2,
        "entries": entries,
        "shown": story.shown,
        "fingerprints": story.fingerprints,
        "steps_s": seconds,
    }


def run(short: bool) -> dict[str, object]:
    """The proof: ok if the whole story goes as it should."""
    with tempfile.TemporaryDirectory(prefix="story-", ignore_cleanup_errors=True) as name:
        return trio.run(prove, Path(name), ENTRIES_SHORT if short else ENTRIES)
