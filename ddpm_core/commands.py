"""What each command of the command line does: arguments in, the JSON object out."""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .dataset import words
from .dataset.wanted import Wanted
from .errors import UserError
from .files import as_pasted, next_number
from .host.devices import parse_device
from .host.standalone import GRIDS, NUMBERED, StandaloneHost, save_png
from .model import export as model_export
from .model import file as model_file
from .operations.context import Context
from .operations.editing import open_image, open_mask
from .operations.encoding import encoders
from .operations.evaluation import evaluate
from .operations.faithfulness import evaluate_upscaler
from .operations.interpolating import interpolate, write_animation
from .operations.loading import named, with_adapters
from .operations.merging import merge_adapters, write_merged
from .operations.pictures import FILTERS, grid_of
from .operations.retrieval import evaluate_encoder
from .operations.sampling import Sampled, sample, settings_of
from .operations.searching import search
from .operations.training import train
from .options import fields_of
from .renaming import merge_datasets, rename_dataset, rename_model
from .requests import INTERPOLATED, OWN_UPSCALER, Prompt, SampleRequest, TrainRequest
from .sampling.generate import SampleSettings, seed_of
from .screen import Screen
from .training.team import Team
from .workspace import Workspace


def open_host(a: argparse.Namespace) -> StandaloneHost:
    """The host of the command line."""
    given = getattr(a, "workspace", None)
    return StandaloneHost(Path(given) if given else None)


def open_workspace(a: argparse.Namespace) -> Workspace:
    """The workspace that the arguments name."""
    host = open_host(a)
    return Workspace(host.workspace_folder(), host.models_folder())


def make_context(a: argparse.Namespace, stop: threading.Event, screen: Screen) -> Context:
    """The context of an operation on the command line."""
    return Context(
        parse_device(getattr(a, "device", None)),
        stop=stop,
        report=screen.report,
        say=screen.say,
        image_encoder=encoders(lambda: open_workspace(a)),
    )


def run_harvest(a: argparse.Namespace, stop: threading.Event, screen: Screen) -> dict[str, Any]:
    """``harvest``."""
    workspace = open_workspace(a)

    def progress(done: int, total: int, text: str) -> None:
        screen.report({"done": done, "total": total, "text": text})

    result = workspace.harvest(
        a.dataset,
        [as_pasted(f) for f in a.folders],
        keep_size=a.keep_size,
        wanted=Wanted.parse(a.since, a.until, a.prompt, a.checkpoint, a.size),
        stop=stop,
        progress=progress,
    )
    for note in result.notes:
        screen.say(note)
    there = a.dataset in workspace.dataset_names()
    counts = workspace.store(a.dataset).counts() if there else {"items": 0, "kept": 0, "rejected": {}}
    return {**result.to_json(), "dataset": a.dataset, "counts": counts}


def run_dataset(a: argparse.Namespace, stop: threading.Event, screen: Screen) -> dict[str, Any]:
    """``dataset``."""
    workspace = open_workspace(a)
    if a.action == "list":
        return {"datasets": workspace.list_datasets()}
    if a.action == "show":
        items = workspace.show_dataset(a.name, status=a.status, suspects=a.suspects)
        keys = (
            "id",
            "source",
            "status",
            "reason",
            "message",
            "suspicion",
            "prompt",
            "negative_prompt",
            "twin_group",
            "decided_by",
        )
        return {
            "items": [{key: item[key] for key in keys} for item in items],
            "counts": workspace.store(a.name).counts(),
        }
    if a.action == "keep":
        return {"changed": workspace.keep(a.name, a.ids)}
    if a.action == "reject":
        return {"changed": workspace.reject(a.name, a.ids, a.reason)}
    if a.action == "undo":
        return {"changed": workspace.undo(a.name)}
    if a.action == "rename":
        return {"changed": 1, "renamed": rename_dataset(workspace, a.name, a.new)}
    if a.action == "merge":
        merged = merge_datasets(workspace, a.name, a.others)
        return {"changed": merged["added"], **merged}
    if a.action == "tags":
        store = workspace.store(a.name)
        if a.undo:
            words.undo(store)
        if a.keep or a.drop or a.merge:
            words.choose(store, a.keep, a.drop, a.merge)
        if a.items or a.add or a.remove:
            words.edit(store, a.items, a.add, a.remove)
        return words.words_of(store).to_json()
    if a.action == "delete":
        return {"changed": 1, "deleted": workspace.delete_dataset(a.name)}
    if a.action == "restore":
        return {"changed": 1, "restored": workspace.restore_dataset(a.name)}
    from .dataset import handing_out

    files = handing_out.export(workspace.store(a.name), Path(a.folder))
    return {"changed": len(files), "files": files}


