"""Pictures, and sets of pictures, that are made to take long: each is done with within seconds."""

from __future__ import annotations

import contextlib
import io
import struct
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ddpm_core.dataset.reading import Picture, Rejected, decode
from ddpm_core.dataset.suspects import THUMB, difference_hash, near_duplicates
from ddpm_core.dataset.texts import MAX_JSON_BYTES

MOST_SECONDS, MOST_MEGABYTES = 5.0, 1024.0
pytestmark = pytest.mark.alone

STATUS = Path("/proc/self/status")


def encoded(form: str) -> bytes:
    out = io.BytesIO()
    Image.effect_mandelbrot((64, 64), (-2, -2, 2, 2), 20).convert("P" if form == "GIF" else "RGB").save(out, form)
    return out.getvalue()


def with_gif_blocks(blocks: bytes) -> bytes:
    """A GIF with these extension blocks before its picture."""
    data = encoded("GIF")
    place = 13 + (3 << ((data[10] & 7) + 1))
    return data[:place] + blocks + data[place:]


def with_png_chunks(kind: bytes, count: int) -> bytes:
    data = encoded("PNG")
    chunk = struct.pack(">I", 0) + kind + struct.pack(">I", zlib.crc32(kind))
    return data[:33] + chunk * count + data[33:]


def with_jpeg_bytes(added: bytes) -> bytes:
    data = encoded("JPEG")
    return data[:2] + added + data[2:]


def segment(marker: int, body: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body


def overlapping_exif(entries: int, kind: int = 5, wide: int = 30_000) -> bytes:
    """EXIF whose values (rationals) all lie upon each other, in the directory that holds a picture's text."""
    values = 8 + 18 + 6 + 12 * entries
    first = struct.pack("<2sHI", b"II", 42, 8) + struct.pack("<HHHIII", 1, 0x8769, 4, 1, 26, 0)
    size = {5: 8, 7: 1}[kind]
    fields = b"".join(struct.pack("<HHII", 0xA100 + i, kind, wide // size, values) for i in range(entries))
    return first + struct.pack("<H", entries) + fields + b"\0" * 4 + b"\1" * wide


def pointed_at(value: bytes, kind: int, number: int, directory: int) -> bytes:
    """EXIF whose first directory leads to the overlapping values in a way of its own; the rest is moved there."""
    plain = overlapping_exif(2000, 7, 2**19)
    entries = plain[26 : 26 + 2 + 12 * 2000 + 4]
    start = len(plain)
    head = plain[:10] + struct.pack("<HHI", 0x8769, kind, number) + value + b"\0" * 4
    body = head + b"\0" * (directory - len(head)) + entries
    fields = bytearray(body + b"\1" * (start + 2**19))
    for place in range(directory + 2, directory + 2 + 12 * 2000, 12):
        struct.pack_into("<I", fields, place + 8, directory + len(entries))
    return bytes(fields)


def animated_png(width: int, height: int) -> bytes:
    """An APNG of a few bytes whose canvas is filled when it is opened."""
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0)),
        (b"acTL", struct.pack(">II", 1, 0)),
        (b"fcTL", struct.pack(">IIIIIHHBB", 0, width, height, 0, 0, 1, 1, 1, 0)),
        (b"IDAT", b""),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )


def grey_png(width: int, height: int) -> bytes:
    """Of 16 bits, all black."""
    out = io.BytesIO()
    Image.new("I;16", (width, height)).save(out, "PNG", compress_level=1)
    return out.getvalue()


def turned(form: str, mode: str, width: int, height: int) -> bytes:
    """A large picture that lies on its side."""
    out, exif = io.BytesIO(), Image.Exif()
    exif[0x112] = 6
    image = Image.new(mode, (width, height))
    image.putpixel((0, 0), tuple(255 for _ in image.getbands()))  # of more than one transparency
    image.save(out, form, exif=exif, **({"lossless": True, "method": 0, "quality": 0} if form == "WEBP" else {}))
    return out.getvalue()


