"""What it costs to open a segment of small records, and to seal it: µs a record, each way to the cipher.

python -m bench.parts.sealing [--short]

Prints one JSON object. `fast` is with the extra of that name, `pynacl` with PyNaCl alone: the functions that the client
uses, whole (context, nonce, cipher, padding, tag check). Beside them, on the same bytes: `wrapper` is the same function
with PyNaCl's wrapper called for each record; `wrapper_alone` is that call and nothing else; `bare` is libsodium's own
function, called through the binding's foreign-function interface with everything prepared, which is as fast as any
program in Python can be that opens one record at a time.

All are measured in turn, round by round, and the best round counts: what else the machine does can only add to it.
`summed` is opening with what each record adds to the sum of its collection, by which devices notice a relay that lies.
`by_bare` and `by_wrapper` are what opening takes by what `bare` and `wrapper` take, each its best round. `large` is
opening values of 1,024 bytes. `busy` is opening while another thread of the process computes, in the median, as the
best round says nothing there. `signed` is what the same records take in a signed collection: to sign and seal them, to
open them and verify their signatures, and their bytes. `missed` names the goals that were not kept; then `ok` is false.
"""

import json
import platform
import time
from argparse import ArgumentParser
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from statistics import median
from threading import Event, Thread
from typing import Final, NamedTuple
from unittest.mock import patch

from nacl import bindings

from sealwire_client import cipher, sealing, signing
from sealwire_client.cipher import NONCE_BYTES, Opening, Purpose, Seal, Secret, keyed_hash
from sealwire_client.identity import DeviceIdentity
from sealwire_client.sealing import (
    CONTEXT_COMMON,
    CONTEXT_OWN,
    Draft,
    OpenedSegment,
    Opener,
    Sealer,
    Stream,
    stream_keys,
)
from sealwire_client.signing import Judge, Signer
from sealwire_protocol.ids import Author, KeyId, StreamId, VaultId
from sealwire_protocol.links import Role
from sealwire_protocol.membership import Member, Membership
from sealwire_protocol.segment import FORMAT, MAC_BYTES, read_segment

RECORDS: Final = 1_000
VALUE_BYTES: Final = 32
LARGE_BYTES: Final = 1_024
KEY_BYTES: Final = 8
ROUNDS: Final = 300
ROUNDS_SHORT: Final = 40
ROUNDS_BUSY: Final = 15
ROUNDS_SIGNED: Final = 200
SIGNED_RECORDS: Final = 50
"""Records of one round of the signed ones, which take some milliseconds so."""

GOALS: Final = {
    "summed_pynacl_us": 4.5,
    "summed_fast_us": 3.5,
    "seal_pynacl_us": 6.0,
    "seal_fast_us": 6.0,
    "beside_bytes": 64.0,
}
"""What the figures of small records are to be at most."""

STREAM: Final = Stream(VaultId(bytes(16)), StreamId(b"\1" * 8), Secret(b"\2" * 32))
KEYS: Final = stream_keys(Secret(b"\3" * 32), 1, KeyId(b"\4" * 4), STREAM.vault, STREAM.id)
AUTHOR: Final = Author(1)

Work = Callable[[], object]


class Way(NamedTuple):
    """One way to the cipher, forced."""

    seal: Callable[[Secret], Seal]
    open: Callable[[Secret], Opening]


def ways() -> dict[str, Way]:
    """Those that this machine has."""
    found = {"wrapper": Way(cipher._plain_seal, cipher._plain_open)}
    if (native := cipher._native()) is not None:
        found["pynacl"] = Way(
            lambda key: cipher._native_seal(key, *native), lambda key: cipher._native_open(key, *native)
        )
    if (fast := cipher._fast()) is not None:
        found["fast"] = Way(lambda key: cipher._fast_seal(key, *fast), lambda key: cipher._fast_open(key, *fast))
    return found


