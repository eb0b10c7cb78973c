"""Colours as a viewer shows them: a picture's ICC profile, gamma and primaries converted to sRGB.

A file without any is sRGB (PNG 3rd edition, 4.3; CSS Color 4, 12). ICC profiles go through Pillow's ImageCms (Little
CMS); what a PNG or AVIF says in numbers becomes such a profile first.
"""

from __future__ import annotations

import functools
import hashlib
import io
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

MAX_PROFILE_BYTES = 4 * 2**20  # those of printers have one or two
_MOST_VERDICTS = 1000
_ALIKE = 2  # of 255: closer than this to sRGB, a profile is sRGB, and the pixels stay as they are
_GAMMA_ALIKE = 0.05  # libpng's threshold of a difference that matters (PNG_GAMMA_THRESHOLD): 1/2.2 stands for sRGB

Chromaticities = tuple[float, float, float, float, float, float, float, float]  # white, red, green, blue: x, y of each

_D65 = (0.3127, 0.3290)
_SRGB: Chromaticities = (*_D65, 0.64, 0.33, 0.30, 0.60, 0.15, 0.06)
# ITU-T H.273, table 2 and 3: what cICP and nclx number
_PRIMARIES: dict[int, Chromaticities] = {
    1: _SRGB,
    5: (*_D65, 0.64, 0.33, 0.29, 0.60, 0.15, 0.06),
    6: (*_D65, 0.63, 0.34, 0.31, 0.595, 0.155, 0.07),
    9: (*_D65, 0.708, 0.292, 0.170, 0.797, 0.131, 0.046),
    12: (*_D65, 0.680, 0.320, 0.265, 0.690, 0.150, 0.060),
}
_GAMMAS: dict[int, float | None] = {
    1: None,
    4: 2.2,
    5: 2.8,
    6: None,
    8: 1.0,
    13: None,
    14: None,
    15: None,
}  # None: as sRGB


@dataclass(frozen=True)
class Colours:
    """What a file says of its colours; nothing at all means sRGB.

    ``gamma``: the exponent that turns a value 0..1 into light, None for sRGB's curve.
    """

    profile: bytes = b""
    gamma: float | None = None
    primaries: Chromaticities | None = None

    @property
    def icc(self) -> bytes:
        """An ICC profile that says the same; empty for sRGB."""
        if self.profile:
            return self.profile
        gamma = self.gamma
        if gamma is not None and abs(gamma / 2.2 - 1) < _GAMMA_ALIKE:
            gamma = None
        primaries = self.primaries
        if primaries is None or max(abs(a - b) for a, b in zip(primaries, _SRGB)) < 0.004:
            primaries = _SRGB
        if gamma is None and primaries is _SRGB:
            return b""
        try:
            return _matrix_profile(primaries, gamma)
        except (struct.error, ValueError, OverflowError, np.linalg.LinAlgError):  # numbers that no profile can hold
            return b""


def of_code_points(primaries: int, transfer: int) -> Colours:
    """Of the numbers of ITU-T H.273; sRGB for those of high dynamic range, which eight bits cannot hold."""
    if primaries not in _PRIMARIES or transfer not in _GAMMAS:
        return Colours()
    return Colours(gamma=_GAMMAS[transfer], primaries=_PRIMARIES[primaries])


def of_png(chunks: dict[bytes, bytes]) -> Colours:
    """Of a PNG's chunks by kind, iCCP already inflated; the first that is there counts (PNG 3rd edition, 4.3)."""
    if len(cicp := chunks.get(b"cICP", b"")) == 4 and cicp[0] in _PRIMARIES:
        return of_code_points(cicp[0], cicp[1])
    if profile := chunks.get(b"iCCP", b""):
        return Colours(profile)
    if b"sRGB" in chunks:
        return Colours()
    gamma = chunks.get(b"gAMA", b"")
    places = chunks.get(b"cHRM", b"")
    exponent = int.from_bytes(gamma, "big") / 100_000 if len(gamma) == 4 else 0.0
    primaries: Chromaticities | None = None
    if len(places) == 32:
        primaries = tuple(value / 100_000 for value in struct.unpack(">8I", places))
    return Colours(
        gamma=1 / exponent if 0.1 <= exponent <= 10 else None,
        primaries=primaries if primaries and _is_possible(primaries) else None,
    )


def _is_possible(primaries: Chromaticities) -> bool:
    """Whether they span a triangle with the white within reach; a damaged chunk's need not."""
    return all(0 <= value <= 1 for value in primaries) and abs(np.linalg.det(_xyz(primaries))) > 1e-3


def to_srgb(image: Image.Image, icc: bytes) -> Image.Image:
    """An L, RGB or CMYK picture as RGB in sRGB; one without a profile, or with one that does not fit it, as it is."""
    if icc and not _is_srgb(icc, image.mode):
        converted = _converted(image, icc)
        if converted is not None:
            return converted
    return image.convert("RGB")


