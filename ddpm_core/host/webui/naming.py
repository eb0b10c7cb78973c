"""Saving our pictures by the host's own naming rules, into the host's own folders."""

from __future__ import annotations

import re
import time
from pathlib import Path
from types import SimpleNamespace

from modules import images
from PIL import Image

from ...collector import saved_path
from ...dataset import infotext
from ...errors import UserError
from .facts import option

# of these the host asks its own model or a whole generation: it would load a checkpoint, or fail
_ASKS_THE_MODEL = re.compile(
    r"\[(model_\w+|seed_first|seed_last|job_timestamp|batch_\w+|generation_number|vae_\w+|user|\w+_prompt_hash)\b"
)


def sample_folder() -> str:
    """Where our samples are saved, by the host's settings."""
    return str(option("outdir_samples", "") or option("outdir_txt2img_samples", "outputs/txt2img-images"))


def save_image(image: Image.Image, text: str, seed: int, folder: str = "", user: str = "") -> Path | None:
    """Save with generation text (in the folder of text-to-image); None where the host's settings say not to."""
    if not option("samples_save", True):
        return None
    folder = folder or sample_folder()
    kind = option("samples_format", "png")
    folder_pattern = option("directories_filename_pattern", "") or "[prompt_words]"
    in_folders = bool(option("save_to_dirs", True))
    name_pattern = option("samples_filename_pattern", "") or ("[seed]" if in_folders else "[seed]-[prompt_spaces]")
    try:
        numbered = bool(option("save_images_add_number", True))
        if numbered and not _ASKS_THE_MODEL.search(name_pattern + folder_pattern):
            path, _ = images.save_image(image, folder, "", seed, "", kind, info=text, p=None)
            return saved_path(Path(path).absolute(), time.time())
        namer = _namer(image, text, seed, user)
        if in_folders:
            folder = str(Path(folder) / namer.apply(folder_pattern).lstrip(" ").rstrip("\\ /"))
        name = namer.apply(name_pattern)
        if not numbered and name:
            name = _unused(Path(folder), f"{name}-ddpm", kind)
        else:
            Path(folder).mkdir(parents=True, exist_ok=True)
            number = f"{images.get_next_sequence_number(folder, ''):05}"
            name = f"{number}-{name}" if name else number
        path, _ = images.save_image(
            image, folder, "", seed, "", kind, info=text, p=None, forced_filename=name, save_to_dirs=False
        )
    except OSError as error:
        raise UserError(
            f"The image could not be saved to {folder} ({error.strerror or error}); make room and try again."
        ) from None
    return saved_path(Path(path).absolute(), time.time())


def _unused(folder: Path, name: str, kind: str) -> str:
    """Without numbers a name is that of the host's own picture of the seed, which saving would replace."""
    taken, number = name, 1
    while (folder / f"{name}.{kind}").exists():
        name, number = f"{taken}-{number}", number + 1
    return name


def _namer(image: Image.Image, text: str, seed: int, user: str) -> images.FilenameGenerator:
    """The host's generator of names, with our model where it would name its own."""
    settings = infotext.parse(text).settings
    title = settings.get(infotext.OWN_KEY, "DDPM")
    p = SimpleNamespace(
        batch_size=1,
        n_iter=1,
        iteration=0,
        batch_index=0,
        all_seeds=[seed],
        steps=settings.get("Steps", ""),
        cfg_scale="",
        sampler_name=settings.get("Sampler", ""),
        scheduler=None,
        styles=[],
        sd_model_hash="",
        user=user or None,
        prompt="",
        negative_prompt="",
    )
    generator = images.FilenameGenerator(p, seed, "", image)
    generator.replacements = {  # of this one object
        **images.FilenameGenerator.replacements,
        "model_hash": lambda self: "",
        "model_name": lambda self: images.sanitize_filename_part(title, replace_spaces=False),
        "vae_filename": lambda self: "",
    }
    return generator