def run_train(a: argparse.Namespace, stop: threading.Event, screen: Screen) -> dict[str, Any]:
    """``train``."""
    settings = {}
    for pair in a.set:
        key, equals, value = pair.partition("=")
        if not equals:
            raise UserError(f"--set needs KEY=VALUE; got {pair!r}.")
        settings[key.strip()] = value.strip()
    if a.adapter and not (a.base or a.resume):
        raise UserError("An adapter changes a model: say which (--base MODEL).")
    given = {name: getattr(a, name) for name in fields_of(TrainRequest)}
    request = TrainRequest(**{**given, "model": a.adapter or a.model}, settings=settings)
    context = make_context(a, stop, screen)
    team = Team() if Team.wanted() else None
    if team is not None:
        context.device = team.device(context.device)
    return train(open_workspace(a), request, context, team)


def run_sample(a: argparse.Namespace, stop: threading.Event, screen: Screen) -> dict[str, Any]:
    """``sample``."""
    names = [name for name in fields_of(SampleRequest) if name in a]
    request = SampleRequest(
        **{name: getattr(a, name) for name in names},
        image=open_image(as_pasted(a.init)) if a.init else None,
        mask=open_mask(as_pasted(a.mask)) if a.mask else None,
        variation_of=open_image(as_pasted(a.variation_of)) if a.variation_of else None,
    )
    workspace = open_workspace(a)
    if (
        request.upscaler not in FILTERS and request.upscaler in workspace.model_names()
    ):  # here there are no other upscalers
        request = dataclasses.replace(request, upscaler=OWN_UPSCALER + str(request.upscaler))
    found = sample(
        workspace,
        request.model,
        request.count,
        settings_of(request),
        make_context(a, stop, screen),
        batch_size=a.batch_size,
        weights=request.weights,
        step=request.checkpoint_step,
        enlarging=request.enlarging,
        prompts=[_with_adapters(request.asked, a.adapter)],
        edit=request.edit,
        best_of=request.best_of,
        like=[request.variation_of] if request.variation_of is not None else [],
    )
    files, grid = write_samples(found, Path(a.out))
    return {
        "files": files,
        "grid": grid,
        "seconds": round(found.seconds, 3),
        "evaluations": found.evaluations,
        "tags": found.words,
        "unknown_words": [word for word, _ in found.unknown],
        "size": list(found.pictures[0].size if found.pictures else found.images.shape[:1:-1]),
    }


def _with_adapters(prompt: Prompt, adapters: Sequence[str]) -> Prompt:
    """A prompt that calls adapters, too."""
    written = [f"<ddpm:{name}:{weight:g}>" for name, weight in map(named, adapters)]
    return Prompt(" ".join([*written, prompt.text]).strip(), prompt.negative)


def run_interpolate(a: argparse.Namespace, stop: threading.Event, screen: Screen) -> dict[str, Any]:
    """``interpolate``."""
    request = SampleRequest(**{name: getattr(a, name) for name in INTERPOLATED}, seed=a.seeds[0])
    found = interpolate(
        open_workspace(a),
        request.model,
        (a.seeds[0], a.seeds[1]),
        a.frames,
        settings_of(request),
        make_context(a, stop, screen),
        prompts=(request.asked, request.asked if a.to_prompt is None else Prompt(a.to_prompt, a.negative_prompt)),
        loop=a.loop,
        weights=request.weights,
        step=request.checkpoint_step,
    )
    files, _ = write_samples(found, Path(a.out), grid=False)
    strip, animation = write_animation(found.pictures, Path(a.out), not a.loop) if len(files) > 1 else (None, None)
    return {"files": files, "strip": strip, "animation": animation, "seconds": round(found.seconds, 3)}


