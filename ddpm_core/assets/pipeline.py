"""Images by words, for diffusers: written by sd-webui-ddpm beside a model that it trained with the words of its dataset.

    pipe = DiffusionPipeline.from_pretrained(FOLDER, custom_pipeline=FOLDER, trust_remote_code=True)
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
    images = pipe("red hair, smiling", negative_prompt="hat", num_inference_steps=20).images

Without ``custom_pipeline`` the folder is a plain ``DDPMPipeline`` that takes no words. ``words.json`` lists what it knows.
"""

import inspect
import json
import re
import warnings
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import DiffusionPipeline, ImagePipelineOutput
from diffusers.utils.torch_utils import randn_tensor
from safetensors.torch import load_file

# the share of the timesteps inside which guidance acts
BAND = (0.1, 1.0)


class WordsPipeline(DiffusionPipeline):
    """``unet`` predicts what ``scheduler`` says; words shift its timestep embedding, with classifier-free guidance (Ho & Salimans 2022)."""

    def __init__(self, unet, scheduler):
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler)

    def words(self):
        """The words that the model knows; those that always occur together are written with " | " between them."""
        return self._read()["words"]

    def _read(self):
        if not hasattr(self, "_known"):
            folder = Path(self.config._name_or_path)
            self._known = json.loads((folder / "words.json").read_text(encoding="utf-8"))
            self._weights = load_file(folder / "words.safetensors")
        return self._known

    def told(self, prompts):
        """Prompts, words between commas, to (N, K) weights: 1, or w of ``(word:w)``. An unknown word is warned of and changes nothing."""
        place = {name: i for i, entry in enumerate(self.words()) for name in entry.split(" | ")}
        values = torch.zeros(len(prompts), len(self.words()))
        for row, prompt in zip(values, prompts):
            for piece in filter(None, (part.strip() for part in prompt.split(","))):
                weighed = re.fullmatch(r"\((.*):\s*([0-9.]+)\)", piece)
                word, weight = (weighed[1], min(max(float(weighed[2]), 0.5), 1.5)) if weighed else (piece, 1.0)
                word = " ".join(re.sub(r"\\([()\[\]\\])", r"\1", word).replace("_", " ").casefold().split())
                if word in place:
                    row[place[word]] = max(float(row[place[word]]), weight)
                else:
                    warnings.warn(f"The model does not know {word!r}.", stacklevel=3)
        return values

    def shift(self, values):
        """(N, K) weights to what is added to the timestep's embedding, (N, width); zero without words."""
        self._read()
        w = {name: value.to(values) for name, value in self._weights.items()}
        number = (values != 0).sum(1, keepdim=True)
        told = (values / number.clamp_min(1).sqrt()) @ w["embedding"]
        hidden = F.silu(F.linear(told, w["linear_1.weight"], w["linear_1.bias"]))
        return (told + F.linear(hidden, w["linear_2.weight"], w["linear_2.bias"])) * (number > 0)

    @torch.no_grad()
    def __call__(
        self,
        prompt="",
        negative_prompt="",
        num_inference_steps=20,
        guidance_scale=2.0,
        generator=None,
        latents=None,
        output_type="pil",
        return_dict=True,
    ):
        """One image for each prompt. ``latents``: the noise (N, 3, H, W) to begin with. ``guidance_scale`` 1: one network call a step."""
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        negatives = [negative_prompt] * len(prompts) if isinstance(negative_prompt, str) else list(negative_prompt)
        device, dtype = self._execution_device, self.unet.dtype
        told, against = (self.shift(self.told(each).to(device)).to(dtype) for each in (prompts, negatives))
        if self.unet.class_embedding is None:
            self.unet.class_embedding = torch.nn.Identity()  # what is given as class labels is added to the embedding
        size = self.unet.config.sample_size
        height, width = (size, size) if isinstance(size, int) else size
        shape = (len(prompts), self.unet.config.in_channels, height, width)
        x = randn_tensor(shape, generator=generator, device=device, dtype=dtype) if latents is None else latents
        self.scheduler.set_timesteps(num_inference_steps, device=device)
        x = x * self.scheduler.init_noise_sigma
        accepted = inspect.signature(self.scheduler.step).parameters
        options = {"generator": generator} if "generator" in accepted else {}
        low, high = (round(edge * self.scheduler.config.num_train_timesteps) for edge in BAND)
        for t in self.progress_bar(self.scheduler.timesteps):
            given = self.scheduler.scale_model_input(x, t).to(dtype)
            if guidance_scale == 1 or not low <= int(t) < high:
                out = self.unet(given, t, class_labels=told).sample
            else:
                both = self.unet(torch.cat([given, given]), t, class_labels=torch.cat([told, against])).sample
                positive, negative = both.chunk(2)
                out = negative + guidance_scale * (positive - negative)
            x = self.scheduler.step(out, t, x, **options).prev_sample
        images = (x / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).float().cpu().numpy()
        if output_type == "pil":
            images = self.numpy_to_pil(images)
        return ImagePipelineOutput(images=images) if return_dict else (images,)
