"""A relay's stand-in that the tests can kill: starts the embedded Postgres and says what happens, line by line."""

import asyncio
import json
import sys
from pathlib import Path

from sealwire_relay.embedded import EmbeddedPostgres, EmbeddedPostgresError


def say(**words: object) -> None:
    """One JSON object a line."""
    print(json.dumps(words), flush=True)


async def main(folder: Path) -> None:
    """Run until killed, or until Postgres has died."""
    postgres = EmbeddedPostgres(folder, report=lambda line: say(report=line))
    try:
        dsn = await postgres.start()
        say(dsn=dsn, pid=postgres.pid)
        say(died=await postgres.wait_died())
    except EmbeddedPostgresError as error:
        say(error=type(error).__name__, message=str(error))
    finally:
        await postgres.stop()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
