"""Counters: what each author has added in all, so that nothing is added twice and nothing is lost (R19).

A value is a CBOR array of `[author, count, subtotal]`, the authors in order: how often an author has added, and the
sum of what it added. Of one author's two states the one of the greater count is the later one, so two values are
joined without knowing what they came from, in any order and as often as one likes. An author never learns its own
state from a value: after a restore a value may hold an older one than it has already sent.
"""

from dataclasses import dataclass
from typing import Any, Final

from sealwire_client.forms import described
from sealwire_client.plain import EncodingError, dump, load
from sealwire_client.replica.tables import Column
from sealwire_client.replica.values import Kept, Row
from sealwire_client.schema import OneColumn

COUNT_MAX: Final = 2**53
"""Additions of one author: more than any device makes, and exact in every language."""

SUBTOTAL_MAX: Final = 2**50
"""Either way, what one author has added in all: then as many authors as a value has room for (some 4,000) have a total
that SQLite can hold."""

_AUTHOR_MAX: Final = 2**32 - 1


@dataclass(frozen=True, slots=True, order=True)
class Part:
    """What one author has added: how often, and how much in all."""

    count: int
    subtotal: int


NOTHING: Final = Part(0, 0)


def total(value: bytes | None) -> int:
    """How much a counter says; None: it was never added to. Raises EncodingError, as all functions here do."""
    return sum(part.subtotal for part in _read(value).values())


def of_author(value: bytes | None, author: int) -> Part:
    """What a value holds of one author."""
    return _read(value).get(author, NOTHING)


def added(value: bytes | None, author: int, count: int, subtotal: int) -> bytes:
    """A value with all that an author has added until now, as the author itself knows it."""
    return _joined(_read(value), {author: Part(count, subtotal)})


def join(one: bytes | None, other: bytes | None) -> bytes:
    """The value that holds what both hold."""
    return _joined(_read(one), _read(other))


def moved(base: bytes | None, mine: bytes, before: int, now: int, part: Part = NOTHING) -> bytes:
    """An unsent value of a device that was enrolled anew, as another author: `base` and all that `mine` adds to it.

    What it had added under its author `before` it adds as `now`, on top of the `part` that it has added so already.
    The old author's state stays as `base` has it: whoever else uses it (a clone) may have sent another by now.
    """
    parts = _read(mine)
    was, held = of_author(base, before), parts.pop(before, NOTHING)
    if held.count > was.count:
        count, subtotal = held.count - was.count, held.subtotal - was.subtotal
        parts[now] = Part(part.count + count, part.subtotal + subtotal)
    return _joined(_read(base), parts)


def _read(value: bytes | None) -> dict[int, Part]:
    if value is None:
        return {}
    found = load(value)
    if type(found) is not list or not all(_is_part(one) for one in found):
        raise EncodingError("the bytes at hand are no counter")
    parts = {author: Part(count, subtotal) for author, count, subtotal in found}
    if list(parts) != sorted(one[0] for one in found):
        raise EncodingError("the bytes at hand are no counter: its authors are not in order, each once")
    return parts


def _is_part(one: Any) -> bool:
    return (
        type(one) is list
        and [type(number) for number in one] == [int, int, int]
        and 0 <= one[0] <= _AUTHOR_MAX
        and 0 <= one[1] <= COUNT_MAX
        and -SUBTOTAL_MAX <= one[2] <= SUBTOTAL_MAX
    )


def _joined(one: dict[int, Part], other: dict[int, Part]) -> bytes:
    parts = {author: max(one.get(author, NOTHING), other.get(author, NOTHING)) for author in {**one, **other}}
    if not all(_is_part([author, part.count, part.subtotal]) for author, part in parts.items()):
        raise EncodingError(
            f"a counter takes at most {SUBTOTAL_MAX} from one device in all, and this would be more: nothing was added"
        )
    return dump([[author, part.count, part.subtotal] for author, part in sorted(parts.items())])


class CounterSchema(OneColumn[int]):
    """Counters as values: an app sees the total; the column `value` holds it, beside it the bytes are kept."""

    columns = (Column("value", "INTEGER", described(0, ["counter"], {})),)

    def encode(self, value: int) -> bytes:
        """A total alone is no value: always raises EncodingError."""
        raise EncodingError("a counter cannot be set, for others may be adding to it: add to it")

    def decode(self, raw: bytes) -> int:
        """See `Schema.decode`."""
        return total(raw)

    def to_row(self, value: int) -> Row:
        """See `Schema.to_row`."""
        return (value,)

    def from_row(self, row: Row) -> int:
        """See `Schema.from_row`."""
        (value,) = row
        assert isinstance(value, int)
        return value

    def row_of(self, raw: bytes) -> tuple[Row, bool]:
        """See `OneColumn.row_of`."""
        return (total(raw),), False

    def cbor_from_row(self, row: Row, kept: Kept = None) -> bytes:
        """See `Schema.cbor_from_row`."""
        if not isinstance(kept, bytes):
            raise EncodingError("the bytes of a counter are not there, and its total alone does not give them")
        return kept

    def merge(self, base: bytes | None, mine: bytes, theirs: bytes, sequences: bool) -> bytes:
        """See `Schema.merge`: a counter needs no base."""
        return join(mine, theirs)