class Pair(NamedTuple):
    """The client's functions by one way, and the segment that they open and seal."""

    open: Callable[[], OpenedSegment]
    seal: Work
    segment: bytes


def pair(way: Way, value_bytes: int) -> Pair:
    """Made, tried once, and found right."""
    drafts = [Draft(f"{n:0{KEY_BYTES}d}", b"%0*d" % (value_bytes, n), n + 1) for n in range(RECORDS)]
    with patch.multiple(sealing, record_seal=way.seal, record_open=way.open):
        sealer, opener = Sealer(STREAM, KEYS, AUTHOR, Secret(b"\5" * 32)), Opener(STREAM, [KEYS])
        segment = b"".join(record.encoded for record in sealer.seal_many(drafts))
        opened = opener.open_segment(segment, 0).opened
    if [(one.key, one.value) for one in opened] != [draft[:2] for draft in drafts]:
        raise SystemExit("what was sealed did not open")
    return Pair(lambda: opener.open_segment(segment, 0), lambda: sealer.seal_many(drafts), segment)


def summed(open_: Callable[[], OpenedSegment]) -> Work:
    """Opening, and adding up what the records are in the sum of their collection."""
    sum_of = sealing.summer(STREAM)
    return lambda: sum_of([(one.key, one.rank) for one in open_().opened])


def signed_pair(way: Way) -> Pair:
    """As `pair`, of a signed collection: author and reader know each other by the membership log."""
    identity, membership = DeviceIdentity(Secret(b"\6" * 32)), Membership()
    role = Role.WRITER
    membership.members[AUTHOR] = Member(AUTHOR, identity.device_key, b"", role, role, AUTHOR, b"", b"")
    drafts = [Draft(f"{n:0{KEY_BYTES}d}", b"%0*d" % (VALUE_BYTES, n), n + 1) for n in range(SIGNED_RECORDS)]
    with patch.multiple(sealing, record_seal=way.seal, record_open=way.open):
        sealer, signer = Sealer(STREAM, KEYS, AUTHOR, identity.hedge_key), Signer(STREAM, AUTHOR, identity.sign)
        opener = Opener(STREAM, [KEYS], Judge(STREAM, lambda: membership))
        segment = b"".join(record.encoded for record in sealer.seal_many(signer.signed(drafts)))
        opened = opener.open_segment(segment, 0).opened
    if [(one.key, signing.parted(one.value)[1]) for one in opened] != [draft[:2] for draft in drafts]:
        raise SystemExit("what was signed and sealed did not open")
    return Pair(lambda: opener.open_segment(segment, 0), lambda: sealer.seal_many(signer.signed(drafts)), segment)


def yardsticks(segment: bytes) -> dict[str, Work]:
    """The cipher alone on the records of a segment, by PyNaCl's wrapper and by libsodium itself."""
    common = CONTEXT_COMMON.pack(FORMAT, STREAM.vault, STREAM.id, KEYS.epoch, KEYS.key_id)
    inputs: list[tuple[bytes, bytes, bytes]] = []
    for _, record in read_segment(segment, 0):
        context = common + CONTEXT_OWN.pack(record.flags, record.author, record.version, record.tag)
        nonce = keyed_hash(KEYS.nonce_key, Purpose.NONCE, context + record.salt, NONCE_BYTES)
        inputs.append((record.body, context, nonce))
    wrapper, key = bindings.crypto_aead_chacha20poly1305_ietf_decrypt, KEYS.record_key

    def wrapper_alone() -> None:
        for body, context, nonce in inputs:
            wrapper(body, context, nonce, key.reveal())

    found: dict[str, Work] = {"wrapper_alone": wrapper_alone}
    if (native := cipher._native()) is not None:
        ffi, lib = native
        decrypt, null = lib.crypto_aead_chacha20poly1305_ietf_decrypt, ffi.NULL
        held, out = ffi.new("unsigned char[]", key.reveal()), ffi.new("unsigned char[]", max(len(i[0]) for i in inputs))
        sized = [(body, len(body), context, len(context), nonce) for body, context, nonce in inputs]

        def bare() -> None:
            for body, size, context, context_size, nonce in sized:
                if decrypt(out, null, null, body, size, context, context_size, nonce, held):
                    raise SystemExit("libsodium did not open what the client has sealed")

        found["bare"] = bare
    return found


