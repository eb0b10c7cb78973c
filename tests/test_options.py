"""One field of a request is a flag, a field of the API's body, and a widget."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Any

import pytest

from ddpm_core.api.public import SampleBody, TrainBody, body_of
from ddpm_core.cli import add_flags, build_parser
from ddpm_core.errors import UserError
from ddpm_core.operations.sampling import sample_text, settings_of
from ddpm_core.options import check, fields_of, option
from ddpm_core.requests import SampleRequest, TrainRequest


@dataclass
class Wish:
    """A request like the real ones."""

    name: str = option(metavar="NAME")
    often: int | None = option(None, label="How often (0 = preset)", low=1, help="so many times")
    share: float = option(0.5, label="Share", low=0, high=1, step=0.1)
    way: str = option("left", label="Way", choices=("left", "right"))
    loud: bool = option(True, label="Loud")
    again: bool = option(False, label="Again")
    inner: int = 7


def test_flags() -> None:
    parser = argparse.ArgumentParser()
    add_flags(parser, Wish, share=0.25)
    assert vars(parser.parse_args(["--name", "a"])) == {
        "name": "a",
        "often": None,
        "share": 0.25,
        "way": "left",
        "loud": True,
        "again": False,
    }
    words = ["--name", "a", "--often", "3", "--share", "1", "--way", "right", "--no-loud", "--again"]
    found = parser.parse_args(words)
    assert (found.often, found.share, found.way, found.loud, found.again) == (3, 1.0, "right", False, True)
    with pytest.raises(SystemExit):
        parser.parse_args(["--name", "a", "--way", "up"])
    with pytest.raises(SystemExit):
        parser.parse_args([])
    assert "so many times" in parser.format_help()


def test_bodies() -> None:
    body: Any = body_of("WishBody", Wish, "A wish.", share=(float, 0.75))
    made = body(name="a", often=2)
    assert dict(made) == {"name": "a", "often": 2, "share": 0.75, "way": "left", "loud": True, "again": False}
    with pytest.raises(ValueError, match="name"):
        body(often=2)
    with pytest.raises(ValueError, match="often"):
        body(name="a", often="many")


def test_widgets() -> None:
    import gradio as gr

    from ddpm_core.ui.common import value_of, widget

    fields = fields_of(Wish)
    assert list(fields) == ["name", "often", "share", "way", "loud", "again"]
    with gr.Blocks():
        made = {name: widget(field) for name, field in fields.items() if field.option.label}
    kinds = {name: type(one).__name__.lower() for name, one in made.items()}
    assert kinds == {"often": "number", "share": "slider", "way": "dropdown", "loud": "checkbox", "again": "checkbox"}
    assert made["often"].value == 0 and made["loud"].value is True and made["share"].value == 0.5
    assert value_of(fields["often"], 0) is None and value_of(fields["often"], 4) == 4
    assert value_of(fields["share"], "0.5") == 0.5 and value_of(fields["way"], "right") == "right"
    with pytest.raises(UserError, match=r"^How often must be a whole number\.$"):
        value_of(fields["often"], "many")


def test_bounds() -> None:
    check(Wish("a"))
    for changes, sentence in (
        ({"often": 0}, "Often must be at least 1; got 0."),
        ({"share": 1.5}, "Share must be between 0 and 1; got 1.5."),
        ({"share": float("nan")}, "Share must be between 0 and 1; got nan."),
        ({"way": "up"}, "There is no way 'up'; choose one of: left, right."),
    ):
        with pytest.raises(UserError) as said:
            check(Wish("a", **changes))
        assert str(said.value) == sentence
    check(Wish("a", often=0), ["way"])


@pytest.mark.parametrize(("request_type", "command"), [(TrainRequest, "train"), (SampleRequest, "sample")])
def test_no_option_is_known_to_one_door_only(request_type: type, command: str) -> None:
    """What the command line has the API has, and the other way round; the tab has what has a label."""
    words = [command, "--model", "m", *(["--out", "o"] if command == "sample" else [])]
    flags = set(vars(build_parser().parse_args(words)))
    body = TrainBody if command == "train" else SampleBody
    body_fields = set(getattr(body, "model_fields", None) or body.__fields__)
    own = set(fields_of(request_type))
    assert own <= body_fields
    assert own <= flags


def test_sampling_options_reach_settings_and_text() -> None:
    from ddpm_core.model.config import ModelConfig

    request = SampleRequest("m", sampler="ddim", steps=5, seed=3, spacing="leading", dynamic_threshold=0.99, clip=False)
    settings = settings_of(request)
    assert (settings.spacing, settings.dynamic_threshold, settings.clip, settings.seed) == ("leading", 0.99, False, 3)
    text = sample_text("m", ModelConfig(), settings, 3, 5, "ema")
    assert "DDPM spacing: leading" in text and "DDPM dynamic threshold: 0.99" in text
    plain = sample_text("m", ModelConfig(), settings_of(SampleRequest("m", seed=3)), 3, 20, "ema")
    assert "spacing" not in plain and "threshold" not in plain
    assert SampleRequest("m").enlarging is None
    with pytest.raises(UserError, match="upscaled 1 to 16 times"):
        _ = SampleRequest("m", upscaler="Lanczos", factor=99.0).enlarging
