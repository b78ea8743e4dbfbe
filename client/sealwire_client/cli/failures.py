"""What can go wrong in a command, as one sentence for people, a kind and an exit code for programs.

The library's errors say themselves what happened and what to do; here they get their kind. Imported by every
command, so it names the library's errors only once one has been raised.
"""

from collections.abc import Iterator
from enum import IntEnum

MESSAGE_CHARACTERS_MAX = 2_000
"""Longest sentence shown: parts of it may come from the relay."""

FORGET = "`sealwire vault forget` deletes it here"
"""What can be done about a vault that is over."""


class ExitCode(IntEnum):
    """How a command ended; docs/cli.md lists them for those who write scripts."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    RELAY = 3
    LOCKED = 4
    INTERRUPTED = 130
    TERMINATED = 143


class Failure(Exception):
    """A command cannot do what was asked. The message says what happened, what it means and what to do next."""

    def __init__(self, message: str, kind: str = "failed", code: ExitCode = ExitCode.FAILED) -> None:
        super().__init__(message)
        self.kind, self.code = kind, code


class OutputClosed(Exception):
    """Nobody reads what the command prints any more."""


def usage(message: str) -> Failure:
    """What was typed makes no sense; nothing was done."""
    return Failure(message, "usage", ExitCode.USAGE)


def relay_missing(message: str) -> Failure:
    """The relay was needed and did not answer in time, or will not have this device."""
    return Failure(message, "relay", ExitCode.RELAY)


def explained(error: BaseException) -> Failure:
    """The failure that an error means. What nobody foresaw has the kind `bug`."""
    found = list(leaves(error))
    for leaf in found:
        failure = _foreseen(leaf)
        if failure is not None:
            return failure
    first = found[0]
    return Failure(
        f"This was not foreseen ({type(first).__name__}: {first}): what was saved stays saved; please report it with"
        " what SEALWIRE_DEBUG=1 shows.",
        "bug",
    )


def _foreseen(error: BaseException) -> Failure | None:
    if isinstance(error, Failure):
        return error
    return _of_the_device(error) or _of_the_relay(error)


def _of_the_device(error: BaseException) -> Failure | None:
    from sealwire_client.encoding import EncodingError
    from sealwire_client.keyring import KeyringError, NameTooLongError, VaultOverError
    from sealwire_client.keystore import KeystoreError, PassphraseError
    from sealwire_client.replica import ReplicaError, ReplicaFullError, ReplicaInUseError, UnsentError
    from sealwire_client.sealing import ValueTooLargeError
    from sealwire_client.transactions import TransactionError

    told = str(error)
    match error:
        case ReplicaInUseError():
            return Failure(told, "in_use", ExitCode.LOCKED)
        case ReplicaFullError():
            return Failure(told, "disk_full")
        case PassphraseError():
            return Failure(told, "locked", ExitCode.LOCKED)
        case KeystoreError():
            return Failure(told, "keystore")
        case ReplicaError():
            return Failure(told, "replica")
        case TransactionError():
            return Failure(told, "too_large")
        case ValueTooLargeError():
            return Failure(f"{told}; nothing of it was saved", "too_large")
        case EncodingError() | NameTooLongError():
            return Failure(told, "value")
        case VaultOverError():
            return Failure(f"{told}; {FORGET}", "no_vault")
        case KeyringError():
            return Failure(told, "membership")
        case UnsentError():
            return Failure(told, "unsent")
        case _:
            return None


def _of_the_relay(error: BaseException) -> Failure | None:
    from sealwire_client.invites import InviteError
    from sealwire_client.inviting import InviteExpiredError, InviteRefusedError
    from sealwire_client.link import RelayRefusedError
    from sealwire_client.moving import MoveError
    from sealwire_client.recovery import RecoveryError
    from sealwire_client.sending import ConflictError, StrictError
    from sealwire_client.transport import InsecureOriginError, TransportError
    from sealwire_protocol.errors import FaultCode, LocalMisuse
    from sealwire_protocol.links import LinkError

    told = str(error)
    match error:
        case InviteError() | InviteExpiredError() | InviteRefusedError():
            return Failure(told, "invite")
        case RecoveryError():
            return Failure(told, "recovery")
        case MoveError():
            return Failure(told, "moved")
        case RelayRefusedError() if error.fault.code in (FaultCode.MAILBOX_USED, FaultCode.NO_SUCH_MAILBOX):
            return Failure(told, "invite")
        case RelayRefusedError():
            return Failure(f"The relay refused: {told}", "relay_refused", ExitCode.RELAY)
        case ConflictError():
            return Failure(told, "conflict")
        case TransportError() | StrictError():
            return relay_missing(told)
        case InsecureOriginError() | LocalMisuse():
            return usage(told)
        case LinkError():
            return Failure(f"The vault's membership log does not verify: {told}", "membership")
        case OSError():
            return Failure(_of_the_system(error), "system")
        case _:
            return None


def _of_the_system(error: OSError) -> str:
    where = f" ({error.filename})" if error.filename else ""
    return f"The system refused: {error.strerror or error}{where}; see to that and try again"


def leaves(error: BaseException) -> Iterator[BaseException]:
    """The errors in a group, or the one that is none."""
    if isinstance(error, BaseExceptionGroup):
        for one in error.exceptions:
            yield from leaves(one)
    else:
        yield error


def sentence(message: str) -> str:
    """A message as one line that begins and ends as a sentence does."""
    line = " ".join(message.split())[:MESSAGE_CHARACTERS_MAX]
    first = line.split(" ", 1)[0]
    if first.isalpha() and first.islower():
        line = line[0].upper() + line[1:]
    return line if line.endswith((".", "!", "?")) else f"{line}."