def rounds(works: Mapping[str, Work], count: int, records: int = RECORDS) -> dict[str, list[float]]:
    """µs a record of each work in each round, the works in turn."""
    taken: dict[str, list[float]] = {name: [] for name in works}
    for work in works.values():
        work()
    for _ in range(count):
        for name, work in works.items():
            start = time.perf_counter()
            work()
            taken[name].append((time.perf_counter() - start) / records * 1e6)
    return taken


@contextmanager
def busy_thread() -> Iterator[None]:
    """Another thread of this process that computes all the time, as an app may."""
    stop = Event()

    def compute() -> None:
        n = 0
        while not stop.is_set():
            n += 1

    thread = Thread(target=compute, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def ratios(best: Mapping[str, float], yardstick: str) -> dict[str, float]:
    """What opening takes by what the yardstick takes."""
    by = best.get(yardstick)
    return {} if by is None else {name: round(its / by, 2) for name, its in best.items() if name.startswith("open_")}


def measure(short: bool) -> dict[str, object]:
    """All figures; `ok` if each goal that this machine can measure is kept."""
    count = ROUNDS_SHORT if short else ROUNDS
    found = ways()
    small = {name: pair(way, VALUE_BYTES) for name, way in found.items()}
    large = {name: pair(way, LARGE_BYTES) for name, way in found.items()}
    segment = small["wrapper"].segment
    works: dict[str, Work] = {f"open_{name}": one.open for name, one in small.items()}
    works |= {f"summed_{name}": summed(one.open) for name, one in small.items()}
    works |= {f"seal_{name}": one.seal for name, one in small.items()} | yardsticks(segment)
    taken = rounds(works, count)
    taken_large = rounds({f"open_{name}": one.open for name, one in large.items()}, count // 8)
    with busy_thread():
        taken_busy = rounds({f"open_{name}": one.open for name, one in small.items()}, ROUNDS_BUSY)
    by_author = signed_pair(found.get("pynacl", found["wrapper"]))
    taken_signed = rounds({"open": by_author.open, "seal": by_author.seal}, ROUNDS_SIGNED, SIGNED_RECORDS)
    beside = (
        len(segment) / RECORDS - sum(len(one.record.body) - MAC_BYTES for one in read_segment(segment, 0)) / RECORDS
    )
    best = {name: min(its) for name, its in taken.items()}
    figures = {f"{name}_us": round(its, 2) for name, its in best.items()} | {"beside_bytes": beside}
    missed = [name for name, limit in GOALS.items() if name in figures and figures[name] > limit]
    return {
        "name": "sealing",
        "ok": not missed,
        "records": RECORDS,
        "value_bytes": VALUE_BYTES,
        "key_bytes": KEY_BYTES,
        "record_bytes": len(segment) / RECORDS,
        **figures,
        "by_bare": ratios(best, "bare"),
        "by_wrapper": ratios(best, "open_wrapper"),
        "large": {f"{name}_us": round(min(its), 2) for name, its in taken_large.items()},
        "busy": {f"{name}_us": round(median(its), 1) for name, its in taken_busy.items()},
        "signed": {f"{name}_us": round(min(its), 1) for name, its in taken_signed.items()}
        | {"record_bytes": len(by_author.segment) / SIGNED_RECORDS},
        "goals": GOALS,
        "missed": missed,
        "python": platform.python_version(),
    }


if __name__ == "__main__":
    parser = ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--short", action="store_true", help="fewer rounds: a few seconds in all")
    print(json.dumps(measure(parser.parse_args().short)))
