"""Mailboxes: what an inviter and a joiner leave for each other at the relay."""

from abc import ABC, abstractmethod
from enum import Enum, auto
from typing import NamedTuple

from sealwire_protocol.ids import DeviceKey, MailboxId, VaultId

MAILBOXES_PER_VAULT_MAX = 256
"""Invites of one vault that have not expired: all that its admins have open, some 3 KB each."""


class MailboxVerdict(Enum):
    """What became of a mailbox operation."""

    DONE = auto()
    ABSENT = auto()
    """No such mailbox, or it has expired."""
    USED = auto()
    """Another device's request lies in it."""
    FULL = auto()
    """The vault has too many others."""


class Mailbox(NamedTuple):
    """A mailbox that has not expired. Empty bytes: not there yet."""

    vault: VaultId
    inviter: DeviceKey
    joiner: DeviceKey | None
    request: bytes
    answer: bytes


class Mailboxes(ABC):
    """A store's mailboxes. See Store for what every method promises."""

    @abstractmethod
    async def open_mailbox(
        self, mailbox: MailboxId, vault: VaultId, inviter: DeviceKey, seconds: int
    ) -> MailboxVerdict:
        """Open, or leave open, a mailbox. ABSENT: the inviter is no admin of the vault, or it belongs to another; FULL:
        the vault has MAILBOXES_PER_VAULT_MAX others (a few more, where several are opened at once)."""

    @abstractmethod
    async def deposit(self, mailbox: MailboxId, joiner: DeviceKey, request: bytes) -> MailboxVerdict:
        """Leave a request. The same joiner may replace its own until it is answered; later ones change nothing."""

    @abstractmethod
    async def answer(self, mailbox: MailboxId, inviter: DeviceKey, answer: bytes) -> MailboxVerdict:
        """Leave the answer; only the inviter may. ABSENT: no mailbox of this inviter has a request in it."""

    @abstractmethod
    async def mailbox(self, mailbox: MailboxId) -> Mailbox | None:
        """A mailbox that has not expired."""
