"""Models and images that the pages look at: opened when they are asked for, few at once, given back when nobody looks any more."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from ..dataset.packing import Packed, pack
from ..errors import UserError
from ..host.base import Host
from ..model import file as model_file
from ..model.build import network_of
from ..model.config import ModelConfig
from ..model.diffusion import Diffusion, model_to_uint8
from ..model.network import Network
from ..operations.context import Context
from ..operations.encoding import encoders
from ..operations.loading import learned_from
from ..options import CROPS
from ..sampling.generate import SampleSettings, generate
from ..sampling.memoriser import Memoriser
from ..training import precision
from ..workspace import Workspace

_MOST_OPEN = 2  # models, and sets of images
IDLE_SECONDS = 300.0
_MOST_VALUES = 2**24  # of the images that a memoriser knows: 5,461 of 32 pixels, 1,365 of 64
_STAND_INS = 8
_BATCH = 8  # as quick as larger ones on a CPU

T = TypeVar("T")


@dataclass(eq=False)
class Opened:
    """A model to look into. ``predict`` and ``network`` take x (N, C, H, W) float32 and timesteps (N,), on its device."""

    name: str
    config: ModelConfig
    net: Network
    diffusion: Diffusion
    about: Mapping[str, str]
    context: Context
    dtype: torch.dtype

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of an image."""
        return self.config.denoised

    @property
    def timesteps(self) -> int:
        """T."""
        return self.config.diffusion.timesteps

    def network(self, x: Tensor, timesteps: Tensor, told: Mapping[str, Tensor] | None = None) -> Tensor:
        """Its answer, (N, C, H, W) float32, in small batches, each within a turn at the device."""
        found = []
        with torch.no_grad():
            for first in range(0, len(x), _BATCH):
                rows = slice(first, first + _BATCH)
                some = None if told is None else {name: values[rows] for name, values in told.items()}
                with self.context.gpu_slice():
                    found.append(self.net(x[rows].to(self.dtype), timesteps[rows], told=some).float())
        return torch.cat(found)

    def predict(self, x: Tensor, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """Predicted image and noise, on the CPU; x on the CPU."""
        device = self.net.device
        x, timesteps = x.to(device), timesteps.to(device)
        x0, epsilon = self.diffusion.to_x0_and_epsilon(self.network(x, timesteps), x, timesteps)
        return x0.cpu(), epsilon.cpu()

    def at(self, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """alpha = sqrt(abar) and sigma = sqrt(1 - abar) at timesteps (N,), each (N, 1, 1, 1) on the CPU."""
        tables = (self.diffusion.sqrt_alpha, self.diffusion.sqrt_one_minus_alpha)
        alpha, sigma = (table.cpu()[timesteps][:, None, None, None] for table in tables)
        return alpha, sigma


@dataclass(eq=False)
class Images:
    """Images of a dataset as a model sees them, uint8 (N, C, H, W); or, without a dataset, of the model's own making (``stand_in``).

    ``own``: the very images that the model learned from. ``train``, ``held``: rows to train on and held-out rows.
    """

    dataset: str
    images: Tensor
    train: Tensor
    held: Tensor
    stand_in: bool
    own: bool

    def order(self) -> Tensor:
        """All rows, the held-out ones first: of these the network was shown nothing."""
        return torch.cat([self.held, self.train])

    def one(self, number: int) -> Tensor:
        """One image (1, C, H, W), uint8, by its number in :meth:`order`."""
        return self.images[self.order()[number % len(self.images)]][None]

    def is_held(self, number: int) -> bool:
        """Whether that one is held out."""
        return number % len(self.images) < len(self.held)


class Desk:
    """What is open. All pages of a server share it, one question at a time."""

    def __init__(self, host: Host, workspace: Callable[[], Workspace]) -> None:
        self._host, self._workspace = host, workspace
        self._turn = threading.RLock()
        self._open_models: OrderedDict[object, Opened] = OrderedDict()
        self._open_images: OrderedDict[object, Images] = OrderedDict()
        self._known: OrderedDict[object, Memoriser] = OrderedDict()
        self._used = 0.0
        self._timer: threading.Timer | None = None

    @property
    def workspace(self) -> Workspace:
        """The server's, as it is now."""
        return self._workspace()

    @property
    def model_is_open(self) -> bool:
        """Whether any is."""
        return bool(self._open_models)

    @contextmanager
    def turn(self) -> Iterator[None]:
        """One question's turn; what is open is kept for some minutes after it."""
        with self._turn:
            self._used = time.monotonic()
            try:
                yield
            finally:
                self._used = time.monotonic()
                if self._timer is None:
                    self._wait(IDLE_SECONDS)

    def _wait(self, seconds: float) -> None:
        self._timer = threading.Timer(seconds, self._look)
        self._timer.daemon = True
        self._timer.start()

    def _look(self) -> None:
        with self._turn:
            left = self._used + IDLE_SECONDS - time.monotonic()
            self._timer = None
            if left > 0:
                self._wait(left)
            else:
                self.release()

    def release(self) -> None:
        """Give the memory back."""
        with self._turn:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            on_cuda = any(one.net.device.type == "cuda" for one in self._open_models.values())
            for kept in (self._open_models, self._open_images, self._known):
                kept.clear()
            if on_cuda:
                with self._host.gpu_slice():
                    torch.cuda.empty_cache()

    def model(self, name: str) -> Opened:
        """A model of the workspace; UserError for none, and for one that makes no images."""
        if not name:
            raise UserError("Choose a model first: train one in the Train tab.")
        path = self.workspace.model_path(name)
        status = path.stat()
        return _kept(self._open_models, (path, status.st_mtime_ns, status.st_size), lambda: self._open(name))

    def _open(self, name: str) -> Opened:
        loaded = model_file.load(self.workspace.model_path(name))
        if loaded.config.kind != "unet":
            raise UserError(f"{name} makes no images; choose a model that does.")
        device = self._host.device()
        context = Context(
            device,
            self._host.gpu_slice,
            text_encoder=self._host.text_encoder,
            image_encoder=encoders(lambda: self.workspace),
        )
        with context.gpu_slice():
            net = network_of(loaded.config, loaded.weights, device)
            diffusion = Diffusion(loaded.config.diffusion, device)
        about = model_file.known_of(loaded.info)
        return Opened(name, loaded.config, net, diffusion, about, context, precision.of_sampling(device))

    def images(self, model: Opened, dataset: str = "") -> Images:
        """Images for a model: of the named dataset, of its own, or else some that it makes."""
        own = learned_from(self.workspace, model.about)
        dataset = dataset or (own[0] if own else "")
        if not dataset:
            return _kept(self._open_images, model, lambda: self._stand_ins(model))
        store = self.workspace.store(dataset)
        fingerprint = store.fingerprint()
        crop = model.about.get("crop", "center")
        size = model.config.image_size

        def read() -> Images:
            packed: Packed = pack(store, size, crop if crop in CROPS else "center", grey=model.config.is_grey)
            own = fingerprint == model.about.get("fingerprint")
            return Images(dataset, packed.images, packed.train_rows, packed.held_rows, False, own)

        return _kept(
            self._open_images,
            (store.folder, fingerprint, size, crop, model.config.is_grey, model.about.get("fingerprint")),
            read,
        )

    def _stand_ins(self, model: Opened) -> Images:
        settings = SampleSettings(seed=0)
        found, _ = generate(model.network, model.diffusion, model.shape, _STAND_INS, settings, batch_size=_BATCH)
        rows = torch.arange(len(found))
        return Images("", model_to_uint8(found), rows, rows[:0], True, False)

    def memoriser(self, model: Opened, images: Images) -> Memoriser:
        """The one that knows the images to train on: all, or as many as it has room for."""
        most = max(1, _MOST_VALUES // images.images[0].numel())
        return _kept(
            self._known,
            (model, images),
            lambda: Memoriser(images.images[images.train[:most]], Diffusion(model.config.diffusion)),
        )


def _kept(kept: OrderedDict[object, T], key: object, make: Callable[[], T]) -> T:
    found = kept.pop(key) if key in kept else make()
    kept[key] = found
    while len(kept) > _MOST_OPEN:
        kept.popitem(last=False)
    return found
