"""Segments as they are stored: the rows that a stream's log is made of."""

from collections.abc import Iterable
from typing import NamedTuple

from sealwire_protocol.errors import DecodeError


class StoredSegment(NamedTuple):
    """One row: records of `(prev, last]`."""

    prev: int
    last: int
    body: bytes

    def damaged(self, error: DecodeError) -> DecodeError:
        """What to say if its bytes cannot be read, and why."""
        return DecodeError(
            f"its stored segment that ends at seq {self.last} cannot be read ({error}): a newer relay wrote it, or"
            " the database is damaged there, and a backup is to be restored, to which devices add what came after it"
        )


def bytes_of(segments: Iterable[StoredSegment]) -> int:
    """What segments amount to."""
    return sum(len(segment.body) for segment in segments)
