"""The schema and the queries, read with Postgres' own parser: what would keep them from being distributed by vault."""

import json
from collections.abc import Iterator
from typing import Any

import pglast.parser
import pytest

from sealwire_relay.store.migrate import MIGRATIONS
from sealwire_relay.store.queries import QUERIES, SQL, named_queries

BY_THEIR_OWN_ID = {"mailbox"}
"""Tables with a vault_id that are found by another id, since who looks for a row does not know the vault."""

FORBIDDEN_STATEMENTS = {
    "CreateTrigStmt": "a trigger",
    "CreateFunctionStmt": "a function",
    "CreateSeqStmt": "a sequence",
    "AlterSeqStmt": "a sequence",
    "ListenStmt": "LISTEN",
    "NotifyStmt": "NOTIFY",
    "RuleStmt": "a rule",
}
FORBIDDEN_FUNCTIONS = ("pg_advisory", "pg_try_advisory", "nextval", "setval", "currval", "pg_notify")
FORBIDDEN_TYPES = {"serial", "bigserial", "smallserial", "serial2", "serial4", "serial8"}
KEYS = {"CONSTR_PRIMARY": "keys", "CONSTR_UNIQUE": "keys", "CONSTR_FOREIGN": "fk_attrs"}


def test_each_migration_has_a_number_of_its_own() -> None:
    numbers = [(migration.phase, migration.number) for migration in MIGRATIONS]
    assert len(set(numbers)) == len(numbers), "of two with one number only the first would ever be applied"


def parse(sql: str) -> Any:
    return json.loads(pglast.parser.parse_sql_json(sql))


