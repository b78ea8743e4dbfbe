"""`sealwire export` and `sealwire import`: what goes out comes in again, and no file is ever half there."""

import json
import os
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sealwire_client.cli import values
from sealwire_client.cli.failures import Failure
from sealwire_client.cli.output import compact
from sealwire_client.cli.rows import COLUMNS_MAX, Rows, Table
from sealwire_client.replica.values import Live
from tests.client.cli.commands import Machine
from tests.support.small_disk import small_disk

TEXTS = st.text(max_size=8)

PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)

ENTRIES = st.dictionaries(TEXTS, st.dictionaries(TEXTS, PLAIN, max_size=4), max_size=5)

AWKWARD: dict[str, dict[str, Any]] = {
    "a key\twith\n\"all\", 'of' it\r\n": {"value": 'text\twith\nlines, "quotes" and \\'},
    "": {"value": ""},
    "none": {"empty": "", "none": None, "nested": {"list": [1, None, ["x"], {}], "ü": {"": "é\u2028\x00"}}},
    "nothing": {},
    "numbers": {"big": 2**63 - 1, "small": -(2**63), "real": 0.1, "text": "1", "true": "true", "yes": True},
    "ключ 🔑": {"key": "a field of that name", "a,b": "=1+1", "\n": " spaces "},
}


def awkward(device: Machine) -> None:
    """Put the awkward entries."""
    lines = "\n".join(json.dumps({"key": key, "value": value}) for key, value in AWKWARD.items())
    device.succeed("import", "notes", "-", "--wait", "0", given=lines.encode())


def held(device: Machine, collection: str) -> dict[str, Any]:
    """What a collection holds."""
    lines = map(json.loads, device.succeed("ls", collection, "--json").out.split("\n")[:-1])
    return {line["key"]: line["value"] for line in lines}


def table(entries: dict[str, Any]) -> bytes:
    """Entries as CSV."""
    made = Table()
    for value in entries.values():
        made.extend(value)
    return made.head() + b"".join(made.row(key, value) for key, value in entries.items())


def read(raw: bytes) -> dict[str, Any]:
    """Entries out of CSV."""
    rows = Rows()
    lines = [rows.parsed(number, line) for number, line in enumerate(raw.split(b"\n"), 1)]
    rows.end()
    return {line.key: line.value for line in lines if line is not None}


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(ENTRIES)
def test_a_line_is_the_entry(entries: dict[str, Any]) -> None:
    for number, (key, value) in enumerate(entries.items(), 1):
        assert values.parsed(number, compact({"key": key, "value": value}).encode()) == (number, key, value)


@given(ENTRIES)
def test_a_table_read_again_is_the_entries(entries: dict[str, Any]) -> None:
    assert read(table(entries)) == entries


@pytest.mark.parametrize(
    "text", ["", "42", "-1.5", "null", '"', '""', " 1", "[1]", "{}", "{", "NaN", "1e999", "007", "\ufeff"]
)
def test_a_text_in_a_cell_stays_a_text(text: str) -> None:
    assert read(table({text: {text: text}})) == {text: {text: text}}


def test_a_table_is_what_people_expect() -> None:
    entries = {"a": {"n": 1, "t": "milk"}, "b": {"n": None, "t": ""}, "c": {"more": [1, "x"], "t": "two\nlines"}}
    assert table(entries).decode() == ('key,more,n,t\r\na,,1,milk\r\nb,,null,""""""\r\nc,"[1,""x""]",,"two\nlines"\r\n')


def test_a_table_that_somebody_else_made_is_read() -> None:
    text = '\ufeffname,key,phone,big,note\nAda,1,0049 30,99999999999999999999,1e999\n\n"Ben, jr",2\n'
    assert read(text.encode()) == {
        "1": {"name": "Ada", "phone": "0049 30", "big": "99999999999999999999", "note": "1e999"},
        "2": {"name": "Ben, jr"},
    }


@pytest.mark.parametrize(
    ("text", "line", "why"),
    [
        ("name,value\nk,v\n", 1, "one of them key"),
        ("key,a,a\nk,1,2\n", 1, "two columns"),
        ('key,a\n"x\ny",1\nk,1,2\n', 4, "3 cells"),
        ('key,a\nk,"1\n2\n', 2, "do not end"),
        ("a,key\n1,k\n2\n", 3, "no key"),
        ('key,a\nk,"1"2\n"', 2, "no row of CSV"),
    ],
)
def test_a_wrong_row_is_named_by_its_first_line(text: str, line: int, why: str) -> None:
    with pytest.raises(Failure, match=rf"Line {line} .*{why}"):
        read(text.encode())


def test_a_field_that_comes_while_a_table_is_written_is_not_lost() -> None:
    table = Table()
    table.extend({"a": 1})
    table.head()
    with pytest.raises(Failure, match="another field"):
        table.row("k", {"a": 1, "b": 2})


def test_a_table_has_no_more_columns_than_anybody_looks_at() -> None:
    table = Table()
    table.extend({str(n): n for n in range(COLUMNS_MAX)})
    with pytest.raises(Failure, match="JSON lines"):
        table.extend({"one": 1})