def write_samples(found: Sampled, out: Path, grid: bool = True) -> tuple[list[str], str | None]:
    """Write images, named by number and seed, and their grid into a folder; numbers go on after those that are there."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        files = []
        first = next_number(out, NUMBERED)
        for number, (image, seed, text) in enumerate(zip(found.pictures, found.seeds, found.texts), first):
            path = out / f"{number:05d}-{seed}.png"
            save_png(image, path, text)
            files.append(str(path))
        if not files or not grid:
            return files, None
        whole = out / "grid.png"
        if whole.exists() or whole.is_symlink():
            whole = out / f"grid-{max(1, next_number(out, GRIDS)):04d}.png"
        save_png(grid_of(found.pictures), whole, found.texts[0])
    except OSError as error:
        raise UserError(
            f"The images could not be written to {out} ({error.strerror or error}); make room or choose another folder."
        ) from None
    return files, str(whole)


def run_evaluate(a: argparse.Namespace, stop: threading.Event, screen: Screen) -> dict[str, Any]:
    """``evaluate``."""
    if a.upscaler:
        if a.model or a.images:
            raise UserError("Give one of --model, --images and --upscaler.")
        count = min(a.count, 96)
        return evaluate_upscaler(
            open_workspace(a), a.dataset, make_context(a, stop, screen), model=a.upscaler, count=count
        )
    workspace, context, model = open_workspace(a), make_context(a, stop, screen), a.model
    if model and workspace.kind_of(model) == "contrast":
        return evaluate_encoder(workspace, a.dataset, context, model=model)
    with tempfile.TemporaryDirectory(prefix="ddpm-merged-") as folder:
        if a.adapter and model:
            adapters = tuple(map(named, a.adapter))
            name = "+".join([workspace.model_path(model).stem, *(one for one, _ in adapters)])
            merged = Path(folder) / f"{name}.safetensors"
            write_merged(workspace, model, adapters, merged, context)
            model = str(merged)
        return evaluate(
            workspace,
            a.dataset,
            context,
            model=model,
            images=as_pasted(a.images) if a.images else None,
            count=a.count,
            settings=SampleSettings(a.sampler, a.steps, seed=seed_of(a.seed), cfg_scale=a.cfg_scale),
            prompts=a.prompts,
        )


def run_search(a: argparse.Namespace, stop: threading.Event, screen: Screen) -> dict[str, Any]:
    """``search``."""
    return search(
        open_workspace(a),
        a.dataset,
        make_context(a, stop, screen),
        prompt=a.prompt,
        image=open_image(as_pasted(a.image)) if a.image else None,
        misfits=a.misfits,
        model=a.model,
        count=a.count,
    )


def run_merge(a: argparse.Namespace, stop: threading.Event, screen: Screen) -> dict[str, Any]:
    """``merge``."""
    adapters = tuple(map(named, a.adapter))
    path = merge_adapters(open_workspace(a), a.model, adapters, a.name, make_context(a, stop, screen))
    return {"model": str(path)}


def run_export(a: argparse.Namespace, stop: threading.Event, screen: Screen) -> dict[str, Any]:
    """``export``."""
    workspace = open_workspace(a)
    model = model_file.load(workspace.model_path(a.model))
    if a.adapter:
        adapters = tuple(map(named, a.adapter))
        title, context = workspace.model_path(a.model).stem, make_context(a, stop, screen)
        config, weights = with_adapters(workspace, title, model.config, model.weights, adapters, context)
        model = dataclasses.replace(model, config=config, weights=weights)
    return {"files": [str(path) for path in model_export.to_diffusers(model, Path(a.out))]}


def run_models(a: argparse.Namespace, stop: threading.Event, screen: Screen) -> dict[str, Any]:
    """``models``."""
    workspace = open_workspace(a)
    if a.action == "list":
        return {"models": workspace.list_models()}
    if a.action == "show":
        return workspace.show_model(a.name)
    if a.action == "rename":
        return {"changed": 1, "renamed": rename_model(workspace, a.name, a.new)}
    if a.action == "delete":
        return {"changed": 1, "deleted": workspace.delete_model(a.name)}
    return {"changed": 1, "restored": workspace.restore_model(a.name)}


def run_trash(a: argparse.Namespace, stop: threading.Event, screen: Screen) -> dict[str, Any]:
    """``trash``."""
    workspace = open_workspace(a)
    if a.action == "empty":
        return {"deleted": workspace.empty_trash()}
    return {"trash": workspace.trash()}


def run_serve(a: argparse.Namespace, stop: threading.Event, screen: Screen) -> dict[str, Any]:
    """``serve``; returns when the server ends."""
    from .host.server import serve

    return serve(open_host(a), a.host, a.port, stop, screen.say, a.root_path)
