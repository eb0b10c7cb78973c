"""Bounds on the pieces that an image file is made of, before Pillow reads them one by one.

Pillow looks at each marker, chunk and block in Python, and adds up a GIF's comments in time proportional to their square.
A file within the bounds of :mod:`.reading` can hold a hundred million of them, and would be read for minutes or hours.
"""

from __future__ import annotations

MOST_PIECES = 100_000  # a real picture of 256 MiB in pieces of 4 KiB has 65,000
_MOST_BEFORE = 4 * 2**20  # bytes of a GIF before its first picture
_ALONE = frozenset((0x01, *range(0xD0, 0xD9)))  # JPEG's markers without a length: TEM, RST0 to RST7, SOI


class TooManyPieces(Exception):
    """A file made to be slow."""


def bounded_gif(data: bytes, most: int) -> bytes:
    """A GIF without those extension blocks before its first picture that bring them over ``most`` bytes.

    GIF89a specification, sections 17 to 26. TooManyPieces where there are more than 4 MiB of them.
    """
    offset = 13 + _table(data, 10)
    pieces, kept, dropped = [data[:offset]], 0, False
    start = offset
    while data[offset : offset + 1] == b"!":
        begun, offset = offset, offset + 2
        while offset < len(data) and data[offset]:
            offset += 1 + data[offset]
            if offset - start > _MOST_BEFORE:
                raise TooManyPieces
        offset += 1
        if kept + offset - begun > most:
            dropped = True
            continue
        kept += offset - begun
        pieces.append(data[begun:offset])
    return b"".join([*pieces, data[offset:]]) if dropped else data


def _table(data: bytes, place: int) -> int:
    """Bytes of the colour table that a packed field announces."""
    packed = data[place] if len(data) > place else 0
    return 3 << ((packed & 7) + 1) if packed & 0x80 else 0


def check_jpeg(data: bytes) -> None:
    """TooManyPieces where a JPEG has too many markers, or bytes that fill up, before its picture (ITU-T T.81, annex B)."""
    offset = 2
    for _ in range(MOST_PIECES):
        if offset + 4 > len(data):
            return
        marker = data[offset + 1]
        if data[offset] != 0xFF or marker in (0x00, 0xFF):
            offset += 1  # filling, or not what stands here: Pillow looks at each such byte, too
        elif marker in _ALONE:
            offset += 2
        elif marker in (0xDA, 0xD9):
            return
        else:
            offset += 2 + int.from_bytes(data[offset + 2 : offset + 4], "big")
    raise TooManyPieces
