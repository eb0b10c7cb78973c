"""What an image file says it was made with, whichever program made it."""

from __future__ import annotations

import gzip
import io
import json
from pathlib import Path

import numpy as np
import pytest
from conftest import DATA
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from ddpm_core.dataset import infotext, programs
from ddpm_core.dataset.infotext import Infotext
from ddpm_core.dataset.reading import decode
from ddpm_core.dataset.texts import decode_user_comment


@pytest.mark.parametrize(
    "text, prompt, negative, settings_",
    [
        (
            "a cat\nNegative prompt: dog\nSteps: 20, Sampler: Euler a, Seed: 5",
            "a cat",
            "dog",
            {"Steps": "20", "Sampler": "Euler a", "Seed": "5"},
        ),
        (
            "a cat\nSteps: 20, Sampler: Euler a, Seed: 5",
            "a cat",
            "",
            {"Steps": "20", "Sampler": "Euler a", "Seed": "5"},
        ),
        ("Steps: 20, Seed: 5", "Steps: 20, Seed: 5", "", {}),  # fewer than three pairs are prompt
        (
            "one\n\ntwo\nNegative prompt: a\nb\nSteps: 1, Seed: 2, Size: 3x4",
            "one\n\ntwo",
            "a\nb",
            {"Steps": "1", "Seed": "2", "Size": "3x4"},
        ),
        ("Negative prompt: only\nSteps: 1, Seed: 2, Size: 3x4", "", "only", {"Steps": "1", "Seed": "2", "Size": "3x4"}),
        (
            'p\nSteps: 1, Seed: 2, Hashes: "a: b, c: d", Version: v1',
            "p",
            "",
            {"Steps": "1", "Seed": "2", "Hashes": "a: b, c: d", "Version": "v1"},
        ),
        ("", "", "", {}),
    ],
)
def test_generation_text_is_parsed_as_the_webui_does(
    text: str, prompt: str, negative: str, settings_: dict[str, str]
) -> None:
    assert infotext.parse(text) == infotext.Infotext(prompt, negative, settings_)


words = st.text(st.characters(blacklist_categories=("Cs", "Cc", "Zl", "Zp", "Zs")), min_size=1, max_size=12)
keys = st.from_regex(r"[A-Za-z][A-Za-z0-9 ]{1,10}[A-Za-z]", fullmatch=True)


@given(
    prompt=words,
    negative=words,
    values=st.dictionaries(
        keys,
        st.text(st.characters(blacklist_categories=("Cs", "Cc")), min_size=1, max_size=20).map(str.strip).filter(bool),
        min_size=3,
        max_size=6,
    ),
)
@settings(max_examples=200, deadline=None)
def test_generation_text_round_trips(prompt: str, negative: str, values: dict[str, str]) -> None:
    info = infotext.Infotext(prompt, negative, values)
    if (
        prompt.startswith(infotext.NEGATIVE)
        or infotext.parse(infotext.build(infotext.Infotext(prompt, negative, {}))).settings
    ):
        return
    assert infotext.parse(infotext.build(info)) == info


@given(st.text(max_size=300))
@settings(max_examples=200, deadline=None)
def test_any_text_is_parsed(text: str) -> None:
    infotext.parse(text)


@given(st.binary(max_size=200))
@settings(max_examples=100, deadline=None)
def test_any_comment_is_decoded(raw: bytes) -> None:
    decode_user_comment(raw)
    decode_user_comment(b"UNICODE\0" + raw)


def test_user_comments_of_either_byte_order() -> None:
    for codec in ("utf-16-be", "utf-16-le", "utf-16"):
        assert decode_user_comment(b"UNICODE\0" + "a portrait, 肖像".encode(codec)) == "a portrait, 肖像"


@pytest.mark.parametrize("chunk", ["tEXt", "zTXt", "iTXt"])
def test_png_texts_of_all_three_kinds(chunk: str) -> None:
    info = PngImagePlugin.PngInfo()
    if chunk == "iTXt":
        info.add_itxt("parameters", "a 猫", zip=True)
    else:
        info.add_text("parameters", "a cat", zip=chunk == "zTXt")
    out = io.BytesIO()
    Image.new("RGB", (64, 64)).save(out, "PNG", pnginfo=info)
    assert decode(out.getvalue(), 64).texts["parameters"] == ("a 猫" if chunk == "iTXt" else "a cat")


# -- other programs -----------------------------------------------------------------------------------------------------------

