"""Bounds on the pieces that an image file is made of, before Pillow reads them one by one.

Pillow looks at each marker, chunk and block in Python, and adds up comments and EXIF segments in time proportional to their
square. A file within the bounds of :mod:`.reading` can hold a hundred million of them, and would be read for minutes or hours.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator

from PIL import Image

from .exif import EXIF, TIFF_HEADER, TooManyPieces, check_exif

MOST_PIECES = 100_000  # a real picture of 256 MiB in pieces of 4 KiB has 65,000
_MOST_BEFORE = 4 * 2**20  # bytes of a GIF before its first picture
_MOST_TABLES = 2**18  # bytes of a JPEG's tables before its picture; real ones have less than 2 KiB
_MOST_PROFILE = 4 * 2**20  # bytes of a JPEG's colour profile, which comes in pieces of 64 KiB
_MOST_SCANS = 100  # of a JPEG that comes in finer and finer; encoders make about ten
_MOST_SCANNED = 3_200_000_000  # pixels of all of them together: 40 scans of 80 megapixels
_MOST_RUNS = 4 * 2**20  # bytes of a BMP in run lengths, which Pillow unpacks in Python
_MOST_RUN_PIXELS = 16_000_000
_MOST_AVIF = 64 * 2**20
_MOST_EXIF_SEGMENTS = 16
_MOST_HEADERS = 16  # bytes that look like the beginning of EXIF, by chance one in 400 MiB

_GRAPHIC_CONTROL, _COMMENT = 0xF9, 0xFE  # GIF's extensions that say something of the first picture
_XMP = b"http://ns.adobe.com/xap/1.0/\0"
_ICC = b"ICC_PROFILE\0"
# JPEG's markers without a length, or which Pillow or libjpeg takes for such: reserved ones, JPG, RST0 to RST7, SOI, EOI,
# JPG0 to JPG13
_ALONE = frozenset((*range(0x01, 0xC0), 0xC8, *range(0xD0, 0xDA), *range(0xF0, 0xFE)))
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_APPLICATION = range(0xE0, 0xF0)
_JFIF, _APP1, _APP2, _ADOBE, _JPEG_COMMENT, _SCAN, _END = 0xE0, 0xE1, 0xE2, 0xEE, 0xFE, 0xDA, 0xD9
# a marker within a JPEG's picture, where FF 00 is a byte of it and FF D0 to FF D7 are its restarts
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]", re.DOTALL)


def bounded_gif(data: bytes, most: int) -> bytes:
    """A GIF with no more before its first picture than what tells of it: the control of its transparency, and comments.

    Of comments, only the first ``most`` bytes. GIF89a specification, sections 17 to 26. TooManyPieces where there are more
    than 4 MiB of anything before the picture.
    """
    start = offset = 13 + _table(data, 10)
    pieces, kept = [data[:start]], 0
    while offset < len(data) and data[offset] not in b",;":
        begun = offset
        offset += 1
        if data[begun:offset] == b"!":
            offset += 1
            while offset < len(data) and data[offset]:
                offset += 1 + data[offset]
                if offset - start > _MOST_BEFORE:
                    raise TooManyPieces
            offset += 1
            block = data[begun:offset]
            comment = block[1:2] == bytes([_COMMENT])
            if len(block) > 3 and (block[1] == _GRAPHIC_CONTROL or (comment and kept + len(block) <= most)):
                pieces.append(block)
                kept += len(block) * comment
        # else a byte that has no place here, which Pillow passes over
        if offset - start > _MOST_BEFORE:
            raise TooManyPieces
    return b"".join([*pieces, memoryview(data)[offset:]])


def _table(data: bytes, place: int) -> int:
    """Bytes of the colour table that a packed field announces."""
    packed = data[place] if len(data) > place else 0
    return 3 << ((packed & 7) + 1) if packed & 0x80 else 0


def bounded_jpeg(data: bytes) -> bytes:
    """A JPEG with no more before its picture than what decodes it, its EXIF, XMP, colour profile and comments.

    ITU-T T.81, annex B; ICC.1:2010, annex B.4.

    TooManyPieces where there are too many of those, or of the scans that the picture comes in.
    """
    pieces: list[bytes | memoryview] = [data[:2]]
    exif: list[bytes] = []
    offset, tables, pixels, profile = 2, 0, 0, 0
    for _ in range(MOST_PIECES):
        if offset + 4 > len(data):
            return b"".join([*pieces, memoryview(data)[offset:]])
        marker = data[offset + 1]
        if data[offset] != 0xFF or marker in (0x00, 0xFF):
            offset += 1  # filling, or not what stands here
            continue
        if marker in _ALONE:
            offset += 2
            continue
        if marker == _SCAN:
            for body in exif:
                check_exif(body)
            check_exif(b"".join([*exif[:1], *(body[len(EXIF) :] for body in exif[1:])]))  # Pillow adds them up
            _check_scans(data, offset, min(_MOST_SCANS, _MOST_SCANNED // max(1, pixels)))
            return b"".join([*pieces, memoryview(data)[offset:]])
        length = int.from_bytes(data[offset + 2 : offset + 4], "big")
        if length < 2:  # its own two bytes
            offset += 4
            continue
        segment = data[offset : offset + 2 + length]
        offset += 2 + length
        if marker in _APPLICATION:
            body = segment[4:]
            if marker == _APP1 and body.startswith(EXIF):
                exif.append(body)
                if len(exif) > _MOST_EXIF_SEGMENTS:
                    raise TooManyPieces
            elif marker == _APP2 and body.startswith(_ICC):
                profile += len(segment)
                if profile > _MOST_PROFILE:
                    continue  # what is left of it is no profile, and the picture is shown without
            elif marker not in (_JFIF, _ADOBE) and not (marker == _APP1 and body.startswith(_XMP)):
                continue  # previews, further pictures: Pillow would take them apart, and nobody asks for them
        elif marker != _JPEG_COMMENT:
            tables += len(segment)
            if marker in _FRAMES and len(segment) >= 9:
                pixels = max(pixels, int.from_bytes(segment[5:7], "big") * int.from_bytes(segment[7:9], "big"))
            if tables > _MOST_TABLES:
                raise TooManyPieces
        pieces.append(segment)
    raise TooManyPieces


def _check_scans(data: bytes, offset: int, most: int) -> None:
    """TooManyPieces where a JPEG has more scans from there: each goes through the whole picture."""
    scans = 0
    for _ in range(MOST_PIECES):
        found = _MARKER.search(data, offset)
        if found is None or found[0][1] == _END:
            return
        offset = found.end()
        if found[0][1] not in _ALONE:
            offset += int.from_bytes(data[offset : offset + 2], "big")
        scans += found[0][1] == _SCAN
        if scans > most:
            raise TooManyPieces
    raise TooManyPieces


def check_run_lengths(image: Image.Image, size: int) -> None:
    """TooManyPieces for a BMP in run lengths (compression 1 or 2) of more than 4 MiB or 16 megapixels."""
    in_runs = image.format == "BMP" and image.info.get("compression") in (1, 2)
    if in_runs and (size > _MOST_RUNS or image.width * image.height > _MOST_RUN_PIXELS):
        raise TooManyPieces


def check_avif(data: bytes) -> None:
    """:func:`check_exif` of whatever may be a block of EXIF: Pillow reads it when it opens the file.

    TooManyPieces also where an item lies in several places (it could be the EXIF), or the file has more than 64 MiB.
    """
    if len(data) > _MOST_AVIF or EXIF * 3 in data or any(count > 1 for count in _extents(data)):
        raise TooManyPieces
    for number, found in enumerate(TIFF_HEADER.finditer(data)):
        if number >= _MOST_HEADERS:
            raise TooManyPieces
        check_exif(memoryview(data)[found.start() :])


def _boxes(data: bytes, offset: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Kind, beginning and end of the boxes of an ISO base media file (ISO/IEC 14496-12, section 4.2)."""
    for _ in range(MOST_PIECES):
        if offset + 8 > end:
            return
        size, kind = struct.unpack_from(">I4s", data, offset)
        begin = offset + 8
        if size == 1 and offset + 16 <= end:
            (size,) = struct.unpack_from(">Q", data, begin)
            begin += 8
        last = end if size == 0 else min(end, offset + size)
        if last < begin:
            return  # no reader goes on from here
        yield kind, begin, last
        offset = last
    raise TooManyPieces


