"""The story: two devices and one relay that cannot read, from the first entry to the search for plaintext."""

import contextlib
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import trio

from demo import inside
from demo.characters import COLLECTION, DEVICES, VAULT, Character, characters
from demo.leaks import NAME_CHARS_MIN, Needles
from demo.ledger import Edit, Ledger, as_value, read_dump
from demo.news import News
from demo.plan import Plan
from demo.processes import StoryError
from demo.relay import Relay
from demo.remote import KilledError, RemoteDevice
from demo.report import Figures, Teller
from sealwire_client.encoding import schema_of
from sealwire_client.nursery import open_nursery

BULK_PER_S_MIN: Final = 1_000
"""Slower than this is taken for a standstill, so that every wait for many entries has an end."""

STEP_S_MAX: Final = 60.0
"""For a step that does not depend on the number of entries."""

LIVE_S_MAX: Final = 60.0
"""For one edit from device to device."""

PACE_S: Final = 0.02
"""Between two edits of a person in a great hurry."""

ACKS_BEFORE_KILL: Final = 8
"""Edits that a device has made when something is killed in the middle of its edits."""

VALUES_SOUGHT: Final = 10
"""Encoded values that are looked for as such, beside all names, which are in them."""

SCANS: Final = 7
"""Of which the median is told."""


