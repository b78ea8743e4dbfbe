"""Mailboxes in memory."""

from sealwire_protocol.ids import DeviceKey, MailboxId, VaultId
from sealwire_protocol.links import Role
from sealwire_relay.store.kept import KeptBox, Memory
from sealwire_relay.store.mailboxes import MAILBOXES_PER_VAULT_MAX, Mailbox, Mailboxes, MailboxVerdict


class MemoryMailboxes(Memory, Mailboxes):
    """The mailboxes of a MemoryStore."""

    async def open_mailbox(
        self, mailbox: MailboxId, vault: VaultId, inviter: DeviceKey, seconds: int
    ) -> MailboxVerdict:
        """Open a mailbox."""
        data = self._data()
        now = self._clock()
        data.mailboxes = {name: box for name, box in data.mailboxes.items() if box.expires > now}
        kept = data.vaults.get(vault)
        member = kept.by_device(inviter) if kept else None
        if kept is None or kept.state.ended or member is None or member.state.role < Role.ADMIN:
            return MailboxVerdict.ABSENT
        if sum(name != mailbox and box.content.vault == vault for name, box in data.mailboxes.items()) >= (
            MAILBOXES_PER_VAULT_MAX
        ):
            return MailboxVerdict.FULL
        fresh = KeptBox(now + seconds, Mailbox(vault, inviter, None, b"", b""))
        found = data.mailboxes.setdefault(mailbox, fresh).content
        own = (found.vault, found.inviter) == (vault, inviter)
        return MailboxVerdict.DONE if own else MailboxVerdict.ABSENT

    async def deposit(self, mailbox: MailboxId, joiner: DeviceKey, request: bytes) -> MailboxVerdict:
        """Leave a request."""
        box = self._box(mailbox)
        if box is None:
            return MailboxVerdict.ABSENT
        if box.content.joiner not in (None, joiner):
            return MailboxVerdict.USED
        if not box.content.answer:
            box.content = box.content._replace(joiner=joiner, request=request)
        return MailboxVerdict.DONE

    async def answer(self, mailbox: MailboxId, inviter: DeviceKey, answer: bytes) -> MailboxVerdict:
        """Leave the answer."""
        box = self._box(mailbox)
        if box is None or box.content.inviter != inviter or box.content.joiner is None:
            return MailboxVerdict.ABSENT
        box.content = box.content._replace(answer=answer)
        return MailboxVerdict.DONE

    async def mailbox(self, mailbox: MailboxId) -> Mailbox | None:
        """What lies in it."""
        box = self._box(mailbox)
        return box.content if box else None

    def _box(self, mailbox: MailboxId) -> KeptBox | None:
        box = self._data().mailboxes.get(mailbox)
        return box if box is not None and box.expires > self._clock() else None
