"""Bounds on a block of EXIF (TIFF 6.0, section 2; EXIF 2.32, section 4.6), before Pillow reads all that it announces."""

from __future__ import annotations

import re
import struct

from PIL import Image

_MOST_EXIF = 4 * 2**20  # bytes of all values of an EXIF block
_MOST_RATIONALS = 10_000  # of those that Pillow makes an object of each
_MOST_EXIF_BYTES = 16 * 2**20  # of a block as it is
_MOST_DIRECTORIES = 16
_MOST_FIELDS = 10_000  # of all of them together

EXIF = b"Exif\0\0"  # what stands before a block
TIFF_HEADER = re.compile(rb"II[*\x00][*\x00]|MM[*\x00][*+\x00]")  # as loosely as Pillow takes it
_TIFF_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8}
_WHOLE = {3: "H", 4: "I", 6: "B", 8: "H", 9: "I", 13: "I", 16: "Q"}  # kinds of whole numbers that can lead somewhere
_DIRECTORIES = frozenset(
    (0x8769, 0x8825, 0xA005, 0x014A)
)  # tags that lead to one: EXIF, GPS, interoperability, further


class TooManyPieces(Exception):
    """A file made to be slow."""


def check_exif_of(image: Image.Image) -> None:
    """:func:`check_exif` of what Pillow has found in a picture."""
    exif = image.info.get("exif")
    if isinstance(exif, bytes):
        if len(exif) > _MOST_EXIF_BYTES:
            raise TooManyPieces
        check_exif(exif)


def check_exif(data: bytes | memoryview) -> None:
    """TooManyPieces where the values of an EXIF block add up to more than 4 MiB.

    They can lie upon each other: 64 KiB of EXIF can announce 2,700 values of 32 KiB each, and Pillow reads them all
    (TIFF 6.0, section 2; EXIF 2.32, section 4.6).
    """
    for _ in range(2):
        if data[:6] == EXIF:
            data = data[6:]
    if data[:6] == EXIF:
        raise TooManyPieces  # Pillow takes off one after the other
    if data[:2] not in (b"II", b"MM") or len(data) < 8:
        return
    order = "<" if data[:2] == b"II" else ">"
    todo, seen, fields, total, rationals = [struct.unpack_from(f"{order}I", data, 4)[0]], set(), 0, 0, 0
    while todo:
        offset = todo.pop()
        if offset in seen or offset + 2 > len(data):
            continue
        seen.add(offset)
        (count,) = struct.unpack_from(f"{order}H", data, offset)
        count = min(count, (len(data) - offset - 2) // 12)
        fields += count
        if len(seen) > _MOST_DIRECTORIES or fields > _MOST_FIELDS:
            raise TooManyPieces
        for place in range(offset + 2, offset + 2 + 12 * count, 12):
            tag, kind, number, value = struct.unpack_from(f"{order}HHII", data, place)
            size = _TIFF_BYTES.get(kind, 0) * number
            where = place + 8 if size <= 4 else value
            if size == 0 or where + size > len(data):
                continue
            total += size
            rationals += number * (kind in (5, 10))
            if total > _MOST_EXIF or rationals > _MOST_RATIONALS:
                raise TooManyPieces
            if tag in _DIRECTORIES and kind in _WHOLE:
                todo.append(struct.unpack_from(order + _WHOLE[kind], data, where)[0])  # Pillow takes the first, too