def with_profiles(count: int) -> bytes:
    data, body = encoded("PNG"), b"p\0\0" + zlib.compress(bytes(2**20 - 9))
    chunk = struct.pack(">I", len(body)) + b"iCCP" + body + struct.pack(">I", zlib.crc32(b"iCCP" + body))
    return data[:33] + chunk * count + data[33:]


def in_png(exif: bytes) -> bytes:
    data = encoded("PNG")
    return (
        data[:33]
        + struct.pack(">I", len(exif))
        + b"eXIf"
        + exif
        + struct.pack(">I", zlib.crc32(b"eXIf" + exif))
        + data[33:]
    )


def in_other(form: str, exif: bytes) -> bytes:
    out = io.BytesIO()
    try:
        Image.effect_mandelbrot((64, 64), (-2, -2, 2, 2), 20).convert("RGB").save(out, form, exif=exif)
    except (KeyError, OSError):
        pytest.skip(f"this Pillow writes no {form}")
    return out.getvalue()


def with_many_scans(count: int, hidden: bool = False) -> bytes:
    """A JPEG of 60 megapixels that comes in very many scans, of some bytes each; ``hidden``: behind what is no marker."""
    out = io.BytesIO()
    Image.new("L", (10_000, 6_000), 99).save(out, "JPEG", progressive=True)
    data = out.getvalue()
    scans = [place for place in range(len(data) - 1) if data[place : place + 2] == b"\xff\xda"]
    last = data[scans[-1] : -2]
    if not hidden:
        return data[:-2] + last * count + data[-2:]
    fits = 0x7F7F // len(
        last
    )  # so many look like a segment of that length; with restarts libjpeg passes its marker over
    block = segment(0xDD, struct.pack(">H", 8)) + last + b"\xff\x02\x7f\x7f" + last * fits
    block += b"\0" * (0x7F7F - len(last) * fits)
    return data[:-2] + block * (count // fits) + data[-2:]


def in_run_lengths(runs: bytes, width: int, height: int) -> bytes:
    """A BMP in run lengths of 8 bits."""
    head = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, len(runs), 0, 0, 256, 0)
    return b"BM" + struct.pack("<IHHI", 14 + 40 + 1024 + len(runs), 0, 0, 14 + 40 + 1024) + head + b"\0abc" * 256 + runs


