"""An invite as a QR code: on the terminal, and in a file."""

import sys
from dataclasses import dataclass
from pathlib import Path

from sealwire_client.cli import files
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
            with files.whole(self.file, self.overwrite) as out:  # whoever reads it can use the invite
                out.write(invite.qr_png())
        if self.on_terminal:
            for line in invite.qr_lines():
                say(line)


def asked(on_terminal: bool, file: Path | None, overwrite: bool) -> Shown:
    """What was asked for, if it can be done: found out before an invite is made. Raises Failure."""
    if overwrite and file is None:
        raise usage("--overwrite says that the file of --png may be replaced, and there is no --png")
    if file is not None:
        files.check(file, overwrite)
    if on_terminal:
        try:
            _BLOCKS.encode(sys.stderr.encoding)
        except UnicodeEncodeError:
            raise Failure(
                f"This terminal's encoding, {sys.stderr.encoding}, has no characters to draw a QR code with: no invite"
                " was made; use --png FILE, or a terminal with UTF-8"
            ) from None
    return Shown(on_terminal, file, overwrite)
