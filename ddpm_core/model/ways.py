"""Chooses the kernels of a network: PyTorch's, or ours, which need a GPU, Triton and channels-last tensors."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec

import torch


@dataclass(frozen=True)
class Ways:
    """Variants of one network that differ in speed and rounding only.

    ``fused``: norms, biases and what surrounds them by ``kernels.py``. ``folded``: nearest upsampling and the following 3x3
    convolution as one transposed convolution. ``joined``: the query, key and value projections as one matrix product.
    ``channels_last``: memory format of images and convolution weights.
    """

    fused: bool = False
    folded: bool = False
    joined: bool = False
    channels_last: bool = True

    @property
    def memory_format(self) -> torch.memory_format:
        """Memory format of images and convolution weights."""
        return torch.channels_last if self.channels_last else torch.contiguous_format


def plain(device: torch.device | str) -> Ways:
    """PyTorch's own kernels, in the memory format that suits them.

    On a CPU both convolutions and norms support channels last. CUDA's group norm does not: it would copy its input and
    output, a fifth of a step's work more than with contiguous tensors.
    """
    return Ways(channels_last=torch.device(device).type == "cpu")


# measured fastest on an H200: benchmarks/RESULTS.md
FAST = Ways(fused=True, folded=True, joined=True)


def best(device: torch.device | str) -> Ways:
    """The fastest variant that works on a device."""
    device = torch.device(device)
    if device.type != "cuda":
        return plain(device)
    index = torch.cuda.current_device() if device.index is None else device.index
    return FAST if fused_works(index) else plain(device)


@cache
def fused_works(index: int) -> bool:
    """Whether our kernels run on this GPU and agree with PyTorch's; tried once per process, on small tensors.

    Only from the torch version they were measured with, on GPUs with bfloat16.
    """
    old = torch.torch_version.TorchVersion(torch.__version__) < "2.11"
    if old or torch.version.hip is not None or find_spec("triton") is None:
        return False
    if torch.cuda.get_device_capability(index)[0] < 8:
        return False
    try:
        from . import kernels

        return kernels.agree(torch.device("cuda", index))
    except Exception:  # no compiler, an old driver, an unsupported GPU: whatever it is, PyTorch's kernels still work
        return False
