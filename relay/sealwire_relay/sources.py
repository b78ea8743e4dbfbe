"""Where the settings of a relay are written: on the command line, in the environment, and in files.

A value comes from a command-line option (`--credit-bytes`), else from the environment (`SEALWIRE_CREDIT_BYTES`),
else from a file that the environment names (`SEALWIRE_CREDIT_BYTES_FILE`), else it is the default.
"""

import difflib
import re
import types
import typing
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, Final

from sealwire_relay.settings import KINDS, Secret, Settings, SettingsError, choices, fields, option, span, within

PREFIX: Final = "SEALWIRE_"

NOT_OURS: Final = frozenset(
    {
        "SEALWIRE_DEBUG",
        "SEALWIRE_HOME",
        "SEALWIRE_PASSPHRASE",
        "SEALWIRE_PASSPHRASE_FILE",
        "SEALWIRE_PROOF",
        "SEALWIRE_RELAY",
        "SEALWIRE_TOKEN",
    }
)
"""Variables of the `sealwire` command and of long proofs: they may stand in a relay's environment."""


def load(environ: Mapping[str, str], options: Mapping[str, str]) -> Settings:
    """Settings from command-line options (by field name, unparsed) and the environment, as the module's text says.

    Raises SettingsError, which names the option or variable at fault and never shows a secret.
    """
    known = {field.name: field for field, _ in fields()}
    _refuse_unknown(environ, {f"{PREFIX}{name.upper()}{end}" for name in known for end in ("", "_FILE")})
    values: dict[str, Any] = {}
    for name in known:
        found = _written(name, environ, options)
        if found is not None:
            values[name] = _parsed(name, *found)
    return Settings(**values)


def environment(environ: Mapping[str, str], settings: Settings, names: Collection[str]) -> dict[str, str]:
    """The environment for a child that is to have these settings, which are numbers or words, and no others."""
    known = {f"{PREFIX}{field.name.upper()}{end}" for field, _ in fields() for end in ("", "_FILE")}
    kept = {variable: text for variable, text in environ.items() if variable not in known}
    return kept | {f"{PREFIX}{name.upper()}": str(getattr(settings, name)) for name in names}


def _written(name: str, environ: Mapping[str, str], options: Mapping[str, str]) -> tuple[str, str] | None:
    """Where a setting's text was found, and the text."""
    variable = f"{PREFIX}{name.upper()}"
    file = f"{variable}_FILE"
    if name in options:
        return option(name), options[name]
    if variable in environ and file in environ:
        raise SettingsError(f"Both {variable} and {file} are set: unset one of them.")
    if variable in environ:
        return variable, environ[variable]
    if file in environ:
        try:
            return file, Path(environ[file]).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not text in UTF-8"
            raise SettingsError(f"{file} names {environ[file]}, which cannot be read: {reason}.") from error
    return None


def _refuse_unknown(environ: Mapping[str, str], known: set[str]) -> None:
    for variable in sorted(environ):
        if variable.startswith(PREFIX) and variable not in known and variable not in NOT_OURS:
            names = sorted(name.removeprefix(PREFIX) for name in known)
            near = difflib.get_close_matches(variable.removeprefix(PREFIX), names, 1)
            hint = f"did you mean {PREFIX}{near[0]}?" if near else "`sealwire-relay up --help` lists all of them."
            raise SettingsError(f"{variable} is no setting of the relay: {hint}")


def _parsed(name: str, source: str, text: str) -> object:
    kind = KINDS[name]
    if kind is int or kind is float:
        return _number(name, source, text, kind)
    if isinstance(kind, types.UnionType):
        if not text:
            return None
        return Secret(text) if Secret in typing.get_args(kind) else _path(text)
    if typing.get_origin(kind) is tuple:
        return tuple(part for part in re.split(r"[,\s]+", text) if part)
    if kind is Path:
        if not text:
            raise SettingsError(f"{source} is empty: it names a folder.")
        return _path(text)
    if (allowed := choices(name)) and text not in allowed:
        raise SettingsError(f"{source} is {text!r}; it is one of {', '.join(allowed)}.")
    return text


def _number(name: str, source: str, text: str, kind: Callable[[str], float]) -> float:
    about = next(about for field, about in fields() if field.name == name)
    try:
        value = kind(text)
    except ValueError as error:
        raise SettingsError(f"{source} is {text!r}; it is {span(name, about)}.") from error
    within(name, source, value, about)
    return value


def _path(text: str) -> Path:
    return Path(text).expanduser().absolute()
