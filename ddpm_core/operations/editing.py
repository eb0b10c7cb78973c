"""Editing an image with a model: which part of it the model sees, and how what it drew is put back."""

from __future__ import annotations

import base64
import dataclasses
import math
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageChops, ImageFilter, ImageOps
from torch import Tensor

from ..dataset.reading import Convert, Rejected, Skipped, decode, read_bytes, upright_mask
from ..errors import UserError
from ..model.diffusion import Diffusion, model_to_uint8, uint8_to_model
from ..model.network import Network
from ..requests import MOST_PIXELS, Edit
from ..sampling.start import Start
from ..training.heldout import loss_by_band

_FILL_RADII = ((256, 1), (64, 1), (16, 2), (4, 4), (2, 2), (0, 1))  # and how often, at 512 pixels; as the WebUI fills
_MOST_LONGER = 8.0  # an image this many times as long as it is wide is no image any more when a model has seen it
_MOST_BASE64 = 64 * 2**20
_UNLIKE = 2.0
_DRAWS = 8  # of noise, in each band of timesteps
_MOST_AREA = 16_800_000  # pixels

Box = tuple[int, int, int, int]


def open_image(path: Path) -> Image.Image:
    """An image file as upright RGB in sRGB; UserError where it is none."""
    return image_of(_read(path), path.name)


def open_mask(path: Path) -> Image.Image:
    """A mask file as it is, with its transparency, if it has any; UserError where it is none."""
    return mask_of(_read(path), path.name)


def _read(path: Path) -> bytes:
    try:
        return read_bytes(path)
    except (Skipped, Rejected):
        raise UserError(f"There is no readable image {path}; check the path.") from None


def image_of(data: bytes, name: str) -> Image.Image:
    """As :func:`open_image`, of a file's content; ``name`` is for the sentence."""
    return _decoded(data, name, None)


def mask_of(data: bytes, name: str) -> Image.Image:
    """As :func:`open_mask`, of a file's content."""
    return _decoded(data, name, upright_mask)


def decoded_image(text: str | None, read: Callable[[bytes, str], Image.Image], name: str) -> Image.Image | None:
    """An image that came as base64, perhaps as a data URL; UserError where it is none."""
    if not text:
        return None
    if len(text) > _MOST_BASE64:
        raise UserError(f"The {name} is too large; shrink it first.")
    try:
        data = base64.b64decode(text.partition(",")[2] if text.startswith("data:") else text, validate=True)
    except ValueError:
        raise UserError(f"The {name} is no base64.") from None
    return read(data, f"The {name}")


def _decoded(data: bytes, name: str, convert: Convert | None) -> Image.Image:
    try:
        return decode(data, MOST_PIXELS, smallest=1, longest_ratio=_MOST_LONGER, convert=convert).image
    except Rejected as error:
        raise UserError(f"{name} cannot be edited: {error.message}") from None


def prepared(edit: Edit) -> Edit:
    """The same with its image as upright RGB and its mask as grey of that size; UserError where one is too large or nothing is masked. What
    waits for its turn holds no more than that."""
    if edit.ready:
        return edit
    for what, one in (("image", edit.image), ("mask", edit.mask)):
        if one is not None and (max(one.size) > MOST_PIXELS or one.width * one.height > _MOST_AREA):
            raise UserError(f"The {what} to edit can have at most {_MOST_AREA // 10**6} megapixels; shrink it first.")
    if max(edit.image.size) > _MOST_LONGER * min(edit.image.size):
        raise UserError(f"The image is more than {_MOST_LONGER:g} times as long as it is wide; crop it first.")
    image = flattened(edit.image)
    return dataclasses.replace(edit, image=image, mask=_mask_of(edit, image.size), ready=True)