SLOW = {
    "a byte before a comment": lambda: with_gif_blocks(b"\0!\xfe" + b"\x01x" * 2**21 + b"\0"),
    "an extension that begins with nothing": lambda: with_gif_blocks(b"!\x01\0" + b"\x01x" * 2**24),
    "an application's data cut short": lambda: with_gif_blocks(b"!\xff\x0bNETSCAPE2.0\0" + b"\x01x" * 2**24),
    "bytes that have no place": lambda: with_gif_blocks(b"\0" * 2**26),
    "EXIF in small pieces": lambda: with_jpeg_bytes(segment(0xE1, b"Exif\0\0" + b"x" * 94) * 60_000),
    "EXIF of EXIF": lambda: with_jpeg_bytes(segment(0xE1, b"Exif\0\0" * 10_000) * 16),
    "EXIF upon itself": lambda: with_jpeg_bytes(segment(0xE1, b"Exif\0\0" + overlapping_exif(2700))),
    "EXIF upon itself in a PNG": lambda: in_png(overlapping_exif(5000, 7, 2**20)),
    "EXIF upon itself in a WebP": lambda: in_other("WEBP", overlapping_exif(2700)),
    "EXIF upon itself in an AVIF": lambda: in_other("AVIF", overlapping_exif(2700)),
    "further pictures upon themselves": lambda: with_jpeg_bytes(segment(0xE2, b"MPF\0" + overlapping_exif(2700))),
    "resources of another program": lambda: with_jpeg_bytes(
        segment(0xED, b"Photoshop 3.0\0" + (b"8BIM" + b"\0" * 8) * 5400) * 1000
    ),
    "an end before the picture": lambda: with_jpeg_bytes(b"\xff\xd9" + b"\0" * 2**27),
    "markers that nobody reads": lambda: with_jpeg_bytes(segment(0xC8, b"\0" * 65_000) * 1000 + segment(0xF0, b"") * 9),
    "tables without end": lambda: with_jpeg_bytes(segment(0xDB, (b"\0" + b"\1" * 64) * 1000) * 3000),
    "layers without end": lambda: with_jpeg_bytes(segment(0xC0, b"\x08\0\x40\0\x40\x03" + b"\1\x11\0" * 21_000) * 2000),
    "a picture that comes in very many scans": lambda: with_many_scans(5000),
    "scans that look like part of another": lambda: with_many_scans(6000, hidden=True),
    "EXIF found by a small number": lambda: in_png(pointed_at(b"\x28\1\1\1", 6, 1, 40)),
    "EXIF found by the first of two": lambda: in_png(
        pointed_at(struct.pack("<I", 26) + struct.pack("<I", 40), 4, 2, 40)
    ),
    "a large grey picture of 16 bits": lambda: grey_png(9000, 8000),
    "a large WebP on its side": lambda: turned("WEBP", "RGBA", 9400, 6380),
    "a large JPEG on its side": lambda: turned("JPEG", "CMYK", 10_900, 7300),
    "a large grey transparent PNG on its side": lambda: turned("PNG", "LA", 10_900, 7300),
    "a WebP too large to be held four times": lambda: turned("WEBP", "RGB", 9500, 6380),
    "a canvas before the size is known": lambda: animated_png(20_000, 20_000),
    "profiles without end": lambda: with_profiles(20_000),
    "many chunks of a WebP": lambda: in_other("WEBP", b"") + b"none\0\0\0\0" * 2**22,
    "run lengths of nothing": lambda: in_run_lengths(b"\0\0" * 2**25, 1000, 1000),
    "run lengths of a large picture": lambda: in_run_lengths(b"\1\1\0\0" * 8000, 9000, 8000),
    "one long comment in single bytes": lambda: with_gif_blocks(b"!\xfe" + b"\x01x" * 2**20 + b"\0"),
    "a million comments": lambda: with_gif_blocks(b"!\xfe\x01x\0" * 2**20),
    "an application's data without end": lambda: with_gif_blocks(b"!\xff\x0bNETSCAPE2.0" + b"\x01x" * 2**24 + b"\0"),
    "empty chunks of its own": lambda: with_png_chunks(b"prVt", 2**20),
    "empty pieces of the picture": lambda: with_png_chunks(b"IDAT", 2**20),
    "empty texts": lambda: with_png_chunks(b"tEXt", 2**22),
    "empty comments": lambda: with_jpeg_bytes(b"\xff\xfe\0\x02" * 2**22),
    "nothing but filling": lambda: with_jpeg_bytes(b"\xff" * 2**25),
    "what is no marker": lambda: with_jpeg_bytes(b"\0" * 2**25),
}


def resident(most: bool) -> float:
    """MiB of this process now, or at the most since it was last forgotten; 0 where the system does not tell."""
    if not sys.platform.startswith("linux"):
        return 0.0
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM" if most else "VmRSS"))
    return int(line.split()[1]) / 1024


@pytest.mark.parametrize("make", SLOW.values(), ids=list(SLOW))
def test_no_picture_takes_long(make: Callable[[], bytes]) -> None:
    data = make()
    with contextlib.suppress(OSError):
        (STATUS.parent / "clear_refs").write_text("5")  # forget the most
    before, began = resident(most=False), time.monotonic()
    try:
        found: Picture | Rejected = decode(data, 64)
    except Rejected as why:
        found = why
    assert time.monotonic() - began < MOST_SECONDS
    assert resident(most=True) - before < MOST_MEGABYTES
    assert isinstance(found, Picture) or found.reason in ("bomb", "undecodable")