PROMPT = "a portrait of a woman with red hair, smiling"


def said(data: bytes) -> Infotext:
    return programs.read(decode(data, 64).texts)


def picture(mode: str = "RGB") -> Image.Image:
    values = np.random.default_rng(0).integers(0, 255, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(values).resize((64, 64), Image.Resampling.BICUBIC).convert(mode)


def with_texts(texts: dict[str, str], itxt: bool = False) -> bytes:
    info = PngImagePlugin.PngInfo()
    for name, text in texts.items():
        (info.add_itxt if itxt or not text.isascii() else info.add_text)(name, text)
    out = io.BytesIO()
    picture().save(out, "PNG", pnginfo=info)
    return out.getvalue()


def with_exif(container: str, tags: dict[int, object], comment: bytes | None = None, **options: object) -> bytes:
    exif = Image.Exif()
    for tag, value in tags.items():
        exif[tag] = value
    if comment is not None:
        exif.get_ifd(0x8769)[0x9286] = comment
    out = io.BytesIO()
    picture().save(out, container, exif=exif, **options)  # type: ignore[arg-type]
    return out.getvalue()


@pytest.mark.parametrize("path", sorted((DATA / "field" / "other-programs").glob("*.png")), ids=lambda path: path.stem)
def test_the_prompt_of_every_program_is_read(path: Path) -> None:
    info = said(path.read_bytes())
    assert PROMPT in info.prompt and "{" not in info.prompt.replace("{red|blue}", "")
    if path.stem not in ("midjourney",):
        assert info.negative_prompt == "blurry" and info.settings["Seed"] == "5"
    if path.stem != "break-lora-wildcard":
        assert info.prompt == PROMPT


def test_utf8_and_templates() -> None:
    field = DATA / "field"
    assert said((field / "utf8-text" / "a.png").read_bytes()).prompt.startswith("微笑的女孩")
    info = said((field / "dynamic-prompts-template" / "a.png").read_bytes())
    assert (info.prompt, info.negative_prompt) == ("a red cat on a chair", "blurry")
    assert info.settings["Model"] == "somemodel"


FIELDS = {
    "prompt": PROMPT,
    "negativeprompt": "blurry",
    "seed": 5,
    "steps": 20,
    "cfgscale": 7.0,
    "model": "a/somemodel.safetensors",
}
COMFY = {
    "1": {"class_type": "CLIPTextEncode", "inputs": {"text": ["9", 0], "clip": ["4", 1]}},
    "2": {"class_type": "CLIPTextEncode", "inputs": {"text": "blurry", "clip": ["4", 1]}},
    "3": {
        "class_type": "KSampler",
        "inputs": {"seed": 5, "steps": 20, "positive": ["6", 0], "negative": ["6", 1], "model": ["4", 0]},
    },
    "4": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "a\\\\somemodel.safetensors"}},
    "6": {"class_type": "ControlNetApplyAdvanced", "inputs": {"positive": ["1", 0], "negative": ["2", 0]}},
    "7": {"class_type": "SaveImage", "inputs": {"images": ["8", 0], "filename_prefix": "not this"}},
    "8": {"class_type": "VAEDecode", "inputs": {"samples": ["3", 0], "vae": ["4", 2]}},
    "9": {"class_type": "StringConcatenate", "inputs": {"string_a": PROMPT, "string_b": ["9", 0]}},
    "10": {"class_type": "CLIPTextEncode", "inputs": {"text": "of another, unused branch"}},
}
FLUX = {
    "1": {"class_type": "CLIPTextEncodeFlux", "inputs": {"clip_l": PROMPT, "t5xxl": PROMPT, "guidance": 3.5}},
    "2": {"class_type": "BasicGuider", "inputs": {"conditioning": ["1", 0], "model": ["5", 0]}},
    "3": {"class_type": "SamplerCustomAdvanced", "inputs": {"guider": ["2", 0], "noise": ["4", 0]}},
    "4": {"class_type": "RandomNoise", "inputs": {"noise_seed": 5}},
    "5": {"class_type": "UNETLoader", "inputs": {"unet_name": "flux.safetensors"}},
    "6": {"class_type": "SaveImage", "inputs": {"images": ["3", 0]}},
}


