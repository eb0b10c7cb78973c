"""The long operations that the tab, the API and the command line all call: train, sample, evaluate, collect.

A name is loaded when it is first asked for: a host's start-up shall not wait for a training's code.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..evaluation.neighbours import to_image
    from .collecting import COLLECTION_STATE, Collection, Generated, GenerationRequest, collect, unfinished_collection
    from .context import Context
    from .evaluation import evaluate
    from .pictures import Enlarging, enlarge_plainly, make_grid
    from .sampling import Sampled, checkpoint_steps, sample, sample_text
    from .training import TrainRequest, check_free, check_limits, configure, expectations, steps_reached, train

_WHERE = {
    "COLLECTION_STATE": ".collecting",
    "Collection": ".collecting",
    "Context": ".context",
    "Enlarging": ".pictures",
    "Generated": ".collecting",
    "GenerationRequest": ".collecting",
    "Sampled": ".sampling",
    "TrainRequest": ".training",
    "check_free": ".training",
    "check_limits": ".training",
    "checkpoint_steps": ".sampling",
    "collect": ".collecting",
    "configure": ".training",
    "enlarge_plainly": ".pictures",
    "evaluate": ".evaluation",
    "expectations": ".training",
    "make_grid": ".pictures",
    "sample": ".sampling",
    "sample_text": ".sampling",
    "steps_reached": ".training",
    "to_image": "..evaluation.neighbours",
    "train": ".training",
    "unfinished_collection": ".collecting",
}

__all__ = [
    "COLLECTION_STATE",
    "Collection",
    "Context",
    "Enlarging",
    "Generated",
    "GenerationRequest",
    "Sampled",
    "TrainRequest",
    "check_free",
    "check_limits",
    "checkpoint_steps",
    "collect",
    "configure",
    "enlarge_plainly",
    "evaluate",
    "expectations",
    "make_grid",
    "sample",
    "sample_text",
    "steps_reached",
    "to_image",
    "train",
    "unfinished_collection",
]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_WHERE[name], __name__), name)
