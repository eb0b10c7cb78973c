"""Reading one image file that may be anything: its texts and its pixels, within bounds of memory and time."""

from __future__ import annotations

import contextlib
import functools
import io
import math
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from ..parsing import NotAFile, open_regular, read_regular
from .colour import MAX_PROFILE_BYTES, Colours, of_code_points, of_png, to_srgb
from .exif import TooManyPieces, check_exif_of
from .structure import avif_code_points, bounded_gif, bounded_jpeg, check_avif, check_run_lengths, check_webp
from .texts import MAX_TEXT_BYTES, png_parts, stealth_text, texts_of

# by content, whatever the name says; no others: Pillow hands some of them to programs of their own (EPS to Ghostscript)
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "AVIF")
MAX_FILE_BYTES = 256 * 2**20
MAX_PIXELS = 80_000_000  # below Pillow's own warning, which would go to the host's log
_MAX_PIXELS_OF = {"WEBP": 60_000_000}  # it is held four times over while it is decoded; no picture is to need a GiB
MAX_COPY_BYTES = 64 * 2**20  # of a dataset's own shrunken picture
_BIG_PIXELS = 16_000_000
# a decoded image, the short side it may have, its colour profile, how it is turned
Convert = Callable[[Image.Image, int, bytes, "Image.Transpose | None"], Image.Image]
_one_big_at_a_time = threading.Lock()  # several threads each holding a 60-megapixel picture would not be bounded

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
SMALLEST = 16  # pixels: below, nothing is kept, whatever a person says
_BAND = 256  # rows
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
_SIDEWAYS = (
    Image.Transpose.TRANSPOSE,
    Image.Transpose.ROTATE_270,
    Image.Transpose.TRANSVERSE,
    Image.Transpose.ROTATE_90,
)
_PROFILE_OF = {"L": b"GRAY", "CMYK": b"CMYK"}  # what a profile that fits says of itself (ICC.1:2010, 7.2.6)
_STICKER = 12.0  # of 255: a transparent picture whose visible part is closer to white than that is lost on white


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
    """A decoded picture: upright pixels in sRGB, shrunk to the asked short side; the size it had, upright; its texts."""

    image: Image.Image
    width: int
    height: int
    texts: dict[str, str]


def decode(
    data: bytes,
    short_side: int,
    *,
    smallest: int = SMALLEST,
    longest_ratio: float = 3.0,
    convert: Convert | None = None,
) -> Picture:
    """Decode an image file's bytes; the first frame of several. ``smallest`` side and ``longest_ratio`` of the sides that are taken;
    ``convert``: another way than :func:`upright_rgb`.

    Raises Rejected with a reason a person can read; MemoryError where memory has run out, which says nothing of the picture.
    """
    if not data:
        raise Rejected("undecodable", "The file is empty.")
    texts: dict[str, str] = {}
    colours = Colours()
    try:
        if data.startswith(_PNG_SIGNATURE):
            texts, chunks, data = png_parts(data)
            colours = of_png(chunks)
        elif data.startswith(b"GIF8"):
            data = bounded_gif(data, MAX_TEXT_BYTES)
        elif data.startswith(b"\xff\xd8"):
            data = bounded_jpeg(data)
        elif data[4:8] == b"ftyp":
            check_avif(data)
            colours = of_code_points(*avif_code_points(data))
        elif data[8:12] == b"WEBP":
            check_webp(data)
        with Image.open(io.BytesIO(data), formats=known_formats()) as image:
            width, height = image.size
            check_dimensions(image, smallest=smallest, longest_ratio=longest_ratio)
            check_run_lengths(image, len(data))
            with _one_big_at_a_time if width * height > _BIG_PIXELS else contextlib.nullcontext():
                if image.format == "PNG":
                    image.load()  # its EXIF may stand behind the picture
                check_exif_of(image)
                texts = {**texts_of(image, data), **texts}
                if image.format in ("PNG", "WEBP") and (hidden := stealth_text(image)):
                    texts["stealth"] = hidden
                profile = image.info.get("icc_profile")
                icc = profile if isinstance(profile, bytes) and len(profile) <= MAX_PROFILE_BYTES else b""
                turn = _TURNS.get(image.getexif().get(_ORIENTATION, 1))
                if turn in _SIDEWAYS:
                    width, height = height, width
                made = (convert or upright_rgb)(image, short_side, icc or colours.icc, turn)
                return Picture(made, width, height, texts)
    except Rejected:
        raise
    except TooManyPieces:
        raise Rejected("bomb", "The file has far more parts than any image needs; it was not read.") from None
    except Image.DecompressionBombError:
        raise Rejected("bomb", "The image is so large that decoding it could exhaust the memory.") from None
    except UnidentifiedImageError:
        raise Rejected("undecodable", "This is not an image of a supported format.") from None
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
            _, _, data = png_parts(data)
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