def test_texts_of_png() -> None:
    nan = json.dumps(COMFY).replace('"seed": 5', '"seed": 5, "is_changed": NaN')
    cases: list[tuple[dict[str, str], str]] = [
        ({"parameters": json.dumps({"sui_image_params": FIELDS, "sui_extra_data": {}})}, "blurry"),
        ({"prompt": nan, "workflow": "{}"}, "blurry"),
        ({"prompt": json.dumps(FLUX)}, ""),
        (
            {
                "sd-metadata": json.dumps(
                    {"image": {"prompt": [{"prompt": PROMPT + " [blurry]", "weight": 1.0}], "seed": 5}}
                )
            },
            "blurry",
        ),
        ({"Dream": f'"{PROMPT} [blurry]" -s 20 -S 5 -W 512 -H 512 -C 7.5 -A k_lms'}, "blurry"),
        ({"prompt": PROMPT, "negative_prompt": "blurry", "seed": "5", "num_inference_steps": "20"}, "blurry"),
        ({"XML:com.adobe.xmp": xmp(json.dumps({"c": PROMPT, "uc": "blurry", "seed": 5}))}, "blurry"),
    ]
    for texts, negative in cases:
        info = said(with_texts(texts, itxt="XML:com.adobe.xmp" in texts))
        assert (info.prompt, info.negative_prompt, info.settings["Seed"]) == (PROMPT, negative, "5"), texts
    assert said(with_texts({"prompt": json.dumps(COMFY)})).settings["Model"] == "somemodel"
    assert said(with_texts({"prompt": json.dumps(FLUX)})).settings["Model"] == "flux"
    assert (
        said(
            with_texts({"Description": PROMPT + " --ar 2:3 --v 6.1 Job ID: 01234567-89ab-cdef-0123-456789abcdef"})
        ).prompt
        == PROMPT
    )


def xmp(comment: str) -> str:
    import html

    return (
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF><rdf:Description xmp:CreatorTool="Draw Things"><exif:UserComment><rdf:Alt>'
        f'<rdf:li xml:lang="x-default">{html.escape(comment)}</rdf:li></rdf:Alt></exif:UserComment></rdf:Description></rdf:RDF></x:xmpmeta>'
    )


@pytest.mark.parametrize("container", ["JPEG", "WEBP"])
def test_texts_of_exif_and_xmp(container: str) -> None:
    infotext_ = f"{PROMPT}\nNegative prompt: blurry\nSteps: 20, Sampler: Euler a, Seed: 5, Size: 512x512"
    unicode = b"UNICODE\0" + infotext_.encode("utf-16-be")
    civitai = json.dumps({**COMFY, "extra": {}, "extraMetadata": json.dumps({**FIELDS, "negativePrompt": "blurry"})})
    files = [
        with_exif(container, {}, unicode),
        with_exif(container, {}, b"UNICODE\0" + civitai.encode("utf-16-le")),
        with_exif(container, {}, b"ASCII\0\0\0" + json.dumps(FIELDS).encode()),
        with_exif(container, {0x010F: "workflow:{}", 0x0110: "prompt:" + json.dumps(COMFY)}),
        with_exif(container, {0x010E: "Workflow: " + json.dumps(COMFY), 0x010F: "Prompt: " + json.dumps(COMFY)}),
        with_exif(container, {0x010E: infotext_}),
        with_exif(container, {}, xmp=xmp(json.dumps({"c": PROMPT, "uc": "blurry", "seed": 5})).encode()),
    ]
    for number, data in enumerate(files):
        info = said(data)
        assert (info.prompt, info.negative_prompt, info.settings["Seed"]) == (PROMPT, "blurry", "5"), number
    assert said(with_exif(container, {0x010E: "一个女孩".encode()})).prompt == "一个女孩"
    assert (
        said(with_exif(container, {0x010E: "OLYMPUS DIGITAL CAMERA", 0x010F: "OLYMPUS", 0x0110: "E-M1"})) == Infotext()
    )


