"""The Postgres of a relay that was given none: no configuration, a folder of its own, gone when the relay is."""

from sealwire_relay.embedded.errors import (
    AlreadyRunningError,
    DataFolderError,
    DiskFullError,
    EmbeddedPostgresError,
    MissingBinariesError,
    StartTimeoutError,
    UnsafeSettingsError,
)
from sealwire_relay.embedded.supervisor import EmbeddedPostgres

__all__ = [
    "EmbeddedPostgres",
    "EmbeddedPostgresError",
    "AlreadyRunningError",
    "DataFolderError",
    "DiskFullError",
    "MissingBinariesError",
    "StartTimeoutError",
    "UnsafeSettingsError",
]
