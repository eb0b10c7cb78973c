"""An image-text encoder of the workspace, opened: what it makes of images and of words."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ..dataset.packing import fit
from ..dataset.tags import Vocabulary
from ..dataset.vectors import Sight
from ..errors import UserError
from ..model import adapter_file
from ..model import file as model_file
from ..model.build import network_of
from ..model.config import ContrastConfig, ImageConfig, ModelConfig
from ..model.contrast import Contrast, fit_of_words
from ..model.diffusion import Diffusion, uint8_to_model
from ..options import CROPS
from ..sampling.generate import SampleSettings, generate
from ..sampling.guidance import Asked
from ..workspace import Workspace
from .context import Context
from .editing import flattened
from .pictures import pixels_of

PRIOR_STEPS, PRIOR_SCALE = 20, 1.5


@dataclass(frozen=True)
class Encoder:
    """An opened image-text encoder."""

    name: str
    config: ModelConfig
    net: Contrast
    digest: str
    crop: str
    context: Context

    @property
    def vocabulary(self) -> Vocabulary:
        """The words that it knows."""
        return Vocabulary(self.config.tags)

    @property
    def sight(self) -> Sight:
        """By which it sees a dataset's images."""
        unet = self.config.unet
        assert isinstance(unet, ContrastConfig)
        return Sight(self.digest, unet.image_size, self.crop, unet.embedding_dim, self.embed_images)

    def embed_images(self, images: Tensor) -> Tensor:
        """uint8 (N, 3, H, W) of its size to (N, D) float32 of unit length, on the CPU; mirrored images are the same to it."""
        with self.context.gpu_slice(), torch.no_grad():
            x = uint8_to_model(images.to(self.net.device))
            return F.normalize(self.net.embed_images(x) + self.net.embed_images(x.flip(3)), dim=1).cpu()

    def embed_image(self, image: Image.Image) -> Tensor:
        """Any image to (D,)."""
        small = fit(flattened(image), self.sight.size, self.crop)
        return self.embed_images(pixels_of(small)[None])[0]

    def embed_words(self, words: Tensor) -> Tensor:
        """(N, K) weights to (N, D) float32 of unit length, on the CPU."""
        with self.context.gpu_slice(), torch.no_grad():
            return self.net.embed_words(words.to(self.net.device)).cpu()

    def draw(self, words: Tensor, unwanted: Tensor, settings: SampleSettings) -> Tensor:
        """Vectors (N, D) of unit length, on the CPU, of images that show ``words`` and not ``unwanted`` (N, K) each: the prior's, by the seeds of a
        sampling's ``settings``."""
        network, config = self.net, self.config

        def prior(x: Tensor, t: Tensor, *, told: Mapping[str, Tensor] | None = None) -> Tensor:
            with self.context.gpu_slice():
                return network(x, t, told=told)  # type: ignore[no-any-return]

        own = SampleSettings(
            steps=PRIOR_STEPS,
            seed=settings.seed,
            clip=False,  # a vector is no image
            variation_seed=settings.variation_seed,
            variation_strength=settings.variation_strength,
        )
        with self.context.gpu_slice():
            diffusion = Diffusion(config.diffusion, network.device)
        asked = Asked({"tags": words}, {"tags": unwanted}, PRIOR_SCALE)
        found, _ = generate(prior, diffusion, config.denoised, len(words), own, batch_size=4096, asked=asked)
        return F.normalize(found.flatten(1), dim=1)

    def fit_of(self, vectors: Tensor, words: Tensor) -> Tensor:
        """How well images (N, D) fit the words (K,) that are asked for, (N,): the mean over the words, each weighted."""
        asked = words.nonzero()[:, 0]
        each = self.embed_words(torch.eye(len(words))[asked])
        return fit_of_words(vectors, each) @ (words[asked] / words[asked].abs().sum())


def open_encoder(workspace: Workspace, name: str, context: Context) -> Encoder:
    """UserError where the model is none."""
    path = workspace.model_path(name)
    loaded = model_file.load(path)
    if loaded.config.kind != "contrast":
        raise UserError(f"{path.stem} is no image-text encoder; train one with the preset contrast.")
    with context.gpu_slice():
        net = network_of(loaded.config, loaded.weights, context.device)
    assert isinstance(net, Contrast)
    crop = str(model_file.known_of(loaded.info).get("crop", "center"))
    digest = adapter_file.digest_of(loaded.weights)
    return Encoder(path.stem, loaded.config, net, digest, crop if crop in CROPS else "center", context)


def encoders(workspace: Callable[[], Workspace]) -> Callable[[ImageConfig, Context], Encoder]:
    """For a context: opens the encoder in whose space a model is told its images, whatever it is called now. UserError where it is not there."""

    def opened(wanted: ImageConfig, context: Context) -> Encoder:
        name = workspace().encoder_by(wanted.fingerprint)
        if name is None:
            raise UserError(
                f"This model is told what an image is like by the image-text encoder {wanted.name}, which is not among the models here, or was "
                "trained further since; put it back, or leave out prompts and variations."
            )
        return open_encoder(workspace(), name, context)

    return opened
