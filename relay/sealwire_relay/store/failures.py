"""What went wrong between the relay and Postgres, told as the store's own errors."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import asyncpg  # type: ignore[import-untyped]

from sealwire_relay.store.interface import DiskFullError, OutcomeUnknownError, SchemaError, StoreDownError, StoreError

_LOST: Final = (
    OSError,
    TimeoutError,
    asyncpg.InterfaceError,
    asyncpg.PostgresConnectionError,
    asyncpg.OperatorInterventionError,
    asyncpg.InternalClientError,
)
"""The connection is gone, or its server is going. A command that timed out is cancelled, or was too late to be."""

_DOWN: Final = (*_LOST, asyncpg.TooManyConnectionsError)

_NO_SCHEMA: Final = (asyncpg.UndefinedTableError, asyncpg.InvalidSchemaNameError, asyncpg.UndefinedColumnError)

_REFUSED: Final = (
    asyncpg.InvalidAuthorizationSpecificationError,
    asyncpg.InvalidCatalogNameError,
    asyncpg.InsufficientPrivilegeError,
)


def _reason(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return text[0].rstrip(".") if text else type(error).__name__


def _told(error: Exception) -> StoreError:
    reason = _reason(error)
    if isinstance(error, asyncpg.DiskFullError) or "No space left on device" in reason:
        return DiskFullError(f"The database has no room left ({reason}); nothing was written: give its disk more room.")
    if isinstance(error, _NO_SCHEMA):
        return SchemaError(
            f"The database lacks what this relay needs ({reason}); nothing was written: run `sealwire-relay migrate`."
        )
    if isinstance(error, _REFUSED):
        return StoreError(f"The database refuses this relay ({reason}); check the name and password in its address.")
    if isinstance(error, _DOWN):
        return StoreDownError(
            f"The database cannot be reached now ({reason}); nothing was written: check that it runs, then try again."
        )
    return StoreError(f"The database refused a statement ({reason}); nothing was written: its log says more.")


@contextmanager
def translated() -> Iterator[None]:
    """Raise a StoreError for what asyncpg raises, where nothing was written or it does not matter."""
    try:
        yield
    except ValueError:
        raise  # asyncpg says so of arguments that do not fit their columns: our own mistake
    except (asyncpg.PostgresError, *_LOST) as error:
        raise _told(error) from error


@contextmanager
def translated_commit() -> Iterator[None]:
    """Inside `translated`, around a statement that commits: a connection lost under it leaves its outcome open."""
    try:
        yield
    except (ValueError, asyncpg.QueryCanceledError):
        raise  # both mean that the statement was not carried out
    except _LOST as error:
        raise OutcomeUnknownError(
            f"The database's connection was lost during a commit ({_reason(error)}); it may have been made or not: "
            "look before writing again."
        ) from error
