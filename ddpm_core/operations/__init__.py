"""The long operations that the tab, the API and the command line all call: train, sample, evaluate, collect."""

from ..evaluation.neighbours import to_image
from .collect import Collection, Generated, GenerationRequest, collect, unfinished_collection
from .context import Context
from .evaluate import evaluate
from .pictures import make_grid
from .sample import Sampled, sample, sample_text
from .train import TrainRequest, check_limits, configure, expectations, train

__all__ = [
    "Collection",
    "Context",
    "Generated",
    "GenerationRequest",
    "Sampled",
    "TrainRequest",
    "check_limits",
    "collect",
    "configure",
    "evaluate",
    "expectations",
    "make_grid",
    "sample",
    "sample_text",
    "to_image",
    "train",
    "unfinished_collection",
]
