"""Find the images of a dataset by words or by an image, and words that do not fit their image, by an image-text encoder of the workspace."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ..dataset.packing import fit
from ..dataset.store import Store
from ..dataset.tags import JOIN
from ..dataset.vectors import Sight, Vectors, vectors_of
from ..errors import UserError
from ..evaluation.features import RandomFeatures
from ..model import file as model_file
from ..model.contrast import fit_of_words
from ..model.diffusion import uint8_to_model
from ..workspace import Workspace
from .context import Context
from .editing import flattened
from .encoding import Encoder, open_encoder
from .pictures import pixels_of
from .telling import words_told

_PLAIN_WIDTH = 128
_FEWEST_OF_A_WORD = 4  # images from which it is known how well a word usually fits


def plain_sight() -> Sight:
    """Of images without any training: random convolutions (``evaluation/features.py``), projected at random."""
    features = RandomFeatures(channels=3, device="cpu")
    found: list[Tensor] = []

    def embed(images: Tensor) -> Tensor:
        seen = features(uint8_to_model(images))
        if not found:
            draw = torch.Generator(device="cpu").manual_seed(0)
            found.append(
                torch.randn((seen.shape[1], _PLAIN_WIDTH), generator=draw, device="cpu") / seen.shape[1] ** 0.5
            )
        return seen @ found[0]

    return Sight("plain", (32, 32), "center", _PLAIN_WIDTH, embed)


class Index:
    """A dataset's images in a space, to be searched."""

    def __init__(self, store: Store, vectors: Vectors, encoder: Encoder | None, sight: Sight) -> None:
        self.ids, self.encoder, self._store, self._sight = vectors.ids, encoder, store, sight
        # where nothing was learned all images point the same way but for a little
        self._mean = vectors.values.mean(0) if encoder is None and len(vectors.ids) else torch.zeros(sight.width)
        self.vectors = F.normalize(vectors.values - self._mean, dim=1)
        self._place = {one: row for row, one in enumerate(self.ids)}

    def by_words(self, text: str) -> tuple[Tensor, list[tuple[str, str]]]:
        """How well each image fits what a person wrote, (N,), and the words that are not known, each with the nearest that is, or "".
        UserError where none is known, or there is no encoder."""
        if self.encoder is None:
            raise UserError(
                "To search for what images show, train an image-text encoder on this dataset first (preset contrast, some minutes); "
                "searching by an image works without."
            )
        match = self.encoder.vocabulary.match(text)
        if not match.words:
            near = [word for _, word in match.unknown if word] or [
                one.split(JOIN)[0] for one in self.encoder.config.tags
            ]
            raise UserError(
                f"{self.encoder.name} knows none of these words; it knows, for example: {', '.join(near[:5])}."
            )
        words = torch.tensor(match.values, dtype=torch.float32)
        return self.encoder.fit_of(self.vectors, words), list(match.unknown)

    def by_image(self, image: Image.Image) -> Tensor:
        """How like each image is to any image, (N,) in [-1, 1]."""
        small = pixels_of(fit(flattened(image), self._sight.size, self._sight.crop))[None]
        return self.vectors @ F.normalize(self._sight.embed(small)[0] - self._mean, dim=0)

    def by_item(self, item: int) -> Tensor:
        """How like each image is to one of them, (N,); UserError where it is not there."""
        if item not in self._place:
            raise UserError("This image is not kept in the dataset, or its copy is missing.")
        return self.vectors @ self.vectors[self._place[item]]

    def misfits(self) -> list[tuple[int, float, str]]:
        """Items with the word of theirs that fits them least beside the other images that have it: id, by how many deviations less, word; the
        worst first. UserError without an encoder."""
        if self.encoder is None:
            raise UserError(
                "To find words that do not fit, train an image-text encoder on this dataset first (preset contrast)."
            )
        known = self.encoder.vocabulary
        words = words_told(self._store, known.entries, self.ids)
        fits = fit_of_words(self.vectors, self.encoder.embed_words(torch.eye(len(known.entries))))
        less = torch.zeros_like(fits)
        for place in range(fits.shape[1]):
            rows = (words[:, place] > 0).nonzero()[:, 0]
            if len(rows) < _FEWEST_OF_A_WORD:
                continue
            own = fits[rows, place]
            usual = own.median()
            spread = 1.4826 * (own - usual).abs().median() + 1e-2
            less[rows, place] = (usual - own) / spread
        worst = less.max(1)
        order = worst.values.argsort(descending=True)
        return [
            (self.ids[row], float(worst.values[row]), known.entries[int(worst.indices[row])].split(JOIN)[0])
            for row in order.tolist()
            if worst.values[row] > 0
        ]

    def best(self, fits: Tensor, most: int | None = None) -> list[tuple[int, float]]:
        """Ids with their fit (N,), the best first."""
        found = fits.topk(min(most or len(fits), len(fits)))
        return [(self.ids[row], float(value)) for row, value in zip(found.indices.tolist(), found.values.tolist())]


