"""What it costs to seal a record and to open it again: `python -m bench.sealing` prints one JSON object."""

import json
import platform
import time
from collections.abc import Callable

from sealwire_client.cipher import Secret
from sealwire_client.sealing import Draft, Opener, Sealer, Stream, stream_keys
from sealwire_protocol.ids import Author, KeyId, StreamId, VaultId

RECORDS = 1_000
VALUE_BYTES = 32
KEY_BYTES = 8
ROUNDS = 40


def _microseconds(work: Callable[[], object]) -> float:
    """The best round, in µs per record: the rounds above it tell of the machine's other work."""
    best = float("inf")
    for _ in range(ROUNDS):
        start = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - start)
    return round(best / RECORDS * 1e6, 2)


def measure() -> dict[str, object]:
    """Seal and open one segment of small records; figures per record."""
    stream = Stream(VaultId(bytes(16)), StreamId(b"\1" * 8), Secret(b"\2" * 32))
    keys = stream_keys(Secret(b"\3" * 32), 1, KeyId(b"\4" * 4), stream.vault, stream.id)
    sealer = Sealer(stream, keys, Author(1), Secret(b"\5" * 32))
    opener = Opener(stream, [keys])
    drafts = [Draft(f"{n:0{KEY_BYTES}d}", b"%0*d" % (VALUE_BYTES, n), n + 1) for n in range(RECORDS)]
    segment = b"".join(record.encoded for record in sealer.seal_many(drafts))
    opened = opener.open_segment(segment, 0)
    if len(opened.opened) != RECORDS or [(o.key, o.value) for o in opened.opened] != [d[:2] for d in drafts]:
        raise SystemExit("what was sealed did not open")
    return {
        "name": "sealing",
        "ok": True,
        "records": RECORDS,
        "value_bytes": VALUE_BYTES,
        "key_bytes": KEY_BYTES,
        "record_bytes": len(segment) / RECORDS,
        "seal_us": _microseconds(lambda: sealer.seal_many(drafts)),
        "open_us": _microseconds(lambda: opener.open_segment(segment, 0)),
        "python": platform.python_version(),
    }


if __name__ == "__main__":
    print(json.dumps(measure()))
