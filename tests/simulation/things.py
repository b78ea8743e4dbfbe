"""What the devices keep: a collection of each kind, whose values tell who wrote them."""

from dataclasses import dataclass
from typing import Any, Final

from sealwire_client.encoding import Schema, schema_of
from sealwire_client.policies import Policy, latest, merge, strict

NOTES: Final = "notes"
CARDS: Final = "cards"
ACCOUNTS: Final = "accounts"

KEYS: Final = 10
"""Keys of the notes that devices edit again and again; `put_many` reaches some that are more."""

CARD_KEYS: Final = 6
ACCOUNT_KEYS: Final = ("a", "b", "c")
BALANCE: Final = 1_000
"""What every account holds at first."""


@dataclass(frozen=True)
class Note:
    """In an open stream, whole. Every put has a text of its own."""

    text: str


@dataclass(frozen=True)
class Card:
    """In a guarded stream, merged. Every edit adds a mark of its own, and sets some of the other fields to its name."""

    title: str = ""
    color: str = ""
    marks: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Account:
    """In a guarded stream, strict: what the transfer `by` has `moved` here, and the balance after it."""

    balance: int
    moved: int
    by: str


KINDS: Final[dict[str, tuple[type[Any], Policy]]] = {
    NOTES: (Note, latest()),
    CARDS: (Card, merge()),
    ACCOUNTS: (Account, strict()),
}
SCHEMAS: Final[dict[str, Schema[Any]]] = {name: schema_of(kind) for name, (kind, _) in KINDS.items()}
