"""Which user Postgres runs as. It refuses root, so that a relay under root lends it an existing account."""

import os
import pwd
from collections.abc import Callable
from dataclasses import dataclass

from sealwire_relay.embedded.errors import DataFolderError, EmbeddedPostgresError

# In order of preference: its own account where the system has one, then those that every system has for
# programs that should own nothing. initdb looks up the name of its user, so a bare number does not do.
PREFERRED_NAMES = ("postgres", "nobody", "daemon")


@dataclass(frozen=True, slots=True)
class Account:
    """The user that Postgres runs as. `dropped` tells whether root has to be given up for it."""

    uid: int
    gid: int
    dropped: bool


def unprivileged(find: Callable[[str], pwd.struct_passwd] = pwd.getpwnam) -> Account:
    """The account that a relay under root lends to Postgres; none is created.

    Raises EmbeddedPostgresError if the system has none of the preferred ones.
    """
    for name in PREFERRED_NAMES:
        try:
            entry = find(name)
        except KeyError:
            continue
        if entry.pw_uid != 0:
            return Account(entry.pw_uid, entry.pw_gid, dropped=True)
    raise EmbeddedPostgresError(
        f"Postgres refuses to run as root and this system has no account named {' or '.join(PREFERRED_NAMES)}; "
        "run the relay as an ordinary user, or give it a Postgres with --database-url."
    )


def choose(cluster_owner: os.stat_result | None, euid: int | None = None) -> Account:
    """The user for a data folder, `cluster_owner` being the status of its `postgres/`, if that exists.

    Under root the files' present owner stays, so that no start ever changes the owner of data. Raises
    DataFolderError if that owner does not fit.
    """
    me = os.geteuid() if euid is None else euid
    if me != 0:
        if cluster_owner is not None and cluster_owner.st_uid != me:
            raise DataFolderError(
                f"The database files belong to user {name_of(cluster_owner.st_uid)} and the relay runs as "
                f"{name_of(me)}; run it as their owner, or choose another data folder."
            )
        return Account(me, os.getegid(), dropped=False)
    if cluster_owner is None:
        return unprivileged()
    if cluster_owner.st_uid == 0:
        raise DataFolderError(
            "The database files belong to root, as whom Postgres refuses to run; give `postgres/` inside the "
            f"data folder to an ordinary user, as with: chown -R {PREFERRED_NAMES[0]} postgres"
        )
    return Account(cluster_owner.st_uid, cluster_owner.st_gid, dropped=True)


def name_of(uid: int) -> str:
    """The name of a user for a message, or its number if it has none."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"number {uid}"