class Canvas:
    """An edit for a model of a size (width, height), perhaps of ``grey`` images. ``start`` of the sampling; ``mask`` (L) at the size of the image, blurred, or None;
    ``part_size``: that of the part of the image that a sample takes the place of; ``described``: its part of the generation text."""

    def __init__(self, edit: Edit, size: tuple[int, int], grey: bool = False) -> None:
        edit = prepared(edit)
        self.image, self.mask = edit.image, edit.mask
        if self.mask is not None and edit.mask_blur:
            blurred = self.mask.filter(ImageFilter.GaussianBlur(edit.mask_blur))
            self.mask = blurred if blurred.getbbox() is not None else self.mask  # too small to be blurred so much
        self._size = size
        self._box = self._box_of(edit, size)
        left, top, right, bottom = self._box
        self.part_size = (right - left, bottom - top)
        part = _cut(self.image, self._box).resize(size, Image.Resampling.LANCZOS)
        sampled: Tensor | None = None
        if self.mask is not None:
            small = _cut(self.mask, self._box, fill=0).resize(size, Image.Resampling.BOX)
            share = torch.from_numpy(np.asarray(small).copy()).float()[None, None] / 255
            sampled = (share > 0.5).float() if bool((share > 0.5).any()) else (share > 0).float()
            if not bool(sampled.any()):
                raise UserError(
                    "Nothing of the mask lies in the part of the image that the model sees; choose another resize mode."
                )
            if edit.masked_content == "fill":
                part = filled(part, Image.fromarray((255 * sampled[0, 0]).byte().numpy()))
        array = np.asarray(part.convert("L"))[..., None] if grey else np.asarray(part)
        pixels = torch.from_numpy(array.transpose(2, 0, 1).copy())[None]
        self.start = Start(
            uint8_to_model(pixels),
            edit.denoising_strength,
            sampled,
            blank=edit.masked_content == "noise",
            resamples=edit.resamples,
        )
        self._stretched = edit.resize_mode == "resize"
        self.described = {"Denoising strength": f"{edit.denoising_strength:g}"}
        if self.mask is not None:
            self.described |= {"Mask blur": str(edit.mask_blur)}
            self.described |= {"Mask mode": "Inpaint not masked"} if edit.invert_mask else {}
            self.described |= {"Masked content": edit.masked_content} if edit.masked_content != "original" else {}
            if edit.only_masked:
                self.described |= {"Inpaint area": "Only masked", "Masked area padding": str(edit.mask_padding)}
            self.described["DDPM enlarged"] = f"{self.part_size[0] / size[0]:.3g}x"

    def _box_of(self, edit: Edit, size: tuple[int, int]) -> Box:
        """The part of the image that the model sees, in its pixels; it may reach beyond the edges."""
        width, height = self.image.size
        if self.mask is not None and edit.only_masked:
            found = self.mask.getbbox()
            assert found is not None  # an empty mask was refused
            padding = edit.mask_padding
            left, top = max(found[0] - padding, 0), max(found[1] - padding, 0)
            right, bottom = min(found[2] + padding, width), min(found[3] + padding, height)
            return _of_proportions((left, top, right, bottom), size, self.image.size)
        if edit.resize_mode == "resize":
            return 0, 0, width, height
        narrow = width * size[1] < height * size[0]
        across = narrow if edit.resize_mode == "crop" else not narrow  # whether the part is as wide as the image
        new = (
            (width, max(1, round(width * size[1] / size[0])))
            if across
            else (max(1, round(height * size[0] / size[1])), height)
        )
        left, top = (width - new[0]) // 2, (height - new[1]) // 2
        return left, top, left + new[0], top + new[1]

    def enlarged_size(self, wanted: tuple[int, int]) -> tuple[int, int]:
        """To which size (width, height) a sample is enlarged where images of ``wanted`` size are asked for: in its own proportions, which
        enlarging keeps, where :meth:`put_back` brings it to others."""
        target = self.part_size if self.mask is not None else wanted
        if self.mask is None and not self._stretched:
            return wanted
        width, height = self._size
        scale = min(max(target[0] / width, target[1] / height), MOST_PIXELS / max(width, height))
        return max(1, round(scale * width)), max(1, round(scale * height))

    def put_back(self, sample: Image.Image, wanted: tuple[int, int] | None = None) -> Image.Image:
        """A sample in the place of its part of the image, outside the mask no pixel changes; without a mask the sample, brought to the
        ``wanted`` size, if any."""
        if self.mask is None:
            if wanted is None or not self._stretched or sample.size == wanted:
                return sample
            return sample.resize(wanted, Image.Resampling.LANCZOS)
        if self.start.strength <= 0:
            return self.image
        layer = self.image.copy()
        layer.paste(sample.convert("RGB").resize(self.part_size, Image.Resampling.LANCZOS), self._box[:2])
        seen = Image.new("L", self.image.size)
        seen.paste(255, self._box)
        return Image.composite(layer, self.image, ImageChops.darker(self.mask, seen))


