"""Mailboxes on Postgres. The SQL is in `sql/queries/mailboxes.sql`."""

from sealwire_protocol.ids import DeviceKey, MailboxId, VaultId
from sealwire_protocol.links import Role
from sealwire_relay.store.mailboxes import MAILBOXES_PER_VAULT_MAX, Mailbox, Mailboxes, MailboxVerdict
from sealwire_relay.store.pools import Pools


class PostgresMailboxes(Pools, Mailboxes):
    """The mailboxes of a PostgresStore."""

    async def open_mailbox(
        self, mailbox: MailboxId, vault: VaultId, inviter: DeviceKey, seconds: int
    ) -> MailboxVerdict:
        """Expired ones are swept first, so their ids are free again."""
        await self._rows("sweep_mailboxes")
        opening = mailbox, vault, inviter, seconds, Role.ADMIN, MAILBOXES_PER_VAULT_MAX
        if await self._found("open_mailbox", *opening):
            return MailboxVerdict.DONE
        full = await self._found("mailboxes_full", vault, inviter, Role.ADMIN, MAILBOXES_PER_VAULT_MAX)
        return MailboxVerdict.FULL if full else MailboxVerdict.ABSENT

    async def deposit(self, mailbox: MailboxId, joiner: DeviceKey, request: bytes) -> MailboxVerdict:
        """Leave a request."""
        if await self._found("deposit", mailbox, joiner, request):
            return MailboxVerdict.DONE
        return MailboxVerdict.USED if await self._found("mailbox", mailbox) else MailboxVerdict.ABSENT

    async def answer(self, mailbox: MailboxId, inviter: DeviceKey, answer: bytes) -> MailboxVerdict:
        """Leave the answer."""
        done = await self._found("answer", mailbox, inviter, answer)
        return MailboxVerdict.DONE if done else MailboxVerdict.ABSENT

    async def mailbox(self, mailbox: MailboxId) -> Mailbox | None:
        """What lies in it."""
        rows = await self._rows("mailbox", mailbox)
        return Mailbox(*rows[0].values()) if rows else None
