"""One training: weights, optimizer, average, and the step. Knows no file and no clock but the slice's."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..errors import UserError, is_out_of_memory
from ..model import aside
from ..model.aside import Aside
from ..model.diffusion import Diffusion, uint8_to_model
from ..model.loss import loss_per_image, timestep_weights
from ..model.unet import DropoutSource, UNet
from . import how as hows
from . import precision
from .captured import CapturedStep
from .how import How
from .mixed import CastCopy
from .muon import Muon, is_hidden
from .pictures import open_pictures, to_device
from .random import DataOrder, generator, mix
from .settings import RunConfig

if TYPE_CHECKING:
    from .distributed import Team
    from .flat import FlatUpdate

# streams of random numbers, so that a new one does not shift the others
_WEIGHTS, _NOISE, _DROPOUT, _TIMES = 11, 12, 13, 14

Say = Callable[[str], None]


@dataclass(frozen=True)
class SliceResult:
    """What a slice of steps did. ``loss`` is the mean unweighted loss of its images; ``finite`` whether all was well."""

    steps: int
    loss: float
    seconds: float
    finite: bool


class _Marked(nn.Module):
    """The network, and what tells it that a picture is mirrored: absent, and so zero, when sampling."""

    def __init__(self, net: UNet, device: torch.device) -> None:
        super().__init__()
        self.net = net
        self.flip_mark = nn.Parameter(torch.zeros(4 * net.config.block_out_channels[0], device=device))

    def forward(self, x: Tensor, times: Tensor, flips: Tensor, dropout: DropoutSource) -> Tensor:
        mark = flips[:, None].to(x.dtype) * self.flip_mark.to(x.dtype)
        return self.net(x, times, dropout, mark)  # type: ignore[no-any-return]


class Trainer:
    """Trains a U-Net on uint8 images (N, C, H, W), held on the device or streamed to it.

    ``step`` counts finished steps. All randomness is a function of (seed, step), so the state is weights, average,
    optimizer moments, step and learning-rate scale, nothing else. With a ``team`` this process does its part of each
    batch; the leader's :meth:`run_slice` and :meth:`load_state` take the followers along.
    """

    def __init__(
        self,
        config: RunConfig,
        images: Tensor,
        device: torch.device | str,
        say: Say = lambda text: None,
        rows: Tensor | None = None,
        team: Team | None = None,
        how: How | None = None,
    ) -> None:
        """``images`` on the CPU, perhaps memory-mapped; ``rows``: indices of those to train on, all by default; ``how`` a step is
        computed, the fastest way that works by default."""
        self.config = config
        self.device = torch.device(device)
        self.say = say
        self.settings = settings = config.train
        self.precision = precision.choose(settings.precision, self.device)
        self.dtype = precision.DTYPES[self.precision]
        self.team = team
        self.part = slice(0, settings.batch_size) if team is None else team.part(settings.batch_size)
        seed = settings.seed
        if how is None:
            how = hows.fastest(self.device, self.precision) if team is None else hows.plain(self.device)
        self.net = UNet(config.model.unet, self.device, generator("cpu", seed, _WEIGHTS), ways=how.network)
        self.ema = UNet(config.model.unet, self.device, generator("cpu", seed, _WEIGHTS), ways=how.network)
        for parameter in self.ema.parameters():
            parameter.requires_grad_(False)
        marked = _Marked(self.net, self.device)
        self.flip_mark = marked.flip_mark
        self._network = marked if team is None else team.join(marked)
        # a team averages the gradients of the network's own weights
        self._cast = CastCopy(marked, self.dtype) if team is None and self.dtype != torch.float32 else None
        self.diffusion = Diffusion(config.model.diffusion, self.device)
        self.weights = timestep_weights(settings.weighting, self.diffusion, settings.snr_gamma)
        rows = torch.arange(len(images)) if rows is None else rows
        self.order = DataOrder(len(rows), settings.batch_size, seed)
        self.pictures = open_pictures(settings.pictures, images, rows, self._indices, self.device)
        self._images, self._rows = images, rows
        self.parameters = [*self.net.parameters(), self.flip_mark]
        if how.network.fused:
            say("Preparing GPU kernels for this network; the first time this takes up to a minute.")
        # a captured step reads changing numbers from tensors
        self._captured = (
            CapturedStep(self._inner_step, self.device, say, self._forget_gradients) if how.captured else None
        )
        tensors = how.captured or how.flat
        self._rate = torch.zeros((), device=self.device) if tensors else None
        self._share = torch.zeros((), device=self.device) if tensors else None
        self._aside = Aside(self.device) if how.aside else None
        self._flat = self._make_flat(how.aside) if how.flat else None
        self.optimizer: torch.optim.Optimizer = self._make_optimizer() if self._flat is None else self._flat
        self.step = 0
        self.lr_scale = 1.0
        self.pieces = 1
        self.seconds_per_step = 0.0
        self._loss_sum = torch.zeros((), device=self.device)
        self._bad = torch.zeros((), device=self.device)
        self._scaler = _make_scaler(self.device) if self.precision == "fp16" else None
        self._noise = torch.Generator(device=self.device)
        self._dropout = torch.Generator(device=self.device)
        # fused kernels compute dropout masks from seeds
        self._seeds: Tensor | None = None
        if how.network.fused and config.model.unet.dropout:
            self._seeds = torch.zeros((self.net.blocks, 4), dtype=torch.int32, device=self.device)

    # -- the step ---------------------------------------------------------------------------------------------------

    def _indices(self, step: int) -> Tensor:
        return self.order.batch(step)[self.part]

    def _draw(self, step: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """This process's part of the batch of a step: images in [-1, 1], flags of mirroring, timesteps, noise."""
        batch = self.settings.batch_size
        cpu = generator("cpu", self.settings.seed, _TIMES, step)
        flips = torch.rand(batch, generator=cpu, device="cpu") < self.settings.flip_probability
        # one timestep from each of `batch` equal strata: less variance than independent draws, the same mean
        strata = torch.randperm(batch, generator=cpu, device="cpu") + torch.rand(batch, generator=cpu, device="cpu")
        total = self.config.model.diffusion.timesteps
        times = (strata / batch * total).long().clamp_(max=total - 1)
        flips, times = (to_device(values[self.part], self.device) for values in (flips, times))
        x0 = uint8_to_model(self.pictures.batch(step))
        x0 = torch.where(flips[:, None, None, None], x0.flip(3), x0)
        self._noise.manual_seed(mix(self.settings.seed, _NOISE, step))
        noise = torch.randn((batch, *x0.shape[1:]), generator=self._noise, device=self.device)[self.part]
        return x0, flips, times, noise

    def _train_step(self) -> None:
        settings, team = self.settings, self.team
        drawn = self._draw(self.step)
        numbers = [settings.seed, _DROPOUT, self.step, *([] if team is None else [team.rank])]
        if self._seeds is None:
            self._dropout.manual_seed(mix(*numbers))
        else:
            shape, most = tuple(self._seeds.shape), 2**31
            drawn_seeds = torch.randint(-most, most, shape, generator=generator("cpu", *numbers), device="cpu")
            self._seeds.copy_(to_device(drawn_seeds.int(), self.device), non_blocking=True)
        self._set_rates()
        if self._captured is not None and self.pieces == 1:
            self._captured(*drawn)
        else:
            self._inner_step(*drawn)
        self.step += 1

    def _set_rates(self) -> None:
        """Set the step's learning rate and the weight of the new values in the average."""
        rate = self.settings.learning_rate_at(self.step) * self.lr_scale
        self._taken = 1.0 - self.settings.ema_decay_at(self.step)
        if self._rate is not None and self._share is not None:
            self._rate.fill_(rate)
            self._share.fill_(self._taken)
            return
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    def _inner_step(self, x0: Tensor, flips: Tensor, times: Tensor, noise: Tensor) -> None:
        """Gradients, update and average for one batch. Changes state in place and never waits for the device: can be captured."""
        settings, team = self.settings, self.team
        # gradients are averaged over the processes, each of which has the sum of its part
        share = settings.batch_size / (1 if team is None else team.size)
        loss_sum = torch.zeros((), device=self.device)
        if self._flat is not None:
            self._flat.take_weights()
        elif self._cast is not None:
            self._cast.take_weights()
        network = self._network if self._cast is None else self._cast.network
        dropout = self._dropout if self._seeds is None else self._seeds
        mine = len(x0)
        size = -(-mine // self.pieces)
        for start in range(0, mine, size):
            part = slice(start, start + size)
            noisy = self.diffusion.add_noise(x0[part], noise[part], times[part])
            target = self.diffusion.target(x0[part], noise[part], times[part])
            # of several pieces only the last one's backward takes the gradients around
            with nullcontext() if team is None or start + size >= mine else self._network.no_sync():  # type: ignore[operator]
                # further pieces add to the gradients of the first, in the first stream
                with aside.using(self._aside if self.pieces == 1 else None):
                    output = network(noisy.to(self.dtype), times[part], flips[part], dropout)
                losses = loss_per_image(settings.loss, output, target)
                weighted = (losses * self.weights[times[part]]).sum() / share
                torch.autograd.backward(weighted if self._scaler is None else self._scaler.scale(weighted))
            if self._aside is not None:
                self._aside.join()
            # a flat update takes the gradients of an undivided batch as they are
            if self._cast is not None and (self._flat is None or self.pieces > 1):
                self._cast.hand_gradients_over()
            loss_sum += losses.detach().sum()
        self._update(loss_sum / settings.batch_size)

    def _update(self, loss: Tensor) -> None:
        if self._flat is not None:
            norm = self._flat.update(handed_over=self.pieces > 1)
            self._bad += (~(torch.isfinite(loss) & torch.isfinite(norm))).float()
            self._loss_sum += loss
            return
        if self._scaler is not None:
            self._scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.parameters, self.settings.gradient_clip)
        finite = torch.isfinite(loss) if self._scaler is not None else torch.isfinite(loss) & torch.isfinite(norm)
        self._bad += (~finite).float()
        if self._scaler is None:
            self.optimizer.step()
        else:
            self._scaler.step(self.optimizer)
            self._scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        average: list[Tensor] = list(self.ema.parameters())
        weights: list[Tensor] = list(self.net.parameters())
        with torch.no_grad():
            if self._share is None:
                torch._foreach_lerp_(average, weights, self._taken)
            else:
                ahead = torch._foreach_sub(weights, average)
                torch._foreach_mul_(ahead, self._share)
                torch._foreach_add_(average, list(ahead))
        self._loss_sum += loss

    def _make_flat(self, aside: bool) -> FlatUpdate:
        from .flat import FlatUpdate

        assert self._rate is not None and self._share is not None
        names, parameters = zip(*self._named())
        averages = dict(self.ema.named_parameters())
        if self._cast is None:
            computed: Sequence[nn.Parameter] = parameters
        else:
            copies: Any = self._cast.network
            computed = [*copies.net.parameters(), copies.flip_mark]
        muon = self.settings.optimizer == "muon"
        return FlatUpdate(
            parameters,
            [averages.get(name) for name in names],
            computed,
            lambda i: muon and is_hidden(names[i], parameters[i]),
            self.settings,
            self._rate,
            self._share,
            aside=aside,
        )

    def _make_optimizer(self) -> torch.optim.Optimizer:
        settings = self.settings
        hidden = [p for name, p in self.net.named_parameters() if settings.optimizer == "muon" and is_hidden(name, p)]
        taken = set(map(id, hidden))
        rest = _make_adamw([p for p in self.parameters if id(p) not in taken], self.config, self._rate)
        # on a CPU float32's form of the iterations is the faster one; fp16's range is too small for them
        dtype = torch.bfloat16 if self.precision == "bf16" and self.device.type == "cuda" else torch.float32
        return Muon(hidden, rest, settings.muon_ratio, dtype=dtype) if hidden else rest

    def run_slice(self, max_steps: int, seconds: float) -> SliceResult:
        """Train for about ``seconds`` (at least one step, at most ``max_steps``), ending in a synchronisation.

        Out of memory is met by splitting the batch further and doing the step again, which changes nothing else.
        """
        guess = int(seconds / self.seconds_per_step) if self.seconds_per_step else 1
        steps = max(1, min(max_steps, guess))
        if self.team is not None:
            self.team.announce_steps(steps)
        return self.run_steps(steps)

    def run_steps(self, steps: int) -> SliceResult:
        """Exactly so many steps, ending in a synchronisation."""
        self._loss_sum.zero_()
        self._bad.zero_()
        began = time.perf_counter()
        with nullcontext() if self.team is None else self.team.reaching():
            for _ in range(steps):
                self._step_splitting()
            sums = torch.stack([self._loss_sum, self._bad])
            if self.team is not None:
                self.team.sum(sums)
            loss, bad = sums.tolist()  # the slice's one device-to-host copy
        elapsed = time.perf_counter() - began
        self.seconds_per_step = elapsed / steps
        return SliceResult(steps, loss / steps, elapsed, bad == 0)

    def _step_splitting(self) -> None:
        while True:
            try:
                return self._train_step()
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error) or self.pieces >= self.settings.batch_size:
                    raise
                if self.team is not None:  # the others are in the middle of this step
                    raise UserError(
                        "A process ran out of memory; use a smaller --batch-size or more processes. What was saved is intact."
                    ) from None
            self._forget_gradients()
            for parameter, state in list(self.optimizer.state.items()):
                if not {"exp_avg_sq", "momentum"} & set(state):  # the memory ran out while its first step made them
                    del self.optimizer.state[parameter]
            if self._scaler is not None:  # it refuses to unscale twice in one step
                self._scaler._per_optimizer_states.clear()
            self.pieces = min(self.pieces * 2, self.settings.batch_size)
            if self._captured is not None:
                self._captured.drop()
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            self.say(
                f"Out of memory: continuing with the same batch of {self.settings.batch_size} in {self.pieces} pieces."
            )

    def _forget_gradients(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        if self._cast is not None:
            self._cast.forget_gradients()

    def some_pictures(self, count: int) -> Tensor:
        """The first of those trained on, uint8 (at most ``count``, C, H, W), on the CPU."""
        return self._images[self._rows[:count]]

    # -- state ------------------------------------------------------------------------------------------------------

    def state_tensors(self) -> dict[str, Tensor]:
        """Everything needed to go on exactly, by name, on the CPU and contiguous (copies)."""
        found: dict[str, Tensor] = {}
        for prefix, net in (("net.", self.net), ("ema.", self.ema)):
            for name, value in net.named_parameters():
                found[prefix + name] = value.detach()
        found["flip_mark"] = self.flip_mark.detach()
        for name, parameter in self._named():
            for key, value in self.optimizer.state.get(parameter, {}).items():
                found[f"optimizer.{key}.{name}"] = value
        return {name: value.to("cpu", copy=True).contiguous() for name, value in found.items()}

    def _named(self) -> list[tuple[str, Tensor]]:
        return [*self.net.named_parameters(), ("flip_mark", self.flip_mark)]

    def state_numbers(self) -> dict[str, float | int]:
        scale = {}
        if self._scaler is not None:
            growth = self._scaler.state_dict().get("_growth_tracker", 0)  # steps since the scale last changed
            scale = {"loss_scale": self._scaler.get_scale(), "loss_scale_steps": growth}
        return {"step": self.step, "lr_scale": self.lr_scale, "pieces": self.pieces, **scale}

    def empty_state(self, with_moments: bool) -> dict[str, Tensor]:
        """Tensors of the shapes of :meth:`state_tensors`, to be filled."""
        names = [(name, parameter.shape) for name, parameter in self._named()]
        found = {prefix + name: torch.zeros(shape) for name, shape in names[:-1] for prefix in ("net.", "ema.")}
        found["flip_mark"] = torch.zeros(names[-1][1])
        for name, shape in names if with_moments else []:
            if isinstance(self.optimizer, Muon) and self.optimizer.has(dict(self._named())[name]):
                found[f"optimizer.momentum.{name}"] = torch.zeros(shape)
                continue
            found[f"optimizer.step.{name}"] = torch.zeros(())
            found[f"optimizer.exp_avg.{name}"] = torch.zeros(shape)
            found[f"optimizer.exp_avg_sq.{name}"] = torch.zeros(shape)
        return found

    def load_state(self, tensors: dict[str, Tensor], numbers: dict[str, float | int]) -> None:
        """The inverse of :meth:`state_tensors` and :meth:`state_numbers`; KeyError or ValueError where they do not fit."""
        self.take_state(tensors, numbers)
        if self.team is not None:
            self.team.share_state(self)

    @torch.no_grad()
    def take_state(self, tensors: dict[str, Tensor], numbers: dict[str, float | int]) -> None:
        """:meth:`load_state` for this process alone."""
        for prefix, net in (("net.", self.net), ("ema.", self.ema)):
            net.load_tensors({k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)})
        self.flip_mark.copy_(_fitting(tensors, "flip_mark", self.flip_mark.shape))
        if self._flat is not None:
            self._flat.forget()
        else:
            if self._captured is not None:  # the moments move
                self._captured.drop()
            self.optimizer.state.clear()
        for name, parameter in self._named():
            for key in ("step", "exp_avg", "exp_avg_sq", "momentum"):
                place = f"optimizer.{key}.{name}"
                if place not in tensors:
                    continue
                value = _fitting(tensors, place, torch.Size() if key == "step" else parameter.shape)
                if self._flat is not None:
                    if key in self._flat.state[parameter]:
                        self._flat.state[parameter][key].copy_(value)
                    continue
                if key == "step":
                    ready = value.to(self.device if self.optimizer.defaults.get("fused") else "cpu", copy=True)
                else:
                    ready = torch.empty_like(parameter).copy_(value)  # in the parameter's memory format
                self.optimizer.state[parameter][key] = ready
        step, lr_scale, pieces = int(numbers["step"]), float(numbers["lr_scale"]), int(numbers["pieces"])
        if not (0 <= step < 2**53 and 0.0 < lr_scale <= 1.0 and 1 <= pieces <= self.settings.batch_size):
            raise ValueError("its step, learning rate or pieces cannot be")
        self.step, self.lr_scale, self.pieces = step, lr_scale, pieces
        if self._scaler is not None and "loss_scale" in numbers:
            scaler = {"scale": float(numbers["loss_scale"]), "_growth_tracker": int(numbers.get("loss_scale_steps", 0))}
            self._scaler.load_state_dict({**self._scaler.state_dict(), **scaler})

    def start_from(self, weights: dict[str, Tensor]) -> None:
        """Begin a new run from the weights of a model."""
        self.net.load_tensors(weights)
        self.ema.load_tensors(weights)
        if self.team is not None:
            self.team.share_state(self)

    def free(self) -> None:
        """Give the device's memory back."""
        if self._captured is not None:
            self._captured.drop()
        if self._flat is not None:
            self._flat.free()
        for holder in (self.net, self.ema):
            for parameter in holder.parameters():
                parameter.data = torch.empty(0)
                parameter.grad = None
        if self._cast is not None:
            self._cast.free()
        self.optimizer.state.clear()
        self.pictures.close()
        self._images = torch.empty(0)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def _fitting(tensors: dict[str, Tensor], name: str, shape: torch.Size) -> Tensor:
    """A tensor of a checkpoint; KeyError or ValueError where there is none of that shape."""
    found = tensors[name]
    if found.shape != shape or not found.is_floating_point():
        raise ValueError(f"{name} is {found.dtype} {list(found.shape)}, not of shape {list(shape)}")
    return found


def _make_adamw(parameters: list[nn.Parameter], config: RunConfig, rate: Tensor | None) -> torch.optim.AdamW:
    """``rate``: a tensor that holds the learning rate, for a captured step."""
    settings = config.train
    options = {
        "lr": settings.learning_rate if rate is None else rate,
        "betas": (settings.beta1, settings.beta2),
        "weight_decay": settings.weight_decay,
        "capturable": rate is not None,
    }
    try:
        return torch.optim.AdamW(parameters, fused=True, **options)  # type: ignore[arg-type]
    except RuntimeError:  # torch before 2.4 has it for CUDA only
        return torch.optim.AdamW(parameters, foreach=True, **options)  # type: ignore[arg-type]


def _make_scaler(device: torch.device) -> Any:
    """torch.amp.GradScaler, which torch before 2.3 has for CUDA only and under another name."""
    if hasattr(torch.amp, "GradScaler"):
        return torch.amp.GradScaler(device.type)
    return torch.cuda.amp.GradScaler()
