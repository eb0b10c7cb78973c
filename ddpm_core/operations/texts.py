"""Texts read by the host's text encoder, for a training and for a sampling."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

import torch

from ..errors import Stopped, UserError
from ..model.config import TextConfig
from ..model.text import TextEncoder, mean_token
from ..model.values import Shared
from .context import Context

# texts that a training draws from for an image; token by token they are large
VARIANTS = {"pooled": 4, "cross-attention": 2}
_AT_ONCE = 16  # texts to an encoder
_MOST_HALF = 65504.0


def variants(text: str, count: int) -> tuple[str, ...]:
    """A text and ``count`` - 1 shorter ones, of some of its pieces in their order, the same at every try. People ask for less than a
    prompt says, and a training that saw whole prompts only would not know what to do; nor can the whole be the key to one image."""
    pieces, joint = [piece for piece in text.split(", ") if piece], ", "
    if len(pieces) == 1:  # a sentence
        pieces, joint = text.split(), " "
    if len(pieces) < 2:
        return (text,) * count
    random = Random(text)
    found = [text]
    for _ in range(count - 1):
        some = sorted(random.sample(range(len(pieces)), random.randint(1, len(pieces) - 1)))
        found.append(joint.join(pieces[i] for i in some))
    return tuple(found)


def shared(texts: Sequence[Sequence[str]], config: TextConfig, context: Context) -> Shared:
    """What the encoder makes of each image's texts, one row for each that is distinct; zeros for an empty one, for which no encoder is needed.

    UserError where the host has no encoder, or another one than the model's.
    """
    different = sorted({text for each in texts for text in each if text})
    table = torch.zeros((1 + len(different), *config.shape), dtype=torch.float16)
    if different:
        encoder = encoder_of(config, context)
        for start in range(0, len(different), _AT_ONCE):
            if context.stop.is_set():
                raise Stopped("Stopped while the prompts were read by the text encoder.")
            context.progress(start, len(different), "Reading prompts")
            with context.gpu_slice():
                tokens = encoder.encode(different[start : start + _AT_ONCE])
            if tokens.shape[1:] != (config.tokens, config.width) or not bool(torch.isfinite(tokens).all()):
                raise UserError(
                    f"The text encoder {encoder.name} gave no usable answer; load its checkpoint again, or train with tags."
                )
            told = tokens if config.reading == "cross-attention" else mean_token(tokens)
            table[1 + start : 1 + start + len(told)] = told.clamp(-_MOST_HALF, _MOST_HALF).half()
    place = {text: i for i, text in enumerate(different, 1)}
    return Shared(table, torch.tensor([[place.get(text, 0) for text in each] for each in texts], dtype=torch.int64))


def encoder_of(config: TextConfig, context: Context) -> TextEncoder:
    """The host's text encoder; UserError where it is not the model's."""
    with context.gpu_slice():
        encoder = context.text_encoder()
    if encoder.fingerprint != config.fingerprint and _weights(encoder.fingerprint) == _weights(config.fingerprint):
        raise UserError(
            f"This model reads prompts with the Clip skip {config.fingerprint.rpartition('-skip')[2]} that it was trained with; set that "
            "in the WebUI's settings, or leave the prompts empty."
        )
    if encoder.fingerprint != config.fingerprint or (encoder.tokens, encoder.width) != (config.tokens, config.width):
        raise UserError(
            f"This model reads prompts by the text encoder of {config.name}, and the one that is loaded, of {encoder.name}, is another; "
            "choose that checkpoint in the WebUI, or leave the prompts empty."
        )
    return encoder


def _weights(fingerprint: str) -> str:
    return fingerprint.rpartition("-skip")[0] or fingerprint
