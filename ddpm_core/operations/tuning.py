"""What a fine-tuning by an adapter is begun with and keeps in its run's folder: the base's weights as they are now, and images of the base's kind.

Both are copies, so that it goes on bit for bit whatever becomes of the base and its dataset.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from ..dataset.packing import pack
from ..dataset.store import Store
from ..dataset.tags import MOST_LETTERS, tags_of
from ..errors import Stopped, UserError
from ..files import replace_with
from ..model import adapter_file
from ..model import file as model_file
from ..model.build import network_of
from ..model.config import AdapterConfig, ModelConfig
from ..model.diffusion import Diffusion, model_to_uint8
from ..model.lora import widened, with_concept
from ..model.values import Shared, Values
from ..options import CROPS
from ..parsing import tensors_of
from ..requests import TrainRequest
from ..sampling.generate import SampleSettings, generate
from ..sampling.guidance import Asked
from ..training import precision
from ..training.settings import ADAPTER_STEPS, AdapterSettings, RunConfig, TrainSettings
from ..training.tuning import Prior, Tuning
from ..workspace import Workspace
from .context import Context
from .loading import learned_from
from .telling import told_from, told_of, told_tensors

BASE_FILE, PRIOR_FILE = "base.safetensors", "prior.safetensors"  # in a run's folder
PRESERVE = 4.0  # how much that the base's own images are answered as before counts beside the new ones
OWN_SETTINGS = ("rank", "alpha", "preserve")  # of an adapter's training, beside those of any
_MOST_PRIOR = 1024  # images of the base's dataset
SAMPLED, _HELD_EACH = 256, 4  # images of the base itself, where its dataset is gone; every fourth is held out
_FEWEST = 32  # images from which a dataset says what the base's kind is


def tuned(workspace: Workspace, request: TrainRequest) -> tuple[RunConfig, int]:
    """The configuration of a new fine-tuning, before single settings, and its number of steps."""
    assert request.base is not None
    if request.init_from or request.preset or request.size is not None:
        raise UserError(
            "An adapter keeps the network of its base; leave out the preset, the size and the initial weights."
        )
    if request.condition not in (None, "auto"):
        raise UserError("An adapter is told what its base is told; leave out the condition.")
    path = workspace.model_path(request.base)
    if path.parent != workspace.models_folder:
        raise UserError(
            "An adapter belongs to a model of this workspace: put the file into its models folder, and name it."
        )
    loaded = model_file.load(path)
    model = loaded.config
    if model.kind == "contrast":
        raise UserError(f"{path.stem} finds and ranks images; an adapter changes a model that makes or enlarges them.")
    concept = _concept(model, path.stem, request.concept or "")
    upscaler = model.kind == "upscaler"
    train = TrainSettings(
        batch_size=8 if upscaler else 16,
        learning_rate=1e-3,
        warmup_steps=20,
        flip_probability=0.0,
        weighting="uniform",  # at low noise min-SNR counts nothing, and there the base was forgotten (benchmarks/RESULTS.md)
    )
    own = {key: request.settings[key] for key in OWN_SETTINGS if key in request.settings}
    adapter, preserve = _adapter(own, concept, request.prior)
    settings = AdapterSettings(path.stem, adapter_file.digest_of(loaded.weights), adapter, preserve)
    steps = request.steps if request.steps is not None else (10**9 if request.minutes is not None else ADAPTER_STEPS)
    return RunConfig(with_concept(model, concept), train, settings), steps


def _adapter(settings: Mapping[str, str], concept: str, prior: str | None) -> tuple[AdapterConfig, float]:
    """The shape of the twins, and how much preservation counts, from single settings."""
    try:
        rank = int(settings.get("rank", AdapterConfig().rank))
        alpha = float(settings.get("alpha", rank))
        preserve = float(settings.get("preserve", PRESERVE))
    except ValueError:
        raise UserError("rank must be a whole number, alpha and preserve numbers.") from None
    return AdapterConfig(rank, alpha, concept), 0.0 if prior == "none" else preserve


def _concept(model: ModelConfig, base: str, text: str) -> str:
    """The new word as the model will know it; UserError where it cannot be one."""
    words = list(tags_of(text))
    if not text.strip():
        return ""
    if model.kind == "upscaler":
        raise UserError("An upscaler is told no words; leave out the concept.")
    if model.text is not None:
        raise UserError(
            f"{base} reads whole prompts by a text encoder and learns no single words; leave out the concept: the images' own prompts will teach it."
        )
    if len(words) != 1 or len(words[0]) > MOST_LETTERS or re.search(r"[()\[\]<>|:]", text):
        raise UserError(f"The new word must be one word or a few without commas and brackets; got {text[:100]!r}.")
    if words[0] in (name for entry in model.tags for name in entry.split(" | ")):
        raise UserError(
            f"{base} already knows the word {words[0]!r}; choose another one for what is new, or leave it out to teach the words of the "
            "images' own prompts."
        )
    return words[0]


def keep_base(workspace: Workspace, config: RunConfig, folder: Path, context: Context) -> None:
    """Write the base and images of its kind into a run's folder."""
    assert config.tuning is not None
    path = workspace.model_path(config.tuning.base)
    loaded = model_file.load(path)
    if adapter_file.digest_of(loaded.weights) != config.tuning.digest:
        raise UserError(f"The model {config.tuning.base} was changed meanwhile; start again.")
    folder.mkdir(parents=True, exist_ok=True)
    replace_with(folder / BASE_FILE, lambda temporary: save_file(loaded.weights, temporary))
    prior = _of_dataset(workspace, config, model_file.known_of(loaded.info), context)
    preserving = config.tuning.preserve > 0
    if prior is None and (config.model.kind == "upscaler" or not preserving):
        if preserving:
            context.say(
                f"The dataset of {path.stem} is not here: nothing keeps the adapter from forgetting what the upscaler can draw."
            )
        return
    if prior is None:
        context.say(f"The dataset of {path.stem} is not here: images of its own take the place.")
        prior = _of_base(config, loaded, context)
    values = {"images": prior.images.contiguous(), "held": prior.held, **told_tensors(prior.told)}
    replace_with(folder / PRIOR_FILE, lambda temporary: save_file(values, temporary))


