"""Devices at work with a relay of its own, everybody telling all they can, and things going wrong: neither what was
written nor a key is anywhere to be read at the relay, in a log, or in an error."""

import base64
import logging
import traceback
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest
import trio

from demo import inside
from demo.leaks import Needles, search
from demo.relay import Relay
from sealwire_client import keystore
from sealwire_client.device import KEYSTORE_NAME, Device
from sealwire_client.invites import InviteError
from sealwire_client.keystore import KeystoreError
from sealwire_client.policies import latest, merge
from sealwire_client.sealing import ValueTooLargeError
from tests.client.party import all_synced

pytestmark = [pytest.mark.trio, pytest.mark.embedded]

SECONDS_MAX: Final = 100.0
"""Only a test that fails takes so long."""

NAMES: Final = ("key", "value", "collection", "vault", "device", "passphrase", "refused")
WORDS: Final = {name: f"canary_{name}_{number}" for number, name in enumerate(NAMES, 7_391_846)}
TOO_LARGE: Final = 3 << 20


@dataclass(frozen=True)
class Page:
    """What the devices write."""

    text: str


def needles(found: dict[str, bytes]) -> Needles:
    """What must not be found: as it is, and as logs write bytes."""
    hexed = {f"hex of {what}": raw.hex().encode() for what, raw in found.items()}
    return Needles(
        {**found, **hexed, **{f"base64 of {what}": base64.b64encode(raw)[:-3] for what, raw in found.items()}}
    )


async def error_of(act: Callable[[], Awaitable[object]], kind: type[Exception], *, with_locals: bool = True) -> str:
    """All that can be printed of the error that something ends with; `with_locals`: all local names on its way, too."""
    try:
        await act()
    except kind as error:
        return "".join(traceback.TracebackException.from_exception(error, capture_locals=with_locals).format())
    raise AssertionError("it did not fail")


async def work(relay: Relay, folder: Path) -> list[str]:
    """Two devices write, read, change their key and are interrupted. Returns what the errors on the way say."""
    told = []
    async with (
        Device.open(folder / "a", relay=relay.origin, passphrase=WORDS["passphrase"]) as a,
        Device.open(folder / "b", relay=relay.origin) as b,
    ):
        home = await a.create_vault(WORDS["vault"], device_name=WORDS["device"])
        pages = await home.collection(WORDS["collection"], Page, policy=merge())
        latest_pages = await home.collection("latest", Page, policy=latest())
        await pages.put(WORDS["key"], Page(WORDS["value"]))
        invite = await home.invite()
        told.append(await error_of(lambda: b.join(invite.link[:-4] + "AAAA"), InviteError))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(invite.joined)
            joined = await b.join(invite.link, device_name=WORDS["device"])
        others = await joined.collection(WORDS["collection"], Page, policy=merge())
        through_the_relay = Page(WORDS["value"])
        await joined._sync.until(lambda _: others.get(WORDS["key"]) == through_the_relay)
        large = Page(WORDS["refused"] * (TOO_LARGE // len(WORDS["refused"])))
        put = error_of(lambda: latest_pages.put(WORDS["key"], large), ValueTooLargeError, with_locals=False)
        told.append(await put)  # whose locals are what was to be written
        relay.kill()
        await others.put(WORDS["key"], Page(WORDS["value"] + " again"))
        await relay.start()
        await home.rotate()
        await home._sync.until(lambda _: pages.get(WORDS["key"]) == Page(WORDS["value"] + " again"))
        await all_synced([home, joined])
        told += [repr(each) for each in (a, b, home, joined, pages, home._sync.keys, home._sync.identity)]
    return told


async def test_s22_no_key_and_nothing_written_shows_at_the_relay_in_logs_or_errors(
    open_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    relay = Relay(open_folder, "--log-level", "debug")
    with trio.fail_after(SECONDS_MAX):
        try:
            await relay.start()
            told = await work(relay, tmp_path)
            wrong = Device.open(tmp_path / "a", relay=relay.origin, passphrase="not it")
            told.append(await error_of(wrong.__aenter__, KeystoreError))
            keystore.load(tmp_path / "a" / KEYSTORE_NAME, WORDS["passphrase"])
            secrets = await trio.to_thread.run_sync(inside.secrets, relay.folder, {"b": tmp_path / "b"})
            canary = await trio.to_thread.run_sync(inside.plant, relay.folder)
            sought = {**secrets, **{name: word.encode() for name, word in WORDS.items()}}
            found = search(open_folder, needles({**sought, **canary.tokens}), skip=inside.PROGRAMS)
        finally:
            with suppress(FileNotFoundError):
                relay.abandon()
    assert {what for what in found.places if not what.startswith(("hex", "base64"))} == set(canary.tokens)
    assert found.bytes > 1 << 20 and len(secrets) >= 6
    said = tmp_path / "said"
    said.mkdir()
    (said / "log").write_text(caplog.text)
    (said / "errors").write_text("\n".join(told))
    assert "DEBUG" in caplog.text and relay.log.stat().st_size > 0
    found = search(said, needles(sought))
    assert (found.hits, found.files) == (0, 2), found.told()
