"""What shows that a relay lies is told by status and doctor, until it is dismissed."""

import json
import sqlite3

from tests.client.cli.commands import Machine


def dispute(device: Machine) -> None:
    """Keep a dispute of the device's notes, as a statement of its first member would leave it."""
    with sqlite3.connect(device.folder / "replica.db") as connection:
        connection.execute(
            "INSERT INTO _dispute (vault, stream, lineage, author, term, seq, back, held, theirs, at, dismissed)"
            " SELECT vault, stream, 1, 1, cursor_term, 57, 0, x'6d696e65', x'746865697273', 1700000000000, 0"
            " FROM _collection WHERE name = 'notes'"
        )
    connection.close()


def test_a_dispute_is_told_until_it_is_dismissed(alone: Machine) -> None:
    alone.succeed("put", "notes", "milk", "two")
    assert json.loads(alone.run("status", "--wait", "0", "--json").out)["disputed"] == []
    assert "nothing is disputed" in alone.succeed("vault", "dismiss").out
    dispute(alone)
    (told,) = alone.run("status", "--wait", "0", "--json").answer["disputed"]
    assert (told["collection"], told["seq"], told["back"], told["since"]) == ("notes", 57, False, 1_700_000_000_000)
    assert (bytes.fromhex(told["held"]), bytes.fromhex(told["theirs"])) == (b"mine", b"theirs")
    lines = alone.run("status", "--wait", "0").out
    assert "of notes, up to 57, something else than this device holds" in lines
    assert "sealwire vault dismiss" in lines
    found = alone.run("doctor", "--wait", "0", "--json").answer
    assert found["verdict"] == "differs"
    assert [each["collection"] for each in found["vaults"][0]["disputed"]] == ["notes"]
    assert "something else than this device holds" in alone.run("doctor", "--wait", "0").out
    assert alone.succeed("vault", "dismiss", "--json").answer == {"dismissed": 1}
    assert alone.run("status", "--wait", "0", "--json").answer["disputed"] == []
    assert alone.succeed("vault", "dismiss").out == "nothing is disputed\n"
