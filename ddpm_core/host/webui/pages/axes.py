"""Axes of the host's X/Y/Z plot: our model, sampler, steps, weights, CFG scale, and the weight of adapters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from modules import scripts

from ....errors import UserError
from ....model.lora import MOST_WEIGHT
from ....options import WEIGHTS
from ....sampling import SAMPLERS
from ....sampling.guidance import MOST_SCALE
from ....service import Service
from ..facts import AXES

# those that take any number of steps
_LABELS = {sampler.label: sampler.name for sampler in SAMPLERS.values() if not sampler.full_only}
_MOST_STEPS = 1000


def add_axes(service: Callable[[], Service]) -> None:
    """Add them to the plot's list, once; nothing where the host has no such plot."""
    for module in [data.module for data in scripts.scripts_data if data.path.endswith("xyz_grid.py")]:
        if not hasattr(module, "AxisOption") or any(o.label.startswith("[DDPM]") for o in module.axis_options):
            continue

        def names() -> list[str]:
            try:
                return service().workspace.model_names("unet")
            except UserError:
                return []

        def known(what: str, choices: Callable[[], list[str]]) -> Callable[[Any, list[str]], None]:
            def confirm(p: Any, values: list[str]) -> None:
                for value in values:
                    if value not in choices():
                        # what the plot's other axes raise; the host shows it
                        raise RuntimeError(f"Unknown DDPM {what}: {value}")

            return confirm

        axis = module.AxisOption
        module.axis_options += [
            axis("[DDPM] Model", str, _set("model"), confirm=known("model", names), cost=0.5, choices=names),
            axis(
                "[DDPM] Sampler",
                str,
                lambda p, x, xs: _set("sampler")(p, _LABELS.get(x, x), xs),
                confirm=known("sampler", lambda: [*_LABELS, *_LABELS.values()]),
                choices=lambda: list(_LABELS),
            ),
            axis("[DDPM] Steps", int, _set("steps"), confirm=_confirm_steps),
            axis("[DDPM] CFG scale", float, _set("cfg_scale"), confirm=_confirm_scale),
            axis("[DDPM] Adapter weight", float, _set("adapter_weight"), confirm=_confirm_weight),
            axis(
                "[DDPM] Weights",
                str,
                _set("weights"),
                confirm=known("weights", lambda: list(WEIGHTS)),
                choices=lambda: list(WEIGHTS),
            ),
        ]


def _confirm_steps(p: Any, values: list[int]) -> None:
    for value in values:
        if not 1 <= value <= _MOST_STEPS:
            raise RuntimeError(f"DDPM steps must be between 1 and {_MOST_STEPS}: {value}")


def _confirm_scale(p: Any, values: list[float]) -> None:
    for value in values:
        if not 1 <= value <= MOST_SCALE:
            raise RuntimeError(f"DDPM CFG scale must be between 1 and {MOST_SCALE:g}: {value}")


def _confirm_weight(p: Any, values: list[float]) -> None:
    for value in values:
        if not abs(value) <= MOST_WEIGHT:
            raise RuntimeError(f"DDPM adapter weight must be between {-MOST_WEIGHT:g} and {MOST_WEIGHT:g}: {value}")


def _set(name: str) -> Callable[[Any, Any, Any], None]:
    def apply(p: Any, x: Any, xs: Any) -> None:
        setattr(p, AXES, {**getattr(p, AXES, {}), name: x})  # a new one: generations of a plot are copies of one

    return apply