def _of_dataset(workspace: Workspace, config: RunConfig, known: dict[str, object], context: Context) -> Prior | None:
    """Images of the dataset that the base learned from, if it is there; of many, some."""
    crop = known.get("crop")
    store = _learned_from(workspace, known, context)
    if store is None or store.counts()["kept"] < _FEWEST:
        return None
    crop = crop if isinstance(crop, str) and crop in CROPS else "center"
    packed = pack(store, config.model.image_size, crop, context.progress, context.stop, grey=config.model.is_grey)
    order = torch.randperm(len(packed.ids), generator=torch.Generator(device="cpu").manual_seed(0), device="cpu")
    rows = order[:_MOST_PRIOR].sort().values
    held = torch.tensor(packed.held_out)[rows]
    if not bool(held.any()):
        held[:: max(2, len(held) // 16)] = True
    told = told_of(store, RunConfig(config.model), packed, context, rows)
    return Prior(packed.images[rows], held, _without_concept(config, told))


def _learned_from(workspace: Workspace, known: dict[str, object], context: Context) -> Store | None:
    """The dataset that a model learned from, telling the person where it has changed since."""
    found = learned_from(workspace, known)
    if found is None:
        return None
    name, same = found
    if not same:
        context.say(
            f"The dataset {name} has changed since the model learned from it; its images as they are now stand for what it knows."
        )
    return workspace.store(name)


def _without_concept(config: RunConfig, told: dict[str, Values]) -> dict[str, Values]:
    """The base's own images do not show what is new, whatever their prompts say."""
    concept, tags = config.tuning.adapter.concept if config.tuning is not None else "", told.get("tags")
    if concept and isinstance(tags, Tensor):
        tags[:, config.model.tags.index(concept)] = 0.0
    return told


def _of_base(config: RunConfig, loaded: model_file.ModelFile, context: Context) -> Prior:
    """Samples of the base, a quarter asked for nothing, the others for one to three of its words."""
    device, own = context.device, len(loaded.config.tags)
    draw = torch.Generator(device="cpu").manual_seed(0)
    tags = torch.zeros((SAMPLED, len(config.model.tags)))
    for row in tags[SAMPLED // 4 :] if own else []:
        count = 1 + int(torch.randint(min(3, own), (1,), generator=draw, device="cpu"))
        row[torch.randperm(own, generator=draw, device="cpu")[:count]] = 1.0
    with context.gpu_slice():
        net = network_of(loaded.config, loaded.weights, device)
        diffusion = Diffusion(loaded.config.diffusion, device)

    def network(x: Tensor, t: Tensor, *, told: Mapping[str, Tensor] | None = None) -> Tensor:
        with context.gpu_slice():
            return net(x, t, told=told)  # type: ignore[no-any-return]

    images, _ = generate(
        network,
        diffusion,
        loaded.config.denoised,
        SAMPLED,
        SampleSettings(seed=0),
        dtype=precision.of_sampling(device),
        stop=context.stop,
        progress=lambda done, total, _: context.progress(done, total, "Sampling images of the base"),
        asked=Asked({"tags": tags[:, :own]}, None, 1.5) if own else None,
    )
    if len(images) < SAMPLED:
        raise Stopped("Stopped before the first step; nothing was made.")
    held = torch.zeros(SAMPLED, dtype=torch.bool)
    held[::_HELD_EACH] = True
    told: dict[str, Values] = {"tags": tags} if config.model.tags else {}
    if config.model.text is not None:  # they were asked for nothing
        nothing = torch.zeros((1, *config.model.text.shape), dtype=torch.float16)
        told["text"] = Shared(nothing, torch.zeros((SAMPLED, 1), dtype=torch.int64))
    return Prior(model_to_uint8(images).cpu(), held, told)


def tuning_in_run(folder: Path, config: RunConfig) -> Tuning | None:
    """What a run's folder keeps of its fine-tuning; None for a run that is none, UserError where it is gone or damaged."""
    settings = config.tuning
    if settings is None:
        return None
    concept = settings.adapter.concept
    after = config.model
    before = dataclasses.replace(after, tags=after.tags[:-1]) if concept and after.tags[-1] == concept else after
    path = folder / BASE_FILE
    if not folder.is_dir():
        raise UserError("A fine-tuning by several processes needs one workspace for all of them.")
    remedy = "; start the fine-tuning again."
    with tensors_of(path, f"The base that this run began with, {path}, is damaged", remedy) as file:
        weights = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 - not a dict
        if adapter_file.digest_of(weights) != settings.digest:
            raise ValueError("it is another model")
        return Tuning(settings, widened(weights, before, after), _prior_in(folder, config))
    raise UserError(f"The base that this run began with, {path}, cannot be read{remedy}")


def _prior_in(folder: Path, config: RunConfig) -> Prior | None:
    path = folder / PRIOR_FILE
    if not path.exists():
        return None
    with tensors_of(path, f"The images of the base that this run began with, {path}, are damaged") as file:
        images, held = file.get_tensor("images").clone(), file.get_tensor("held").clone()
        height, width = config.model.image_size
        if images.dtype != torch.uint8 or images.shape[1:] != (3, height, width) or held.shape != images.shape[:1]:
            raise ValueError("they are of another model")
        told = told_from(file, config.model, len(images))
        if not bool(held.bool().any()) or bool(held.bool().all()):
            raise ValueError("none is trained on, or none held out")
        return Prior(images, held.bool(), told)
    return None
