"""How well an image-text encoder finds images that it has not seen, and whether its dataset is large enough for it."""

from __future__ import annotations

import time
from typing import Any

import torch

from ..dataset.packing import pack
from ..dataset.tags import JOIN
from ..errors import UserError
from ..evaluation.retrieval import Recall, average_precisions, recalls
from ..model import file as model_file
from ..model.contrast import fit_of_words
from ..workspace import Workspace
from .context import Context
from .encoding import Encoder, open_encoder
from .telling import tags_told

_FEWEST = 8  # images to be judged by


def evaluate_encoder(workspace: Workspace, dataset: str, context: Context, *, model: str) -> dict[str, Any]:
    """Recall at 1, 5 and 10 both ways with interval and chance, average precision of each word; on the images held out of its training, or on all of a
    dataset that it did not learn from."""
    began = time.monotonic()
    encoder = open_encoder(workspace, model, context)
    store = workspace.store(dataset)
    packed = pack(store, encoder.sight.size, encoder.crop, context.progress, context.stop)
    known = model_file.known_of(model_file.read_config(workspace.model_path(model))[1])
    own = dataset == known.get("dataset") or packed.fingerprint == known.get("fingerprint")
    rows = packed.held_rows if own and any(packed.held_out) else torch.arange(len(packed.ids))
    words = tags_told(store, encoder.config.tags, packed)[rows]
    worded = (words != 0).any(1)
    rows, words = rows[worded], words[worded]
    if len(rows) < _FEWEST:
        raise UserError(
            f"Only {len(rows)} images of {dataset} are held out and have words that {encoder.name} knows; an evaluation needs at least {_FEWEST}."
        )
    context.progress(0, 1, "Comparing")
    images = torch.cat([encoder.embed_images(part) for part in torch.split(packed.images[rows], 128)])
    to_images, to_words = recalls(images, encoder.embed_words(words), words)
    fits = fit_of_words(images, encoder.embed_words(torch.eye(len(encoder.config.tags))))
    precision = average_precisions(fits, words)
    there = (words != 0).sum(0)
    shown = {encoder.config.tags[i]: round(float(precision[i]), 4) for i in range(len(there)) if there[i]}
    result: dict[str, Any] = {
        "dataset": dataset,
        "learned_from": known.get("dataset"),
        "images": len(rows),
        "held_out": own and any(packed.held_out),
        "words": len(shown),
        "words_to_images": {f"R@{k}": one.to_json() for k, one in to_images.items()},
        "images_to_words": {f"R@{k}": one.to_json() for k, one in to_words.items()},
        "mean_average_precision": round(sum(shown.values()) / len(shown), 4),
        "average_precision": shown,
        "seconds": round(time.monotonic() - began, 3),
    }
    result["verdict"] = verdict(encoder, own and not any(packed.held_out), len(rows), to_images[10], shown)
    return result


def verdict(encoder: Encoder, seen: bool, count: int, found: Recall, shown: dict[str, float]) -> str:
    """In a sentence or two what the figures say."""
    if seen:
        return "It has seen all of these images, since the dataset is too small to hold any out: whether it can tell others is not known."
    text = (
        f"By the words of {count} images that it has not seen it finds the right one among the first 10 in {100 * found.share:.0f} % "
        f"(by chance {100 * found.chance:.0f} %)."
    )
    if found.low <= 2 * found.chance:
        return f"{text} This dataset is too small for it: search by words and ranking by it mean little."
    good = sorted(shown, key=lambda word: -shown[word])
    sure = [word for word in good if shown[word] >= 0.8]
    text += f" It tells {len(sure)} of {len(shown)} words well"
    weak = [word.split(JOIN)[0] for word in reversed(good) if shown[word] < 0.5][:5]
    return f"{text}; weak: {', '.join(weak)}." if weak else f"{text}."
