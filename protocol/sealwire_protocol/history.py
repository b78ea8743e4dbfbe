"""What a position says about a history that a relay tells (R7, R9, R10, R12)."""

from collections.abc import Iterable, Sequence
from typing import Protocol

from sealwire_protocol.ids import NO_TERM, START, Position, Term, TermStart
from sealwire_protocol.lines import Line


class History(Protocol):
    """What a relay tells of a stream: the terms in which it was written, the oldest first, how far it goes, and up to
    where deletions are forgotten."""

    @property
    def terms(self) -> Sequence[TermStart]: ...

    @property
    def head(self) -> int: ...

    @property
    def floor(self) -> int: ...


def newest_term(state: History) -> Term:
    """The newest term in which the stream was written."""
    return state.terms[-1].term if state.terms else NO_TERM


def term_at(terms: Sequence[TermStart], seq: int) -> Term:
    """The term in which a seq of a stream was written."""
    return next((told for told, start in reversed(terms) if start < seq), NO_TERM)


def end_of(term: Term, state: History) -> int | None:
    """The known end of a term in a stream (R7), or None for a term that the relay does not know there."""
    for place, (known, _) in enumerate(state.terms):
        if known == term:
            return state.terms[place + 1].start if place + 1 < len(state.terms) else state.head
    return None


def is_lost(position: Position, state: History) -> bool:
    """Whether a position of a stream lies in a history that the relay has lost (R9). Nothing stands at 0."""
    end = end_of(position.term, state)
    return position.seq > 0 and (end is None or position.seq > end)


def parting(line: Line, state: History) -> Position:
    """Where a line and the relay's history part: where the line left the newest term that the relay knows, or where
    that term ends, whichever comes first; START if it knows none."""
    for at in line:
        end = end_of(at.term, state)
        if end is not None:
            return Position(at.term, min(at.seq, end))
    return START


def loss_before(line: Line, state: History) -> int:
    """Where in the relay's log a history was lost that had this line: what is beyond was appended since."""
    return parting(line, state).seq


def whole_from(state: History, position: Position) -> int:
    """`f` of R10: the floor up to which a replica misses nothing; 0 if that was in a history that is lost."""
    return 0 if is_lost(position, state) else position.seq


def why_incomplete(floor: int, cursor: int, whole: int) -> str | None:
    """R10: None if a replica that stands at `cursor`, and is whole from `whole` on, misses no deletion, else why.

    An empty replica has nothing that could have been deleted.
    """
    if cursor == 0 or floor <= max(cursor, whole):
        return None
    return f"the relay has forgotten deletions up to {floor}, this device stands at {cursor}"


def why_history_is_lost(
    state: History,
    cursor: Position,
    served: Position,
    whole: Position = START,
    answered: Iterable[Position] = (),
    dropped: int = 0,
) -> str | None:
    """R9, R10 and R12: None if the replica may simply go on, else what is wrong, in words.

    `whole`: the floor when the replica was last empty or reconciled; `answered`: where writes of this device stand that
    were answered; `dropped`: the floor up to which it has dropped tombstones since. An empty replica stands at 0 in
    every term.
    """
    told = (("stands at", cursor), ("was served a log cleaned to", served))
    for name, position in (*told, *(("had a write confirmed at", position) for position in answered)):
        if not is_lost(position, state):
            continue
        end = end_of(position.term, state)
        if end is None:
            return f"this device {name} {position.seq} of a history that the relay does not know"
        return f"this device {name} {position.seq}, but that history ends at {end} on the relay"
    known = whole_from(state, whole)
    if cursor.seq and state.floor < max(dropped, known):
        return f"the relay knows deletions again that this device has forgotten, up to {max(dropped, known)}"
    return why_incomplete(state.floor, cursor.seq, known)
