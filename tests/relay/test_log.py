import io
import json
import logging
import sys
from collections.abc import Iterator

import pytest

from sealwire_relay.log import configure, redacted
from sealwire_relay.settings import Settings

log = logging.getLogger("sealwire.here")


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    root, ours = logging.getLogger(), logging.getLogger("sealwire")
    before = root.handlers[:], root.level, ours.level, logging.raiseExceptions
    yield
    root.handlers[:], root.level, ours.level, logging.raiseExceptions = before
    logging.captureWarnings(False)


def fail() -> None:
    raise ValueError("cannot reach postgresql://relay:hunter2@db/x")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("postgresql://relay:hunter2@db/x?y=1", "postgresql://relay:…@db/x?y=1"),
        ("postgres://relay:hun:ter2@db", "postgres://relay:…@db"),
        ("postgresql://:hunter2@/x", "postgresql://:…@/x"),
        ("host=db password=hunter2 port=1", "host=db password=… port=1"),
        ("password = 'hunter2 x'", "password = …"),
        ("postgresql://db/x?password=hunter2&port=1", "postgresql://db/x?password=…&port=1"),
        ("http://127.0.0.1:7801/readyz is ready @ noon", "http://127.0.0.1:7801/readyz is ready @ noon"),
    ],
)
def test_passwords_are_taken_out(text: str, shown: str) -> None:
    assert redacted(text) == shown


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_no_password_is_logged_by_whichever_way(log_format: str) -> None:
    out = io.StringIO()
    configure(Settings(log_format="json" if log_format == "json" else "text"), out)
    try:
        fail()
    except ValueError:
        log.exception("trying %s", "postgresql://relay:hunter2@db/x")
    assert "hunter2" not in out.getvalue()
    assert out.getvalue().count("postgresql://relay:…@db/x") >= 2


def test_json_is_one_object_a_line() -> None:
    out = io.StringIO()
    configure(Settings(log_format="json"), out)
    log.warning("two\nlines")
    told = json.loads(out.getvalue())
    assert told["level"] == "warning"
    assert told["logger"] == "sealwire.here"
    assert told["message"] == "two\nlines"
    assert told["time"].endswith("+00:00")
    assert out.getvalue().count("\n") == 1


def test_the_level_is_ours_and_libraries_only_warn() -> None:
    out = io.StringIO()
    configure(Settings(log_level="debug"), out)
    log.debug("ours")
    logging.getLogger("asyncpg").info("theirs")
    assert "here: ours" in out.getvalue()
    assert "theirs" not in out.getvalue()


def test_a_log_that_cannot_be_written_disturbs_nobody(capsys: pytest.CaptureFixture[str]) -> None:
    closed = io.StringIO()
    configure(Settings(), closed)
    closed.close()
    log.warning("to nobody")
    assert capsys.readouterr().err == ""
    assert sys.stderr.writable()
