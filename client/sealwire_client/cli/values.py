"""Values as they are typed and shown: JSON objects, and text, which is kept as `{"value": text}`."""

import json
from typing import Any, Final, NamedTuple

from sealwire_client.cli.failures import Failure, usage
from sealwire_client.cli.output import compact, visible

FIELD: Final = "value"
"""The one field of a value that was given as something else than an object."""

_SHAPE: Final = 'a line is {"key": …, "value": …}'

Value = dict[str, Any]


class Line(NamedTuple):
    """An entry of an import, and the number of its line, or of the first one."""

    number: int
    key: str
    value: Value


def typed(words: tuple[str, ...], as_text: bool) -> Value:
    """The value that was typed. What begins with a brace must be a JSON object, unless it is said to be text."""
    text = checked(" ".join(words), "VALUE")
    if as_text or not text.lstrip().startswith("{"):
        return {FIELD: text}
    try:
        value = json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise usage(
            f"VALUE begins as a JSON object and is none ({error}): nothing was saved; correct it, or say --text to keep"
            " it as text"
        ) from None
    return dict(value)


def checked(text: str, what: str) -> str:
    """A text from the command line, if it is text at all."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise usage(f"{what} is not UTF-8 text: nothing was done; give bytes in some encoding as text") from None
    return text


def parsed(number: int, raw: bytes) -> Line | None:
    """An entry of a line of JSON, `{"key": …, "value": …}`; None for a blank line. Raises Failure."""
    if not raw.strip():
        return None
    try:
        fields = json.loads(raw, parse_constant=_refuse)
        key, value = fields["key"], fields["value"]
        if not isinstance(key, str):
            raise TypeError("the key is no text")
        key.encode()
    except KeyError as error:
        raise wrong_line(number, f"{_SHAPE}, and it has no {error}") from None
    except (ValueError, TypeError, RecursionError) as error:
        raise wrong_line(number, f"{_SHAPE}: {error}") from None
    return Line(number, key, value if isinstance(value, dict) else {FIELD: value})


def wrong_line(number: int, why: str) -> Failure:
    """A line of an import that cannot be saved."""
    return Failure(
        f"Line {number} cannot be kept ({why}): it and what follows were not saved, all lines before it were; correct"
        " it and run the same again",
        "value",
    )


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def plain(value: Value) -> str | None:
    """The text that was kept as such, or None if the value is something else."""
    text = value.get(FIELD)
    return text if isinstance(text, str) and len(value) == 1 else None


def on_one_line(value: Value) -> str:
    """A value for people, on one line."""
    text = plain(value)
    return visible(compact(value) if text is None else text)


def in_full(value: Value, terminal: bool) -> str:
    """A value for people, or for a program that reads text: exactly the text that was put."""
    text = plain(value)
    if text is None:
        return visible(json.dumps(value, ensure_ascii=False, indent=2), lines=True)
    return visible(text, lines=True) if terminal else text


def counted(entries: int) -> str:
    """So many entries, for people."""
    return f"{entries:,} {'entry' if entries == 1 else 'entries'}"
