"""An invite as a QR code: on the terminal, and in a file."""

import os
import sys
from dataclasses import dataclass
from pathlib import Path

from sealwire_client.cli.failures import Failure, usage
from sealwire_client.cli.output import say
from sealwire_client.inviting import PendingInvite

_BLOCKS = "▀▄█"


@dataclass(frozen=True, slots=True)
class Shown:
    """How an invite is shown, beside its link."""

    on_terminal: bool
    file: Path | None
    overwrite: bool

    def write(self, invite: PendingInvite) -> None:
        """Show it. Raises Failure."""
        if self.file is not None:
            _write(self.file, invite.qr_png(), self.overwrite)
        if self.on_terminal:
            for line in invite.qr_lines():
                say(line)


def asked(on_terminal: bool, file: Path | None, overwrite: bool) -> Shown:
    """What was asked for, if it can be done: found out before an invite is made. Raises Failure."""
    if overwrite and file is None:
        raise usage("--overwrite says that the file of --png may be replaced, and there is no --png")
    if file is not None and not overwrite and file.exists():
        raise _there(file)
    if on_terminal:
        try:
            _BLOCKS.encode(sys.stderr.encoding)
        except UnicodeEncodeError:
            raise Failure(
                f"This terminal's encoding, {sys.stderr.encoding}, has no characters to draw a QR code with: no invite"
                " was made; use --png FILE, or a terminal with UTF-8"
            ) from None
    return Shown(on_terminal, file, overwrite)


def _write(path: Path, content: bytes, overwrite: bool) -> None:
    """Put the picture there, whole, mode 0600: whoever reads it can use the invite."""
    draft = path.with_name(f".{path.name}.{os.getpid()}.new")
    file = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(file, "wb") as out:
            out.write(content)
        if overwrite:
            draft.replace(path)
        else:
            os.link(draft, path)
    except FileExistsError:
        raise _there(path) from None
    finally:
        draft.unlink(missing_ok=True)


def _there(path: Path) -> Failure:
    return Failure(f"{path} is there already, and was left as it is: name another file, or say --overwrite", "exists")
