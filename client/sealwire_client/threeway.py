"""Two plain values that came from one, as one: what merging is made of.

`base` is what both began with; UNDEFINED: there was none. Where both changed the same, `mine` is kept.
"""

from collections.abc import Callable
from typing import Any

from sealwire_client.plain import UNDEFINED, dump, map_order


def same(one: object, other: object) -> bool:
    """True if two plain values are the same, of the same types: 1 is neither True nor 1.0."""
    return one is other or dump(one) == dump(other)


def chosen(base: Any, mine: Any, theirs: Any) -> Any:
    """The one that was changed, whole; mine, if both were."""
    return theirs if same(base, mine) else mine


def merged_untyped(base: Any, mine: Any, theirs: Any, sequences: bool) -> Any:
    """Values of which no kind is known: dicts by their keys; `sequences`: lists as sets; the rest whole."""
    if type(mine) is dict and type(theirs) is dict:
        return merged_maps(base, mine, theirs, lambda b, m, t: merged_untyped(b, m, t, sequences))
    return united(base, mine, theirs) if sequences else chosen(base, mine, theirs)


def merged_maps(base: Any, mine: Any, theirs: Any, merge: Callable[[Any, Any, Any], Any]) -> Any:
    """Maps key by key, each value by `merge`. What one side took out and the other changed stays, changed."""
    if type(mine) is not dict or type(theirs) is not dict:
        return chosen(base, mine, theirs)
    before = base if type(base) is dict else {}
    found: dict[str, Any] = {}
    for key in {**theirs, **mine}:
        b, m, t = before.get(key, UNDEFINED), mine.get(key, UNDEFINED), theirs.get(key, UNDEFINED)
        if m is UNDEFINED or t is UNDEFINED:
            left = t if m is UNDEFINED else m
            one = UNDEFINED if same(b, left) else left
        else:
            one = merge(b, m, t)
        if one is not UNDEFINED:
            found[key] = one
    return dict(sorted(found.items(), key=map_order))


def united(base: Any, mine: Any, theirs: Any) -> Any:
    """Lists as sets: theirs in its order without what mine took out, then what mine put in. Anything else whole."""
    if type(mine) is not list or type(theirs) is not list or same(base, mine) or same(base, theirs):
        return chosen(base, mine, theirs)
    before, here, there = (
        {dump(one): one for one in given} for given in (base if type(base) is list else [], mine, theirs)
    )
    kept = [one for one in theirs if (raw := dump(one)) not in before or raw in here]
    return kept + [one for raw, one in here.items() if raw not in before and raw not in there]


def ordered(plains: Any) -> Any:
    """A list in the order of its items' encodings, each once; anything else as it is."""
    if type(plains) is not list:
        return plains
    return [one for _, one in sorted({dump(one): one for one in plains}.items())]
