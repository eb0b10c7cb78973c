"""Pictures by the host's own text-to-image: its checkpoint, its scripts at their defaults, its saving."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

from modules import processing, scripts, shared
from modules.call_queue import queue_lock

from ...collector import saved_path
from ...errors import UserError
from ...requests import Generated, GenerationRequest
from .choices import generation_choices
from .facts import OURS, option
from .naming import sample_folder


def generate(
    request: GenerationRequest, seeds: list[int], stop: threading.Event, prepare: Callable[[], None]
) -> list[Generated]:
    """One batch, as one turn of the queue; the host's Interrupt, or our stop, leaves fewer pictures than seeds.

    ``prepare`` is called first, with the queue's lock held: the host's model must be where it belongs.
    """
    known = generation_choices()
    sampler = request.sampler or next(iter(known["samplers"]), "Euler a")
    if request.sampler and request.sampler not in known["samplers"]:
        raise UserError(f"The WebUI has no sampler {request.sampler!r}.")
    fields: dict[str, Any] = {
        "outpath_samples": sample_folder(),
        "outpath_grids": str(option("outdir_grids", "") or option("outdir_txt2img_grids", "outputs/txt2img-grids")),
        "prompt": request.prompt,
        "negative_prompt": request.negative_prompt,
        "sampler_name": sampler,
        "steps": request.steps,
        "cfg_scale": request.cfg_scale,
        "width": request.width,
        "height": request.height,
        "batch_size": len(seeds),
        "n_iter": 1,
        "seed": seeds[0],
        "do_not_save_grid": True,
        "styles": [style for style in request.styles if style in known["styles"]],
    }
    if known["schedulers"] and "scheduler" in {
        f.name for f in dataclasses.fields(processing.StableDiffusionProcessing)
    }:
        fields["scheduler"] = request.scheduler or known["schedulers"][0]
    with queue_lock:
        if stop.is_set():
            return []
        prepare()
        runner = scripts.scripts_txt2img
        arguments = _arguments(runner)
        ended, watcher = threading.Event(), None
        try:
            shared.state.begin(job="ddpm_collect")
            watcher = threading.Thread(target=_interrupt_on, args=(stop, ended), name="ddpm-stop", daemon=True)
            watcher.start()
            with closing(processing.StableDiffusionProcessingTxt2Img(sd_model=shared.sd_model, **fields)) as p:
                setattr(p, OURS, True)  # collected by who asked, not twice
                p.is_api = True  # else the scripts of the page's own controls would set sampler, steps and seed anew
                p.scripts = runner
                p.script_args = tuple(arguments)
                processed = processing.process_images(p)
                interrupted = shared.state.interrupted or shared.state.skipped or shared.state.stopping_generation
                return [] if interrupted else _pictures(processed, len(seeds))
        except UserError:
            raise
        except Exception as error:
            raise UserError(f"The WebUI could not generate ({type(error).__name__}: {error}).") from error
        finally:
            ended.set()
            if watcher is not None:
                watcher.join()
            shared.state.end()
            shared.total_tqdm.clear()


def _interrupt_on(stop: threading.Event, ended: threading.Event) -> None:
    while not ended.wait(0.1):
        if stop.is_set():  # again and again: another tab's ending call may take it back
            shared.state.interrupt()


def _pictures(processed: Any, count: int) -> list[Generated]:
    first = processed.index_of_first_image
    found = []
    for image, text in list(zip(processed.images[first:], processed.infotexts[first:]))[:count]:
        saved = getattr(image, "already_saved_as", None)
        path = saved_path(Path(saved).absolute(), time.time()) if saved and option("samples_save", True) else None
        found.append(Generated(image, text, path if path is not None and path.exists() else None))
    return found


def _arguments(runner: Any) -> list[Any]:
    """What the scripts' controls hold when nobody has touched them, in the order the runner expects."""
    values = [getattr(control, "value", None) for control in runner.inputs]
    values[0] = 0  # no selectable script
    return values
