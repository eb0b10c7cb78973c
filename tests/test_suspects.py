"""What is unusual in a set: it ranks first, and nothing is rejected for it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from conftest import DATA
from PIL import Image
from test_reading import noise

from ddpm_core.dataset.suspects import TEXTURE, THUMB, rare_textures, suspicion, texture, thumbnail

FIRST, OF, EACH = 40, 400, 6


def ranked(pictures: list[tuple[str, Image.Image]]) -> list[str]:
    """The labels of pictures, most unusual first."""
    thumbs = np.stack([np.frombuffer(thumbnail(image), np.uint8).reshape(THUMB, THUMB, 3) for _, image in pictures])
    textures = np.stack([np.frombuffer(texture(image), np.float32) for _, image in pictures]).astype(np.float64)
    scores = suspicion(lambda start, stop: thumbs[start:stop], len(pictures), textures)
    assert np.median(scores) == pytest.approx(1.0)
    return [pictures[i][0] for i in np.argsort(-scores)]


@pytest.fixture(scope="module")
def good(portraits: Path, ghosts: dict[str, str]) -> list[Image.Image]:
    paths = [p for p in sorted(portraits.glob("txt2img-images/*/*")) if str(p.relative_to(portraits)) not in ghosts]
    chosen = np.random.default_rng(0).permutation(len(paths))[:OF]
    images = []
    for i in chosen:
        with Image.open(paths[i]) as image:
            images.append(image.convert("RGB"))
    return images


def never_decoded(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    pixels = np.asarray(image).copy()
    pixels[int(rng.uniform(0.35, 0.75) * len(pixels)) :] = 128
    return Image.fromarray(pixels)


def shuffled(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    count = int(rng.integers(2, 5))
    side = image.width // count
    places = [(x * side, y * side) for y in range(count) for x in range(count)]
    out = image.copy()
    for (x, y), place in zip(places, np.roll(np.arange(len(places)), int(rng.integers(1, len(places))))):
        left, top = places[place]
        out.paste(image.crop((left, top, left + side, top + side)), (x, y))
    return out


def test_broken_blended_and_shuffled_pictures_are_among_the_first(good: list[Image.Image]) -> None:
    """By principal components alone, no blend was, and of shuffled ones every second."""
    found: Counter[str] = Counter()
    for seed in range(3):
        rng = np.random.default_rng(seed)
        pictures = [("", image) for image in good]
        chosen = iter(rng.permutation(OF))
        for _ in range(EACH):
            for kind in ("cut", "blend", "shuffled"):
                place = int(next(chosen))
                image = good[place]
                if kind == "blend":
                    image = Image.blend(image, good[int(next(chosen))], float(rng.uniform(0.4, 0.6)))
                else:
                    image = (never_decoded if kind == "cut" else shuffled)(image, rng)
                pictures[place] = (kind, image)
        found += Counter(ranked(pictures)[:FIRST])
    assert found["cut"] == 3 * EACH and found["shuffled"] >= 3 * EACH - 2 and found["blend"] >= 2 * EACH, found


def test_what_the_checks_spare_ranks_first(good: list[Image.Image]) -> None:
    kinds = ["grey", "salt and pepper", "faint", "blocks of 2", "blocks of 8", "one channel"]
    spared = [(kind, noise(kind)) for kind in kinds]
    for path in sorted((DATA / "field" / "taken-for-noise").glob("*.png")):
        with Image.open(path) as image:
            spared.append((path.stem, image.convert("RGB")))
    order = ranked([("", image) for image in good] + spared)
    places = {label: order.index(label) for label, _ in spared}
    assert max(places.values()) < FIRST, places


def test_a_texture_is_the_same_in_every_size_and_of_any_picture() -> None:
    plain = Image.new("RGB", (1, 1))
    assert len(texture(plain)) == 4 * TEXTURE
    smooth = Image.linear_gradient("L").convert("RGB")
    small, large = (np.frombuffer(texture(smooth.resize((side, side))), np.float32) for side in (256, 1024))
    assert np.abs(small - large).max() < 0.2
    assert np.isfinite(np.frombuffer(texture(Image.new("RGB", (300, 200))), np.float32)).all()


def test_unknown_textures_are_typical_and_one_apart_is_found() -> None:
    rng = np.random.default_rng(0)
    textures = rng.normal(size=(50, TEXTURE))
    textures[7] += 6
    textures[9] = np.nan
    scores = rare_textures(textures)
    assert scores.argmax() == 7 and scores[9] == 1.0
    assert (rare_textures(textures[:5]) == 1).all()
    assert np.isfinite(rare_textures(np.ones((20, TEXTURE)))).all()
