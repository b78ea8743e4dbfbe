"""One vault's membership log on this device: what is held of it, verified, and what the relay has told of it."""

from collections.abc import Sequence

import trio

from sealwire_client import cipher
from sealwire_client.replica import Replica, Runner
from sealwire_protocol.ids import START, Position
from sealwire_protocol.links import LinkError, decode_links, link_hash
from sealwire_protocol.membership import Membership, membership_of, verified_before
from sealwire_protocol.messages import Deliver
from sealwire_protocol.suffixes import common_links


class Rival:
    """Another end of the log than the one that is held, as the relay tells it, verified. `base`: the members where the
    two part."""

    def __init__(self, base: Membership) -> None:
        self.base, self.membership = base, base.copy()
        self.links: list[bytes] = []

    def take(self, prev: int, links: Sequence[bytes]) -> None:
        """Take in links that follow. Raises LinkError."""
        for raw in links[max(0, self.membership.head - prev) :]:
            self.membership.apply(raw, cipher.verify)
            self.links.append(raw)


class MemberLog:
    """The log of the vault that the replica knows by `vault`. `at`: where to listen on from.

    `told`: how long it is, as far as the relay has told on this connection; None: nothing yet. `rival`: the relay's
    log, if that is another one.
    """

    def __init__(self, vault: int, membership: Membership, writer: Runner[Replica]) -> None:
        self.membership = membership
        self.rival: Rival | None = None
        self.told: int | None = None
        self.appending = trio.Lock()
        """Held by whoever asks for a link: two at once would both be of the same place."""
        self._at: Position = START
        self._heard = 0
        self._vault, self._writer = vault, writer
        self._taking = trio.Lock()

    @property
    def heard_all(self) -> bool:
        """True if the relay has sent all that it has told of, whatever came of it."""
        return self.told is not None and self._heard >= self.told

    @property
    def complete(self) -> bool:
        """True if all that the relay has told of is here."""
        return self.told is not None and self.membership.head >= self.told and self.rival is None

    @property
    def is_longer(self) -> bool:
        """True if the log here is the relay's, and goes on where that ends."""
        return self.told is not None and self.membership.head > self.told and self.rival is None

    @property
    def is_one(self) -> bool:
        """True if the log here and the relay's are the same, as far as the relay has told."""
        return self.complete and not self.is_longer

    def listen_from(self) -> Position:
        """Where the next subscription begins."""
        self._heard = self._at.seq
        return self._at

    def tell(self, head: int) -> None:
        """The relay has told how long the log was when it was asked. Links that it has sent since may be here already:
        who took the older word for the newer one would give back what is there, and wait for ever to hear of it."""
        self.told = max(head, self._heard)

    def read_anew(self) -> None:
        """The relay's log is to be read from its beginning: it has lost links, or may have others."""
        self._at, self.rival = START, None

    def doubt(self) -> None:
        """The relay knows a later epoch than this device: it is to tell how long the log is, and what it has beyond."""
        self.told = None

    def go_over(self, membership: Membership) -> None:
        """The rival is held from now on, durably, up to where it was judged: what came since is to be told again."""
        self.membership, self.rival = membership, None
        self._at = Position(self._at.term, min(self._at.seq, membership.head))

    async def links(self) -> list[bytes]:
        """All links that are held here, in order."""
        return await self._writer.run(lambda replica: replica.vaults.links(self._vault))

    async def hash_of_link(self, seq: int) -> bytes:
        """The hash of a link that is held here; nothing if there is none any more, since another end stands."""
        return b"".join(map(link_hash, (await self.links())[seq - 1 : seq]))

    async def take(self, deliver: Deliver) -> Position:
        """Verify links and keep them, durably; those of another log than the one that is held are the `rival`'s.

        Returns up to where. Raises LinkError if a link does not verify: what is here stays as it is, with the links
        before that one.
        """
        async with self._taking:  # a former connection may still be at it
            try:
                await self._take(deliver.prev, decode_links(deliver.segment))
            finally:
                # A link that was not accepted is asked for again on the next connection.
                held = self.membership if self.rival is None else self.rival.membership
                self._at = Position(deliver.term, min(deliver.last, held.head))
                self._heard = deliver.last
                self.told = self.told if self.told is None else max(self.told, deliver.last)
        return self._at

    async def _take(self, prev: int, links: list[bytes]) -> None:
        known = await self.links()
        if self.rival is None:
            ours = known[prev : prev + len(links)]
            same = common_links(ours, links)
            if same < min(len(ours), len(links)):
                if prev + same == 0:
                    raise LinkError("the relay shows another membership log than the one that this device holds")
                self.rival = Rival(membership_of(known[: prev + same], verified_before))
        if self.rival is None:
            await self._append(links[max(0, self.membership.head - prev) :])
            return
        try:
            self.rival = self._rival_with(self.rival, known, prev, links)
        except LinkError:
            self.rival = None
            raise

    async def extend(self, fresh: Sequence[bytes]) -> None:
        """Hold these links too, durably, which no relay has told on this connection. Raises LinkError."""
        async with self._taking:
            await self._append(fresh)

    @staticmethod
    def _rival_with(rival: Rival, known: list[bytes], prev: int, links: list[bytes]) -> Rival:
        """The rival with these links: where it has others in their place, it was read of an end that stands no more.
        Raises LinkError."""
        theirs = known[: rival.base.head] + rival.links
        there = theirs[prev : prev + len(links)]
        same = common_links(there, links)
        if same < min(len(there), len(links)):
            links = theirs[: prev + same] + links[same:]
            prev = common_links(known, links)
            rival, links = Rival(membership_of(known[:prev], verified_before)), links[prev:]
        rival.take(prev, links)
        return rival

    async def _append(self, fresh: Sequence[bytes]) -> None:
        grown, taken = self.membership.copy(), list[bytes]()
        try:
            for raw in fresh:
                grown.apply(raw, cipher.verify)
                taken.append(raw)
        finally:
            if taken:
                first = self.membership.head + 1
                await self._writer.run(lambda replica: replica.vaults.add_links(self._vault, first, taken))
                self.membership = grown
