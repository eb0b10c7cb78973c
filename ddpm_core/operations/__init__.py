"""The long operations that the tab, the API and the command line all call: train, sample, evaluate."""

from ..evaluation.neighbours import to_image
from .context import Context
from .evaluate import evaluate
from .pictures import make_grid
from .sample import Sampled, sample, sample_text
from .train import TrainRequest, check_limits, configure, expectations, train

__all__ = [
    "Context",
    "Sampled",
    "TrainRequest",
    "check_limits",
    "configure",
    "evaluate",
    "expectations",
    "make_grid",
    "sample",
    "sample_text",
    "to_image",
    "train",
]
