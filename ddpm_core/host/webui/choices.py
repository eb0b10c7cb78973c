"""What the host's own text-to-image lets a person choose from."""

from __future__ import annotations

from collections.abc import Sequence

from modules import sd_samplers, shared


def generation_choices() -> dict[str, list[str]]:
    """The host's samplers, its styles, and its schedulers where it has them apart (A1111 1.9 and newer)."""
    try:
        from modules import sd_schedulers
    except ImportError:
        schedulers: list[str] = []
    else:
        schedulers = [scheduler.label for scheduler in sd_schedulers.schedulers]
    visible = getattr(sd_samplers, "visible_samplers", None)  # A1111 1.8 has only the whole list
    samplers = sd_samplers.all_samplers if visible is None else visible()
    return {
        "samplers": [sampler.name for sampler in samplers],
        "schedulers": schedulers,
        "styles": list(shared.prompt_styles.styles),
    }


def styled(prompt: str, negative: str, styles: Sequence[str]) -> tuple[str, str]:
    """Both prompts with these styles, as the host's own generations have them."""
    known = shared.prompt_styles
    chosen = list(styles)
    return known.apply_styles_to_prompt(prompt, chosen), known.apply_negative_styles_to_prompt(negative, chosen)
