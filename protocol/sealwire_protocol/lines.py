"""Lines: how a history that is lost came to where a record stood in it, and whether two records share one (R14).

A relay that was restored twice has lost two histories, each with terms of its own. Of two records that are given back
the greater one may silently replace the other only if it was written by who could know it: if both are of one line.

A group of a refill says in the place of conditions where the device held each record:

    terms:      count varint, and for each: number varint, id 8, before varint, start varint
    positions:  for each record: term varint, seq varint

`before` is the place, counted from 1, of the term that was written in the stream before this one, which began after seq
`start`. Where the relay knows the term, or the device does not know, `before` is 0, and `start` is 0 too, save for one
term at most: up to that seq of it the device had compared itself with the relay. A position's term is a place too.
"""

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from sealwire_protocol.errors import DecodeError
from sealwire_protocol.fields import POSITION, TERM, VARINT, ListOf, Row
from sealwire_protocol.ids import START, Position, Term
from sealwire_protocol.limits import LOST_TERMS_MAX

Line = tuple[Position, ...]
"""A position, and where each term ended that led to it, the newest first, as far as that is known."""


class LostTerm(NamedTuple):
    """That a term began after seq `start` of the stream, of which the seqs up to there were written in `before`."""

    before: Term
    start: int


class _Told(NamedTuple):
    term: Term
    before: int
    start: int


_TERMS: Final = ListOf(Row("lost term", _Told, (TERM, VARINT, VARINT)), LOST_TERMS_MAX)
_LINE: Final = ListOf(POSITION, LOST_TERMS_MAX)


def line_of(position: Position, terms: Mapping[Term, LostTerm]) -> Line:
    """The line of a position. It begins with the term in which its seq was written, which may be an older one."""
    line: list[Position] = []
    at = position
    for _ in range(LOST_TERMS_MAX):
        known = terms.get(at.term)
        if known is None or at.seq > known.start:
            line.append(at)
        if known is None:
            break
        at = Position(known.before, min(at.seq, known.start))
    return tuple(line) or (position,)


def is_of_one_line(a: Line, b: Line) -> bool:
    """True if either position lies in the history of the other."""
    return _reaches(a, b[0]) or _reaches(b, a[0])


def _reaches(line: Line, position: Position) -> bool:
    return any(at.term == position.term and at.seq >= position.seq for at in line)


def encode_line(line: Line) -> bytes:
    """The bytes of a line: a count and positions, all as in messages."""
    out = bytearray()
    _LINE.write(out, line)
    return bytes(out)


def decode_line(data: bytes) -> Line:
    """Raises DecodeError."""
    line, at = _LINE.read(data, 0)
    if at != len(data):
        raise DecodeError("a line has bytes behind its end")
    return Line(line)


def encode_held(held: Sequence[Position], terms: Mapping[Term, LostTerm], compared: Position = START) -> bytes:
    """Where the records of a group were held, in less than LOST_TERMS_MAX terms. Of `terms`, those that led there are
    told, the nearest first, as far as there is room. `compared`: see `compared_at`; its term is none of `terms`."""
    told = list(dict.fromkeys(position.term for position in held))
    if compared.seq and compared.term not in told:
        told.append(compared.term)
    for term in told:
        before = terms[term].before if term in terms else None
        if before is not None and before not in told and len(told) < LOST_TERMS_MAX:
            told.append(before)
    places = {term: place for place, term in enumerate(told, 1)}
    out = bytearray()
    rows = [_Told(term, *_before(terms.get(term), places)) for term in told]
    if compared.seq:
        rows[told.index(compared.term)] = _Told(compared.term, 0, compared.seq)
    _TERMS.write(out, tuple(rows))
    for position in held:
        VARINT.write(out, places[position.term])
        VARINT.write(out, position.seq)
    return bytes(out)


def _before(known: LostTerm | None, places: Mapping[Term, int]) -> tuple[int, int]:
    return (places[known.before], known.start) if known is not None and known.before in places else (0, 0)


def decode_held(data: bytes, count: int) -> list[Line]:
    """The lines of exactly `count` records. Raises DecodeError."""
    told, at = _TERMS.read(data, 0)
    terms: dict[Term, LostTerm] = {}
    for term, before, start in told:
        if before > len(told) or term in terms:
            raise DecodeError("the terms of a refill are told twice, or name one that is not told")
        if before:
            terms[term] = LostTerm(told[before - 1].term, start)
    if len(_compared(told)) > 1:
        raise DecodeError("a group of a refill says twice where the device had compared itself with the relay")
    lines: list[Line] = []
    while at < len(data) and len(lines) < count:
        place, at = VARINT.read(data, at)
        seq, at = VARINT.read(data, at)
        if not 0 < place <= len(told):
            raise DecodeError("a position of a refill is in a term that is not told")
        lines.append(line_of(Position(told[place - 1].term, seq), terms))
    if at != len(data) or len(lines) != count:
        raise DecodeError("a group of a refill does not have one position for each record")
    return lines


def compared_at(data: bytes) -> Position:
    """Where the device had compared itself with the relay when it made this group: what is not in it, of all that the
    device held, the relay had there. START: it does not matter. `data` is as `decode_held` reads it."""
    told, _ = _TERMS.read(data, 0)
    return next(iter(_compared(told)), START)


def _compared(told: Sequence[_Told]) -> list[Position]:
    return [Position(term, start) for term, before, start in told if start and not before]
