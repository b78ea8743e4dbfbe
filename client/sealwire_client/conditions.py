"""Simple conditions on the fields of a collection's entries, as SQL."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from sealwire_client.plain import EncodingError
from sealwire_client.replica import QueryError, SqlValue
from sealwire_client.replica.tables import VARIABLES_MAX, quoted
from sealwire_client.schema import Schema

KEY: Final = "key"
"""What an entry's key is called, in SQL too; no field can be called so."""


def matching(
    collection: str, schema: Schema[Any], conditions: Mapping[str, Any], order_by: str, limit: int | None
) -> tuple[str, list[SqlValue]]:
    """What stands after WHERE, and the values that it binds: see `Collection.where`.

    Raises QueryError for what is no field and for more values than SQLite takes, EncodingError for what is no value.
    """
    parts, values = ["TRUE"], list[SqlValue]()
    for field, given in conditions.items():
        name = _named(collection, schema, field)
        if isinstance(given, list | tuple | set | frozenset):
            stored = [_stored(schema, field, one) for one in given if one is not None]
            within = f"{name} IN ({', '.join('?' * len(stored))})"
            parts.append(f"({within} OR {name} IS NULL)" if None in given else within)
            values += stored
        elif given is None:
            parts.append(f"{name} IS NULL")
        else:
            parts.append(f"{name} = ?")
            values.append(_stored(schema, field, given))
    falling = order_by.startswith("-")
    ordered = _named(collection, schema, order_by.removeprefix("-"))
    said = f"{' AND '.join(parts)} ORDER BY {ordered}{' DESC' if falling else ''}, key"
    if limit is not None:
        if type(limit) is not int or limit < 0:
            raise QueryError(f"limit= takes how many entries there may be, and {limit!r} is no such number.")
        said += " LIMIT ?"
        values.append(limit)
    if len(values) > VARIABLES_MAX:
        raise QueryError(f"The conditions on {collection} name {len(values)} values; there may be {VARIABLES_MAX}.")
    return said, values


def _named(collection: str, schema: Schema[Any], field: str) -> str:
    fields: Sequence[str] = schema.fields
    if field != KEY and field not in fields:
        if not fields:
            raise QueryError(
                f"Collection {collection} has no field {field!r}, as its values have no declared fields: open it with a"
                " dataclass, or look into its values with json_extract in vault.select."
            )
        raise QueryError(f"Collection {collection} has no field {field!r}; it has: key, {', '.join(fields)}.")
    return quoted(field)


def _stored(schema: Schema[Any], field: str, value: Any) -> SqlValue:
    if field != KEY:
        return schema.stored(field, value)
    if not isinstance(value, str):
        raise EncodingError(f"a key is text (str), and {value!r} is a {type(value).__name__}")
    return value
