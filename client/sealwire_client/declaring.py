"""What a class says of its fields for queries: which have an index, and of which the words are searched.

```python
@indexed("shop", ("list", "rank"))
@searchable("title", "notes")
@dataclass
class Item: ...
```

Both stand above the class, because an index may be of several fields; names are checked when the collection is opened.
A class that inherits from another has its indexes and searched fields as well.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar

from sealwire_client.plain import EncodingError
from sealwire_client.replica.declared import Declared

C = TypeVar("C", bound=type)

INDEXES_MAX: Final = 32
"""Of one class. Each one costs every write of a field that is in it."""

_INDEXED: Final = "__sealwire_indexed__"
_SEARCHED: Final = "__sealwire_searched__"
_RESERVED: Final = "rank"
"""What a search calls its order, so no searched field can have that name."""


def indexed(*fields: str | tuple[str, ...]) -> Callable[[C], C]:
    """A class decorator: each field that is named gets an index of its own, and each tuple of fields one together.

    A SELECT finds by itself which to use: of several fields, one that asks for the first ones. They are made when the
    collection is opened, which takes about a second for each million of entries, and dropped when they are declared no
    more. Opening raises EncodingError for a name that is no field.
    """
    together = tuple((field,) if isinstance(field, str) else tuple(field) for field in fields)

    def declare(cls: C) -> C:
        setattr(cls, _INDEXED, (*getattr(cls, _INDEXED, ()), *together))
        return cls

    return declare


def searchable(*fields: str) -> Callable[[C], C]:
    """A class decorator: the words of these fields are found by `collection.search`, and in SQL.

    They are text, or text that may be None. Opening the collection raises EncodingError for any other name, and
    NoSearchError where SQLite has no FTS5. What `rank` means in a search, no searched field may be called.
    """

    def declare(cls: C) -> C:
        setattr(cls, _SEARCHED, (*getattr(cls, _SEARCHED, ()), *fields))
        return cls

    return declare


def declared_of(cls: type, forms: Mapping[str, list[Any]], numbered: frozenset[str]) -> Declared:
    """What a class declares. `forms`: of its fields, by their names. Raises EncodingError for what cannot be."""
    indexes = tuple(dict.fromkeys(getattr(cls, _INDEXED, ())))
    searched = tuple(dict.fromkeys(getattr(cls, _SEARCHED, ())))
    there = ", ".join(forms)
    for name in [*searched, *(name for index in indexes for name in index)]:
        if name not in forms:
            raise EncodingError(f"{cls.__name__} has no field {name!r} to be indexed or searched; it has {there}")
    for index in indexes:
        if not index or len(set(index)) < len(index):
            raise EncodingError(f"an index of {cls.__name__} is of one field or several, each once, not of {index}")
    if len(indexes) > INDEXES_MAX:
        raise EncodingError(f"{cls.__name__} has {len(indexes)} indexes; at most {INDEXES_MAX} can be kept")
    for name in searched:
        if forms[name] not in (["text"], ["optional", ["text"]]):
            raise EncodingError(f"field {name!r} of {cls.__name__} is no text, so its words cannot be searched")
        if name.lower() == _RESERVED:
            raise EncodingError(f"a searched field cannot be called {name!r}: that is the order of what a search finds")
    return Declared(numbered, indexes, searched)
