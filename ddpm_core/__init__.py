"""sd-webui-ddpm: train your own diffusion model on the pictures you generate, and generate with it."""

__version__ = "0.1.0"