class Story:
    """All that takes part. `tell` runs the phases; `abandon` leaves no process whatever has happened."""

    def __init__(self, entries: int, folder: Path, teller: Teller, nursery: trio.Nursery) -> None:
        self.entries, self.teller, self.folder = entries, teller, folder
        self.figures = Figures()
        self.relay = Relay(folder)
        self.a, self.b = RemoteDevice("A", folder, nursery), RemoteDevice("B", folder, nursery)
        self._nursery = nursery
        self._initial = characters(entries)
        self.plan = Plan(self._initial)
        self.ledger = Ledger(self._initial)
        self._confirmations = News()
        self._words_of_postgres: set[str] = set()
        self.bulk_s = STEP_S_MAX + entries / BULK_PER_S_MIN

    async def tell(self) -> None:
        """All phases, one after the other. Raises StoryError."""
        for phase in (self.load, self.join, self.break_apart, self.ask, self.look_inside):
            await phase()
        await self.end()

    # --- 1

    async def load(self) -> None:
        """A relay, and device A with everything."""
        tell = self.teller
        tell.phase("A relay with a Postgres of its own; device A loads Unicode")
        seconds = await self.relay.start()
        self._nursery.start_soon(self.relay.watch)
        tell.fact(f"the relay serves {self.relay.origin} after {seconds:.1f} s")
        await self._look_before()
        await self.a.start(self.relay.origin)
        await self.a.ask("create", STEP_S_MAX)
        self.figures.devices = 1
        began = time.perf_counter()
        with tell.bar("durable on device A", self.entries) as advance:
            loaded = await self.a.ask("load", self.bulk_s, advance, entries=self.entries)
            advance(self.entries)
        self.figures.put_per_s = loaded["puts"] / loaded["seconds"]
        with tell.bar("durable at the relay", self.entries) as advance:
            await self.a.ask("synced", self.bulk_s, lambda told: advance(self.entries - told[0]))
            advance(self.entries)
        self.figures.upload_per_s = self.entries / (time.perf_counter() - began)
        tell.fact(f"{loaded['puts']:,} entries put at {self.figures.put_per_s:,.0f} a second, each in SQLite on disk")
        tell.fact(f"{self.figures.upload_per_s:,.0f} a second from the first put to sealed, sent and committed")

    async def _look_before(self) -> None:
        """Some characters are named as Postgres' own words are: LEFT OUTER JOIN. What is there before the first entry
        is no leak, and its being there later proves nothing."""
        found = await self._look(inside.search_all, Needles({}, self.ledger.names()))
        self._words_of_postgres = set(found.places)

    # --- 2

    async def join(self) -> None:
        """Device B joins and catches up while A edits; then edits live."""
        tell = self.teller
        tell.phase("Device B joins by invite and catches up while A keeps editing")
        await self.b.start()
        await self._invite()
        self.figures.devices = 2
        async with open_nursery() as meanwhile:
            meanwhile.start_soon(self.edit, self.a, self.plan.while_joining, PACE_S * 5)
            with tell.bar("device B catches up", self.entries) as advance:
                behind: list[int] = []

                def progress(told: list[int]) -> None:
                    # Before the relay has told how much there is, nothing is known to be behind.
                    if told[1] or behind:
                        behind.append(told[1])
                        advance(self.entries - told[1])

                caught_up = await self.b.ask("catch_up", self.bulk_s, progress)
                advance(self.entries)
        self.figures.bootstrap_records_per_s = caught_up["records"] / caught_up["seconds"]
        tell.fact(
            f"{caught_up['records']:,} entries in {caught_up['seconds']:.1f} s: fetched, opened, checked, in SQLite; "
            f"{len(self.plan.while_joining)} edits of A came in between"
        )
        await self.edit_live()
        tables = await self._look(inside.tables)
        self.figures.relay_bytes_per_entity = sum(table.bytes for table in tables) / self.entries
        tell.fact(f"the relay's tables and indexes take {self.figures.relay_bytes_per_entity:.1f} bytes an entry")

    async def _invite(self) -> None:
        links: list[str] = []
        invited = trio.Event()

        def told(link: str) -> None:
            links.append(link)
            invited.set()

        async with open_nursery() as nursery:
            approved: list[str] = []

            async def invite() -> None:
                approved.append(await self.a.ask("invite", STEP_S_MAX, told))

            nursery.start_soon(invite)
            await invited.wait()
            await self.b.ask("join", STEP_S_MAX, link=links[0])
        self.teller.fact(f"A's invite, through the relay's mailbox: {links[0][:28]}…  A approved “{approved[0]}”")

    async def edit_live(self) -> None:
        """Edits of A, one at a time, each until B's app learns of it."""
        watching, arrived = trio.Event(), trio.Event()
        seen: dict[str, int] = {}

        def told(change: dict[str, Any] | None) -> None:
            nonlocal arrived
            watching.set()
            if change is not None:
                seen.update((key, change["at"]) for key in change["keys"] if key not in seen)
                arrived.set()
                arrived = trio.Event()

        took: list[float] = []
        async with open_nursery() as nursery:
            nursery.start_soon(self.b.ask, "watch", float("inf"), told)
            await watching.wait()
            with self.teller.bar("live edits", len(self.plan.live)) as advance:
                for edit in self.plan.live:
                    made = await self.edit(self.a, [edit])
                    with trio.move_on_after(LIVE_S_MAX):
                        while edit[0] not in seen:
                            await arrived.wait()
                    if edit[0] not in seen:
                        raise StoryError(f"Device B did not learn of A's edit of {edit[0]} within {LIVE_S_MAX:.0f} s.")
                    took.append((seen[edit[0]] - made[edit[0]]) / 1e6)
                    advance(len(took))
            nursery.cancel_scope.cancel()
        figures = self.figures
        figures.live_edits = len(took)
        figures.live_ms_median, figures.live_ms_p95 = statistics.median(took), statistics.quantiles(took, n=20)[-1]
        self.teller.fact(
            f"from A's put to B's app: {figures.live_ms_median:.1f} ms in the median, {figures.live_ms_p95:.1f} ms for "
            "95%, each on disk on A, at the relay, and on B"
        )

    # --- 3

    async def break_apart(self) -> None:
        """Kill the relay under their edits, edit offline, kill A, bring all back, compare."""
        tell, plan = self.teller, self.plan
        tell.phase("Both go offline and edit; relay, Postgres and device A are killed with -9")
        confirmed = self.ledger.confirmed
        async with open_nursery() as nursery:
            nursery.start_soon(self.edit, self.a, plan.offline["A"], PACE_S)
            nursery.start_soon(self.edit, self.b, plan.offline["B"], PACE_S)
            await self._confirmed(confirmed + ACKS_BEFORE_KILL)
            killed = self.relay.kill()
        tell.fact(f"kill -9 in the middle of their edits: the relay and Postgres, {len(killed)} processes, all dead")
        for device in (self.a, self.b):
            await device.ask("miss_relay", STEP_S_MAX)
        await self._kill_device_a()
        self.figures.offline_edits = self.ledger.confirmed - confirmed
        tell.fact(
            f"{self.figures.offline_edits} edits, of the same {len(plan.conflicts)} entries and of different ones, "
            "deletes and new entries too"
        )
        self.figures.recovery_s = await self.relay.start()
        recovered = "; ".join(self.relay.recovery())
        tell.fact(f"the relay is back after {self.figures.recovery_s:.1f} s; Postgres says: {recovered or 'nothing'}")
        await self._converge()

    async def _confirmed(self, count: int) -> None:
        if not await self._confirmations.until(lambda: self.ledger.confirmed >= count, STEP_S_MAX):
            raise StoryError(f"Only {self.ledger.confirmed} of {count} edits were made within {STEP_S_MAX:.0f} s.")

    async def _kill_device_a(self) -> None:
        """Kill A in the middle of its edits, start it again, and look whether what it called durable is there."""
        last, confirmed = self.plan.last, self.ledger.confirmed

        async def edit_until_killed() -> None:
            with contextlib.suppress(KilledError):
                await self.edit(self.a, last, PACE_S)

        async with open_nursery() as nursery:
            nursery.start_soon(edit_until_killed)
            await self._confirmed(confirmed + ACKS_BEFORE_KILL)
            await self.a.kill()
        done = self.ledger.confirmed - confirmed
        await self.a.start()
        await self.a.ask("open", STEP_S_MAX)
        durable = self.ledger.durable_of("A")
        values = await self.a.ask("values", STEP_S_MAX, keys=list(durable))
        missing = sum(as_value(found) != value for found, value in zip(values, durable.values(), strict=True))
        self.teller.fact(
            f"kill -9 of device A after {done} of {len(last)} edits; started again, it misses {missing} of "
            f"{len(durable)}",
            good=not missing,
        )
        if missing:
            self.figures.problems.append(f"device A lost {missing} edits when it was killed")
        await self.edit(self.a, last[done:])

    async def _converge(self) -> None:
        began = time.perf_counter()
        for device in (self.a, self.b):
            await device.ask("wake", STEP_S_MAX)
        for device in (self.a, self.b):
            await device.ask("synced", STEP_S_MAX)
        keys = self.ledger.edited()
        with trio.move_on_after(STEP_S_MAX):
            while True:
                a, b = [await device.ask("values", STEP_S_MAX, keys=keys) for device in (self.a, self.b)]
                if a == b:
                    break
                await trio.sleep(PACE_S)
        self.figures.converge_s = time.perf_counter() - began
        await self._compare()

    async def _compare(self) -> None:
        """Both replicas, entry by entry, with each other and with all edits that were called durable."""
        figures, tell = self.figures, self.teller
        async with open_nursery() as nursery:
            for device in (self.a, self.b):
                nursery.start_soon(self._dump, device)
        a, b = [read_dump(self.folder / f"{letter}.dump") for letter in "AB"]
        verdict = self.ledger.judge(a, b)
        figures.entries = verdict.entries
        figures.lost = len(verdict.lost)
        figures.converged = not verdict.differing and verdict.entries == self.ledger.expected_entries()
        tell.fact(
            f"both replicas hold the same {verdict.entries:,} entries {figures.converge_s:.1f} s later"
            if figures.converged
            else f"the replicas differ in {len(verdict.differing):,} entries, as in {verdict.differing[:3]}",
            good=figures.converged,
        )
        kept = " and ".join(f"{count} times {letter}'s" for letter, count in sorted(verdict.conflicts.items()))
        tell.fact(
            f"of {self.ledger.confirmed} edits {figures.lost} are lost; where both edited the same entry, one edit was "
            f"kept whole, {kept}" + (f"; lost: {verdict.lost[:3]}" if verdict.lost else ""),
            good=not figures.lost,
        )

    async def _dump(self, device: RemoteDevice) -> None:
        await device.ask("dump", self.bulk_s, path=str(self.folder / f"{device.letter}.dump"))

    # --- 4

    async def ask(self) -> None:
        """A question over all entries, answered where the data is."""
        self.teller.phase("Device B answers a question over all entries, from its replica")
        answer = await self.b.ask("scan", self.bulk_s, times=SCANS)
        self.figures.scan_ms = answer["ms"]
        rows = answer["rows"]
        counted = sum(count for _, count in rows)
        self.teller.table(("category", "characters"), [(name, f"{count:,}") for name, count in rows[:6]])
        right = counted == self.figures.entries
        self.teller.fact(f"{counted:,} entries in {len(rows)} categories counted in {answer['ms']:.1f} ms", good=right)
        if not right:
            self.figures.problems.append(f"the count by category covers {counted:,} entries")

    # --- 5

    async def look_inside(self) -> None:
        """What the relay holds: its tables, one record, and every byte of its folder."""
        tell, figures = self.teller, self.figures
        tell.phase("What the relay sees")
        tables = await self._look(inside.tables)
        size = sum(table.bytes for table in tables)
        # More than before the crash: recovery gives every table a map of its free space, of three pages.
        figures.relay_bytes_per_entity_after_crash = size / max(1, figures.entries)
        shown = [(table.name, f"{table.rows:,}", f"{table.bytes:,}") for table in tables]
        tell.table(("table", "rows", "bytes"), [*shown, ("all", "", f"{size:,}")])
        log = await self._look(inside.log)
        record = log.sample_record
        tell.fact(f"one record, {len(log.sample)} bytes: {log.sample.hex()}")
        tell.fact(
            f"of which it can tell: tag {record.tag.hex()}, version {record.version}, author {record.author}, "
            f"{len(record.body)} bytes sealed"
        )
        figures.duplicated = log.repeated + max(0, log.tags - len(self.ledger.keys()))
        tell.fact(
            f"{log.records:,} records of {log.tags:,} entries (and {log.beside} of what devices state of them):"
            f" {figures.duplicated} twice, {log.gaps} gaps",
            good=not figures.duplicated and not log.gaps,
        )
        if log.gaps:
            figures.problems.append(f"the stored log has {log.gaps} gaps")
        await self._search()

    async def _search(self) -> None:
        """A canary in clear, which must be found; then everything that was sealed, which must not."""
        tell, figures = self.teller, self.figures
        canary = await self._look(inside.plant)
        secrets = await self._look(inside.secrets, {device.letter: device.folder for device in (self.a, self.b)})
        known = self._known(secrets)
        names = [name for name in self.ledger.names() if name not in self._words_of_postgres]
        needles = Needles(canary.tokens | known, names)
        found = await self._look(inside.search_all, needles)
        await self._look(inside.uproot)
        seen = canary.seen(found)
        figures.canary_found = all(seen.values())
        tell.fact(
            "a canary planted in clear through Postgres: "
            + ", ".join(f"{place} {'found' if yes else 'not found'}" for place, yes in seen.items()),
            good=figures.canary_found,
        )
        for place in canary.tokens:
            found.hits -= sum(found.places.pop(place, {}).values())
        figures.plaintext_found = found.hits
        tell.fact(
            f"{needles.count - len(canary.tokens):,} names, values, keys and seeds are looked for in {found.files:,} "
            f"files, {found.bytes / 1e6:,.0f} MB, WAL included: {found.hits} found"
            + (f": {found.told()}" if found.hits else ""),
            good=not found.hits,
        )
        if self._words_of_postgres:
            tell.fact(f"left out, for Postgres' files had them from the start: {', '.join(self._words_of_postgres)}")

    def _known(self, secrets: dict[str, bytes]) -> dict[str, bytes]:
        """What must not be at the relay, besides the names of characters."""
        known = {f"the name {name}": name.encode() for name in (VAULT, COLLECTION, *DEVICES.values())}
        encode = schema_of(Character).encode
        long = [value for value in self._initial.values() if len(value.name) >= NAME_CHARS_MIN]
        known |= {f"the value of {value.name}": encode(value) for value in long[:: max(1, len(long) // VALUES_SOUGHT)]}
        for what, material in secrets.items():
            known |= {what: material, f"{what} in hex": material.hex().encode()}
        return known

    async def _look(self, work: Callable[..., Any], *given: Any) -> Any:
        """Run what blocks in a thread."""
        return await trio.to_thread.run_sync(work, self.relay.folder, *given, abandon_on_cancel=True)

    # --- the end

    async def end(self) -> None:
        """Everything ends in order."""
        codes = {f"device {device.letter}": await device.end() for device in (self.a, self.b)}
        codes["the relay"] = await self.relay.end()
        self.figures.problems += [f"{who} ended with exit code {code}" for who, code in codes.items() if code]

    def abandon(self) -> None:
        """Kill whatever runs still. Blocks for a moment, and cannot be cancelled."""
        self.a.abandon()
        self.b.abandon()
        self.relay.abandon()

    async def edit(self, device: RemoteDevice, edits: Sequence[Edit], pause_s: float = 0.0) -> dict[str, int]:
        """Have a device make edits; the ledger learns of each. Returns when each was begun, in nanoseconds."""
        begun: dict[str, int] = {}

        def told(made: dict[str, Any]) -> None:
            begun[made["key"]] = made["at"]
            self.ledger.confirm(device.letter, made["key"])
            self._confirmations.tell()

        self.ledger.begin(device.letter, edits)
        await device.ask("edit", STEP_S_MAX + len(edits) * pause_s, told, edits=edits, pause_s=pause_s)
        return begun
