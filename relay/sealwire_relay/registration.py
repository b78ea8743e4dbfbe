"""Who may make vaults at this relay: anybody, who has a token, or nobody (decision 0018); and how much each may store.

It concerns vaults that the relay does not have, and tokens by which one that it has may store more (0026). One that it
has had is taken back from whoever shows the receipt that it gave for it, whatever the mode and whatever became of the
token: what a restored database has lost is not new.
"""

import hashlib
import hmac
import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final, NamedTuple

from sealwire_protocol.errors import Action, DecodeError, FaultCode
from sealwire_protocol.events import Refuse
from sealwire_protocol.ids import VaultId
from sealwire_protocol.membership import Verify
from sealwire_protocol.messages import CreateVault
from sealwire_protocol.registration import Token, decode_token, key_id_of, signed_part
from sealwire_relay.settings import Settings
from sealwire_relay.store.interface import Store, TokenSpentError, TokenUse

RECEIPT_BYTES: Final = 16
"""Nobody guesses so many, even if all vaults of a relay were tried."""

_log = logging.getLogger("sealwire.registration")


class Admitted(NamedTuple):
    """The vault may be made, at the expense of this token (None: of none), with a quota of its own (0: without)."""

    use: TokenUse | None = None
    quota: int = 0


class Registration:
    """Judges who wants to make a vault. `clock` tells Unix seconds, by which tokens expire."""

    def __init__(
        self, store: Store, settings: Settings, verify: Verify, clock: Callable[[], float] = time.time
    ) -> None:
        self._store, self._mode, self._verify, self._clock = store, settings.registration, verify, clock
        self._quota = settings.quota_bytes
        self._keys = {key_id_of(key): key for key in settings.trusted_keys()}

    async def admit(self, vault: VaultId, message: CreateVault) -> Admitted | Refuse:
        """Whether a vault may be made that the relay does not have; whether it has it is not looked at here.

        Raises StoreError."""
        if message.receipt and await self._had(vault, message.receipt):
            token = self._signed(message.token)
            return Admitted(None, token.quota if token else 0)
        if self._mode == "closed":
            return _refused(message, _CLOSED)
        admitted = self._by_token(vault, message)
        return Admitted() if self._mode == "open" and isinstance(admitted, Refuse) else admitted

    async def enlarge(self, vault: VaultId, message: CreateVault) -> Refuse | None:
        """A token was shown for a vault that is there: if it allows more than that may store, it does from now on, at
        the token's expense. A token that is not valid does nothing. Raises StoreError."""
        token = self._signed(message.token)
        usage = await self._store.usage(vault) if token is not None and not self._over(token) else None
        if token is None or usage is None:
            return None
        may = usage.quota or self._quota
        if not may or token.quota <= may:
            return None
        try:
            if await self._store.raise_quota(vault, token.quota, TokenUse(token.serial, token.vaults)):
                _log.info("vault %s may store %d bytes by token %s", vault.hex(), token.quota, token.serial.hex())
        except TokenSpentError:
            return _spent(message)
        return None

    def without(self, message: CreateVault) -> Admitted | Refuse:
        """Whether a vault may be made though its token has made all that it may."""
        return Admitted() if self._mode == "open" else _spent(message)

    async def _had(self, vault: VaultId, receipt: bytes) -> bool:
        return hmac.compare_digest(receipt_of(await self._store.receipt_key(), vault), receipt)

    def _by_token(self, vault: VaultId, message: CreateVault) -> Admitted | Refuse:
        if not message.token:
            return _refused(message, _NO_TOKEN)
        token = self._signed(message.token)
        if token is None:
            return _refused(message, _NOT_VALID)
        if self._over(token):
            return _refused(message, f"the registration token has expired ({_day(token)}): ask for a new one")
        _log.info("vault %s is presented with token %s of %r", vault.hex(), token.serial.hex(), token.holder)
        return Admitted(TokenUse(token.serial, token.vaults), token.quota)

    def _signed(self, raw: bytes) -> Token | None:
        """A token, expired or not, that is signed with a trusted key."""
        try:
            token, signature = decode_token(raw)
        except DecodeError:
            return None
        key = self._keys.get(token.key_id)
        return token if key is not None and self._verify(key, signed_part(raw), signature) else None

    def _over(self, token: Token) -> bool:
        return self._clock() > token.expires


def _spent(message: CreateVault) -> Refuse:
    why = "all vaults that the registration token allows have been made: ask for a new one"
    return Refuse(FaultCode.QUOTA, Action.STOP, why, message.request)


def receipt_of(key: bytes, vault: VaultId) -> bytes:
    """What tells a relay with this database's secret that it has had a vault."""
    return hashlib.blake2b(vault, key=key, digest_size=RECEIPT_BYTES, person=b"sw receipt 1").digest()


def _refused(message: CreateVault, why: str) -> Refuse:
    return Refuse(FaultCode.NOT_ALLOWED, Action.STOP, why, message.request)


_CLOSED: Final = (
    "this relay takes in no new vaults; what was written is kept on the device: ask who runs the relay, or use another"
    " one"
)
_NO_TOKEN: Final = (
    "this relay takes in new vaults by registration token only, and none was given: ask for one who runs the relay, or"
    " the app"
)
_NOT_VALID: Final = (
    "the registration token is not one that this relay trusts: copy the whole text again, or ask for one for this relay"
)


def _day(token: Token) -> str:
    try:
        return f"{datetime.fromtimestamp(token.expires, UTC):%Y-%m-%d %H:%M} UTC"
    except (OverflowError, ValueError, OSError):
        return "long ago"
