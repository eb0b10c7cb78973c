"""The whole story in minutes: bundled portraits, ghosts among them, to models of one's own and new portraits.

It goes through the same jobs as the tab, so that a person can watch it there while it runs.
"""

from __future__ import annotations

import argparse
import threading
import time
import zipfile
from pathlib import Path
from typing import Any

from PIL import Image

from . import bundled, commands
from .errors import UserError
from .files import replace_with
from .jobs import Job
from .operations.evaluation import evaluate
from .operations.pictures import grid_of
from .operations.sampling import sample
from .requests import OWN_UPSCALER, Prompt, SampleRequest, TrainRequest
from .results import Result
from .sampling.generate import SampleSettings
from .screen import Screen
from .service import Service
from .training.settings import default_preset

ARCHIVE = Path(__file__).resolve().parent / "assets" / "portraits.zip"
NAME = "portraits-demo"
UPSCALER = "portraits-demo-4x"
# what a machine is given that nothing is known of: as many steps as two quiet cores make in three minutes (a minute and a half), and a limit
STEPS, UPSCALER_STEPS = 340, 500
MOST_MINUTES, UPSCALER_MINUTES = 6.0, 3.0
MINUTES_ON_A_GPU, UPSCALER_MINUTES_ON_A_GPU = 3.0, 2.0
GRID = 64
FIRST_CALLS, FIRST_UPSCALER_CALLS = 12, 4  # of the first images, which somebody waits for
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