def index_of(workspace: Workspace, dataset: str, context: Context, model: str | None = None) -> Index:
    """A dataset's images as an encoder sees them: ``model``, or the newest that learned from it, or without any."""
    store = workspace.store(dataset)
    name = model or workspace.encoder_of(dataset)
    encoder = open_encoder(workspace, name, context) if name is not None else None
    if encoder is not None and model is not None:
        own = model_file.known_of(model_file.read_config(workspace.model_path(model))[1]).get("dataset")
        if own and own != dataset:
            context.say(
                f"{encoder.name} was trained on {own}, not on {dataset}: what it has not seen there it may not tell apart."
            )
    return indexed(store, encoder, sight_of(encoder), context)


def sight_of(encoder: Encoder | None) -> Sight:
    """By which images are searched: an opened encoder's, or without one that of no training."""
    return plain_sight() if encoder is None else encoder.sight


def indexed(store: Store, encoder: Encoder | None, sight: Sight, context: Context) -> Index:
    """A dataset's images as ``sight`` shows them, which is ``encoder``'s, if there is one."""
    vectors = vectors_of(store, sight, context.progress, context.stop)
    if not vectors.ids:
        raise UserError("No image is kept in this dataset; harvest a folder or keep some of the rejected ones.")
    return Index(store, vectors, encoder, sight)


def search(
    workspace: Workspace,
    dataset: str,
    context: Context,
    *,
    prompt: str = "",
    image: Image.Image | None = None,
    misfits: bool = False,
    model: str | None = None,
    count: int = 20,
) -> dict[str, Any]:
    """What ``search --json`` prints: items with their score, the best first. UserError unless one thing is asked for."""
    if sum((bool(prompt.strip()), image is not None, misfits)) != 1:
        raise UserError(
            "Say what to search for: words (--prompt), an image (--image), or words that do not fit (--misfits)."
        )
    if not 1 <= count <= 10_000:
        raise UserError(f"A search finds 1 to 10000 images; got {count}.")
    index = index_of(workspace, dataset, context, model)
    name = None if index.encoder is None else index.encoder.name
    if misfits:
        rows = index.misfits()[:count]
        return {
            "items": [{"id": one, "score": round(score, 4), "word": word} for one, score, word in rows],
            "model": name,
        }
    unknown: list[tuple[str, str]] = []
    if image is not None:
        fits = index.by_image(image)
    else:
        fits, unknown = index.by_words(prompt)
        say_unknown(index.encoder.name if index.encoder else "", unknown, context.say)
    found = index.best(fits, count)
    return {
        "items": [{"id": one, "score": round(score, 4)} for one, score in found],
        "model": name,
        "unknown_words": [word for word, _ in unknown],
    }


def say_unknown(name: str, unknown: Sequence[tuple[str, str]], say: Callable[[str], None]) -> None:
    """Tell the person which of their words change nothing."""
    if unknown:
        named = ", ".join(f"{word!r} (nearest: {near!r})" if near else repr(word) for word, near in unknown[:5])
        say(f"{name} does not know {named}.")
