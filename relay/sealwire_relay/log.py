"""Logging on stderr: lines for people or JSON objects for programs, never with a password in them.

No part of the relay hands keys, records or payloads to a logger; what is left to take out here are the passwords
of database addresses, which libraries like to quote in their errors.
"""

import json
import logging
import re
import sys
from datetime import UTC, datetime
from typing import Final, TextIO

from sealwire_relay.settings import Settings

_URL_PASSWORD: Final = re.compile(r"(\b[a-z][a-z0-9+.-]*://[^\s/@:]*):[^\s/]*@", re.IGNORECASE)
_NAMED_PASSWORD: Final = re.compile(r"(\bpassword)(\s*[=:]\s*)('[^']*'|\"[^\"]*\"|[^\s&,;)]+)", re.IGNORECASE)


def redacted(text: str) -> str:
    """The text without passwords: those in addresses (`//user:password@`) and those named so (`password=…`)."""
    return _NAMED_PASSWORD.sub(r"\1\2…", _URL_PASSWORD.sub(r"\1:…@", text))


class TextFormatter(logging.Formatter):
    """`12:03:04 warning ingest: message`, in UTC."""

    def format(self, record: logging.LogRecord) -> str:
        """One line, and a traceback below it if there is one."""
        name = record.name.removeprefix("sealwire.")
        line = f"{_time(record):%H:%M:%S} {record.levelname.lower():<7} {name}: {record.getMessage()}"
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return redacted(line)


class JsonFormatter(logging.Formatter):
    """One object a line: time (ISO 8601, UTC), level, logger, message, and the traceback as `error`."""

    def format(self, record: logging.LogRecord) -> str:
        """One line, whatever the message holds."""
        told = {
            "time": _time(record).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": redacted(record.getMessage()),
        }
        if record.exc_info:
            told["error"] = redacted(self.formatException(record.exc_info))
        return json.dumps(told, ensure_ascii=False)


def configure(settings: Settings, stream: TextIO | None = None) -> None:
    """Send what is logged in this process to `stream` (stderr), from `log_level` on, as `log_format` says."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter() if settings.log_format == "json" else TextFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("sealwire").setLevel(settings.log_level.upper())
    # It tells a traceback for each attempt to reach a database that is down; the store says so in one sentence.
    logging.getLogger("asyncpg").setLevel(logging.ERROR)
    logging.captureWarnings(True)
    # A log that cannot be written (a closed terminal, a full disk) must not disturb the relay.
    logging.raiseExceptions = False


def _time(record: logging.LogRecord) -> datetime:
    return datetime.fromtimestamp(record.created, UTC)