class Story:
    """One telling of it, in a service's workspace. ``minutes``: how long to train, where a person said so."""

    def __init__(self, service: Service, stop: threading.Event, screen: Screen, minutes: float | None) -> None:
        self.service, self.workspace, self.stop, self.screen = service, service.workspace, stop, screen
        self.minutes = minutes
        self.folder = self.workspace.root / "demo"

    def tell(self) -> dict[str, Any]:
        """All of it, or as much as there was before a stop; what it made, for ``--json``."""
        began = time.monotonic()
        result: dict[str, Any] = {}
        for chapter in (self._bundled, self._harvest, self._train, self._train_upscaler, self._sample, self._evaluate):
            if self.stop.is_set():
                break
            result |= chapter()
        self.screen.say(
            f"\nThe grid:       {result.get('sample', {}).get('grid') or ''}\n"
            f"Asked by words: {result.get('asked', '')}\n"
            f"The neighbours: {result.get('evaluate', {}).get('neighbours', '')}\n"
            f"The model:      {self.workspace.models_folder / NAME}.safetensors\nEverything:     {self.workspace.root}"
        )
        result["seconds"] = round(time.monotonic() - began, 1)
        return result

    def _done(self, job: Job) -> Any:
        """Wait for a job; its result, or None where it was stopped. UserError where it failed."""
        shown, said = None, 0
        while not job.finished.wait(0.1):
            if self.stop.is_set():
                job.stop.set()
            if job.progress and job.progress is not shown:
                shown = job.progress
                self.screen.report(shown)
            said = self._say(job, said)
        self._say(job, said)
        if job.state == "failed":
            raise UserError(job.error)
        return job.result

    def _say(self, job: Job, said: int) -> int:
        messages = job.messages
        for text in messages[said:]:
            self.screen.say(text)
        return len(messages)

    def _grid(self, name: str, pictures: list[Image.Image], columns: int | None = None) -> str:
        path = self.folder / name
        picture = grid_of(pictures, columns)
        replace_with(path, lambda temporary: picture.save(temporary, format="PNG"))
        return str(path)

    def _sampled(self, request: SampleRequest, name: str) -> dict[str, Any]:
        job = self.service.start_sampling(request)
        done = self._done(job)
        results = job.artifacts.get("results", [])
        return {
            "files": [str(result.path) for result in results],
            "grid": self._grid(name, [result.image for result in results]) if results else None,
            "seconds": done["seconds"] if done else None,
            "evaluations": done["evaluations"] if done else 0,
        }

    def _bundled(self) -> dict[str, Any]:
        if not {bundled.BASE, bundled.UPSCALER} <= set(self.workspace.model_names()):
            return {}  # they were deleted
        self.screen.say(f"1/6  {GRID} portraits by the model that comes along, while yours is still to be trained.")
        request = SampleRequest(
            bundled.BASE,
            GRID,
            steps=FIRST_CALLS,
            seed=0,
            upscaler=OWN_UPSCALER + bundled.UPSCALER,
            upscaler_steps=FIRST_UPSCALER_CALLS,
        )
        found = self._sampled(request, "bundled.png")
        if found["seconds"] is not None:
            self.screen.say(f"     {found['grid']} (in {found['seconds']:.0f} seconds)")
        return {"bundled": found}

    def _harvest(self) -> dict[str, Any]:
        self.screen.say("2/6  Harvesting the bundled portraits (Open Peeps by Pablo Stanley, CC0).")
        images = unpack(self.workspace.root / "demo-images")

        def work(job: Job) -> dict[str, Any]:
            context = self.service.context_of(job)
            found = self.workspace.harvest(NAME, [images], stop=job.stop, progress=context.progress)
            return found.to_json()

        job = self.service.jobs.start("harvest", f"Harvesting into {NAME}", work, subject=NAME, dataset=NAME)
        harvested = self._done(job)
        if NAME in self.workspace.dataset_names():
            counts = self.workspace.store(NAME).counts()
            rejected = ", ".join(f"{n} {r}" for r, n in counts["rejected"].items()) or "none"
            self.screen.say(f"     {counts['kept']} kept, rejected: {rejected}.")
        return {"harvest": harvested}

    def _train(self) -> dict[str, Any]:
        device = self.service.host.device()
        on_cpu = device.type == "cpu"
        preset = default_preset(device.type).name
        steps, most = (STEPS, MOST_MINUTES) if on_cpu else (None, MINUTES_ON_A_GPU)
        trained = self._trained("3/6", NAME, preset, steps, most, self.minutes)
        if trained and trained["ended"] == "time" and on_cpu and self.minutes is None and trained["steps"] < STEPS:
            self.screen.say(
                f"     This machine reached {trained['steps']} of {STEPS} steps: it is slower than the one the demo was made "
                "for, or busy. For better images, close other programs and run the demo again with --minutes 5."
            )
        return {"train": trained} if trained else {}

    def _train_upscaler(self) -> dict[str, Any]:
        on_cpu = self.service.host.device().type == "cpu"
        preset = "upscale-4x-small" if on_cpu else "upscale-4x"
        steps, most = (UPSCALER_STEPS, UPSCALER_MINUTES) if on_cpu else (None, UPSCALER_MINUTES_ON_A_GPU)
        minutes = None if self.minutes is None else self.minutes / 2
        trained = self._trained("4/6", UPSCALER, preset, steps, most, minutes)
        return {"upscaler": trained} if trained else {}

    def _trained(
        self, number: str, name: str, preset: str, steps: int | None, most: float, minutes: float | None
    ) -> dict[str, Any] | None:
        begun = name in self.workspace.run_names()
        if minutes is None and begun and self.workspace.run(name).state == "finished":
            self.screen.say(f"{number}  The model {name} is there already; train it further with --minutes.")
            return None
        if minutes is not None:
            steps, most = None, minutes
        goal = f"{steps} steps, " if steps else ""
        device = self.service.host.device()
        self.screen.say(f"{number}  Training {name} ({preset}) on {device}, {goal}at most {most:g} minutes.")
        # one that was cut off goes on for the rest of its time
        request = TrainRequest(
            model=name,
            dataset=NAME,
            preset=None if begun else preset,
            steps=None if begun else steps,
            minutes=None if begun and minutes is None else most,
            resume=begun,
        )
        found = self._done(self.service.start_training(request))
        return {**found, "model": str(self.workspace.model_path(name))} if found else None

    def _sample(self) -> dict[str, Any]:
        self.screen.say(f"5/6  Sampling {GRID} portraits that no one drew.")
        there = UPSCALER in self.workspace.model_names()
        request = SampleRequest(NAME, GRID, seed=0, upscaler=OWN_UPSCALER + UPSCALER if there else None)
        result: dict[str, Any] = {"sample": self._sampled(request, "grid.png")}
        if not self.stop.is_set() and self.workspace.model_config(NAME).takes_prompts:
            result["asked"] = self._asked()
        return result

    def _asked(self) -> str:
        """Where a picture of portraits that were asked for by words lies; empty where a stop came first."""
        prompts = [Prompt(f"{skin}, {background}") for skin in SKINS for background in BACKGROUNDS]

        pictures: list[Image.Image] = []

        def work(job: Job) -> dict[str, Any]:
            context = self.service.context_of(job)
            job.artifacts["results"] = results = []
            for prompt in prompts:  # one by one: each begins with the same noise
                if not job.stop.is_set():
                    found = sample(self.workspace, NAME, 1, SampleSettings(seed=7), context, prompts=[prompt])
                    pictures.extend(found.pictures)
                    results += [Result(one, text, 7, None) for one, text in zip(found.pictures, found.texts)]
            return {"count": len(pictures), "model": NAME}

        job = self.service.jobs.start("sample", f"Generating with {NAME}", work, subject=NAME)
        self._done(job)
        if len(pictures) < len(prompts):
            return ""
        return self._grid("asked.png", pictures, len(BACKGROUNDS))

    def _evaluate(self) -> dict[str, Any]:
        self.screen.say("6/6  Comparing them with the dataset.")

        def work(job: Job) -> dict[str, Any]:
            found = evaluate(
                self.workspace,
                NAME,
                self.service.context_of(job),
                model=NAME,
                count=EVALUATED,
                settings=SampleSettings(seed=10_000),
            )
            job.artifacts["picture"] = Path(found.pop("neighbours"))  # a page is told no path of this machine
            return found

        job = self.service.jobs.start("evaluate", f"Evaluating {NAME}", work, subject=NAME, dataset=NAME)
        e = self._done(job)
        if not e:
            return {}
        self.screen.say(
            f"     KID {e['kid']:.3f} ({e['kid_low']:.3f} to {e['kid_high']:.3f}; real vs. real {e['floor']:.3f}), "
            f"{100 * e['memorised']:.1f} % memorised."
        )
        return {"evaluate": {**e, "neighbours": str(job.artifacts["picture"])}}


def run(a: argparse.Namespace, stop: threading.Event, screen: Screen) -> dict[str, Any]:
    """``demo``."""
    host = commands.open_host(a)
    if a.headless:
        service = Service(host)
        try:
            return Story(service, stop, screen, a.minutes).tell()
        finally:
            service.shutdown()
    from .host.server import serve

    result: dict[str, Any] = {}

    def meanwhile(service: Service) -> None:
        result.update(Story(service, stop, screen, a.minutes).tell())
        if not stop.is_set():
            screen.say("The page goes on until Ctrl+C.")

    serve(host, "127.0.0.1", a.port, stop, screen.say, meanwhile=meanwhile, page="#ddpm_tab_generate")
    return result
