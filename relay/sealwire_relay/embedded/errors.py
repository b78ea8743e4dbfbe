"""What can go wrong with the embedded Postgres; every message says what happened and what to do next."""


class EmbeddedPostgresError(Exception):
    """The embedded Postgres could not be started, or ended by itself."""


class MissingBinariesError(EmbeddedPostgresError):
    """The Postgres binaries are not installed, or do not run on this machine."""


class DataFolderError(EmbeddedPostgresError):
    """The data folder is not ours, belongs to another user, is of another version, or damaged. It was not changed."""


class AlreadyRunningError(EmbeddedPostgresError):
    """Another process has the data folder in use. `pid` is that process, where it is known."""

    def __init__(self, message: str, pid: int | None = None) -> None:
        super().__init__(message)
        self.pid = pid


class DiskFullError(EmbeddedPostgresError):
    """The disk under the data folder has no room left. What was committed before is intact."""


class StartTimeoutError(EmbeddedPostgresError):
    """Postgres runs, but did not become ready and showed no progress within the limit."""


class UnsafeSettingsError(EmbeddedPostgresError):
    """Postgres runs with settings under which an acknowledged push could be lost."""