def test_a_picture_with_a_long_comment_is_kept() -> None:
    comment = b"".join(bytes([250]) + b"c" * 250 for _ in range(1000))
    plain = decode(encoded("GIF"), 64)
    assert decode(with_gif_blocks(b"!\xfe" + comment + b"\0"), 64).image.tobytes() == plain.image.tobytes()
    assert decode(with_gif_blocks(b"!\xfe\x05words\0"), 64).texts["comment"] == "words"


def in_two_places(data: bytes) -> bytes:
    """An AVIF whose items each lie in two places, one right behind the other."""
    begin = data.index(b"iloc")
    size, sizes = int.from_bytes(data[begin - 4 : begin], "big"), data[begin + 8 : begin + 10]
    version, items = data[begin + 4], int.from_bytes(data[begin + 10 : begin + 12], "big")
    assert sizes == b"\x44\0" and version in (0, 1)  # offsets and lengths of four bytes
    fixed = 4 if version == 0 else 6  # number, method, reference
    place, table = begin + 12, data[begin : begin + 12]
    for _ in range(items):
        offset, length = struct.unpack_from(">II", data, place + fixed + 2)
        both = (offset + 8 * items, 1, offset + 8 * items + 1, length - 1)
        table += data[place : place + fixed] + struct.pack(">HIIII", 2, *both)
        place += fixed + 10
    meta = data.index(b"meta")
    longer = struct.pack(">I", int.from_bytes(data[meta - 4 : meta], "big") + 8 * items)
    made = data[: meta - 4] + longer + data[meta : begin - 4] + struct.pack(">I", size + 8 * items) + table
    return made + data[begin - 4 + size :]


def test_an_avif_whose_items_lie_in_several_places_is_refused() -> None:
    """Its EXIF, put together only when Pillow opens it, could be anything."""
    plain = in_other("AVIF", b"II*\0\x08\0\0\0\0\0\0\0\0\0")
    assert decode(plain, 64).width == 64
    split = in_two_places(plain)
    with Image.open(io.BytesIO(split)) as image:
        assert image.convert("RGB").size == (64, 64), "it is a picture"
    with pytest.raises(Rejected, match="more parts"):
        decode(split, 64)


@pytest.mark.parametrize("kind", ["alike to the hash alone", "all the same", "two kinds in turn"])
def test_many_pictures_that_look_alike_take_no_longer(kind: str) -> None:
    count = 4000 if kind == "alike to the hash alone" else 1500
    if kind == "alike to the hash alone":  # from top to bottom brighter, each by other steps
        steps = np.random.default_rng(0).integers(0, 22, (count, THUMB, 1, 3))
        thumbs = np.broadcast_to(steps.cumsum(1), (count, THUMB, THUMB, 3)).clip(0, 255).astype(np.uint8)
    else:
        two = np.random.default_rng(1).integers(0, 256, (2, THUMB, THUMB, 3), dtype=np.uint8)
        thumbs = two[np.arange(count) % (1 if kind == "all the same" else 2)]
    hashes = [difference_hash(thumb) for thumb in thumbs]
    began = time.monotonic()
    groups = near_duplicates(list(range(count)), thumbs, hashes)
    assert time.monotonic() - began < 3 * MOST_SECONDS  # it was eight minutes
    if kind == "all the same":
        assert set(groups.values()) == {0} and len(groups) == count
    elif kind == "two kinds in turn":
        assert groups == {i: i % 2 for i in range(count)}


def test_thousands_of_texts_that_inflate_take_no_time() -> None:
    """Each of these chunks is a kilobyte, inflates to a mebibyte, and is one byte longer than what is read."""
    body = b"prompt\0\0" + zlib.compress(bytes(MAX_JSON_BYTES + 1), 9)
    chunk = struct.pack(">I", len(body)) + b"zTXt" + body + struct.pack(">I", zlib.crc32(b"zTXt" + body))
    plain = encoded("PNG")
    began = time.process_time()
    found = decode(plain[:33] + chunk * 20_000 + plain[33:], 64)
    assert found.texts == {} and time.process_time() - began < 2
