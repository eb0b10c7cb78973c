"""Of several samples the one that fits its prompt best, by an image-text encoder."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import UserError
from ..model import file as model_file
from ..requests import Prompt
from ..workspace import Workspace
from .context import Context
from .encoding import Encoder, open_encoder
from .loading import learned_from

_MOST_AT_ONCE = 256


def chooser(
    workspace: Workspace, model: str, each: Sequence[Prompt], best_of: int, context: Context
) -> Callable[[Tensor], list[int]]:
    """For uint8 images (N, C, H, W), ``best_of`` for each of ``each`` in order (perhaps cut short): which to keep, one for each. UserError where
    nothing can judge them."""
    known = model_file.known_of(model_file.read_config(workspace.model_path(model))[1])
    dataset = learned_from(workspace, known)
    name = workspace.encoder_of(dataset[0] if dataset else str(known.get("dataset", "")))
    if name is None:
        raise UserError(
            "To choose the best of several, train an image-text encoder on the model's dataset first (preset contrast); or set Best of to 1."
        )
    encoder = open_encoder(workspace, name, context)
    matches = {prompt: words_of(encoder, prompt) for prompt in dict.fromkeys(each)}
    if not any(bool((words != 0).any()) for words in matches.values()):
        raise UserError(
            f"The best of several is the one that fits the prompt best: write words that {name} knows, or set Best of to 1."
        )

    def choose(pixels: Tensor) -> list[int]:
        found = []
        vectors = torch.cat(
            [encoder.embed_images(fitted(part, encoder)) for part in torch.split(pixels, _MOST_AT_ONCE)]
        )
        for place, prompt in enumerate(each):
            some = vectors[place * best_of : (place + 1) * best_of]
            if len(some):
                words = matches[prompt]
                fits = encoder.fit_of(some, words) if bool((words != 0).any()) else torch.zeros(len(some))
                found.append(place * best_of + int(fits.argmax()))
        return found

    return choose


def words_of(encoder: Encoder, prompt: Prompt) -> Tensor:
    """What a prompt asks of an encoder's words, (K,): positive for what is to be seen, negative for what is not."""
    known = encoder.vocabulary
    asked, unwanted = (torch.tensor(known.match(text).values) for text in (prompt.text, prompt.negative))
    return asked - torch.where(asked == 0, unwanted, torch.zeros(()))


def fitted(pixels: Tensor, encoder: Encoder) -> Tensor:
    """uint8 images (N, C, H, W) at an encoder's size, in colour: (N, 3, h, w)."""
    size = encoder.sight.size
    pixels = pixels.expand(-1, 3, -1, -1)
    if tuple(pixels.shape[2:]) == size:
        return pixels
    larger = F.interpolate(pixels.float(), size, mode="bicubic", align_corners=False, antialias=True)
    return larger.round().clamp(0, 255).to(torch.uint8)