def _extents(data: bytes) -> Iterator[int]:
    """In how many places each item of an AVIF lies (section 8.11.3)."""
    for kind, begin, end in _boxes(data, 0, len(data)):
        if kind != b"meta":
            continue
        for inner, start, stop in _boxes(data, begin + 4, end):
            if inner == b"iloc" and stop - start >= 8:
                yield from _extents_of(data[start:stop])


def avif_code_points(data: bytes) -> tuple[int, int]:
    """Primaries and transfer of an AVIF's ``colr`` box of kind ``nclx`` (section 12.1.5); 2, 2 (unspecified) without."""
    for kind, begin, end in _boxes(data, 0, len(data)):
        if kind != b"meta":
            continue
        for inner, start, stop in _boxes(data, begin + 4, end):
            if inner != b"iprp":
                continue
            for _, first, last in _boxes(data, start, stop):
                for name, value, _ in _boxes(data, first, last):
                    if name == b"colr" and data[value : value + 4] == b"nclx" and value + 8 <= len(data):
                        primaries, transfer = struct.unpack_from(">HH", data, value + 4)
                        return primaries, transfer
    return 2, 2


def _extents_of(iloc: bytes) -> Iterator[int]:
    version, wide = iloc[0], 4 if iloc[0] == 2 else 2
    place = iloc[4] >> 4
    length, base, index = iloc[4] & 15, iloc[5] >> 4, iloc[5] & 15 if version else 0
    offset = 6 + wide
    for _ in range(min(MOST_PIECES, int.from_bytes(iloc[6:offset], "big"))):
        offset += wide + (2 if version else 0) + 2 + base
        count = int.from_bytes(iloc[offset : offset + 2], "big")
        yield count
        offset += 2 + count * (index + place + length)


def check_webp(data: bytes) -> None:
    """TooManyPieces where a WebP has too many chunks: libwebp makes a note of each."""
    offset = 12
    for _ in range(MOST_PIECES):
        if offset + 8 > len(data):
            return
        (size,) = struct.unpack_from("<I", data, offset + 4)
        offset += 8 + size + (size & 1)
    raise TooManyPieces
