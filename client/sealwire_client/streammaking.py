"""What opens and seals the records of a vault's collections: by the vault's keys, and as the member that this device
is."""

from collections.abc import Iterable

from sealwire_client.identity import DeviceIdentity
from sealwire_client.keyring import VaultKeys
from sealwire_client.memberlog import MemberLog
from sealwire_client.merging import Resolve
from sealwire_client.replica import Collection, HeldVault
from sealwire_client.sealing import Sealer
from sealwire_client.signing import Judge, Signer
from sealwire_client.stream import StreamSync
from sealwire_protocol.ids import StreamId


class StreamMaker:
    """Makes a collection's StreamSync, and goes on to another identity with those that were made."""

    def __init__(self, held: HeldVault, identity: DeviceIdentity, keys: VaultKeys, members: MemberLog) -> None:
        self._held, self._identity, self._keys, self._members = held, identity, keys, members

    def make(self, collection: Collection, resolve: Resolve | None = None) -> StreamSync:
        """Of a collection, whose edits are merged by `resolve`. It is not synced by this."""
        name = collection.stream
        judge = Judge(self._keys.stream(name), lambda: self._members.membership) if collection.signed else None
        opener = self._keys.opener(name, judge)
        return StreamSync(collection, opener, self._sealer(name), self._signer(collection), resolve)

    def become(self, held: HeldVault, identity: DeviceIdentity, made: Iterable[StreamSync]) -> None:
        """Be another member: these seal as that one from now on, and so does what is made later."""
        self._held, self._identity = held, identity
        for stream in made:
            collection = stream.collection
            stream.sealer, stream.signer = self._sealer(collection.stream), self._signer(collection)

    def _sealer(self, stream: StreamId) -> Sealer:
        return self._keys.sealer(stream, self._held.author, self._identity.hedge_key)

    def _signer(self, collection: Collection) -> Signer | None:
        stream = self._keys.stream(collection.stream)
        return Signer(stream, self._held.author, self._identity.sign) if collection.signed else None
