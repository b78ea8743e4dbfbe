"""What a collection does about conflicts: chosen by name when the collection is first opened."""

from dataclasses import dataclass

from sealwire_protocol.messages import StreamKind


@dataclass(frozen=True, slots=True)
class Policy:
    """A policy by its name, and the kind of stream that it needs."""

    name: str
    kind: StreamKind


def latest() -> Policy:
    """The greatest rank wins: whoever had seen more when it wrote. Cheapest and always fresh; of two edits made
    without knowledge of each other one is kept whole."""
    return Policy("latest", StreamKind.OPEN)
