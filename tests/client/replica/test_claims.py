"""What the log says of a key, whatever this device shows of it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from sealwire_client.replica.claims import NOT_THERE, Said
from sealwire_protocol.conditions import NOTHING, Condition, Names
from sealwire_protocol.messages import StreamKind
from tests.client.replica.support import Todos, encode, opened, record


@pytest.fixture
def g(tmp_path: Path) -> Iterator[Todos]:
    """A replica with a guarded collection."""
    with opened(tmp_path / "guarded", StreamKind.GUARDED) as todos:
        yield todos


def said(g: Todos, key: str) -> Said:
    return g.replica.claims.said(g.todos, key)


def test_of_a_key_that_nobody_wrote_the_log_says_nothing(g: Todos) -> None:
    assert said(g, "k") == Said(None, None, False)
    assert said(g, "k").condition == NOTHING
    assert g.replica.claims.shown(g.todos, "k") == NOT_THERE


def test_what_is_shown_and_what_is_said_differ_while_an_edit_waits(g: Todos) -> None:
    g.deliver(0, record(1, "k", "theirs", 5))
    g.edit("k", "mine")
    g.edit("new", "mine")
    assert g.replica.claims.shown(g.todos, "k").value == encode(("mine", 0))
    assert said(g, "k").value == encode(("theirs", 0))
    assert said(g, "k").condition == Condition(Names.ENTRY, 5, b"saltsalt")
    assert said(g, "new").condition == NOTHING
    g.deliver(1, record(2, "k", "theirs, later", 6))
    assert said(g, "k").value == encode(("theirs, later", 0))
    assert g.shown() == {"k": "mine", "new": "mine"}


def test_a_delete_of_the_log_is_named_as_such(g: Todos) -> None:
    g.deliver(0, record(1, "k", "theirs", 5), record(2, "k", None, 6))
    assert said(g, "k").value is None
    assert said(g, "k").condition == Condition(Names.TOMBSTONE, 6, b"saltsalt")


def test_a_value_that_needs_a_newer_app_is_said_to_be_so(g: Todos) -> None:
    value = encode(("newer", 0))
    g.deliver(0, record(1, "k", "newer", 5)._replace(row=None, kept=value))
    assert said(g, "k").newer
    assert g.replica.claims.has_newer(g.todos)
    assert not said(g, "l").newer
