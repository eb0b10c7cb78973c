"""Generate and collect: ask the host for pictures, batch by batch, and add each to a dataset; can be gone on with."""

from __future__ import annotations

import dataclasses
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from ..dataset.harvest import add_file, add_picture
from ..errors import UserError
from ..files import write_json
from ..names import check_name
from ..parsing import read_json, read_record
from ..workspace import Workspace
from .context import Context

COLLECTION_STATE = "generating.json"
MOST_IMAGES = 100_000
MOST_TEXT = 20_000  # characters of a prompt


@dataclass(frozen=True)
class GenerationRequest:
    """What the host's own text-to-image shall make; empty names leave the choice to the host."""

    prompt: str
    negative_prompt: str = ""
    sampler: str = ""
    scheduler: str = ""
    steps: int = 20
    cfg_scale: float = 7.0
    width: int = 512
    height: int = 512
    each_line: bool = False  # each line of the prompt is one of its own
    styles: list[str] = dataclasses.field(default_factory=list)  # of the host

    def prompts(self) -> list[str]:
        """The prompts, in order: one, or one a line."""
        lines = [line.strip() for line in self.prompt.splitlines() if line.strip()] if self.each_line else []
        return lines or [self.prompt]

    def check(self) -> None:
        if not isinstance(self.styles, list) or not all(isinstance(style, str) for style in self.styles):
            raise UserError("The styles must be a list of names.")
        if max(len(self.prompt), len(self.negative_prompt)) > MOST_TEXT:
            raise UserError(f"A prompt can have at most {MOST_TEXT} characters.")
        if not 1 <= self.steps <= 150:
            raise UserError(f"Sampling steps must be between 1 and 150; got {self.steps}.")
        if not 1 <= self.cfg_scale <= 30:
            raise UserError(f"CFG scale must be between 1 and 30; got {self.cfg_scale:g}.")
        for side in (self.width, self.height):
            if not 64 <= side <= 2048 or side % 8:
                raise UserError(f"Width and height must be multiples of 8 between 64 and 2048; got {side}.")


@dataclass(frozen=True)
class Generated:
    """One picture the host made; ``path`` is None where the host's settings save nothing."""

    image: Image.Image
    text: str
    path: Path | None


# request, seeds, stop -> pictures; fewer than seeds when the host's own Interrupt was pressed
GenerateBatch = Callable[[GenerationRequest, list[int], threading.Event], list[Generated]]


@dataclass(frozen=True)
class Collection:
    """A generate-and-collect, as it is kept in the dataset's folder until it is finished."""

    request: GenerationRequest
    total: int
    batch_size: int = 1
    seed: int = -1
    done: int = 0

    @classmethod
    def from_json(cls, values: Any) -> Collection:
        try:
            return read_record(cls, {**values, "request": read_record(GenerationRequest, values["request"])})
        except (ValueError, TypeError, KeyError):
            raise UserError("What was to be generated cannot be read any more; start it again.") from None

    def check(self) -> None:
        self.request.check()
        if not 1 <= self.total <= MOST_IMAGES:
            raise UserError(f"The number of images must be between 1 and {MOST_IMAGES}; got {self.total}.")
        if self.total < len(self.request.prompts()):
            raise UserError(f"There are {len(self.request.prompts())} prompts: make at least as many images.")
        if not 1 <= self.batch_size <= 64:
            raise UserError(f"The batch size must be between 1 and 64; got {self.batch_size}.")
        if not -1 <= self.seed < 2**32:
            raise UserError("The seed must be -1 (random) or a number up to 4294967295.")


def unfinished_collection(workspace: Workspace, dataset: str) -> Collection | None:
    """What a dataset still waits for, if a generate-and-collect was stopped or cut off."""
    path = workspace.dataset_folder(dataset) / COLLECTION_STATE
    if not path.exists():
        return None
    try:
        return Collection.from_json(read_json(path, "list of what to generate"))
    except UserError:
        return None


def collect(
    workspace: Workspace, dataset: str, wanted: Collection | None, generate: GenerateBatch, context: Context
) -> dict[str, Any]:
    """Generate ``wanted`` (None: what was left unfinished) and add the pictures to the dataset.

    Picture k has the seed ``seed + k`` whatever the batch size, so a batch that was cut off is made again alike.
    """
    check_name(dataset, "dataset")
    if wanted is None:
        wanted = unfinished_collection(workspace, dataset)
        if wanted is None:
            raise UserError(f"Nothing is left to be generated for {dataset}.")
    wanted.check()
    if wanted.seed < 0:
        wanted = dataclasses.replace(wanted, seed=random.SystemRandom().randrange(2**32 - wanted.total))
    store = workspace.store(dataset, create=True)
    state = workspace.dataset_folder(dataset) / COLLECTION_STATE
    began, added, rejected = time.monotonic(), 0, 0
    first = wanted.done
    while wanted.done < wanted.total and not context.stop.is_set():
        write_json(state, dataclasses.asdict(wanted))
        elapsed = time.monotonic() - began
        made_now = wanted.done - first
        left = elapsed / made_now * (wanted.total - wanted.done) if made_now else None
        context.report({"done": wanted.done, "total": wanted.total, "text": "Generating", "seconds_left": left})
        # the images of one prompt follow each other, so that a batch is of one whatever its size
        prompts = wanted.request.prompts()
        number = wanted.done * len(prompts) // wanted.total
        until = -(-(number + 1) * wanted.total // len(prompts))
        count = min(wanted.batch_size, until - wanted.done)
        request = dataclasses.replace(wanted.request, prompt=prompts[number], each_line=False)
        seeds = [wanted.seed + wanted.done + i for i in range(count)]
        try:
            pictures = generate(request, seeds, context.stop)
        except BaseException:
            if wanted.done == 0:  # it never worked: nothing to resume
                state.unlink(missing_ok=True)
            raise
        if len(pictures) < count:  # interrupted in the host: the batch counts for nothing and is made again
            context.stop.set()
            break
        for picture in pictures:
            item = None
            if picture.path is not None:
                item = add_file(store, picture.path, workspace.own)
            else:
                source = f"unsaved:{time.time():.6f}"
                item = add_picture(store, picture.image, picture.text, source, workspace.own)
            added += item is not None
            rejected += item is not None and bool(item.reason)
        wanted = dataclasses.replace(wanted, done=wanted.done + count)
    if wanted.done >= wanted.total:
        state.unlink(missing_ok=True)
    else:
        write_json(state, dataclasses.asdict(wanted))
    suspects = store.rank_suspects()
    return {
        "dataset": dataset,
        "generated": wanted.done - first,
        "total": wanted.total,
        "added": added,
        "kept": added - rejected,
        "suspects": suspects,
        "seconds": round(time.monotonic() - began, 2),
    }
