"""The settings that the embedded Postgres runs with, and the proof that those which durability needs are in force.

They are given on the command line, which wins over every file in the data folder.
"""

from typing import Protocol

from sealwire_relay.embedded.errors import UnsafeSettingsError

USER = "sealwire"
DATABASE = "sealwire"
PORT = 5432  # names the socket file only: nothing listens on TCP

# Without any one of these, "acked means durable" is not true.
DURABLE = {"fsync": "on", "full_page_writes": "on", "synchronous_commit": "on"}

PRIVATE = {
    "listen_addresses": "",  # no TCP at all
    "unix_socket_permissions": "0700",
    # Nothing that a statement carried may reach the log: no statement, no parameter, and, terse, no
    # "Key (...) already exists".
    "log_statement": "none",
    "log_min_error_statement": "panic",
    "log_min_duration_statement": "-1",
    "log_parameter_max_length": "0",
    "log_parameter_max_length_on_error": "0",
    "log_error_verbosity": "terse",
}

ORDINARY = {
    "port": str(PORT),
    "shared_buffers": "128MB",
    "huge_pages": "off",
    "wal_level": "replica",  # base backups and standbys stay possible without a restart
    "max_wal_senders": "4",
    "max_wal_size": "1GB",
    "min_wal_size": "256MB",  # files of the log that are kept to be used again, so that a burst finds them made
    # Stored records are ciphertext, and the wheel's build has neither lz4 nor zstd.
    "wal_compression": "off",
    "jit": "off",  # it costs more than these short statements take
    "autovacuum": "on",
    "cluster_name": "sealwire",  # seen in the process list
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_destination": "stderr",
    "logging_collector": "off",  # the supervisor bounds the log
    "log_line_prefix": "%m [%p] ",
    "log_startup_progress_interval": "2s",  # what "no progress" is judged by during recovery
}

INITDB_ARGUMENTS = (
    f"--username={USER}",
    # Whoever can enter the socket's folder (0700, of Postgres' own user) could read the data files as well, so
    # a password would protect nothing. `peer` cannot be used: it compares the names of the operating system's
    # users, and the relay may be root, or a user without a name. Over TCP nobody is let in, should it ever be on.
    "--auth-local=trust",
    "--auth-host=reject",
    "--encoding=UTF8",
    "--locale=C",
    "--data-checksums",
    # A new file of the log is filled with zeros and synced while all commits wait: 16 MB, the default, are 30 ms.
    "--wal-segsize=1",
    "--no-instructions",
)


class Connection(Protocol):
    """The part of an asyncpg connection that is needed here."""

    async def fetchval(self, query: str) -> object: ...


def arguments(*, socket_folder: str, max_connections: int) -> list[str]:
    """The command line arguments of `postgres` that put all settings in force."""
    settings = {
        **ORDINARY,
        **PRIVATE,
        **DURABLE,
        "unix_socket_directories": socket_folder,
        "max_connections": str(max_connections),
    }
    return [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]


async def verify(connection: Connection) -> None:
    """Raise UnsafeSettingsError unless this session runs with every setting that durability and privacy need."""
    for name, wanted in (DURABLE | {"listen_addresses": ""}).items():
        found = await connection.fetchval(f"SHOW {name}")
        if found != wanted:
            raise UnsafeSettingsError(
                f"Postgres runs with {name} = '{found}' in place of '{wanted}', so that acknowledged data could "
                f"be lost or reached by others; undo it with: ALTER ROLE {USER} RESET {name}; "
                f"ALTER DATABASE {DATABASE} RESET {name}"
            )
