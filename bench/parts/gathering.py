"""How fast the tree is made that a stream is compared by. Prints one JSON object: `python -m bench.parts.gathering`.

It is processor time: what is read of the log, and from where, comes on top.
"""

import json
import time
from contextlib import closing
from hashlib import blake2b
from typing import Final

from sealwire_protocol.ids import Author, KeyId, Tag
from sealwire_protocol.reconcile import Gathering
from sealwire_protocol.segment import Record, encode_segment

RECORDS: Final = 1_000_000
SEGMENT_RECORDS: Final = 1_000


def segment(first: int) -> bytes:
    """The next records, each of another entry, as small as there are any."""
    numbers = range(first, first + SEGMENT_RECORDS)
    key = KeyId(b"key ")
    return encode_segment(
        Record(Tag(blake2b(n.to_bytes(8), digest_size=16).digest()), n, Author(1), 1, key, 0, bytes(8), bytes(32))
        for n in numbers
    )


def main() -> None:
    """Take in a million records, and make the tree of them."""
    seconds = 0.0
    with closing(Gathering()) as gathering:
        for prev in range(0, RECORDS, SEGMENT_RECORDS):
            body = segment(prev + 1)
            began = time.process_time()
            gathering.add_segment(body, prev, prev + SEGMENT_RECORDS)
            seconds += time.process_time() - began
        began = time.process_time()
        assert gathering.build().count == RECORDS
        seconds += time.process_time() - began
    print(json.dumps({"name": "gathering", "records": RECORDS, "us_per_record": round(seconds / RECORDS * 1e6, 2)}))


if __name__ == "__main__":
    main()