@pytest.mark.parametrize("form", ["jsonl", "csv"])
def test_what_is_exported_and_imported_again_is_equal(alone: Machine, tmp_path: Path, form: str) -> None:
    awkward(alone)
    file = tmp_path / f"notes.{form}"
    done = alone.succeed("export", "notes", str(file), "--json")
    assert done.answer == {"collection": "notes", "file": str(file), "exported": len(AWKWARD)}
    assert file.stat().st_mode & 0o777 == 0o600
    told = alone.succeed("import", "copy", str(file), "--wait", "0", "--json").answer
    assert (told["collection"], told["saved"], told["sent"]) == ("copy", len(AWKWARD), False)
    assert held(alone, "copy") == held(alone, "notes") == AWKWARD
    assert alone.succeed("export", "copy", "--format", form).out.encode() == file.read_bytes()


def test_the_output_of_a_listing_is_read_too(alone: Machine) -> None:
    awkward(alone)
    alone.succeed("import", "copy", "-", given=alone.succeed("ls", "notes", "--json").out.encode())
    assert held(alone, "copy") == AWKWARD


def test_an_encoding_that_lacks_characters_changes_nothing(alone: Machine) -> None:
    alone.succeed("put", "notes", "ü", "é")
    alone.environment["PYTHONIOENCODING"] = "ascii"
    assert alone.succeed("export", "notes").out == '{"key":"ü","value":{"value":"é"}}\n'


def test_a_file_that_is_there_is_left_alone_unless_it_may_be_replaced(alone: Machine, tmp_path: Path) -> None:
    alone.succeed("put", "notes", "k", "v")
    file = tmp_path / "notes.jsonl"
    file.write_text("mine")
    refused = alone.run("export", "notes", str(file), "--json")
    assert (refused.code, refused.answer["error"]["kind"]) == (1, "exists")
    assert file.read_text() == "mine"
    link = tmp_path / "link"
    link.symlink_to(file)
    assert "1 entry" in alone.succeed("export", "notes", str(link), "--overwrite").out
    assert link.is_symlink()
    assert json.loads(file.read_text()) == {"key": "k", "value": {"value": "v"}}


@pytest.mark.parametrize(("file", "kind"), [("/nowhere/notes.jsonl", "system"), ("/dev/null", "exists")])
def test_where_no_file_can_be_nothing_is_exported(alone: Machine, file: str, kind: str) -> None:
    done = alone.run("export", "notes", file, "--overwrite", "--json")
    assert (done.code, done.answer["error"]["kind"]) == (1, kind)


def test_an_export_that_fails_leaves_nothing_behind(alone: Machine, tmp_path: Path) -> None:
    lines = "\n".join(json.dumps({"key": f"k{n:05}", "value": "x" * 1_000}) for n in range(2_000))
    alone.succeed("import", "notes", "-", "--wait", "0", given=lines.encode())
    with small_disk(tmp_path / "disk", 1) as disk:
        done = alone.run("export", "notes", str(disk / "notes.jsonl"), "--json")
        assert (done.code, done.answer["error"]["kind"]) == (1, "system")
        assert "No space left" in done.error
        assert os.listdir(disk) == []


def test_what_only_a_newer_version_can_read_is_not_left_out_unsaid(alone: Machine, tmp_path: Path) -> None:
    alone.succeed("put", "notes", "k", "v")
    with alone.running("watch", "notes") as watching:
        watching.until("err", "No relay")
        with closing(sqlite3.connect(alone.folder / "replica.db")) as connection, connection:
            assert connection.execute("UPDATE _c1 SET _live = ?", (Live.NEWER,)).rowcount == 1
        done = alone.run("export", "notes", str(tmp_path / "notes.csv"), "--json")
        watching.interrupt()
    assert (done.code, done.answer["error"]["kind"]) == (1, "replica")
    assert "1 entry can be read by a newer version only" in done.error
    assert not (tmp_path / "notes.csv").exists()


def test_an_export_works_while_a_watch_uses_the_folder(alone: Machine, tmp_path: Path) -> None:
    alone.succeed("put", "notes", "k", "v")
    with alone.running("watch", "notes") as watching:
        watching.until("err", "No relay")
        assert alone.succeed("export", "notes").out == '{"key":"k","value":{"value":"v"}}\n'
        watching.interrupt()


def test_a_wrong_line_is_named_and_after_it_is_mended_the_same_is_run_again(alone: Machine, tmp_path: Path) -> None:
    file = tmp_path / "notes.jsonl"
    good = [compact({"key": f"k{n:05}", "value": {"n": n}}) for n in range(12_000)]
    file.write_text("\n".join([*good[:11_000], '{"key": "k", ', *good[11_000:]]))
    done = alone.run("import", "notes", str(file), "--wait", "0")
    assert done.code == 1
    assert done.error.startswith("Line 11001 ")
    assert "all lines before it were" in done.error
    assert len(held(alone, "notes")) == 11_000
    file.write_text("\n".join(good))
    alone.succeed("import", "notes", str(file), "--wait", "0")
    assert held(alone, "notes") == {f"k{n:05}": {"n": n} for n in range(12_000)}
