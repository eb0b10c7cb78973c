"""Small parts of the tab, alike on gradio 3.41, 4.40 and newer."""

from __future__ import annotations

import html
import logging
import math
import random
from collections.abc import Callable, Sequence
from typing import Any

import gradio as gr

from ..errors import UserError, mendable
from ..options import Field
from ..text import legible

_log = logging.getLogger("ddpm_core")


def live(kind: str) -> Any:
    """A place that javascript/ddpm.js draws from the server's state."""
    return gr.HTML(f'<div class="ddpm-live" data-ddpm="{kind}"></div>')


def note(text: str) -> str:
    """A neutral line for a message place."""
    return f'<div class="ddpm-note">{html.escape(text)}</div>' if text else ""


def failure(text: str) -> str:
    """What happened and what to do, in the tab."""
    return f'<div class="ddpm-failure">{html.escape(text)}</div>'


def said(action: Callable[..., str]) -> Callable[..., str]:
    """Wrap an event handler that returns a line: bad input becomes a message in the tab, never a traceback."""

    def handler(*values: Any) -> str:
        try:
            return note(action(*map(_legible, values)))
        except UserError as error:
            return failure(str(error))
        except Exception as error:
            # the sentence for the person, the traceback for the log
            _log.exception("an action of the tab failed")
            return failure(mendable(error) or f"That failed ({type(error).__name__}: {error}); the console has more.")

    return handler


def _legible(value: Any) -> Any:
    return legible(value) if isinstance(value, str) else value


def whole(value: Any, what: str, default: int = 0) -> int:
    """A number that a field holds; the page's fields hold numbers, but anyone may call its events."""
    try:
        return default if value is None or value == "" else int(value)
    except (TypeError, ValueError, OverflowError):
        raise UserError(f"{what} must be a whole number.") from None


def seed(value: Any) -> int:
    """A seed from a number field: random for -1 and for nothing. UserError for what the field cannot hold exactly."""
    number = whole(value, "Seed", -1)
    if not -1 <= number < 2**53:  # a browser's numbers are exact to there
        raise UserError(f"The seed must be -1 (random) or a number from 0 to {2**53 - 1}.")
    return random.SystemRandom().randrange(2**32) if number == -1 else number


def decimal(value: Any, what: str, default: float = 0.0) -> float:
    """A number of a field; UserError naming the field where it is none."""
    try:
        found = default if value is None or value == "" else float(value)
    except (TypeError, ValueError, OverflowError):
        found = math.nan
    if not math.isfinite(found):
        raise UserError(f"{what} must be a number.")
    return found


def widget(field: Field, **about: Any) -> Any:
    """The widget of a request's field."""
    option = field.option
    shown = option.shown if field.default is None else field.default
    about = {"label": option.label, "info": option.info or None, "value": shown, **about}
    if option.choices:
        # two or so side by side where a person is told how to choose, else a list
        kind = gr.Radio if option.info else gr.Dropdown
        return kind(choices=list(option.choices), **about)
    if field.kind is bool:
        return gr.Checkbox(**about)
    if field.kind is str:
        return gr.Textbox(**about)
    if option.low is not None and option.high is not None:
        return gr.Slider(minimum=option.low, maximum=option.high, step=option.step, **about)
    return gr.Number(**about, **({"precision": 0} if field.kind is int else {}))


def in_rows(fields: Sequence[Field]) -> list[Any]:
    """The widgets of fields, two in a row, named after them."""
    found = []
    for first in range(0, len(fields), 2):
        with gr.Row():
            found += [widget(field, elem_id=f"ddpm_{field.name}") for field in fields[first : first + 2]]
    return found


def value_of(field: Field, value: Any) -> Any:
    """A widget's value as the request takes it; UserError where it is none."""
    if field.kind in (int, float):
        what = field.option.label.partition(" (")[0]
        value = whole(value, what) if field.kind is int else decimal(value, what)
    elif field.kind is bool:
        return bool(value)
    else:
        value = str(value or "")
    return None if field.none and value == field.option.shown and not field.option.choices else value


def start_image(**about: Any) -> Any:
    """An image to start from. A mask is drawn over it by javascript/ddpm_mask.js: gradio 4's own editor draws without end, seen or not."""
    own = (
        {"source": "upload"}
        if gr.__version__.startswith("3.")
        else {"sources": ["upload", "clipboard"], "format": "png"}
    )
    return gr.Image(type="pil", image_mode="RGBA", **own, **about)


def in_browser(code: str) -> dict[str, str]:
    """The argument of an event listener that runs JavaScript first; its name changed with gradio 4."""
    return {"_js" if gr.__version__.startswith("3.") else "js": code}


def not_in_defaults(*components: Any) -> None:
    """Keep the WebUI from writing these into its file of defaults: their labels repeat, or their values are not ours."""
    for component in components:
        component.do_not_save_to_config = True


def choices(values: list[str], current: Any, fallback: str | None) -> Any:
    """An update of a dropdown's choices; its value is set only where it has none, so that nothing typed is lost."""
    return gr.update(choices=values) if current or not fallback else gr.update(choices=values, value=fallback)


def existing(values: list[str], current: Any, fallback: str | None) -> Any:
    """An update of a dropdown that offers only what there is: what was deleted makes way."""
    return gr.update(choices=values) if current in values else gr.update(choices=values, value=fallback)