def check_dimensions(image: Image.Image, *, smallest: int = SMALLEST, longest_ratio: float = 3.0) -> None:
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


def upright_rgb(
    image: Image.Image, short_side: int, icc: bytes = b"", turn: Image.Transpose | None = None
) -> Image.Image:
    """Turn, convert to sRGB and shrink a decoded image."""
    image.seek(0)
    transparency = image.info.get("transparency")
    if image.mode.startswith("I;16") or image.mode == "I":
        # 16-bit grey: Pillow's own conversion clips instead of scaling
        clear = transparency if isinstance(transparency, int) else None
        image = _in_bands(image, "L", functools.partial(_of_eight_bits, clear=clear))
    elif image.mode == "RGB" and isinstance(transparency, tuple) and max(transparency) > 255:
        image.info["transparency"] = tuple(value >> 8 for value in transparency)  # of 16 bits, as the pixels were
    image_mode = image.mode
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image if image.mode == "RGBA" else image.convert("RGBA")
        lowest = image.getchannel("A").getextrema()[0]
        if isinstance(lowest, (int, float)) and lowest >= 254:  # some hosts hide text in the last bit of alpha
            image = image.convert("RGB")
        else:
            grey = image_mode in ("LA", "La") and icc[16:20] == b"GRAY"
            image = _in_bands(image, "RGB", functools.partial(_on_ground, ground=_ground_for(image)))
            image = image.convert("L") if grey else image
    elif icc[16:20] != _PROFILE_OF.get(image.mode):
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
    image = to_srgb(image, icc)  # of the small one: a curve between the shades of neighbours moves little
    if turn is not None:
        image = image.transpose(turn)  # last: a large picture is never held twice for it
    image.info = {}
    return image


def upright_mask(image: Image.Image, short_side: int, icc: bytes, turn: Image.Transpose | None) -> Image.Image:
    """Turn and shrink a decoded mask: its transparency where it has any, else its brightness, as grey."""
    image.seek(0)
    if image.mode.startswith("I;16") or image.mode == "I":
        image = _in_bands(image, "L", functools.partial(_of_eight_bits, clear=None))
    elif image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        alpha = image.convert("RGBA").getchannel("A")
        image = image.convert("RGB").convert("L") if alpha.getextrema() == (255, 255) else alpha
    image = image.convert("L")
    if min(image.size) > short_side:
        image.thumbnail((max(image.size) * short_side // min(image.size),) * 2, Image.Resampling.BOX)
    return image if turn is None else image.transpose(turn)


def _in_bands(image: Image.Image, mode: str, change: Callable[[Image.Image], Image.Image]) -> Image.Image:
    """A picture of that mode, changed a band of rows at a time: a large one is never held several times over."""
    out = Image.new(mode, image.size)
    for top in range(0, image.height, _BAND):
        out.paste(change(image.crop((0, top, image.width, min(top + _BAND, image.height)))), (0, top))
    return out


def _of_eight_bits(band: Image.Image, clear: int | None) -> Image.Image:
    """16-bit grey as 8-bit grey; ``clear`` is the value that stands for transparent, shown white."""
    deep = np.asarray(band)
    grey = (deep.astype(np.float64) / 257.0).round().clip(0, 255).astype(np.uint8)
    if clear is not None:
        grey[deep == clear] = 255
    return Image.fromarray(grey, "L")


def _ground_for(image: Image.Image) -> tuple[int, int, int, int]:
    """White, as viewers and the WebUI show what is transparent; grey where the visible part would be lost on it."""
    # by single pixels: a mean would hold a large picture twice
    small = np.asarray(image.resize((128, 128), Image.Resampling.NEAREST), dtype=np.float64)
    opacity = small[..., 3]
    seen = float((opacity * (255 - small[..., :3].min(-1))).sum() / max(1.0, opacity.sum()))
    return (128, 128, 128, 255) if opacity.sum() and seen < _STICKER else (255, 255, 255, 255)


def _on_ground(band: Image.Image, ground: tuple[int, int, int, int]) -> Image.Image:
    return Image.alpha_composite(Image.new("RGBA", band.size, ground), band).convert("RGB")


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
