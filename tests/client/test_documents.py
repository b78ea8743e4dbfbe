import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.machinery import ModuleSpec
from typing import Any

import pytest
from pycrdt import Doc, Text

from sealwire_client import documents
from sealwire_client.documents import DocumentSchema
from sealwire_client.encoding import EncodingError, schema_of
from sealwire_client.merging import MergeError
from sealwire_client.policies import document, latest, merge, strict

DOCS: Any = schema_of(Doc)


def text(doc: Doc[Any]) -> str:
    return str(doc.get("text", type=Text))


def written(begin: bytes | None, at: int, what: str) -> bytes:
    """The bytes of a document after somebody wrote something into it."""
    doc: Doc[Any] = Doc() if begin is None else DOCS.decode(begin)
    doc.get("text", type=Text).insert(at, what)
    raw: bytes = DOCS.encode(doc)
    return raw


def test_documents_come_back_from_bytes_and_from_columns() -> None:
    assert isinstance(DOCS, DocumentSchema)
    raw = written(None, 0, "hello")
    doc = DOCS.decode(raw)
    assert text(doc) == "hello"
    assert DOCS.encode(doc) == raw
    row = DOCS.to_row(doc)
    assert DOCS.row_from_cbor(raw) == (row, 1)
    assert text(DOCS.from_row(row)) == "hello"
    assert DOCS.cbor_from_row(row) == raw
    assert [column[:2] for column in DOCS.columns] == [("value", "BLOB")]


def test_two_edits_are_merged_letter_by_letter() -> None:
    resolve = document().resolver(DOCS)
    assert resolve is not None
    base = written(None, 0, "milk")
    mine, theirs = written(base, 4, " and bread"), written(base, 0, "oat ")
    found = resolve(base, mine, theirs)
    assert found is not None
    assert text(DOCS.decode(found)) == "oat milk and bread"
    assert resolve(base, mine, theirs) == found
    assert resolve(base, base, theirs) == theirs
    assert resolve(base, None, theirs) == theirs
    assert resolve(base, mine, None) == mine
    with ThreadPoolExecutor(1) as other:
        assert other.submit(resolve, base, mine, theirs).result() == found


@pytest.mark.parametrize("raw", [b"", b"\xff", b"\x01\x02\x03"])
def test_other_bytes_are_no_document(raw: bytes) -> None:
    assert DOCS.row_from_cbor(raw) == (None, 0)
    with pytest.raises(EncodingError, match="no document"):
        DOCS.decode(raw)
    resolve = document().resolver(DOCS)
    assert resolve is not None
    with pytest.raises(MergeError):
        resolve(None, written(None, 0, "x"), raw)


def test_only_documents_go_with_the_policy_and_not_with_one_that_would_lose_edits() -> None:
    with pytest.raises(EncodingError, match="use merge"):
        document().resolver(schema_of(dict))
    with pytest.raises(EncodingError, match="use document"):
        latest().resolver(DOCS)
    assert strict().resolver(DOCS) is None
    assert merge().resolver(DOCS) is not None
    with pytest.raises(EncodingError, match=r"pycrdt\.Doc belongs"):
        DOCS.encode({"text": "x"})


def test_without_the_extra_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(name: str) -> ModuleSpec | None:
        return None

    monkeypatch.setattr(documents, "find_spec", none)
    with pytest.raises(ImportError, match=r"sealwire-client\[documents\]"):
        document()
    monkeypatch.delitem(sys.modules, "pycrdt")
    assert not documents.is_document(Doc)
