"""QR codes: what a camera sees on a terminal and in a picture is the same code, and the right one."""

import hashlib
import struct
import zlib

from sealwire_client import qr

TEXT = "sealwire:" + "Ab0-_" * 50
READ = "52d2d8cd460642bdd2cb42131987e723"
"""Of the modules of TEXT's code, as an independent reader has read it."""

CELLS = {" ": (0, 0), "▀": (1, 0), "▄": (0, 1), "█": (1, 1)}


def on_terminal(lines: list[str]) -> list[list[int]]:
    """The modules that a terminal shows, 1 for a dark one."""
    rows: list[list[int]] = []
    for line in lines:
        assert line.startswith("\x1b[30;107m") and line.endswith("\x1b[0m")
        cells = [CELLS[cell] for cell in line.removeprefix("\x1b[30;107m").removesuffix("\x1b[0m")]
        rows += [[upper for upper, _ in cells], [lower for _, lower in cells]]
    return rows


def in_picture(png: bytes) -> list[list[int]]:
    """The modules of a PNG with one bit for each pixel, whose modules begin with unfiltered lines; 1 for a dark one."""
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    at, chunks = 8, dict[bytes, bytes]()
    while at < len(png):
        (size,) = struct.unpack_from(">I", png, at)
        chunks[png[at + 4 : at + 8]] = png[at + 8 : at + 8 + size]
        at += size + 12
    width, height, depth, colours = struct.unpack_from(">IIBB", chunks[b"IHDR"])
    assert (depth, colours) == (1, 0), "grey of one bit, where 1 is white"
    raw, line = zlib.decompress(chunks[b"IDAT"]), 1 + (width + 7) // 8
    rows = []
    for y in range(0, height, qr.PIXELS):
        assert raw[y * line] == 0
        bits = raw[y * line + 1 : (y + 1) * line]
        rows.append([1 - (bits[x // 8] >> (7 - x % 8) & 1) for x in range(qr.PIXELS // 2, width, qr.PIXELS)])
    return rows


def test_terminal_and_picture_show_the_same_code() -> None:
    picture, terminal = in_picture(qr.png(TEXT)), on_terminal(qr.lines(TEXT))
    assert terminal[: len(picture)] == picture
    assert not any(map(any, terminal[len(picture) :])), "what fills the last line is light"
    margin = qr.BORDER_MODULES
    assert not any(map(any, picture[:margin] + picture[-margin:])) and not any(any(row[:margin]) for row in picture)


def test_the_code_is_the_one_that_was_read() -> None:
    modules = bytes(module for row in in_picture(qr.png(TEXT)) for module in row)
    assert hashlib.blake2b(modules, digest_size=16).hexdigest() == READ


def test_an_invite_fits_on_a_terminal_of_80_columns() -> None:
    longest = on_terminal(qr.lines("sealwire:" + "A" * 600))
    assert len(longest[0]) > 80, "a relay's address of 255 characters makes a larger code"
    assert len(on_terminal(qr.lines(TEXT))[0]) <= 80
