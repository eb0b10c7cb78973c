"""What becomes of a server's samples: seen as they emerge, held in memory, saved by the host."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from .errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from .jobs import Job
    from .operations.sampling import Sampled
    from .workspace import Workspace

_EMERGING_MOST = 16
_ANIMATED_MOST = 9
_MOST_FRAMES = 60

# image, generation text, seed, number within the sampling -> its file, where it is kept
Save = Callable[[Image.Image, str, int, int], "Path | None"]


@dataclass
class Result:
    """One generated image in memory, and where it was saved, if the host saves images."""

    image: Image.Image
    text: str
    seed: int
    path: Path | None


class Emerging:
    """Shows a sampling's images as they emerge in its job's ``artifacts`` ("emerging", "frames"); to be called after each network call."""

    def __init__(self, job: Job, count: int, gpu_slice: Callable[[], AbstractContextManager[object]]) -> None:
        self._job, self._count, self._gpu_slice = job, count, gpu_slice
        self._last = 0
        self.frames: list[Tensor] = []

    def __call__(self, done: int, total: int, x0: Tensor) -> None:
        """``x0``: predicted images (N, C, H, W) of the batch after ``done`` of ``total`` calls."""
        from .model.diffusion import model_to_uint8

        with self._gpu_slice():
            seen = model_to_uint8(x0[:_EMERGING_MOST]).cpu()
        self._job.artifacts["emerging"] = (done, seen)
        calls = total // -(-self._count // len(x0))  # of the first batch, of which the animation is made
        if done <= min(calls, self._last):
            self.frames.clear()  # for want of memory it has begun anew with fewer images
        self._last = done
        if done <= calls and (done % max(1, calls // _MOST_FRAMES) == 0 or done == calls):
            self.frames.append(seen[:_ANIMATED_MOST])


def keep(workspace: Workspace, found: Sampled, save: Save, results: list[Result]) -> UserError | None:
    """Add images to the results, remember that they are ours, and save them; what went wrong first, if anything."""
    failure: UserError | None = None
    for image, seed, text in zip(found.pictures, found.seeds, found.texts):
        result = Result(image, text, seed, None)
        results.append(result)
        if failure is not None:
            continue
        try:
            workspace.own.remember(image)  # before the host tells everyone of a new image
            result.path = save(image, text, seed, len(results) - 1)
        except UserError as error:
            failure = error
        except OSError as error:
            failure = UserError(f"The images could not be kept ({error.strerror or 'disk error'}); make room.")
        if result.path is not None:
            with contextlib.suppress(OSError):  # somebody may have moved it at once
                workspace.own.remember(image, result.path.read_bytes())
    return failure
