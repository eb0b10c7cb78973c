"""Generate and collect: ask the host for pictures, batch by batch, and add each to a dataset; can be gone on with."""

from __future__ import annotations

import dataclasses
import random
import threading
import time
from collections.abc import Callable
from typing import Any

from ..dataset import ranking
from ..dataset.harvest import add_file, add_picture
from ..errors import UserError
from ..files import write_json
from ..names import check_name
from ..requests import COLLECTION_STATE, Collection, Generated, GenerationRequest
from ..workspace import Workspace
from .context import Context

# request, seeds, stop -> pictures; fewer than seeds when the host's own Interrupt was pressed
GenerateBatch = Callable[[GenerationRequest, list[int], threading.Event], list[Generated]]


def collect(
    workspace: Workspace, dataset: str, wanted: Collection | None, generate: GenerateBatch, context: Context
) -> dict[str, Any]:
    """Generate ``wanted`` (None: what was left unfinished) and add the pictures to the dataset.

    Picture k has the seed ``seed + k`` whatever the batch size, so a batch that was cut off is made again alike.
    """
    check_name(dataset, "dataset")
    if wanted is None:
        wanted = Collection.unfinished(workspace.dataset_folder(dataset))
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
    suspects = ranking.rank(store)
    return {
        "dataset": dataset,
        "generated": wanted.done - first,
        "total": wanted.total,
        "added": added,
        "kept": added - rejected,
        "suspects": suspects,
        "seconds": round(time.monotonic() - began, 2),
    }
