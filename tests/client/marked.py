"""Whether whatever changes what a collection shows says so: SQLite itself is asked, by a trigger for every row."""

from typing import Any

from sealwire_client.replica import Collection, Replica
from sealwire_client.replica.tables import quoted
from sealwire_client.replica.values import Live


def closely(replica: Replica) -> Replica:
    """The replica, which from now on fails a commit that changed what a collection shows and did not touch it."""
    changed, connection = set[int](), replica.database.connection
    entries, touches = replica.entries, replica.database.touches
    opens, committed = entries.open, touches.committed
    connection.create_function("_shown", 1, changed.add)

    def opened(*args: Any, **options: Any) -> Collection:
        collection = opens(*args, **options)
        table = collection.table
        names = ["key", "_live", *[quoted(column.name) for column in table.columns]]
        differs = " OR ".join(f"old.{name} IS NOT new.{name}" for name in names)
        was, now = (f"{of}._live = {Live.VALUE:d}" for of in ("old", "new"))
        for event, when in (("INSERT", now), ("UPDATE", f"({was} OR {now}) AND ({differs})"), ("DELETE", was)):
            name = f"temp.{table.name}_shown_{event}"
            connection.execute(f"DROP TRIGGER IF EXISTS {name}")
            connection.execute(
                f"CREATE TRIGGER {name} AFTER {event} ON main.{table.name} WHEN {when}"
                f" BEGIN SELECT _shown({collection.number}); END"
            )
        return collection

    def checked() -> None:
        unmarked = changed - touches._touched
        changed.clear()
        assert not unmarked, f"collections {unmarked} show something else, and nobody is told"
        committed()

    entries.open, touches.committed = opened, checked  # type: ignore[method-assign]
    return replica
