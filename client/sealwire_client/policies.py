"""What a collection does about conflicts: chosen by name when the collection is first opened."""

from dataclasses import dataclass
from typing import Any

from sealwire_client.counting import CounterSchema
from sealwire_client.documents import DocumentSchema, need_documents
from sealwire_client.merging import Merge, Resolve, fields, resolver
from sealwire_client.plain import EncodingError
from sealwire_client.schema import Schema
from sealwire_protocol.messages import StreamKind


@dataclass(frozen=True, slots=True)
class Policy:
    """A policy by its name, the kind of stream that it needs, and how it brings two edits together.

    `merge` None: it never does, because one of them wins or is refused.
    """

    name: str
    kind: StreamKind
    merge: Merge | None = None

    def resolver(self, schema: Schema[Any]) -> Resolve | None:
        """What brings two edits together, as the bytes of a schema's values; None if this policy never does.

        Pure; may be used by any thread. What it makes may raise MergeError. Raises EncodingError if the policy is not
        one for such values.
        """
        if isinstance(schema, CounterSchema) != (self.name == "counter"):
            raise EncodingError(f"policy {self.name} does not go with such values: counters, and they alone, count")
        if self.name == "document" and not isinstance(schema, DocumentSchema):
            raise EncodingError("policy document is for values of pycrdt.Doc alone; use merge() for others")
        if isinstance(schema, DocumentSchema) and self.kind is StreamKind.OPEN:
            raise EncodingError(f"policy {self.name} would lose one of two edits of a document; use document()")
        return None if self.merge is None else resolver(self.merge, schema)


def latest() -> Policy:
    """The greatest rank wins: whoever had seen more when it wrote. Cheapest and always fresh; of two edits made
    without knowledge of each other one is kept whole."""
    return Policy("latest", StreamKind.OPEN)


def merge(fn: Merge = fields) -> Policy:
    """No edit is lost to another made without knowledge of it: `fn(base, mine, theirs)` makes one value of both.

    `base` is what both began with, `theirs` what came first, `mine` this device's edit, which comes after it; None:
    there was none, or a delete. What it returns is written; None deletes. `fields`, `union` and `last` are there to
    be used. One of your own must be pure, for it may run in any thread, and again. What it raises sets this device's
    write aside (`vault.stuck`); nothing is lost.
    """
    if not callable(fn):
        raise EncodingError(f"merge() takes a function of (base, mine, theirs), such as `fields`, and not {fn!r}")
    return Policy("merge", StreamKind.GUARDED, fn)


def strict() -> Policy:
    """A write waits for the relay's verdict and fails if what it replaces is not what was seen. Online only."""
    return Policy("strict", StreamKind.GUARDED)


def counter() -> Policy:
    """Every addition counts once, whoever makes it and whenever it is sent. What `vault.counters` uses."""
    return Policy("counter", StreamKind.GUARDED, fields)


def document() -> Policy:
    """Values are `pycrdt.Doc`: two edits are merged letter by letter. An edit outlives a delete. Raises ImportError
    if the extra `documents` is not installed."""
    need_documents()
    return Policy("document", StreamKind.GUARDED, fields)
