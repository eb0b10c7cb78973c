"""Pictures, and sets of pictures, that are made to take long: each is done with within seconds."""

from __future__ import annotations

import io
import struct
import time
import zlib

import numpy as np
import pytest
from PIL import Image

from ddpm_core.dataset.reading import Picture, Rejected, decode
from ddpm_core.dataset.suspects import THUMB, difference_hash, near_duplicates

MOST_SECONDS = 5.0


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


SLOW = {
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


@pytest.mark.parametrize("make", SLOW.values(), ids=list(SLOW))
def test_no_picture_takes_long(make: object) -> None:
    data = make()  # type: ignore[operator]
    began = time.monotonic()
    try:
        found: Picture | Rejected = decode(data, 64)
    except Rejected as why:
        found = why
    assert time.monotonic() - began < MOST_SECONDS
    assert isinstance(found, Picture) or "more pieces" in found.message


def test_a_picture_with_a_long_comment_is_kept() -> None:
    comment = b"".join(bytes([250]) + b"c" * 250 for _ in range(1000))
    plain = decode(encoded("GIF"), 64)
    assert decode(with_gif_blocks(b"!\xfe" + comment + b"\0"), 64).image.tobytes() == plain.image.tobytes()
    assert decode(with_gif_blocks(b"!\xfe\x05words\0"), 64).text == "words"


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