@pytest.mark.parametrize("kind", ["info", "comp"])
@pytest.mark.parametrize("where", ["alpha", "rgb"])
def test_text_hidden_in_the_last_bits(where: str, kind: str) -> None:
    """As the stealth PNG info extension writes it: column by column, from the first."""
    text = f"{PROMPT}\nNegative prompt: 模糊\nSteps: 20, Sampler: Euler a, Seed: 5, Size: 512x512".encode()
    data = gzip.compress(text) if kind == "comp" else text
    signature = f"stealth_{'png' if where == 'alpha' else 'rgb'}{kind}".encode()
    payload = signature + (8 * len(data)).to_bytes(4, "big") + data
    bits = np.unpackbits(np.frombuffer(payload, np.uint8))
    pixels = np.asarray(picture("RGBA")).copy()
    columns = pixels[..., 3:] if where == "alpha" else pixels[..., :3]
    stream = columns.transpose(1, 0, 2).reshape(-1).copy()
    stream[: len(bits)] = (stream[: len(bits)] & 254) | bits
    columns[:] = stream.reshape(64, 64, -1).transpose(1, 0, 2)
    out = io.BytesIO()
    Image.fromarray(pixels if where == "alpha" else pixels[..., :3].copy()).save(out, "PNG")
    info = said(out.getvalue())
    assert (info.prompt, info.negative_prompt, info.settings["Seed"]) == (PROMPT, "模糊", "5")
    cut = json.loads(json.dumps(info.settings))
    assert cut["Sampler"] == "Euler a"


@pytest.mark.parametrize(
    "text",
    [
        '{"a": 1}',
        '{"unknown": {"prompt": 3}}',
        '{"prompt": "cut o',
        "[1, 2]x",
        '[{"a": 1}]',
        '{"1": {"class_type": "X", "inputs": {}}}',
        '[[1, 2], ["a"]]',
    ],
)
def test_json_that_cannot_be_read_is_never_shown(text: str) -> None:
    for name in ("parameters", "prompt", "Comment", "Description", "invokeai_metadata", "sd-metadata"):
        assert said(with_texts({name: text})).prompt in ("", text if text.startswith("[1") else ""), name


def test_prompts_that_begin_with_braces_are_prompts() -> None:
    for prompt in ("{red|blue} cat", "[a|b] portrait", "{masterpiece}, girl", "[[cat]], dog", "[[[[blurry"):
        assert said(with_texts({"parameters": prompt})).prompt == prompt


def test_what_a_program_says_of_itself_is_no_prompt() -> None:
    assert said(with_texts({"Comment": "Created with GIMP", "Software": "x"})) == Infotext()


@given(
    st.dictionaries(
        st.sampled_from(["parameters", "prompt", "comment", "dream", "sd-metadata", "description", "make"]),
        st.text(max_size=80),
    )
)
@settings(max_examples=200, deadline=None)
def test_any_texts_are_read(texts: dict[str, str]) -> None:
    programs.read(texts)


json_like = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.sampled_from([["1", 0], ["2", 1]]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["1", "2", "inputs", "class_type", "positive", "negative", "text", "prompt", "image", "Comment"]
            ),
            inner,
            max_size=5,
        )
    ),
    max_leaves=20,
)


@given(json_like)
@settings(max_examples=300, deadline=None)
def test_any_json_is_read(values: object) -> None:
    programs.of_text(
        json.dumps(
            {"1": {"class_type": "Save", "inputs": values if isinstance(values, dict) else {}}, "prompt": values}
        )
    )
    programs.of_text(json.dumps(values))


def test_a_large_graph_is_read_at_once() -> None:
    """Thirty thousand nodes, all of which lead to each other."""
    import time

    nodes = {
        str(i): {
            "class_type": "KSampler" if i % 2 else "X",
            "inputs": {"positive": [str(i + 1), 0], "text": [str(i + 2), 0]},
        }
        for i in range(9_000)
    }
    began = time.process_time()
    programs.of_text(json.dumps(nodes))
    assert time.process_time() - began < 5


@pytest.mark.parametrize("name", ["Description", "Comment", "Dream", "prompt", "parameters"])
@pytest.mark.parametrize(
    "text",
    ["{a" + " " * 100_000 + "x", "x" + " " * 60_000 + "x", "DSC" * 20_000 + "x", "a -b" * 15_000, "Job ID: " * 7_000],
)
def test_no_long_text_takes_long(name: str, text: str) -> None:
    import time

    began = time.process_time()
    programs.read({name.lower(): text})
    assert time.process_time() - began < 0.5


def test_a_graph_with_very_many_inputs_is_read_at_once() -> None:
    import time

    nodes: dict[str, object] = {"0": {"class_type": "X", "inputs": {f"i{k}": 1 for k in range(20_000)}}}
    for number in range(1, 5_000):
        nodes[str(number)] = {"class_type": "KSampler", "inputs": {"positive": ["0", 0]}}
    began = time.process_time()
    programs.of_text(json.dumps(nodes))
    assert time.process_time() - began < 2
