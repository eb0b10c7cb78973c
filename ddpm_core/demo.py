"""The whole story in minutes: bundled portraits, ghosts among them, to a model and new portraits."""

from __future__ import annotations

import argparse
import threading
import time
import zipfile
from pathlib import Path
from typing import Any

import torch

from . import commands
from .errors import UserError
from .files import replace_with
from .operations.context import Context
from .operations.evaluation import evaluate
from .operations.pictures import make_grid
from .operations.sampling import sample
from .operations.training import train
from .requests import Prompt, TrainRequest
from .sampling.generate import SampleSettings
from .screen import Screen
from .training.settings import default_preset
from .workspace import Workspace

ARCHIVE = Path(__file__).resolve().parent / "assets" / "portraits.zip"
NAME = "portraits-demo"
# what a machine is given that nothing is known of: as many steps as two quiet cores make in three minutes, and a limit
STEPS = 340
MOST_MINUTES = 6.0
MINUTES_ON_A_GPU = 3.0
GRID = 64
# what it is asked for, to show that it does it: a row for each of the first, a column for each of the second, the same noise in all
SKINS = ("dark skin", "brown skin", "tan skin", "fair skin", "light skin")
BACKGROUNDS = (
    "pink background",
    "peach background",
    "sky blue background",
    "pale blue background",
    "lavender background",
)
EVALUATED = 512


def unpack(target: Path) -> Path:
    """The bundled portraits as an output folder of the WebUI; unpacked once."""
    done = target / ".complete"
    if not done.exists():
        try:
            with zipfile.ZipFile(ARCHIVE) as archive:
                archive.extractall(target)
            done.write_text("")
        except (OSError, zipfile.BadZipFile) as error:
            raise UserError(
                f"The bundled portraits could not be unpacked to {target} ({error}); make room or install again."
            ) from None
    return target


def _asked(workspace: Workspace, context: Context) -> str:
    """Where a picture of portraits that were asked for by words lies; empty where a stop came first."""
    rows = []
    for skin in SKINS:
        prompts = [Prompt(f"{skin}, {background}") for background in BACKGROUNDS]
        for prompt in prompts:  # one by one: each begins with the same noise
            rows.append(sample(workspace, NAME, 1, SampleSettings(seed=7), context, prompts=[prompt]).images)
    if context.stop.is_set():
        return ""
    path = workspace.root / "demo" / "asked.png"
    picture = make_grid(torch.cat(rows), columns=len(BACKGROUNDS))
    replace_with(path, lambda temporary: picture.save(temporary, format="PNG"))
    return str(path)


def run(a: argparse.Namespace, stop: threading.Event, screen: Screen) -> dict[str, Any]:
    """``demo``."""
    began = time.monotonic()
    workspace = commands.open_workspace(a)
    context = commands.make_context(a, stop, screen)
    result: dict[str, Any] = {}
    screen.say("1/4  Harvesting the bundled portraits (Open Peeps by Pablo Stanley, CC0).")
    images = unpack(workspace.root / "demo-images")
    harvested = workspace.harvest(NAME, [images], stop=stop, progress=context.progress)
    result["harvest"] = harvested.to_json()
    counts = workspace.store(NAME).counts()
    screen.say(
        f"     {counts['kept']} kept, rejected: {', '.join(f'{n} {r}' for r, n in counts['rejected'].items()) or 'none'}."
    )
    begun = NAME in workspace.run_names()
    finished = begun and workspace.run(NAME).state == "finished"
    on_cpu = context.device.type == "cpu"
    minutes = a.minutes if a.minutes is not None else MOST_MINUTES if on_cpu else MINUTES_ON_A_GPU
    steps = STEPS if on_cpu and a.minutes is None else None
    if finished and a.minutes is None:
        screen.say(f"2/4  The model {NAME} is there already; train it further with --minutes.")
    elif not stop.is_set():
        preset = default_preset(context.device.type).name
        goal = f"{steps} steps, " if steps else ""
        screen.say(f"2/4  Training {preset} on {context.device}, {goal}at most {minutes:g} minutes.")
        # one that was cut off goes on for the rest of its time
        request = TrainRequest(
            model=NAME,
            dataset=NAME,
            preset=None if begun else preset,
            steps=None if begun else steps,
            minutes=None if begun and a.minutes is None else minutes,
            resume=begun,
        )
        result["train"] = trained = train(workspace, request, context)
        if steps and trained["ended"] == "time" and trained["steps"] < steps:
            screen.say(
                f"     This machine reached {trained['steps']} of {steps} steps: it is slower than the one the demo was made "
                "for, or busy. For better images, close other programs and run the demo again with --minutes 5."
            )
    if not stop.is_set():
        screen.say(f"3/4  Sampling {GRID} portraits that no one drew.")
        found = sample(workspace, NAME, GRID, SampleSettings(seed=0), context)
        files, grid = commands.write_samples(found, workspace.root / "demo")
        result["sample"] = {
            "files": files,
            "grid": grid,
            "seconds": round(found.seconds, 3),
            "evaluations": found.evaluations,
        }
        if not stop.is_set() and workspace.model_config(NAME).takes_prompts:
            result["asked"] = _asked(workspace, context)
        if not stop.is_set():
            screen.say("4/4  Comparing them with the dataset.")
            result["evaluate"] = evaluate(
                workspace, NAME, context, model=NAME, count=EVALUATED, settings=SampleSettings(seed=10_000)
            )
            e = result["evaluate"]
            screen.say(
                f"     KID {e['kid']:.3f} ({e['kid_low']:.3f} to {e['kid_high']:.3f}; real vs. real {e['floor']:.3f}), "
                f"{100 * e['memorised']:.1f} % memorised."
            )
        screen.say(
            f"\nThe grid:       {grid}\nAsked by words: {result.get('asked', '')}\nThe neighbours: {result.get('evaluate', {}).get('neighbours', '')}\n"
            f"The model:      {workspace.model_path(NAME)}\nEverything:     {workspace.root}"
        )
    result["seconds"] = round(time.monotonic() - began, 1)
    if a.headless or stop.is_set():
        return result
    screen.say("")
    from .host.server import serve

    serve(commands.open_host(a), "127.0.0.1", a.port, stop, screen.say)
    return result
