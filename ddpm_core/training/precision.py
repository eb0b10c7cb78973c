"""Which number format a device can train in."""

from __future__ import annotations

import torch

from ..errors import UserError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def supports_bf16(device: torch.device) -> bool:
    """Whether bfloat16 arithmetic is native (and so faster), not emulated."""
    if device.type == "cuda":
        return torch.version.hip is not None or torch.cuda.get_device_capability(device)[0] >= 8
    if device.type == "cpu":
        # oneDNN has bf16 kernels where the processor has AVX512_BF16 or AMX; older torch cannot tell, and gets fp32
        checks = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
        return any(check is not None and bool(check()) for check in checks)
    return False


def choose(requested: str, device: torch.device) -> str:
    """``auto`` becomes bf16 where it is native, else fp32; a format the device cannot do is refused."""
    if requested == "auto":
        return "bf16" if supports_bf16(device) else "fp32"
    if requested == "fp16" and device.type == "cpu":
        raise UserError("This CPU cannot train in fp16; set the precision to auto, bf16 or fp32.")
    if requested == "bf16" and device.type == "cuda" and not supports_bf16(device):
        raise UserError("This GPU has no bf16; set the precision to auto, or to fp16 at your own risk.")
    return requested


def of_sampling(device: torch.device) -> torch.dtype:
    """What networks sample in: on a GPU what it trains in by itself, elsewhere float32."""
    return DTYPES[choose("auto", device)] if device.type == "cuda" else torch.float32