def nodes(tree: Any) -> Iterator[tuple[str, Any]]:
    """Every node below a tree, with its type."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            if key[0].isupper():
                yield key, value
            if key != "LockingClause":  # which names aliases
                yield from nodes(value)
    elif isinstance(tree, list):
        for value in tree:
            yield from nodes(value)


def names(strings: list[Any]) -> list[str]:
    return [s["String"]["sval"] for s in strings]


def forbidden(sql: str) -> list[str]:
    """What must be neither in a migration nor in a query."""
    found = []
    for kind, node in nodes(parse(sql)):
        if kind in FORBIDDEN_STATEMENTS:
            found.append(FORBIDDEN_STATEMENTS[kind])
        if kind == "FuncCall" and names(node["funcname"])[-1].startswith(FORBIDDEN_FUNCTIONS):
            found.append(names(node["funcname"])[-1])
        if kind == "ColumnDef" and names(node["typeName"]["names"])[-1] in FORBIDDEN_TYPES:
            found.append(f"{node['colname']} is a sequence")
        if kind == "Constraint" and node["contype"] == "CONSTR_IDENTITY":
            found.append("an identity column")
    return found


def keys_of(sql: str) -> Iterator[tuple[str, bool, list[str]]]:
    """(table, does it have a vault_id, columns) of every key and index that a migration makes."""
    tables: dict[str, bool] = {}
    for kind, node in nodes(parse(sql)):
        if kind == "CreateStmt":
            table = node["relation"]["relname"]
            parts = node["tableElts"]
            tables[table] = any(p.get("ColumnDef", {}).get("colname") == "vault_id" for p in parts)
            for part in parts:
                constraints = [part["Constraint"]] if "Constraint" in part else []
                column = part.get("ColumnDef", {})
                constraints += [c["Constraint"] for c in column.get("constraints", [])]
                for constraint in constraints:
                    if constraint["contype"] in KEYS:
                        listed = constraint.get(KEYS[constraint["contype"]])
                        yield table, tables[table], names(listed) if listed else [column["colname"]]
        if kind == "IndexStmt":
            table = node["relation"]["relname"]
            yield table, tables.get(table, True), [c["IndexElem"].get("name", "") for c in node["indexParams"]]


def misplaced_keys(sql: str) -> list[str]:
    """Keys of what is kept by vault that do not begin with the vault, and indexes that another one contains."""
    found, seen = [], list[tuple[str, list[str]]]()
    for table, has_vault, columns in keys_of(sql):
        if has_vault and table not in BY_THEIR_OWN_ID and columns[0] != "vault_id":
            found.append(f"{table}: {columns} does not begin with vault_id")
        for other, others in seen:
            if other == table and (columns == others[: len(columns)] or others == columns[: len(others)]):
                found.append(f"{table}: {columns} repeats {others}")
        seen.append((table, columns))
    return found


def outside_schema(sql: str) -> list[str]:
    """Relations named without the schema, save the statement's own common tables and Postgres' own catalogues."""
    tree = parse(sql)
    own = {node["ctename"] for kind, node in nodes(tree) if kind == "CommonTableExpr"}
    relations = [node for kind, node in nodes(tree) if kind == "RangeVar"]
    named = [node["relation"] for _, node in nodes(tree) if isinstance(node, dict) and "relation" in node]
    relations += [relation for relation in named if "relname" in relation]
    return [
        r["relname"]
        for r in relations
        if r.get("schemaname") not in ("sealwire", "pg_catalog") and r["relname"] not in own
    ]


def subqueries_in_updates(sql: str) -> int:
    """Subqueries inside UPDATEs: conditions that would be looked at again, half-way through the statement's own
    writes, where a row is newer than the snapshot. Joins by key leave nothing to look at."""
    return sum(
        inner == "SubLink" for kind, node in nodes(parse(sql)) if kind == "UpdateStmt" for inner, _ in nodes(node)
    )


@pytest.mark.parametrize("migration", MIGRATIONS, ids=lambda m: f"{m.number:04}-{m.phase.value}")
def test_migrations_can_be_distributed(migration: Any) -> None:
    assert forbidden(migration.sql) == []
    assert misplaced_keys(migration.sql) == []
    assert outside_schema(migration.sql) == []


@pytest.mark.parametrize("query", QUERIES)
def test_queries_do_without_what_is_not_distributed(query: str) -> None:
    assert forbidden(QUERIES[query]) == []
    assert outside_schema(QUERIES[query]) == []
    assert subqueries_in_updates(QUERIES[query]) == 0
    assert len(parse(QUERIES[query])["stmts"]) == 1


@pytest.mark.parametrize("query", QUERIES)
def test_queries_say_what_they_do(query: str) -> None:
    first = QUERIES[query].splitlines()[0]
    assert first.startswith("-- ")
    assert len(first) > 10


def test_migrations_are_numbered_without_gaps_and_none_is_left_out() -> None:
    assert sorted({m.number for m in MIGRATIONS}) == list(range(1, len({m.number for m in MIGRATIONS}) + 1))
    assert len(MIGRATIONS) == len([path for path in (SQL / "migrations").iterdir() if path.name.endswith(".sql")])


def test_a_file_of_queries_gives_each_its_name() -> None:
    text = "-- name: one\n-- Says.\nSELECT 1\n\n-- name: two\nSELECT 2\n"
    assert list(named_queries(text)) == [("one", "-- Says.\nSELECT 1"), ("two", "SELECT 2")]
    with pytest.raises(ValueError, match="no name"):
        list(named_queries("SELECT 1\n" + text))


@pytest.mark.parametrize(
    "sql",
    [
        "CREATE TABLE sealwire.t (vault_id uuid, n bigserial)",
        "CREATE TABLE sealwire.t (n bigint GENERATED ALWAYS AS IDENTITY)",
        "CREATE TABLE sealwire.t (n bigint DEFAULT nextval('s'))",
        "CREATE SEQUENCE s",
        "CREATE TRIGGER t AFTER INSERT ON sealwire.segment EXECUTE FUNCTION f()",
        "LISTEN heads",
        "SELECT pg_notify('heads', '')",
        "WITH a AS (SELECT pg_advisory_xact_lock(1)) SELECT * FROM a",
        "SELECT 1 WHERE pg_try_advisory_lock(1)",
    ],
)
def test_what_is_forbidden_is_found(sql: str) -> None:
    assert len(forbidden(sql)) == 1


@pytest.mark.parametrize(
    "sql",
    [
        "CREATE TABLE sealwire.t (vault_id uuid, n bigint, PRIMARY KEY (n, vault_id))",
        "CREATE TABLE sealwire.t (vault_id uuid, n bigint UNIQUE, PRIMARY KEY (vault_id))",
        "CREATE TABLE sealwire.t (vault_id uuid, n bigint, FOREIGN KEY (n) REFERENCES sealwire.u (n))",
        "CREATE TABLE sealwire.t (vault_id uuid PRIMARY KEY, n bigint); CREATE INDEX i ON sealwire.t (n)",
        "CREATE TABLE sealwire.t (vault_id uuid, n bigint, PRIMARY KEY (vault_id, n), UNIQUE (vault_id))",
    ],
)
def test_misplaced_keys_are_found(sql: str) -> None:
    assert len(misplaced_keys(sql)) == 1


def test_subqueries_and_strangers_are_found() -> None:
    assert subqueries_in_updates("UPDATE t SET a = 1 WHERE b NOT IN (SELECT b FROM c)") == 1
    assert outside_schema("WITH own AS (SELECT * FROM other) SELECT * FROM own") == ["other"]
    assert outside_schema("UPDATE other SET a = 1") == ["other"]
