"""Bringing together two edits of one entry that were made without knowledge of each other.

Whoever comes second does it: `mine` is an edit of this device that the relay has not taken yet, `theirs` what the
log says by now, `base` what the user saw who made `mine`. All of it is pure, so it may be done again, anywhere.
"""

from collections.abc import Callable
from typing import Any, TypeVar

from sealwire_client.encoding import EncodingError, Schema, schema_of

T = TypeVar("T")

Merge = Callable[[Any, Any, Any], Any]
"""(base, mine, theirs) → what is kept, as the app's values; None: absent, or deleted."""

Resolve = Callable[[bytes | None, bytes | None, bytes | None], bytes | None]
"""(base, mine, theirs) → what to send, as the bytes of values; None: absent, or deleted. Raises MergeError."""


class MergeError(Exception):
    """Two edits of an entry could not be brought together. Neither was lost: this device's is set aside."""


def last(base: T | None, mine: T | None, theirs: T | None) -> T | None:
    """The edit that comes last wins whole, be it a delete: the one made without knowledge of it is gone."""
    return mine


def fields(base: T | None, mine: T | None, theirs: T | None) -> T | None:
    """Each field as whoever changed it left it; where both did, as the edit that comes last.

    Members put into a frozenset or taken out of it by both are so in the end. Nested dataclasses are merged by their
    fields, dicts by their keys; lists and tuples are kept whole. An edit outlives a delete, of an entry and of a
    dict's key. May be called by a merge function of your own, too.
    """
    return _of_values(base, mine, theirs, sequences=False)


def union(base: T | None, mine: T | None, theirs: T | None) -> T | None:
    """As `fields`, and lists and tuples are merged as if they were sets: the order of theirs, then mine's new items."""
    return _of_values(base, mine, theirs, sequences=True)


def resolver(merge: Merge, schema: Schema[Any]) -> Resolve:
    """What brings together the bytes of a schema's values as `merge` does with the values.

    Whatever it is, fields that this app does not know come out as whoever changed them left them.
    """
    if merge in (fields, union):
        return _explained(_by_fields(schema, sequences=merge is union))
    return _explained(_by_values(schema, merge))


def _by_fields(schema: Schema[Any], sequences: bool) -> Resolve:
    def resolve(base: bytes | None, mine: bytes | None, theirs: bytes | None) -> bytes | None:
        if mine in (base, theirs):
            return theirs
        if theirs == base:
            return mine
        if mine is None or theirs is None:
            return theirs if mine is None else mine
        return schema.merge(base, mine, theirs, sequences)

    return resolve


def _of_values(base: T | None, mine: T | None, theirs: T | None, sequences: bool) -> T | None:
    kinds = {type(one) for one in (base, mine, theirs) if one is not None}
    if len(kinds) != 1:
        return mine
    schema = schema_of(kinds.pop())
    given = [None if one is None else schema.encode(one) for one in (base, mine, theirs)]
    raw = _by_fields(schema, sequences)(*given)
    return None if raw is None else schema.decode(raw)


def _by_values(schema: Schema[Any], merge: Merge) -> Resolve:
    by_fields = _by_fields(schema, sequences=False)

    def decoded(raw: bytes | None) -> Any:
        return None if raw is None else schema.decode(raw)

    def resolve(base: bytes | None, mine: bytes | None, theirs: bytes | None) -> bytes | None:
        if mine in (base, theirs):
            return theirs
        if theirs == base:
            return mine
        here = decoded(base), decoded(mine), decoded(theirs)
        try:
            value = merge(*here)
        except Exception as error:
            raise MergeError(
                f"The merge function {_name(merge)} failed ({type(error).__name__}: {error}): both edits are kept, this"
                " device's is set aside; correct the function, then retry or discard it."
            ) from error
        if value is None:
            return None
        try:
            raw = schema.encode(value)
        except EncodingError as error:
            raise MergeError(
                f"The merge function {_name(merge)} returned what cannot be kept ({error}): both edits are kept, this"
                " device's is set aside; correct the function, then retry or discard it."
            ) from error
        unknown = by_fields(base, mine, theirs)
        return raw if unknown is None else schema.carry(raw, unknown)

    return resolve


def _explained(resolve: Resolve) -> Resolve:
    def explained(base: bytes | None, mine: bytes | None, theirs: bytes | None) -> bytes | None:
        try:
            return resolve(base, mine, theirs)
        except EncodingError as error:
            raise MergeError(
                f"Two edits of one entry cannot be merged, because one of them cannot be read here ({error}): both are"
                " kept, this device's is set aside; update the app, then retry or discard it."
            ) from error

    return explained


def _name(merge: Merge) -> str:
    return getattr(merge, "__name__", repr(merge))
