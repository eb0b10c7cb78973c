"""What a sampling asks its network for: a person's prompts, as the model can be told them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from PIL import Image

from ..dataset.tags import Vocabulary, plain_text
from ..errors import UserError
from ..model.config import ModelConfig
from ..model.values import Values
from ..requests import Prompt
from ..sampling.generate import SampleSettings
from ..sampling.guidance import Asked
from .context import Context
from .loading import unwritten
from .texts import shared


@dataclass
class Question:
    """``asked`` of the network, None where there is nothing to ask for; the model's ``words`` of all prompts, and those ``unknown`` to
    it, each with the nearest that it knows, or ""."""

    asked: Asked | None = None
    words: list[str] = field(default_factory=list)
    unknown: list[tuple[str, str]] = field(default_factory=list)


def read(
    config: ModelConfig,
    prompts: Sequence[Prompt],
    scale: float,
    context: Context,
    settings: SampleSettings | None = None,
    like: Sequence[Image.Image] = (),
) -> Question:
    """One prompt for each image. ``settings``: of the sampling, whose seeds a prior draws by; ``like``: images that each shall be like, in turn,
    instead of prompts. UserError where the model needs an encoder that is not there."""
    found = Question()
    positive: dict[str, Values] = {}
    negative: dict[str, Values] = {}
    wanted = config.image
    encoder = None
    if wanted is not None and (like or any(unwritten(p.text + p.negative) for p in prompts)):
        encoder = context.image_encoder(wanted, context)
    if like:
        if encoder is None or wanted is None:
            raise UserError(
                "This model cannot make variations of an image; train one that is told what its images are like (Prompts: image)."
            )
        places = torch.stack([encoder.embed_image(one) for one in like]) * wanted.width**0.5
        values = places[torch.arange(len(prompts)) % len(places)]
        found.asked = Asked({"image": values}, None, scale)
        return found
    entries = encoder.vocabulary.entries if encoder is not None else config.tags
    if entries:
        known = Vocabulary(entries)
        matches = {p: (known.match(p.text), known.match(p.negative)) for p in dict.fromkeys(prompts)}
        found.words = list(dict.fromkeys(word for one, _ in matches.values() for word in one.words))
        found.unknown = list(dict(pair for both in matches.values() for one in both for pair in one.unknown).items())
        if any(one.words or other.words for one, other in matches.values()):
            sides = [
                torch.tensor([matches[prompt][side].values for prompt in prompts], dtype=torch.float32)
                for side in (0, 1)
            ]
            if encoder is None or wanted is None:
                positive["tags"], negative["tags"] = sides
            else:
                drawn = encoder.draw(sides[0], sides[1], settings or SampleSettings()) * wanted.width**0.5
                positive["image"] = drawn * (sides[0] != 0).any(1, keepdim=True)
    if config.text is not None:
        texts = [plain_text(prompt.text) for prompt in prompts]
        others = [plain_text(prompt.negative) for prompt in prompts]
        if any(texts) or any(others):
            both = shared([(text,) for text in (*texts, *others)], config.text, context)
            positive["text"], negative["text"] = both[: len(texts)], both[len(texts) :]
    if positive:
        found.asked = Asked(positive, negative, scale)
    return found


def say_unknown(
    title: str, config: ModelConfig, prompts: Sequence[Prompt], unknown: Sequence[tuple[str, str]], context: Context
) -> None:
    """Tell the person which of their words change nothing."""
    if not any(unwritten(prompt.text + prompt.negative) for prompt in prompts):
        return
    if not config.takes_prompts:
        context.say(f"{title} was trained without prompts; the prompt changes nothing.")
    elif unknown:
        named = ", ".join(f"{word!r} (nearest: {near!r})" if near else repr(word) for word, near in unknown[:5])
        more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
        context.say(f"{title} does not know {named}{more}.")