def _converted(image: Image.Image, icc: bytes) -> Image.Image | None:
    try:
        from PIL import ImageCms

        source = ImageCms.ImageCmsProfile(io.BytesIO(icc))
        return ImageCms.profileToProfile(image, source, _target(), outputMode="RGB")
    except MemoryError:
        raise
    except Exception:  # damaged, of another kind of picture, or a Pillow without Little CMS: viewers pass over it, too
        return None


@functools.cache
def _target() -> Any:
    from PIL import ImageCms

    return ImageCms.createProfile("sRGB")


_verdicts: dict[tuple[bytes, str], bool] = {}  # of profiles by their hash: a folder of images has the same one


def _is_srgb(icc: bytes, mode: str) -> bool:
    """Whether a profile says what no profile would: most of those that are embedded are sRGB's own."""
    if mode == "CMYK":
        return False
    key = (hashlib.sha256(icc).digest(), mode)
    if key not in _verdicts:
        if len(_verdicts) >= _MOST_VERDICTS:
            _verdicts.clear()
        _verdicts[key] = verdict = _changes_nothing(icc, mode)
        return verdict
    return _verdicts.get(key) or _changes_nothing(icc, mode)  # another thread may just have cleared them


def _changes_nothing(icc: bytes, mode: str) -> bool:
    steps = np.linspace(0, 255, 9).round().astype(np.uint8)
    if mode == "L":
        colours = np.arange(256, dtype=np.uint8)[None]
    else:
        colours = np.stack(np.meshgrid(steps, steps, steps), -1).reshape(1, -1, 3)
    plain = Image.fromarray(colours)
    found = _converted(plain, icc)
    if found is None:
        return True
    apart = np.abs(np.asarray(found, dtype=np.int16) - np.asarray(plain.convert("RGB"), dtype=np.int16))
    return int(apart.max()) <= _ALIKE


# -- a profile of numbers ---------------------------------------------------------------------------------------------------

_BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
_D50_XYZ = np.array([0.9642, 1.0, 0.8249])


def _white(x: float, y: float) -> NDArray[np.float64]:
    return np.array([x / y, 1.0, (1 - x - y) / y]) if y > 0 else np.zeros(3)


def _xyz(primaries: Chromaticities) -> NDArray[np.float64]:
    """Columns: X, Y, Z of full red, green and blue, which together make the white (IEC 61966-2-1, annex; SMPTE RP 177)."""
    columns = np.array([_white(x, y) for x, y in zip(primaries[2::2], primaries[3::2])]).T
    if abs(np.linalg.det(columns)) < 1e-6:
        return np.zeros((3, 3))
    scaled: NDArray[np.float64] = columns * np.linalg.solve(columns, _white(*primaries[:2]))
    return scaled


def _matrix_profile(primaries: Chromaticities, gamma: float | None) -> bytes:
    """An ICC profile of version 2 with a matrix and one curve (ICC.1:2001-04, 6.3.1.2), adapted to D50 by Bradford."""
    white = _white(*primaries[:2])
    scale = np.diag((_BRADFORD @ _D50_XYZ) / (_BRADFORD @ white))
    colours = np.linalg.solve(_BRADFORD, scale @ _BRADFORD) @ _xyz(primaries)
    if gamma is None:
        values = np.linspace(0, 1, 1024)
        light = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
        curve = struct.pack(">4sII", b"curv", 0, 1024) + (light * 65535).round().astype(">u2").tobytes()
    else:
        curve = struct.pack(">4sIIH", b"curv", 0, 1, round(min(gamma, 255.0) * 256)) + b"\0\0"
    text = b"From numbers\0"
    tags = {
        b"desc": struct.pack(">4sII", b"desc", 0, len(text)) + text + bytes(8 + 3 + 67 + 3),
        b"wtpt": _numbers(_D50_XYZ),
        **{name: _numbers(colours[:, i]) for i, name in enumerate((b"rXYZ", b"gXYZ", b"bXYZ"))},
        **dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve),
    }
    offset = 128 + 4 + 12 * len(tags)
    table, body = struct.pack(">I", len(tags)), b""
    for name, data in tags.items():
        data += bytes(-len(data) % 4)
        table += struct.pack(">4sII", name, offset + len(body), len(data))
        body += data
    header = struct.pack(">I4sI4s4s4s", offset + len(body), b"\0\0\0\0", 0x02100000, b"mntr", b"RGB ", b"XYZ ")
    header += bytes(12) + b"acsp" + bytes(128 - 40 - 60) + struct.pack(">3i", 63190, 65536, 54061)
    return header.ljust(128, b"\0") + table + body


def _numbers(values: NDArray[np.float64]) -> bytes:
    return struct.pack(">4sI3i", b"XYZ ", 0, *(round(float(value) * 65536) for value in values))