def unlike(
    net: Network, diffusion: Diffusion, images: Tensor | None, heldout_loss: float, dtype: torch.dtype
) -> float | None:
    """How many times larger a network's error is on an image (1, C, H, W) in [-1, 1] that it is given than on images held out of its training, where that is so much
    that it has learned nothing like it; else None. Held-out portraits have 0.6 to 1.1, other images 2.2 and more (benchmarks/RESULTS.md)."""
    if images is None or not heldout_loss > 0:
        return None
    several = model_to_uint8(images).expand(_DRAWS, -1, -1, -1)
    found = loss_by_band(net, diffusion, several, kind="mse", dtype=dtype, gpu_slice=nullcontext)
    ratio = sum(found.values()) / len(found) / heldout_loss
    return ratio if _UNLIKE < ratio < math.inf else None


def flattened(image: Image.Image, ground: str = "white") -> Image.Image:
    """Upright RGB; what is transparent becomes ``ground``."""
    image = _of_eight_bits(ImageOps.exif_transpose(image))
    if image.mode in ("La", "RGBa"):  # of which Pillow converts to their plain twins only
        image = image.convert(image.mode[:-1] + "A")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, ground), image).convert("RGB")
    return image.convert("RGB")


def _of_eight_bits(image: Image.Image) -> Image.Image:
    """16-bit grey scaled, which Pillow would clip."""
    if not (image.mode.startswith("I;16") or image.mode == "I"):
        return image
    return Image.fromarray((np.asarray(image).astype(np.float64) / 257).round().clip(0, 255).astype(np.uint8))


def _mask_of(edit: Edit, size: tuple[int, int]) -> Image.Image | None:
    """The mask of an edit at the image's size; None where there is none."""
    if edit.mask is None:
        return None
    mask = _of_eight_bits(ImageOps.exif_transpose(edit.mask))
    alpha = mask.convert("RGBA").getchannel("A") if "A" in mask.getbands() or "transparency" in mask.info else None
    if alpha is not None and alpha.getextrema() != (255, 255):
        mask = alpha
    mask = mask.convert("L")
    if mask.size != size:
        mask = mask.resize(size, Image.Resampling.BILINEAR)
    mask = ImageOps.invert(mask) if edit.invert_mask else mask
    if mask.getbbox() is None:
        raise UserError("The mask is empty: paint white what shall be drawn anew.")
    return mask


def _of_proportions(box: Box, wanted: tuple[int, int], bounds: tuple[int, int]) -> Box:
    """A box grown to the proportions of ``wanted`` and, where that is possible, moved inside ``bounds``."""
    left, top, right, bottom = box
    scale = max((right - left) / wanted[0], (bottom - top) / wanted[1])
    sides = (max(1, round(scale * wanted[0])), max(1, round(scale * wanted[1])))
    found = []
    for low, high, side, most in ((left, right, sides[0], bounds[0]), (top, bottom, sides[1], bounds[1])):
        first = (low + high - side) // 2
        found.append(min(max(first, 0), most - side) if side <= most else (most - side) // 2)
    return found[0], found[1], found[0] + sides[0], found[1] + sides[1]


def _cut(image: Image.Image, box: Box, fill: int | None = None) -> Image.Image:
    """A part of an image; what lies beyond its edges is ``fill``, or the nearest pixel of the edge."""
    left, top, right, bottom = box
    if left >= 0 and top >= 0 and right <= image.width and bottom <= image.height:
        return image.crop(box)
    if fill is not None:
        found = Image.new(image.mode, (right - left, bottom - top), fill)
        found.paste(image, (-left, -top))
        return found
    rows = np.clip(np.arange(top, bottom), 0, image.height - 1)
    columns = np.clip(np.arange(left, right), 0, image.width - 1)
    return Image.fromarray(np.asarray(image)[rows][:, columns])


def filled(image: Image.Image, mask: Image.Image) -> Image.Image:
    """What is masked (255) gets blurred colours of what is not, as the WebUI's masked content *fill* (modules/masking.py)."""
    scale = min(image.size) / 512
    found = Image.new("RGBA", image.size)
    rest = Image.new("RGBa", image.size)
    rest.paste(image.convert("RGBA").convert("RGBa"), mask=ImageOps.invert(mask))
    for radius, times in _FILL_RADII:
        blurred = rest.filter(ImageFilter.GaussianBlur(radius * scale)).convert("RGBA")
        for _ in range(times):
            found.alpha_composite(blurred)
    return found.convert("RGB")
