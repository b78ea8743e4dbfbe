"""The golden vectors of ranges: made again byte for byte, and by plain arithmetic too, as in another language."""

import hashlib
import json
from typing import Any

import pytest

from sealwire_protocol.limits import BRANCH_ITEMS_MAX
from tests.protocol.vectors import RANGES, generate_ranges

FILE: dict[str, Any] = json.loads(RANGES.read_text(encoding="utf-8"))


def plain_fingerprint(tag: str, rank: str) -> str:
    named = bytes.fromhex(tag) + bytes.fromhex(rank)
    return hashlib.blake2b(named, digest_size=16, person=b"sealwire.range").hexdigest()


def plain_summary(begin: str) -> list[Any]:
    """Count and sum of the records whose tags begin so, in hexadecimal."""
    found = [int(plain_fingerprint(tag, rank), 16) for tag, rank, _, _ in FILE["items"] if tag.startswith(begin)]
    return [len(found), f"{sum(found) % 2**128:032x}"]


def test_the_file_is_made_again_byte_for_byte() -> None:
    assert RANGES.read_text(encoding="utf-8") == generate_ranges()


def test_the_fingerprints_are_hashes_of_tag_and_rank() -> None:
    assert FILE["fingerprints"] == [plain_fingerprint(tag, rank) for tag, rank, _, _ in FILE["items"]]
    assert FILE["total"] == plain_summary("") and FILE["total"][0] == len(FILE["items"]) == 50


@pytest.mark.parametrize("vector", FILE["ranges"], ids=lambda vector: "-".join(map(str, vector["prefix"])))
def test_a_range_has_the_records_whose_tags_begin_so(vector: dict[str, Any]) -> None:
    nibbles, path = vector["prefix"]
    begin = path[:nibbles]
    assert path == begin + "0" * (32 - nibbles)
    inside = [item for item in FILE["items"] if item[0].startswith(begin)]
    if len(inside) <= BRANCH_ITEMS_MAX:
        assert vector["branch"] == [[], inside]
    else:
        assert vector["branch"] == [[plain_summary(begin + digit) for digit in "0123456789abcdef"], []]


def test_there_are_ranges_of_every_sort() -> None:
    sizes = {(len(children), min(len(items), 2)) for children, items in (vector["branch"] for vector in FILE["ranges"])}
    assert sizes == {(16, 0), (0, 0), (0, 1), (0, 2)}
