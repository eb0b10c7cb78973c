"""The inner step: gradients, update and average for one batch, on tensors that stay where they are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..model import aside
from ..model.aside import Aside
from ..model.network import DropoutSource, Network
from .batches import Batch
from .captured import CapturedStep
from .how import How
from .mixed import CastCopy
from .objective import Objective, Part
from .optimizers import make_optimizer, make_scaler
from .precision import DTYPES
from .settings import TrainSettings
from .state import Moments, Trainables, put_moments
from .team import Team
from .tuning import Adapted, Preserving

if TYPE_CHECKING:
    from .flat import FlatUpdate


class Step:
    """Computes one step, captured as a CUDA graph where ``how`` says so.

    ``sums``: the loss and the number of steps that were not finite, since they were last set to zero. ``pieces``: into how many
    parts a batch is divided for want of memory, which changes nothing else.
    """

    def __init__(
        self,
        network: Network,
        trainables: Trainables,
        objective: Objective,
        settings: TrainSettings,
        precision: str,
        how: How,
        team: Team | None,
        dropout: DropoutSource,
        say: Callable[[str], None],
        told: Sequence[str],
        adapted: Adapted | None = None,
        preserving: Preserving | None = None,
    ) -> None:
        """``told``: names of what the objective is told; ``adapted``: where the network's weights follow from what is trained; ``preserving``: where a part of each batch shall be answered as
        a base does."""
        self._adapted, self._preserving = adapted, preserving
        self.settings, self.objective, self.team = settings, objective, team
        self.device = device = network.device
        self.dtype = dtype = DTYPES[precision]
        self.pieces = 1
        self.sums = torch.zeros(2, device=device)
        self._trainables, self._dropout = trainables, dropout
        self._told = tuple(told)
        # a team averages the gradients of the network's own weights
        self.cast = CastCopy(network, dtype) if team is None and dtype != torch.float32 else None
        self._network: nn.Module = network if team is None else team.join(network)
        self._aside = Aside(device) if how.aside else None
        # a captured step reads changing numbers from tensors
        tensors = how.captured or how.flat
        self._rate = torch.zeros((), device=device) if tensors else None
        self._share = torch.zeros((), device=device) if tensors else None
        self._taken = 0.0
        self._flat = self._make_flat(how.aside) if how.flat else None
        # on a CPU float32's form of Muon's iterations is the faster one; fp16's range is too small for them
        muon = torch.bfloat16 if precision == "bf16" and device.type == "cuda" else torch.float32
        self.optimizer: torch.optim.Optimizer = (
            make_optimizer(trainables, settings, self._rate, muon) if self._flat is None else self._flat
        )
        self.scaler = make_scaler(device) if precision == "fp16" else None
        self.captured = CapturedStep(self.compute, device, say, self.forget_gradients) if how.captured else None

    def _make_flat(self, beside: bool) -> FlatUpdate:
        from .flat import FlatUpdate  # imports Triton

        assert self._rate is not None and self._share is not None
        cast = self.cast
        computed = [one.parameter if cast is None else cast.copy_of(one.parameter) for one in self._trainables]
        return FlatUpdate(list(self._trainables), computed, self.settings, self._rate, self._share, beside)

    def set_numbers(self, rate: float, taken: float) -> None:
        """The learning rate and the weight of the new values in the average, for the steps to come."""
        self._taken = taken
        if self._rate is not None and self._share is not None:
            self._rate.fill_(rate)
            self._share.fill_(taken)
            return
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    def __call__(self, batch: Batch) -> None:
        work = self.captured if self.captured is not None and self.pieces == 1 else self.compute
        work(batch.x0, batch.times, batch.noise, *(batch.told[name] for name in self._told))

    def compute(self, x0: Tensor, times: Tensor, noise: Tensor, *told: Tensor) -> None:
        """One step; ``told``: a value for each condition of the network. Changes state in place and never waits for the device: can
        be captured."""
        settings, team = self.settings, self.team
        # gradients are averaged over the processes, each of which has the sum of its part
        share = settings.batch_size / (1 if team is None else team.size)
        loss_sum = torch.zeros((), device=self.device)
        if self._adapted is not None:
            self._adapted.take_weights()
        if self._flat is not None:
            self._flat.take_weights()
        elif self.cast is not None:
            self.cast.take_weights()
        network = self._network if self.cast is None else self.cast.network
        mine = len(x0)
        size = -(-mine // self.pieces)
        for start in range(0, mine, size):
            part = slice(start, start + size)
            values = {name: value[part] for name, value in zip(self._told, told)}
            # of several pieces only the last one's backward takes the gradients around
            with nullcontext() if team is None or start + size >= mine else network.no_sync():  # type: ignore[operator]
                some = Part(x0[part], times[part], noise[part], values, self._dropout, start, self._beside)
                losses, minimised = self.objective(network, some)
                weighted = minimised.sum() / share
                torch.autograd.backward(weighted if self.scaler is None else self.scaler.scale(weighted))
            if self._aside is not None:
                self._aside.join()
            # a flat update takes the gradients of an undivided batch as they are
            if self.cast is not None and (self._flat is None or self.pieces > 1):
                self.cast.hand_gradients_over()
            own = len(losses) if self._preserving is None else self._preserving.own(len(losses), start)
            loss_sum += losses.detach()[:own].sum()
        if self._adapted is not None:
            self._adapted.hand_gradients_over()
        self._update(loss_sum / (settings.batch_size if self._preserving is None else self._preserving.new))

    def _beside(self) -> AbstractContextManager[object]:
        """Around the network's forward pass; further pieces add to the gradients of the first, in the first stream."""
        return aside.using(self._aside if self.pieces == 1 else None)

    def _update(self, loss: Tensor) -> None:
        if self._flat is not None:
            norm = self._flat.update(handed_over=self.pieces > 1)
            self._count(loss, torch.isfinite(loss) & torch.isfinite(norm))
            return
        if self.scaler is not None:
            self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self._trainables.parameters, self.settings.gradient_clip)
        finite = torch.isfinite(loss) if self.scaler is not None else torch.isfinite(loss) & torch.isfinite(norm)
        if self.scaler is None:
            self.optimizer.step()
        else:
            self.scaler.step(self.optimizer)
            self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        averages, weights = self._trainables.averaged()
        with torch.no_grad():
            if self._share is None:
                torch._foreach_lerp_(averages, weights, self._taken)
            else:
                ahead = torch._foreach_sub(weights, averages)
                torch._foreach_mul_(ahead, self._share)
                torch._foreach_add_(averages, list(ahead))
        self._count(loss, finite)

    def _count(self, loss: Tensor, finite: Tensor) -> None:
        self.sums += torch.stack([loss, (~finite).float()])

    def forget_gradients(self) -> None:
        """Drop all gradients."""
        self.optimizer.zero_grad(set_to_none=True)
        if self._adapted is not None:
            self._adapted.forget_gradients()
        if self.cast is not None:
            self.cast.forget_gradients()

    def undo(self) -> None:
        """After memory ran out within a step: undo what it left behind, so that the step can be done again."""
        self.forget_gradients()
        for parameter, state in list(self.optimizer.state.items()):
            if not {"exp_avg_sq", "momentum"} & set(state):  # the memory ran out while its first step made them
                del self.optimizer.state[parameter]
        if self.scaler is not None:  # it refuses to unscale twice in one step
            self.scaler._per_optimizer_states.clear()
        if self.captured is not None:
            self.captured.drop()

    def put_moments(self, moments: Moments) -> None:
        """Replace the optimizer's moments."""
        if self._flat is not None:
            self._flat.put_moments(moments)
            return
        if self.captured is not None:  # the moments move
            self.captured.drop()
        put_moments(self.optimizer, moments)

    def scale_numbers(self) -> dict[str, Any]:
        """The state of the loss scaler, for a checkpoint; empty without one."""
        if self.scaler is None:
            return {}
        growth = self.scaler.state_dict().get("_growth_tracker", 0)  # steps since the scale last changed
        return {"loss_scale": self.scaler.get_scale(), "loss_scale_steps": growth}

    def put_scale(self, numbers: dict[str, Any]) -> None:
        """The inverse of :meth:`scale_numbers`."""
        if self.scaler is not None and "loss_scale" in numbers:
            scale = {"scale": float(numbers["loss_scale"]), "_growth_tracker": int(numbers.get("loss_scale_steps", 0))}
            self.scaler.load_state_dict({**self.scaler.state_dict(), **scale})

    def free(self) -> None:
        """Free the device memory."""
        if self.captured is not None:
            self.captured.drop()
        if self._flat is not None:
            self._flat.free()
        if self.cast is not None:
            self.cast.free()
        self.optimizer.state.clear()
