"""Text as a QR code: for a terminal, and as a PNG. What it is made of, an invite, is a secret, and so is the code."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from segno import QRCode

BORDER_MODULES: Final = 4
"""The light margin by which cameras find a code; ISO/IEC 18004 asks for four modules."""

PIXELS: Final = 8
"""Of a PNG, for one module: an invite's code is then some 500 pixels wide, which a phone reads from a screen."""

_BLACK_ON_WHITE: Final = "\x1b[30;107m"
_AS_BEFORE: Final = "\x1b[0m"
_HALVES: Final = {(0, 0): " ", (1, 0): "▀", (0, 1): "▄", (1, 1): "█"}
"""Two modules, one above the other, in one character: a terminal's cells are twice as high as wide."""


def lines(text: str) -> list[str]:
    """The code as lines of a terminal, black on white whatever its colours are; an invite's has some 33 lines of 65
    columns. Needs a terminal that knows ANSI colours and Unicode."""
    rows = [bytes(row) for row in _code(text).matrix_iter(border=BORDER_MODULES)]
    if len(rows) % 2:
        rows.append(bytes(len(rows[0])))
    return list(_drawn(rows))


def png(text: str) -> bytes:
    """The code as a PNG file's bytes."""
    from io import BytesIO

    file = BytesIO()
    _code(text).save(file, kind="png", scale=PIXELS, border=BORDER_MODULES)
    return file.getvalue()


def _drawn(rows: list[bytes]) -> Iterator[str]:
    for upper, lower in zip(rows[::2], rows[1::2], strict=True):
        halves = "".join(_HALVES[pair] for pair in zip(upper, lower, strict=True))
        yield _BLACK_ON_WHITE + halves + _AS_BEFORE


def _code(text: str) -> "QRCode":
    from segno import make_qr  # 20 ms, and only whoever shows a code needs it

    return make_qr(text, error="m")
