"""Reading one image file that may be anything: its generation text and its pixels, within bounds of memory and time."""

from __future__ import annotations

import contextlib
import functools
import io
import math
import os
import struct
import threading
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from ..parsing import NotAFile, open_regular, read_regular
from .exif import TooManyPieces, check_exif_of
from .structure import MOST_PIECES, bounded_gif, bounded_jpeg, check_avif, check_run_lengths, check_webp

EXTENSIONS = frozenset({".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".avif"})
# by content, whatever the name says; no others: Pillow hands some of them to programs of their own (EPS to Ghostscript)
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "AVIF")
MAX_FILE_BYTES = 256 * 2**20
MAX_PIXELS = 80_000_000  # below Pillow's own warning, which would go to the host's log
_MAX_PIXELS_OF = {"WEBP": 60_000_000}  # it is held four times over while it is decoded; no picture is to need a GiB
MAX_TEXT_BYTES = 64 * 1024
MAX_COPY_BYTES = 64 * 2**20  # of a dataset's own shrunken picture
_BIG_PIXELS = 16_000_000
_one_big_at_a_time = threading.Lock()  # several threads each holding a 60-megapixel picture would not be bounded

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_CHUNKS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"eXIf", b"IEND")
_BAND = 256  # rows
_USER_COMMENT = 0x9286
_EXIF_IFD = 0x8769
_ORIENTATION = 0x0112
_TURNS = {  # EXIF 2.3, 4.6.4.A: where the stored first row and column lie, undone
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class Rejected(Exception):
    """A file that cannot be training material: a reason code and a sentence."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


class Skipped(Exception):
    """A path that is no readable file at all."""


def read_bytes(path: Path) -> bytes:
    """The whole content of a regular file; never blocks on a pipe, never follows a surprise.

    Raises Skipped when there is no readable regular file, Rejected when it is too large to be an image.
    """
    try:
        opened = open_regular(path, follow=True)
    except NotAFile as error:
        raise Skipped("not_a_file") from error
    except OSError as error:
        raise Skipped("unreadable") from error
    with opened as file:
        status = os.fstat(file.fileno())
        if status.st_size > MAX_FILE_BYTES:
            raise Rejected("bomb", f"The file has {status.st_size / 2**20:.0f} MiB; an image of that size is not read.")
        try:
            return file.read(status.st_size)  # what it was when checked, however it grows
        except OSError as error:
            raise Skipped("unreadable") from error


@dataclass(frozen=True)
class Picture:
    """A decoded picture: upright RGB pixels shrunk to the asked short side, original size, and generation text."""

    image: Image.Image
    width: int
    height: int
    text: str


def decode(data: bytes, short_side: int) -> Picture:
    """Decode an image file's bytes; the first frame of several.

    Raises Rejected with a reason a person can read; MemoryError where memory has run out, which says nothing of the picture.
    """
    if not data:
        raise Rejected("undecodable", "The file is empty.")
    text = ""
    try:
        if data.startswith(_PNG_SIGNATURE):
            text, data = _png_text(data)
        elif data.startswith(b"GIF8"):
            data = bounded_gif(data, MAX_TEXT_BYTES)
        elif data.startswith(b"\xff\xd8"):
            data = bounded_jpeg(data)
        elif data[4:8] == b"ftyp":
            check_avif(data)
        elif data[8:12] == b"WEBP":
            check_webp(data)
        with Image.open(io.BytesIO(data), formats=known_formats()) as image:
            width, height = image.size
            check_dimensions(image)
            check_run_lengths(image, len(data))
            with _one_big_at_a_time if width * height > _BIG_PIXELS else contextlib.nullcontext():
                if image.format == "PNG":
                    image.load()  # its EXIF may stand behind the picture
                check_exif_of(image)
                text = text or _exif_text(image)
                return Picture(_upright_rgb(image, short_side), width, height, text)
    except Rejected:
        raise
    except TooManyPieces:
        raise Rejected("bomb", "The file is made of more pieces than any picture needs; it is not read.") from None
    except Image.DecompressionBombError:
        raise Rejected("bomb", "The picture is so large that decoding it could exhaust the memory.") from None
    except UnidentifiedImageError:
        raise Rejected("undecodable", "The content is no image of a kind that can be read.") from None
    except MemoryError:
        raise
    except Exception as error:  # decoders raise anything on broken data
        if isinstance(error, OSError) and "out of memory" in str(error).lower():  # so Pillow's decoders say it
            raise MemoryError(str(error)) from None
        detail = str(error).strip().splitlines()[0][:100] if str(error).strip() else type(error).__name__
        raise Rejected("undecodable", f"The image is damaged: {detail}.") from None


def read_copy(path: Path) -> Image.Image:
    """A dataset's own picture as RGB; OSError where somebody has put in its place what we would not write."""
    data = read_regular(path, MAX_COPY_BYTES)
    try:
        if data.startswith(_PNG_SIGNATURE):
            _, data = _png_text(data)
        else:
            check_webp(data)
        with Image.open(
            io.BytesIO(data), formats=[name for name in ("WEBP", "PNG") if name in known_formats()]
        ) as image:
            check_dimensions(image, smallest=1, longest_ratio=float("inf"))
            with _one_big_at_a_time if math.prod(image.size) > _BIG_PIXELS else contextlib.nullcontext():
                return image.convert("RGB")
    except (OSError, MemoryError):
        raise
    except Exception as error:  # decoders raise anything on broken data
        raise OSError(str(error).splitlines()[0] if str(error) else type(error).__name__) from None


@functools.cache
def known_formats() -> tuple[str, ...]:
    """Those of :data:`FORMATS` that this Pillow can read."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def check_dimensions(image: Image.Image, *, smallest: int = 32, longest_ratio: float = 3.0) -> None:
    """Reject by size and kind of file alone, before any pixel is decoded."""
    width, height = image.size
    most = _MAX_PIXELS_OF.get(image.format or "", MAX_PIXELS)
    if width * height > most:
        raise Rejected(
            "bomb",
            f"{width}x{height} pixels are {width * height / 1e6:.0f} megapixels; "
            f"at most {most // 10**6} of such a file are decoded.",
        )
    if max(width, height) > longest_ratio * min(width, height):
        raise Rejected(
            "extreme_aspect", f"{width}x{height} is more than {longest_ratio:g} times as long as it is wide."
        )
    if min(width, height) < smallest:
        raise Rejected("too_small", f"{width}x{height} is smaller than {smallest} pixels.")


def _upright_rgb(image: Image.Image, short_side: int) -> Image.Image:
    image.seek(0)
    if image.mode.startswith("I;16") or image.mode == "I":
        # 16-bit grey: Pillow's own conversion clips instead of scaling
        image = _in_bands(image, "L", _of_eight_bits)
    turn = _TURNS.get(image.getexif().get(_ORIENTATION, 1))
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image if image.mode == "RGBA" else image.convert("RGBA")
        lowest = image.getchannel("A").getextrema()[0]
        if isinstance(lowest, (int, float)) and lowest >= 254:  # some hosts hide text in the last bit of alpha
            image = image.convert("RGB")
        else:
            image = _in_bands(image, "RGB", _on_white)
    else:
        image = image.convert("RGB")
    shorter = min(image.size)
    if shorter > short_side:
        scale = short_side / shorter
        width, height = (max(short_side, round(side * scale)) for side in image.size)
        # The whole factor by averaging, what is left by Lanczos: a fourth of the work of Lanczos alone. ADM does much
        # the same: it halves by averaging, and shrinks what is left (guided-diffusion, center_crop_arr).
        factor = int(shorter / short_side)
        box = (0.0, 0.0, image.width / factor, image.height / factor)
        image = image.reduce(factor).resize((width, height), Image.Resampling.LANCZOS, box=box)
    if turn is not None:
        image = image.transpose(turn)  # last: a large picture is never held twice for it
    image.info = {}
    return image


def _in_bands(image: Image.Image, mode: str, change: Callable[[Image.Image], Image.Image]) -> Image.Image:
    """A picture of that mode, changed a band of rows at a time: a large one is never held several times over."""
    out = Image.new(mode, image.size)
    for top in range(0, image.height, _BAND):
        out.paste(change(image.crop((0, top, image.width, min(top + _BAND, image.height)))), (0, top))
    return out


def _of_eight_bits(band: Image.Image) -> Image.Image:
    deep = np.asarray(band, dtype=np.float64)
    return Image.fromarray((deep / 257.0).round().clip(0, 255).astype(np.uint8), "L")


def _on_white(band: Image.Image) -> Image.Image:
    return Image.alpha_composite(Image.new("RGBA", band.size, (255, 255, 255, 255)), band).convert("RGB")


def _png_text(data: bytes) -> tuple[str, bytes]:
    """The ``parameters`` text of a PNG, and of the file only what the pixels and the EXIF are read from.

    Pillow inflates every text and profile and refuses the whole image when one is a bomb, and fills the canvas of an
    animation as soon as it opens it; here inflating is bounded, a text over the bound is dropped, and the pixels are kept.
    """
    text = ""
    whole = memoryview(data)
    pieces = [whole[:8]]
    offset = 8
    count = 0
    while offset + 8 <= len(data):
        count += 1
        if count > MOST_PIECES:
            raise TooManyPieces
        (length,) = struct.unpack_from(">I", data, offset)
        kind = data[offset + 4 : offset + 8]
        end = offset + 12 + length
        if kind in (b"tEXt", b"zTXt", b"iTXt"):
            found = _text_chunk(kind, data[offset + 8 : offset + 8 + min(length, MAX_TEXT_BYTES + 256)], length)
            text = text or found
        elif kind in _PNG_CHUNKS:
            pieces.append(whole[offset:end])
        if kind == b"IEND" or end > len(data):
            break
        offset = end
    return text, b"".join(pieces)


def _text_chunk(kind: bytes, body: bytes, length: int) -> str:
    keyword, _, rest = body.partition(b"\0")
    if keyword != b"parameters":
        return ""
    try:
        if kind == b"tEXt":
            return rest.decode("latin-1") if length <= MAX_TEXT_BYTES else ""
        if kind == b"zTXt":
            return _inflate(rest[1:]).decode("latin-1")
        compressed, rest = rest[0], rest[2:]
        _language, _, rest = rest.partition(b"\0")
        _translated, _, rest = rest.partition(b"\0")
        if not compressed and length > MAX_TEXT_BYTES:
            return ""
        return (_inflate(rest) if compressed else rest).decode("utf-8", "replace")
    except (zlib.error, IndexError):
        return ""


def _inflate(data: bytes) -> bytes:
    worker = zlib.decompressobj()
    out = worker.decompress(data, MAX_TEXT_BYTES)
    return b"" if worker.unconsumed_tail else out


def _exif_text(image: Image.Image) -> str:
    """UserComment of JPEG and WebP, comment of GIF."""
    try:
        raw = image.getexif().get_ifd(_EXIF_IFD).get(_USER_COMMENT)
    except Exception:  # damaged EXIF raises all sorts; the picture may still be fine
        raw = None
    if isinstance(raw, str):
        return raw[:MAX_TEXT_BYTES]
    if isinstance(raw, bytes) and len(raw) <= 2 * MAX_TEXT_BYTES:
        return decode_user_comment(raw)
    comment = image.info.get("comment", b"")
    if isinstance(comment, bytes) and len(comment) <= MAX_TEXT_BYTES:
        return comment.decode("utf-8", "replace")
    return ""


def decode_user_comment(raw: bytes) -> str:
    """EXIF UserComment: 8 bytes naming the character code, then the text; UNICODE is UTF-16 of either byte order."""
    code, body = raw[:8], raw[8:]
    if code == b"UNICODE\0":
        if body[:2] in (b"\xff\xfe", b"\xfe\xff"):
            return body.decode("utf-16", "replace")
        # mostly ASCII in practice: the zero bytes tell the order
        big = body[0::2].count(0) >= body[1::2].count(0)
        return body.decode("utf-16-be" if big else "utf-16-le", "replace")
    if code == b"ASCII\0\0\0":
        return body.decode("ascii", "replace").rstrip("\0")
    return raw.decode("utf-8", "replace").strip("\0")


def sidecar_text(path: Path, root: Path) -> str:
    """The generation text of a ``.txt`` file beside the image, or an empty string; a link must stay below ``root``."""
    path = path.with_suffix(".txt")
    try:
        if path.is_symlink() and not path.resolve().is_relative_to(root):
            return ""
        data = read_bytes(path)
    except (Skipped, Rejected, OSError, RuntimeError):  # the last: links in a circle
        return ""
    return "" if len(data) > MAX_TEXT_BYTES else data.decode("utf-8", "replace").lstrip("\ufeff")
