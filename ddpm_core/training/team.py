"""Several processes at one training, begun by ``torchrun`` outside the WebUI: torch's distributed data parallel.

Process 0 leads: it alone has the run's folder, clock and limits, and says what comes next; the others follow. Every
process draws the random numbers of the whole batch and takes its part, so the result is that of one process up to the
order of summation (and the masks of dropout, which each draws for its part).
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import os
from collections.abc import Iterator
from datetime import timedelta
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..errors import UserError, is_out_of_memory

_END, _STEPS, _STATE = 0, 1, 2
# how torch's backends say that the others cannot be reached
_LOST_SIGNS = ("connection", "gloo", "nccl", "socket", "broken pipe", "timed out", "timeout", "peer", "recv", "store")


class Follower(Protocol):
    """What a team needs of a trainer."""

    def run_steps(self, steps: int) -> object:
        """Do so many steps."""

    def state_tensors(self) -> dict[str, Tensor]:
        """Tensors to go on from."""

    def empty_state(self, with_moments: bool) -> dict[str, Tensor]:
        """Zeros of the same names and shapes."""

    def state_numbers(self) -> dict[str, Any]:
        """Numbers to go on from."""

    def take_state(self, tensors: dict[str, Tensor], numbers: dict[str, Any]) -> None:
        """Go on from this state."""


class Team:
    """The processes of one training: ``rank`` of ``size``, rank 0 the leader."""

    def __init__(self) -> None:
        """Join the others; torchrun's environment says where they are."""
        if not dist.is_available():
            raise UserError("This build of torch cannot train with several processes; start one without torchrun.")
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and dist.is_nccl_available() else "gloo"
        # one may pack a large dataset while the others wait; who dies is noticed by its connection, at once
        dist.init_process_group(backend, timeout=timedelta(hours=12))
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self.local_rank = int(os.environ.get("LOCAL_RANK", self.rank))
        self._at_work = False  # whether the followers have a trainer and wait for orders
        self._lost = False

    @staticmethod
    def wanted() -> bool:
        """Whether torchrun started this process as one of several."""
        return "RANK" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1

    @property
    def leads(self) -> bool:
        """Whether this process is the leader."""
        return self.rank == 0

    def device(self, device: torch.device) -> torch.device:
        """Each process of a machine its own GPU."""
        if device.type != "cuda":
            return device
        if self.local_rank >= torch.cuda.device_count():
            raise UserError(
                f"There are more processes than GPUs here ({torch.cuda.device_count()}); "
                "give torchrun a smaller --nproc-per-node."
            )
        torch.cuda.set_device(self.local_rank)
        return torch.device("cuda", self.local_rank)

    # -- before the training ----------------------------------------------------------------------------------------

    def tell(self, text: str) -> str:
        """The leader's text, on every process."""
        with self.reaching():
            data = torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8) if text else torch.empty(0).byte()
            length = torch.tensor([len(data)])
            dist.broadcast(length, 0)
            if not int(length):
                return ""
            data = data if self.leads else torch.empty(int(length), dtype=torch.uint8)
            dist.broadcast(data, 0)
            return bytes(data.tolist()).decode()

    def agree(self, text: str, complaint: str) -> None:
        """UserError on every process where one of them has another text; the complaint names the first such."""
        mine = torch.frombuffer(bytearray(hashlib.sha256(text.encode()).digest()), dtype=torch.uint8)
        all_of_them = [torch.empty_like(mine) for _ in range(self.size)]
        with self.reaching():
            dist.all_gather(all_of_them, mine)
        for rank, other in enumerate(all_of_them):
            if not torch.equal(other, all_of_them[0]):
                self._lost = True  # every process ends here
                raise UserError(complaint.format(rank=rank))

    # -- at work ----------------------------------------------------------------------------------------------------

    def part(self, batch: int) -> slice:
        """This process's part of a batch."""
        if batch < self.size:
            raise UserError(f"A batch of {batch} cannot be shared by {self.size} processes; use a larger --batch-size.")
        return slice(self.rank * batch // self.size, (self.rank + 1) * batch // self.size)

    def join(self, network: nn.Module) -> nn.Module:
        """The network with gradients averaged over the processes."""
        with self.reaching():
            joined = nn.parallel.DistributedDataParallel(network)
        self._at_work = True
        return joined

    def sum(self, values: Tensor) -> Tensor:
        """Sum a tensor over the processes, in place."""
        with self.reaching():
            dist.all_reduce(values)
        return values

    def announce_steps(self, steps: int) -> None:
        """Tell the followers to do so many steps."""
        self._announce(_STEPS, steps)

    def share_state(self, trainer: Follower) -> None:
        """The leader's weights, average, moments and step to all; the followers take them in :func:`follow`."""
        self._announce(_STATE, 0)
        self.pass_on(trainer)

    def _announce(self, order: int, value: int) -> None:
        if self.leads:
            with self.reaching():
                dist.broadcast(torch.tensor([order, value]), 0)

    def hear(self) -> tuple[int, int]:
        """Wait for the leader's next order and its number."""
        order = torch.empty(2, dtype=torch.int64)
        with self.reaching():
            dist.broadcast(order, 0)
        kind, value = order.tolist()
        return kind, value

    def pass_on(self, trainer: Follower) -> None:
        """The leader's state to this process, or to the others."""
        numbers = trainer.state_numbers()
        tensors = trainer.state_tensors()
        begun = any(name.startswith("optimizer.") for name in tensors)
        fixed = ["step", "lr_scale", "pieces", "loss_scale", "loss_scale_steps"]
        row = torch.tensor([*(float(numbers.get(name, 0.0)) for name in fixed), float(begun)], dtype=torch.float64)
        with self.reaching():
            dist.broadcast(row, 0)
            if not self.leads:
                numbers = dict(zip(fixed, row.tolist()))
                if not numbers["loss_scale"]:
                    del numbers["loss_scale"]
                tensors = trainer.empty_state(with_moments=bool(row[-1]))
            for name in sorted(tensors):
                dist.broadcast(tensors[name], 0)
        if not self.leads:
            trainer.take_state(tensors, numbers)

    @contextlib.contextmanager
    def reaching(self) -> Iterator[None]:
        """Around whatever needs the others: that they are gone is said in one sentence."""
        try:
            yield
        except BaseException as error:
            self._lost = True  # whatever it was: the others wait in the middle of something
            text = str(error).lower()
            if (
                not isinstance(error, RuntimeError)
                or is_out_of_memory(error)
                or not any(s in text for s in _LOST_SIGNS)
            ):
                raise
            raise UserError(
                "Another process of this training is gone or cannot be reached; the last checkpoint is good, start the "
                "processes again with --resume."
            ) from None

    def leave(self) -> None:
        """Let the followers go, and part. Where one is lost, nobody waits for it."""
        if not self._lost:
            with contextlib.suppress(UserError, RuntimeError):
                if self._at_work:
                    self._announce(_END, 0)
                elif self.leads:
                    self.tell("")
        # a network that was joined to the group refers to itself: it would keep the group, and its threads, until the interpreter ends
        gc.collect()
        with contextlib.suppress(RuntimeError, ValueError):
            dist.destroy_process_group()


def follow(team: Team, trainer: Follower) -> dict[str, Any]:
    """Do what the leader says until it ends."""
    while True:
        order, value = team.hear()
        if order == _END:
            return {}
        if order == _STATE:
            team.pass_on(trainer)
        else:
            trainer.run_steps(value)
