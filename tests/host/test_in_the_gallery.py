"""Our model's pictures in a real WebUI's own tabs: beside its generations, alone, on cards, in its plot, sent on.

WEBUI_DIR names a working installation, WEBUI_PYTHON its Python. The tests share one running host with two small models.
"""

from __future__ import annotations

import io
import json
import re
import sys
import threading
import time
import zipfile
from base64 import b64decode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageChops

sys.path.insert(0, str(Path(__file__).parent))

from browser import SHOTS, Page, make_driver, needs_browser
from conftest import ROOT
from running import WEBUI_DIR, WEBUI_PYTHON, WebUI, base64_of, family, picture, same_bytes, train

pytestmark = [
    needs_browser,
    pytest.mark.skipif(
        not (WEBUI_DIR and WEBUI_PYTHON),
        reason="skipped: no real WebUI; name one with WEBUI_DIR and its Python with WEBUI_PYTHON",
    ),
    pytest.mark.timeout(1800),
]

NATIVE = "None (native size)"


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebUI]:
    webui = WebUI(tmp_path_factory.mktemp("gallery") / "data")
    webui.install()
    webui.install_neighbour()
    webui.start()
    try:
        webui.txt2img(seed=1, batch_size=8)
        webui.job_done(webui.post("ddpm/v1/harvest", {"dataset": "all", "folders": ["txt2img"]})["job"])
        for model, seed in (("first", 1), ("second", 2)):
            done = webui.job_done(train(webui, model, 30, seed=seed))
            assert done["state"] == "done", done["error"]
        yield webui
    finally:
        webui.kill()


@pytest.fixture(scope="module")
def page(host: WebUI) -> Iterator[Page]:
    driver = make_driver()
    try:
        yield Page(driver, host.url, f"gallery-{family()}")
    finally:
        driver.quit()


def beside(*values: Any) -> dict[str, Any]:
    """What an API request carries: the values of the accordion's controls, as many as are given."""
    return {"alwayson_scripts": {"DDPM": {"args": [True, *values]}}}


def texts_of(answer: dict[str, Any]) -> list[str]:
    """Texts of all pictures of an answer; each picture carries its own."""
    texts = json.loads(answer["info"])["infotexts"]
    assert len(texts) == len(answer["images"]), "a text for each picture"
    return list(texts)


def ours(texts: list[str]) -> list[int]:
    return [index for index, text in enumerate(texts) if "DDPM model: " in text]


def files(host: WebUI) -> set[Path]:
    return set(host.outputs.rglob("*.png"))


def pixels(made: dict[str, Any], index: int) -> bytes:
    """Without the alpha channel, in which Forge and reForge hide the text."""
    return picture(made, index).convert("RGB").tobytes()


def text_in(image: Image.Image) -> str:
    return str(image.info.get("parameters", ""))


def test_beside_txt2img(host: WebUI) -> None:
    plain = host.txt2img(seed=21, n_iter=2, batch_size=2)
    before = files(host)
    made = host.txt2img(seed=21, n_iter=2, batch_size=2, **beside("first", 3, "DDIM", 4, -1, "Lanczos", "raw"))
    texts = texts_of(made)
    assert len(texts) == len(plain["images"]) + 3 and ours(texts) == list(range(len(texts)))[-3:]
    for index, text in enumerate(texts):
        if index in ours(texts) or family() == "a1111":  # the others hide the text in the picture of their own
            assert text_in(picture(made, index)) == text, index
    for number, index in enumerate(ours(texts)):
        assert picture(made, index).size == (64, 64), "brought to the size of the generation"
        assert f"Seed: {21 + number}," in texts[index] and "DDPM sampler: ddim" in texts[index]
        assert "DDPM steps: 4" in texts[index] and "DDPM weights: raw" in texts[index]
    # the host's own are what they are without us
    for index in range(len(plain["images"])):
        assert pixels(made, index) == pixels(plain, index)
    new = sorted(files(host) - before)
    saved = [path for path in new if "DDPM model" in text_in(Image.open(path))]
    assert len(saved) == 3 and all("txt2img-images" in str(path) for path in saved)
    assert len([path for path in new if "txt2img-images" in str(path)]) == 7
    job = host.job_done(host.post("ddpm/v1/harvest", {"dataset": "again", "folders": ["txt2img"]})["job"])
    assert job["result"]["skipped"]["own"] == 3, "a dataset never takes our own"


def test_closed_it_changes_nothing(host: WebUI) -> None:
    plain = same_bytes(host.txt2img(seed=33, batch_size=2))
    closed = {"alwayson_scripts": {"DDPM": {"args": [False, "first", 3]}}}
    assert same_bytes(host.txt2img(seed=33, batch_size=2, **closed)) == plain
    opened = host.txt2img(seed=33, batch_size=2, **beside("first"))
    assert same_bytes(opened) == plain
    assert same_bytes(host.txt2img(seed=33, batch_size=2)) == plain, "nor afterwards"


def test_own_size_and_seed(host: WebUI) -> None:
    made = host.txt2img(seed=5, width=128, height=64, **beside("second", 2, "UniPC", 3, 900, NATIVE))
    texts = texts_of(made)
    first, second = ours(texts)
    assert picture(made, first).size == (32, 32) and "Size: 32x32" in texts[first]
    assert "Seed: 900," in texts[first] and "Seed: 901," in texts[second] and "DDPM upscaler" not in texts[first]
    again = host.txt2img(seed=6, **beside("second", 2, "unipc", 3, 900, NATIVE))
    assert pixels(again, ours(texts_of(again))[0]) == pixels(made, first), "the same seed"
    wide = host.txt2img(seed=5, width=128, height=64, **beside("second", 1, "UniPC", 3, 900, "Nearest"))
    assert picture(wide, -1).size == (128, 64) and "DDPM upscaler: Nearest" in texts_of(wide)[-1]


def test_beside_img2img_with_masks(host: WebUI) -> None:
    """The masks that the host returns have no text of their own: with ours beside them each picture has its own."""
    host.post("sdapi/v1/options", {"return_mask": True, "return_mask_composite": True, "save_mask": True})
    try:
        base = picture(host.txt2img(seed=40)).convert("RGB")
        mask = base.convert("L").point(lambda v: 255 if v > 100 else 0)
        body = {"init_images": [base64_of(base)], "mask": base64_of(mask), "prompt": "a cat", "steps": 2, "seed": 41}
        body |= {"width": 64, "height": 64, "batch_size": 2, "n_iter": 2, "sampler_name": "Euler", "save_images": True}
        before = files(host)
        made = host.post("sdapi/v1/img2img", {**body, **beside("first", 2, "DDIM", 3)})
    finally:
        host.post("sdapi/v1/options", {"return_mask": False, "return_mask_composite": False, "save_mask": False})
    texts = texts_of(made)
    assert ours(texts) == [len(texts) - 2, len(texts) - 1]
    grid = 1 if len(texts) == 15 else 0
    assert len(texts) == 14 + grid
    for index in [grid + 3 * number for number in range(4)] if family() == "a1111" else []:
        assert text_in(picture(made, index)) == texts[index]
    for number in range(4):  # picture, mask, composite: all of one seed
        assert {re.search(r"Seed: (\d+)", t)[1] for t in texts[grid + 3 * number :][:3]} == {str(41 + number)}
    saved = [path for path in files(host) - before if "DDPM model" in text_in(Image.open(path))]
    assert len(saved) == 2 and all("img2img-images" in str(path) for path in saved)


def test_img2img_and_inpainting_begin_with_the_same_image(host: WebUI) -> None:
    """Ours take image, mask and strength of the WebUI's own; outside the mask nothing changes, and the WebUI's own pictures stay as they are."""
    base = picture(host.txt2img(seed=40, width=128, height=128)).convert("RGB")
    body = {"init_images": [base64_of(base)], "prompt": "a cat", "steps": 2, "seed": 41, "sampler_name": "Euler"}
    body |= {"width": 128, "height": 128, "denoising_strength": 0.6}

    def as_without_us(asked: dict[str, Any], made: dict[str, Any]) -> bool:
        return pixels(host.post("sdapi/v1/img2img", asked), 0) == pixels(made, 0)

    host.post("sdapi/v1/img2img", body)  # the host's first of a kind differs from all that follow, by some levels
    made = host.post("sdapi/v1/img2img", {**body, **beside("first", 1, "DDIM", 10, -1, NATIVE)})
    assert as_without_us(body, made)
    text = texts_of(made)[-1]
    assert "Denoising strength: 0.6" in text and "Steps: 7," in text and "Size: 32x32" in text
    still = host.post(
        "sdapi/v1/img2img", {**body, "denoising_strength": 0, **beside("first", 1, "DDIM", 10, -1, NATIVE)}
    )
    kept = picture(still, -1).convert("RGB")
    assert max(ImageChops.difference(kept, base.resize((32, 32), Image.Resampling.LANCZOS)).getextrema())[1] <= 1

    mask = Image.new("L", base.size)
    mask.paste(255, (40, 40, 90, 90))
    body |= {"mask": base64_of(mask), "mask_blur": 2, "inpainting_fill": 1}
    for only_masked, size in ((False, (128, 128)), (True, (160, 128))):
        image = base.resize(size)
        whole = {
            **body,
            "init_images": [base64_of(image)],
            "mask": base64_of(mask.resize(size)),
            "inpaint_full_res": only_masked,
        }
        host.post("sdapi/v1/img2img", whole)
        made = host.post("sdapi/v1/img2img", {**whole, **beside("first", 2, "DDIM", 10)})
        assert as_without_us(whole, made)
        texts = texts_of(made)
        assert ours(texts) == [len(texts) - 2, len(texts) - 1]
        for index in ours(texts):
            found = picture(made, index).convert("RGB")
            assert found.size == image.size and "Mask blur: 2" in texts[index] and "DDPM enlarged" in texts[index]
            assert ("Inpaint area: Only masked" in texts[index]) == only_masked
            difference = ImageChops.difference(found, image).convert("L").point(lambda v: 255 if v else 0)
            left, top, right, bottom = difference.getbbox()
            scale = size[0] / 128
            assert left >= 30 * scale and top >= 30 and right <= 100 * scale and bottom <= 100, "outside of the mask"
            assert (right - left) * (bottom - top) > 900


def test_extra_seed_varies_ours_too(host: WebUI) -> None:
    asked = {"subseed": 77, "subseed_strength": 0.3}
    made = host.txt2img(seed=5, **asked, **beside("first", 2, "DDIM", 3, -1, NATIVE))
    texts = [texts_of(made)[index] for index in ours(texts_of(made))]
    for number, text in enumerate(texts):
        assert f"Seed: 5, Size: 32x32, Variation seed: {77 + number}, Variation seed strength: 0.3" in text


def test_hires_fix(host: WebUI) -> None:
    upscaler = "None" if family() == "neo" else "Latent"
    more = {"enable_hr": True, "hr_scale": 2, "hr_upscaler": upscaler, "denoising_strength": 0.6}
    if family() != "a1111":
        more |= {"hr_additional_modules": ["Use same choices"]} if family() in ("forge", "neo") else {}
    made = host.txt2img(seed=50, **more, **beside("first", 1, "DDIM", 3))
    assert picture(made, 0).size == (128, 128)
    assert picture(made, -1).size == (128, 128) and ours(texts_of(made)) == [len(texts_of(made)) - 1]


def test_saving_off(host: WebUI) -> None:
    before = files(host)
    made = host.txt2img(seed=60, save_images=False, **beside("first", 2, "DDIM", 3))
    assert len(ours(texts_of(made))) == 2
    host.post("sdapi/v1/options", {"samples_save": False})
    try:
        made = host.txt2img(seed=61, **beside("first", 2, "DDIM", 3))
    finally:
        host.post("sdapi/v1/options", {"samples_save": True})
    assert len(ours(texts_of(made))) == 2
    assert not [path for path in files(host) - before if "grids" not in str(path)]


def during(host: WebUI, action: Any, ready: Any, **request: Any) -> tuple[dict[str, Any], float]:
    """Do something while a generation is at a certain point; the answer, and how long it took from then on."""
    answers: list[dict[str, Any]] = []
    thread = threading.Thread(target=lambda: answers.append(host.txt2img(**request)))
    thread.start()
    host.wait_for(lambda: ready(host.get("sdapi/v1/progress")), "that point", 60)
    began = time.monotonic()
    action()
    thread.join(120)
    assert answers, host.log()[-2000:]
    return answers[0], time.monotonic() - began


def at_ours(progress: dict[str, Any]) -> bool:
    return bool(progress["textinfo"] == "DDPM" and progress["state"]["sampling_step"] > 3)


def test_interrupted_and_skipped(host: WebUI) -> None:
    long = beside("first", 4, "DDPM", 1000)

    def interrupt() -> None:
        host.post("sdapi/v1/interrupt", {})

    def skip() -> None:
        host.post("sdapi/v1/skip", {})

    # during the host's own: none of ours
    steps = 150 if family() == "a1111" else 30
    made, _ = during(host, interrupt, lambda p: p["state"]["sampling_step"] > 2, seed=70, steps=steps, **long)
    assert not ours(json.loads(made["info"])["infotexts"])
    # during ours: the host's picture stands, unfinished ones of ours are dropped, and it ends at once
    for end in (interrupt, skip):
        made, seconds = during(host, end, at_ours, seed=71, **long)
        assert len(made["images"]) == 1 and not ours(texts_of(made)) and seconds < 10
    made = host.txt2img(seed=72, **beside("first", 1, "DDIM", 3))
    assert len(ours(texts_of(made))) == 1, "the next one is whole"
    progress = host.get("sdapi/v1/progress")
    assert not progress["textinfo"] and not progress["state"]["job"]


def test_live_preview(host: WebUI) -> None:
    host.post("sdapi/v1/options", {"live_previews_enable": True, "show_progress_every_n_steps": 1})
    seen: list[bytes] = []
    progress: list[float] = []
    try:
        thread = threading.Thread(target=lambda: host.txt2img(seed=80, **beside("first", 4, "DDPM", 300)))
        thread.start()
        while thread.is_alive():
            now = host.get("sdapi/v1/progress")
            if at_ours(now) and now["current_image"]:
                image = Image.open(io.BytesIO(b64decode(now["current_image"]))).convert("RGB")
                seen.append(image.tobytes())
                progress.append(now["progress"])
                assert image.size == (384, 384)
            time.sleep(0.1)
    finally:
        host.post("sdapi/v1/options", {"live_previews_enable": False})
    assert len(set(seen)) >= 3, "the picture emerges"
    assert progress == sorted(progress) and progress[-1] > 0.5


def test_beside_what_other_extensions_do(host: WebUI) -> None:
    """One calls everybody's postprocess early (ADetailer), one appends pictures without texts (ControlNet)."""
    before = files(host)
    made = host.txt2img(seed=140, prompt="early", n_iter=2, **beside("first", 2, "DDIM", 3))
    assert len(ours(texts_of(made))) == 2
    assert len([path for path in files(host) - before if "DDPM model" in text_in(Image.open(path))]) == 2
    made = host.txt2img(seed=150, prompt="appended", batch_size=2, **beside("first", 1, "DDIM", 3))
    texts = texts_of(made)
    first = len(texts) - 5
    assert ours(texts) == [len(texts) - 1]
    for number in range(2):  # the host's own keep theirs
        assert f"Seed: {150 + number}," in texts[first + number]
        assert family() != "a1111" or text_in(picture(made, first + number)) == texts[first + number]
    assert picture(made, first + 2).convert("RGB").getpixel((5, 5)) == (9, 9, 9)


def test_without_numbers_nothing_is_overwritten(host: WebUI) -> None:
    """Then a file's name is its seed, which is that of the host's picture."""
    host.post("sdapi/v1/options", {"save_images_add_number": False})
    try:
        before = files(host)
        made = host.txt2img(seed=160, **beside("first", 1, "DDIM", 3))
        host.txt2img(seed=160, **beside("first", 1, "DDIM", 4))
    finally:
        host.post("sdapi/v1/options", {"save_images_add_number": True})
    new = {path.name: path for path in files(host) - before if "txt2img-images" in str(path)}
    assert sorted(new) == ["160-ddpm-1.png", "160-ddpm.png", "160.png"]
    with Image.open(new["160.png"]) as image:
        assert image.convert("RGB").tobytes() == pixels(made, 0)


def test_bad_requests_get_a_sentence(host: WebUI) -> None:
    for values, said in (
        (("nowhere",), "There is no model 'nowhere'"),
        (("first", 5000), "number of images"),
        (("first", 1, "Euler a"), "no sampler"),
        (("first", 1, "DDIM", "many"), "whole numbers"),
        (("first", 1, "DDIM", 4, -1, "../../x"), "no upscaler"),
        (("first", 1, "DDIM", 4, -1, NATIVE, "best"), "ema or raw"),
        (("first", 1, "DDIM", 4, -1, NATIVE, "ema", 99), "CFG scale must be between 1 and 30"),
        (("first", 1, "DDIM", 4, -1, NATIVE, "ema", "nan"), "CFG scale must be between 1 and 30"),
        (("../first",), "no model"),
    ):
        made = host.txt2img(seed=90, **beside(*values))
        info = json.loads(made["info"])
        assert said in info["extra_generation_params"]["DDPM error"], info["extra_generation_params"]
        assert len(made["images"]) == 1 and "DDPM" not in info["infotexts"][0]


def test_the_script_alone(host: WebUI) -> None:
    before = files(host)
    values = ["second", 1, "DDIM", 4, -1, NATIVE, "ema"]
    made = host.txt2img(seed=100, n_iter=2, batch_size=2, script_name="DDPM alone", script_args=values)
    texts = texts_of(made)
    grid = len(texts) - 4
    assert grid in (0, 1) and len(ours(texts)) == len(texts)
    assert json.loads(made["info"])["index_of_first_image"] == grid
    for number in range(4):
        assert picture(made, grid + number).size == (32, 32)
        assert f"Seed: {100 + number}," in texts[grid + number] and "DDPM model: second" in texts[grid + number]
    assert len([path for path in files(host) - before if "txt2img-images" in str(path)]) == 4
    # as beside a generation of the same seed
    other = host.txt2img(seed=100, **beside("second", 1, "DDIM", 4, -1, NATIVE))
    difference = ImageChops.difference(picture(other, -1).convert("RGB"), picture(made, grid).convert("RGB"))
    assert (
        max(high for _, high in difference.getextrema()) <= 1
    )  # one picture at a time, and two: torch may round otherwise
    failed = host.txt2img(script_name="DDPM alone", script_args=["nowhere"])
    assert "no model" in json.loads(failed["info"])["extra_generation_params"]["DDPM error"]


def plot(host: WebUI, x: tuple[str, str], y: tuple[str, str], **more: Any) -> dict[str, Any]:
    scripts = host.get("sdapi/v1/script-info")
    found = next(s for s in scripts if s["name"] == "x/y/z plot" and not s["is_img2img"])
    labels = found["args"][0]["choices"]
    values: list[Any] = [argument.get("value") for argument in found["args"]]  # hosts differ in how many there are
    for position, (label, wanted) in enumerate((x, y, ("Nothing", ""))):
        listed = [value.strip() for value in wanted.split(",")] if wanted else []
        values[3 * position : 3 * position + 3] = [labels.index(label), wanted, listed]
    for position, argument in enumerate(found["args"]):
        if argument["label"] == "Include Sub Images":
            values[position] = True
    return host.txt2img(script_name="x/y/z plot", script_args=values, **more)


def portraits(host: WebUI) -> None:
    """The dataset *worded*, of images with prompts."""
    if "worded" in host.status()["datasets"]:
        return
    folder = host.outputs / "txt2img-images" / "portraits"
    with zipfile.ZipFile(ROOT / "ddpm_core" / "assets" / "portraits.zip") as archive:
        names = [name for name in archive.namelist() if name.startswith("txt2img-images")][:120]
        for name in names:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / Path(name).name).write_bytes(archive.read(name))
    host.job_done(host.post("ddpm/v1/harvest", {"dataset": "worded", "folders": ["txt2img"]})["job"])


def test_prompts_drive_our_images(host: WebUI) -> None:
    """The prompt box, negative prompt and CFG scale of the generation: our images follow, carry them, and give them back."""
    portraits(host)
    done = host.job_done(train(host, "worded", 60, dataset="worded", settings={}))
    assert done["state"] == "done", done["error"]
    asked = {"prompt": "dark skin, pink background, zebra", "negative_prompt": "glasses", "seed": 7}
    plain = host.txt2img(**asked)
    values = ("worded", 2, "DDIM", 4, -1, NATIVE, "ema", 3)
    made = host.txt2img(**asked, **beside(*values))
    assert pixels(made, 0) == pixels(plain, 0), "the host's own is what it is without us"
    texts = texts_of(made)
    first, second = ours(texts)
    expected = "dark skin, pink background, zebra\nNegative prompt: glasses\nSteps: 4, "
    assert texts[first].startswith(expected) and texts[second].startswith(expected)
    assert "CFG scale: 3," in texts[first]
    read = host.post("sdapi/v1/png-info", {"image": "data:image/png;base64," + made["images"][first]})
    assert read["parameters"]["Prompt"] == asked["prompt"] and read["parameters"]["DDPM model"] == "worded"
    assert pixels(host.txt2img(**asked, **beside(*values)), first) == pixels(made, first)
    others = (
        {**asked, "prompt": "light skin, lavender background"},
        {**asked, "negative_prompt": ""},
    )
    for other in others:
        assert pixels(host.txt2img(**other, **beside(*values)), first) != pixels(made, first), other
    assert pixels(host.txt2img(**asked, **beside(*values[:-1], 8)), first) != pixels(made, first)
    # a plot of prompts by CFG scales: each cell its own
    grid = plot(
        host, ("Prompt S/R", "dark skin,light skin"), ("[DDPM] CFG scale", "1, 4"), width=128, height=128, **asked
    )
    cells = [text for text in json.loads(grid["info"])["infotexts"] if "DDPM model: " in text][-4:]
    assert [(t.split(" skin")[0], re.search(r"CFG scale: (\d+)", t)[1]) for t in cells] == [  # type: ignore[index]
        (skin, scale) for scale in ("1", "4") for skin in ("dark", "light")
    ]
    alone = host.txt2img(**asked, script_name="DDPM alone", script_args=list(values))
    assert texts_of(alone)[-1].startswith(expected)


def test_a_prompt_calls_an_adapter(host: WebUI) -> None:
    """Trained on the bundled model, called by the prompt box beside a generation and alone, weighed by a plot; nothing of it reaches the host's own."""
    portraits(host)
    asked = {"preset": None, "base": "bundled-portraits", "concept": "crown", "learning_rate": 0.01, "settings": {}}
    done = host.job_done(train(host, "crowned", 12, dataset="worded", **asked))
    assert done["state"] == "done", done["error"]
    values = ("bundled-portraits", 1, "DDIM", 4, -1, NATIVE, "ema", 2)
    plain = host.txt2img(prompt="crown, dark skin", seed=9)
    made = host.txt2img(prompt="<ddpm:crowned:0.8> crown, dark skin", seed=9, **beside(*values))
    assert pixels(made, 0) == pixels(plain, 0), "the host's own is that of the words alone"
    (first,) = ours(texts_of(made))
    assert texts_of(made)[first].startswith("<ddpm:crowned:0.8> crown, dark skin\nSteps: 4, ")
    assert "DDPM error" not in made["info"]
    weaker = host.txt2img(prompt="<ddpm:crowned:0.4> crown, dark skin", seed=9, **beside(*values))
    without = host.txt2img(prompt="dark skin", seed=9, **beside(*values))
    none = host.txt2img(prompt="<ddpm:crowned:0> dark skin", seed=9, **beside(*values))
    assert len({pixels(one, first) for one in (made, weaker, without)}) == 3
    assert pixels(none, first) == pixels(without, first)
    alone = host.txt2img(
        prompt="<ddpm:crowned:0.8> crown, dark skin", seed=9, script_name="DDPM alone", script_args=list(values)
    )
    assert texts_of(alone)[-1].startswith("<ddpm:crowned:0.8> crown, dark skin\n")
    row = plot(
        host,
        ("[DDPM] Adapter weight", "0, 0.5, 1"),
        ("[DDPM] Model", "bundled-portraits"),
        prompt="<ddpm:crowned> crown, dark skin",
        seed=9,
        width=128,
        height=128,
    )
    cells = [text for text in json.loads(row["info"])["infotexts"] if "DDPM model: " in text][-3:]
    assert [text.split(">")[0] for text in cells] == [f"<ddpm:crowned:{weight}" for weight in ("0", "0.5", "1")]
    wrong = host.txt2img(prompt="<ddpm:crowned> crown", seed=9, **beside("first", *values[1:]))
    assert "belongs to another model, bundled-portraits" in wrong["info"]
    unknown = host.txt2img(prompt="<ddpm:crowed> crown", seed=9, **beside(*values))
    assert "no adapter 'crowed'" in unknown["info"]


def test_prompts_are_read_by_the_text_encoder(host: WebUI) -> None:
    """A model that reads prompts by the host's own text encoder: trained, asked beside a generation and alone, and no trace left."""
    portraits(host)
    seeded = {"prompt": "(dark skin:1.2), pink background", "negative_prompt": "glasses", "seed": 11}
    before = host.txt2img(**seeded)
    for reading in ("pooled", "cross-attention"):
        name = f"reads-{reading}"
        done = host.job_done(train(host, name, 30, dataset="worded", condition=reading))
        assert done["state"] == "done", done["error"]
        after = host.txt2img(**seeded)
        assert pixels(after, 0) == pixels(before, 0) and texts_of(after) == texts_of(before), "a training left a trace"
        values = (name, 1, "DDIM", 4, -1, NATIVE, "ema", 3)
        made = host.txt2img(**seeded, **beside(*values))
        assert pixels(made, 0) == pixels(before, 0) and texts_of(made)[0] == texts_of(before)[0]
        (first,) = ours(texts_of(made))
        assert texts_of(made)[first].startswith(
            "(dark skin:1.2), pink background\nNegative prompt: glasses\nSteps: 4, "
        )
        assert "DDPM error" not in made["info"]
        assert pixels(host.txt2img(**seeded, **beside(*values)), first) == pixels(made, first)
        for other in ({**seeded, "prompt": "light skin"}, {**seeded, "negative_prompt": ""}):
            assert pixels(host.txt2img(**other, **beside(*values)), first) != pixels(made, first), other
        # the weight of a word is the host's, and none of what is read
        weighed = {**seeded, "prompt": "(dark skin:1.4), pink background"}
        assert pixels(host.txt2img(**weighed, **beside(*values)), first) == pixels(made, first)
        again = host.txt2img(**seeded)
        assert pixels(again, 0) == pixels(before, 0) and texts_of(again) == texts_of(before), "a sampling left a trace"
        (shown,) = (model for model in host.get("ddpm/v1/models")["models"] if model["name"] == name)
        assert shown["text"].startswith(f"{reading}, ")


def test_a_plot_of_two_models_by_three_step_counts(host: WebUI) -> None:
    before = files(host)
    made = plot(host, ("[DDPM] Steps", "2, 4, 8"), ("[DDPM] Model", "first, second"), seed=110, width=128, height=128)
    samples = [path for path in files(host) - before if "grid" not in path.name]
    assert len(samples) == 6  # none of Stable Diffusion is made, and none is saved
    assert all("DDPM model" in text_in(Image.open(path)) for path in samples)
    texts = json.loads(made["info"])["infotexts"]
    cells = [(i, t) for i, t in enumerate(texts) if "DDPM model: " in t][-6:]
    assert [(re.search(r"DDPM model: (\w+)", t)[1], re.search(r"DDPM steps: (\d+)", t)[1]) for _, t in cells] == [
        (model, steps) for model in ("first", "second") for steps in ("2", "4", "8")
    ]
    grid = picture(made, 0)
    assert grid.width > 3 * 128 and grid.height > 2 * 128
    SHOTS.mkdir(exist_ok=True)
    grid.save(SHOTS / f"gallery-{family()}-plot.png")
    # six different pictures
    assert len({pixels(made, len(made["images"]) - 1 - k) for k in range(6)}) == 6


def test_a_cell_that_fails_is_empty(host: WebUI) -> None:
    """The host's own picture would stand under our label."""
    values = [True, "second", 1, "DDIM", 4, -1, "Lanczos", "ema"]
    makeshift = host.data / "ddpm" / "runs" / "second"
    makeshift.rename(makeshift.with_name("elsewhere"))  # raw weights lie in the run
    try:
        made = plot(
            host,
            ("[DDPM] Weights", "ema, raw"),
            ("Nothing", ""),
            seed=111,
            alwayson_scripts={"DDPM": {"args": values}},
        )
    finally:
        makeshift.with_name("elsewhere").rename(makeshift)
    last = len(made["images"]) - 1
    good, empty = picture(made, last - 1).convert("RGB"), picture(made, last).convert("RGB")
    assert len(set(good.getdata())) > 10 and len(set(empty.getdata())) == 1


def test_a_plot_of_something_else_gets_none(host: WebUI) -> None:
    before = files(host)
    made = plot(host, ("Steps", "2, 3"), ("Nothing", ""), seed=112, **beside("first", 2))
    assert not ours(json.loads(made["info"])["infotexts"])
    assert not [path for path in files(host) - before if "DDPM model" in text_in(Image.open(path))]


def test_other_scripts_get_none(host: WebUI) -> None:
    """A script that puts pictures together itself would take ours for its own."""
    made = host.txt2img(
        seed=120,
        prompt="a portrait of a cat|red",
        script_name="prompt matrix",
        script_args=[False, False, "positive", "comma", 0],
        **beside("first"),
    )
    assert not ours(json.loads(made["info"])["infotexts"])
    base = picture(host.txt2img(seed=40)).convert("RGB")
    body = {"init_images": [base64_of(base)], "prompt": "a cat", "steps": 2, "width": 64, "height": 64}
    arguments = [8, "None", 2.0, False] if family() == "neo" else ["", 8, "Lanczos", 2.0]
    more = {"script_name": "sd upscale", "script_args": arguments}
    made = host.post(
        "sdapi/v1/img2img", {**body, "sampler_name": "Euler", "save_images": True, **more, **beside("first")}
    )
    size = (64, 64) if family() == "neo" else (128, 128)  # it has no Lanczos of its own, and "None" leaves it as it is
    assert picture(made, 0).size == size and not ours(json.loads(made["info"])["infotexts"])


def test_the_cards_take_names_only(host: WebUI) -> None:
    path = host.data / "models" / "DDPM" / "first.safetensors"
    status, found, _ = host.ask(f"sd_extra_networks/get-single-card?page=ddpm&tabname=txt2img&name={path}")
    assert status == 500 or str(path.parent) not in str(found)


# -- in the browser ---------------------------------------------------------------------------------------------------


def open_txt2img(page: Page) -> None:
    page.driver.get(page.url)
    page.wait(lambda: page.js("return document.querySelector('#txt2img_generate') !== null"), "txt2img", 120)
    page.wait(lambda: page.all("#txt2img_generate"), "its button")
    time.sleep(2)


def press(page: Page, css: str) -> None:
    page.wait(lambda: page.js("return document.querySelector(arguments[0]) !== null", css), css)
    page.js("document.querySelector(arguments[0]).click()", css)


def number(page: Page, css: str, value: int) -> None:
    from selenium.webdriver.common.keys import Keys

    field = page.wait(lambda: page.all(f"{css} input[type=number]"), css)[0]
    page.js("arguments[0].scrollIntoView({block: 'center'})", field)
    field.click()
    field.send_keys(Keys.CONTROL, "a")
    field.send_keys(str(value), Keys.TAB)
    time.sleep(0.3)


def fill(page: Page, css: str, text: str) -> None:
    from selenium.webdriver.common.keys import Keys

    field = page.wait(lambda: page.all(f"{css} textarea, {css} input"), css)[0]
    page.js("arguments[0].scrollIntoView({block: 'center'})", field)
    field.click()
    field.send_keys(Keys.CONTROL, "a")
    field.send_keys(Keys.BACKSPACE, text, Keys.TAB)
    time.sleep(0.3)


def choose(page: Page, css: str, value: str) -> None:
    """Choose from a dropdown, as a person does."""
    from selenium.webdriver.common.keys import Keys

    field = page.wait(lambda: page.all(f"{css} input"), css)[0]
    page.js("arguments[0].scrollIntoView({block: 'center'})", field)
    field.click()
    field.send_keys(Keys.CONTROL, "a")
    field.send_keys(value)
    time.sleep(0.3)
    field.send_keys(Keys.ENTER)
    page.js("document.activeElement.blur()")
    page.wait(lambda: field.get_attribute("value") == value, f"{css} to be {value}")


def shown_model(page: Page) -> str:
    return str(page.js("const m = document.querySelector('#script_txt2img_ddpm_model input'); return m ? m.value : ''"))


def thumbnails(page: Page, tab: str = "txt2img") -> list[Any]:
    return page.all(f"#{tab}_gallery .thumbnail-item") or page.all(f"#{tab}_gallery button.thumbnail-lg img")


def test_a_card_is_clicked(host: WebUI, page: Page) -> None:
    open_txt2img(page)
    page.js(
        "[...document.querySelectorAll('#txt2img_extra_tabs button')].find(b => b.textContent.trim() === 'DDPM').click()"
    )
    page.wait(lambda: page.all("#txt2img_ddpm_cards .card"), "our cards", 60)
    cards = page.all("#txt2img_ddpm_cards .card")
    assert {"first", "second", "bundled-portraits"} <= {card.get_attribute("data-name") for card in cards}
    assert page.js(
        "return [...document.querySelectorAll('#txt2img_ddpm_cards .card img')].every(i => i.complete && i.naturalWidth)"
    ), "their previews"
    page.shot("cards")
    status, found, _ = host.ask("sd_extra_networks/metadata?page=ddpm&item=first")
    metadata = json.loads(found["metadata"])
    assert status == 200 and metadata["size"] == "32x32" and metadata["steps"] == 30
    page.js("document.querySelector('#txt2img_ddpm_cards .card[data-name=first]').click()")
    page.wait(lambda: shown_model(page) == "first", "the card's model in the accordion")
    page.wait(lambda: page.all("#script_txt2img_ddpm_model input"), "the open accordion")
    page.js("document.querySelector('#txt2img_ddpm_cards .card[data-name=second]').click()")
    page.wait(lambda: shown_model(page) == "second", "the other card's model")
    if "crowned" in {card.get_attribute("data-name") for card in cards}:
        page.js("document.querySelector('#txt2img_ddpm_cards .card[data-name=crowned]').click()")
        prompt = "return document.querySelector('#txt2img_prompt textarea').value"
        page.wait(lambda: "<ddpm:crowned:1> crown" in page.js(prompt), "the adapter in the prompt")
        assert shown_model(page) == "second", "and the model stays"


def test_from_the_page_to_the_gallery(host: WebUI, page: Page) -> None:
    open_txt2img(page)
    press(page, "#script_txt2img_ddpm_enable .label-wrap, #script_txt2img_ddpm_enable > button")  # click 1
    page.wait(lambda: page.all("#script_txt2img_ddpm_model input"), "the open accordion")
    assert shown_model(page) == "(newest)", "a model is chosen already"
    for css, value in (("#txt2img_width", 64), ("#txt2img_height", 64), ("#txt2img_steps", 2)):
        number(page, css, value)  # only for the sake of a slow machine
    page.click("#txt2img_generate")  # click 2
    page.wait(lambda: len(thumbnails(page)) >= 2, "both models' pictures", 180)
    page.wait(lambda: not page.all("#txt2img_interrupt"), "the end")
    press_thumbnail = (
        "const t = [...document.querySelectorAll('#txt2img_gallery .thumbnail-item')]; t[t.length - 1].click()"
    )
    page.js(press_thumbnail)
    page.wait(
        lambda: "DDPM model" in page.js("return document.querySelector('#html_info_txt2img').textContent"), "its text"
    )
    page.shot("txt2img")


def test_the_batch_tab_of_img2img(host: WebUI, page: Page) -> None:
    """Each image of a folder is edited by both models, neither's result is written over the other's, and outside a mask nothing changes."""
    folders = {name: host.outputs.parent / f"batch {name}" for name in ("in", "out", "masks", "masked")}
    for folder in folders.values():
        folder.mkdir()
    given = {name: picture(host.txt2img(seed=seed, width=128, height=128)) for name, seed in (("one", 50), ("two", 51))}
    for name, image in given.items():
        given[name] = image.convert("RGB")
        given[name].save(folders["in"] / f"{name}.png")
    mask = Image.new("L", (128, 128))
    mask.paste(255, (40, 40, 90, 90))
    mask.save(folders["masks"] / "mask.png")

    def made(into: str, masks: str = "") -> dict[str, Image.Image]:
        """Ours, by the name of the image that it began with."""
        fill(page, "#img2img_batch_output_dir", str(folders[into]))
        fill(page, "#img2img_batch_inpaint_mask_dir", masks and str(folders[masks]))
        page.click("#img2img_generate")
        host.wait_for(lambda: len(list(folders[into].glob("*.png"))) >= 4, "both models' images of both files", 240)
        page.wait(lambda: not page.all("#img2img_interrupt"), "the end", 60)
        images = [
            Image.open(path) for path in sorted(folders[into].glob("*.png"), key=lambda path: path.stat().st_mtime)
        ]
        ours = [image for image in images if "DDPM model" in text_in(image)]
        assert (len(images), len(ours)) == (4, 2)  # Forge Neo does not name them by the files that they began with
        return dict(zip(given, ours))

    open_txt2img(page)
    page.js("[...document.querySelectorAll('#tabs button')].find(b => b.textContent.trim() === 'img2img').click()")
    for label in ("Batch", "From directory"):
        page.js(
            "[...document.querySelectorAll('#mode_img2img button')].find(b => b.textContent.trim() === arguments[0]).click()",
            label,
        )
        time.sleep(0.5)
    press(page, "#script_img2img_ddpm_enable .label-wrap, #script_img2img_ddpm_enable > button")
    page.wait(lambda: page.all("#script_img2img_ddpm_model input"), "the open accordion")
    for css, value in (("#img2img_width", 128), ("#img2img_height", 128), ("#img2img_steps", 2), ("#img2img_seed", 52)):
        number(page, css, value)
    fill(page, "#img2img_batch_input_dir", str(folders["in"]))
    ours = made("out")
    page.shot("batch")
    assert all("Denoising strength: " in text_in(image) for image in ours.values())
    assert ours["one"].tobytes() != ours["two"].tobytes(), "each begins with its own"
    for name, image in made("masked", "masks").items():
        difference = (
            ImageChops.difference(image.convert("RGB"), given[name]).convert("L").point(lambda v: 255 if v else 0)
        )
        left, top, right, bottom = difference.getbbox()
        assert left >= 20 and top >= 20 and right <= 110 and bottom <= 110, "outside of the mask"
        assert (right - left) * (bottom - top) > 900


def test_the_interrupt_button_ends_a_single_generation(host: WebUI, page: Page) -> None:
    """With more than one job the host's Interrupt only ends after the current one: ours must not make one of it."""
    open_txt2img(page)
    press(page, "#script_txt2img_ddpm_enable .label-wrap, #script_txt2img_ddpm_enable > button")
    page.wait(lambda: page.all("#script_txt2img_ddpm_model input"), "the open accordion")
    for css, value in (("#txt2img_width", 64), ("#txt2img_height", 64), ("#txt2img_steps", 2)):
        number(page, css, value)
    choose(page, "#script_txt2img_ddpm_sampler", "DDPM")
    number(page, "#script_txt2img_ddpm_steps", 1000)
    number(page, "#script_txt2img_ddpm_count", 4)
    before = files(host)
    page.click("#txt2img_generate")
    host.wait_for(lambda: at_ours(host.get("sdapi/v1/progress")), "our sampling", 120)
    page.shot("interrupt")
    page.click("#txt2img_interrupt")
    host.wait_for(lambda: not host.get("sdapi/v1/progress")["state"]["job"], "its end", 15)
    page.wait(lambda: not page.all("#txt2img_interrupt"), "the page to know", 30)
    assert [("DDPM model" in text_in(Image.open(path))) for path in files(host) - before] == [False]


def test_pasting_restores_our_settings(host: WebUI, page: Page) -> None:
    made = host.txt2img(seed=130, **beside("first", 1, "UniPC", 7, -1, "Nearest", "raw"))
    text = texts_of(made)[-1]
    open_txt2img(page)
    field = page.wait(lambda: page.all("#txt2img_prompt textarea"), "the prompt")[0]
    page.js(
        "arguments[0].value = arguments[1]; arguments[0].dispatchEvent(new Event('input', {bubbles: true}))",
        field,
        text,
    )
    time.sleep(0.5)
    page.click("#paste")
    page.wait(lambda: shown_model(page) == "first", "the model")
    page.wait(lambda: page.all("#script_txt2img_ddpm_model input"), "the open accordion")
    value = "const f = document.querySelector(arguments[0]); return f ? f.value : null"
    page.wait(lambda: page.js(value, "#script_txt2img_ddpm_steps input[type=number]") == "7", "the steps")
    assert page.js(value, "#script_txt2img_ddpm_sampler input") == "UniPC"
    assert page.js(value, "#script_txt2img_ddpm_upscaler input") == "Nearest"
    assert page.js("return document.querySelector('#script_txt2img_ddpm_weights input:checked').value") == "raw"
    assert page.js(value, "#txt2img_seed input") == "130"
    if family() != "neo":  # whose first start on a data folder pastes no prompt at all, ours or its own
        assert page.js(value, "#txt2img_prompt textarea") == ""
    steps = "32" if family() == "neo" else "20"
    assert page.js(value, "#txt2img_steps input[type=number]") == steps, "the host's own steps stay"
    assert page.js(value, "#txt2img_width input[type=number]") == "64", "the size it was brought to"
    # and that text in the host's PNG Info
    found = host.post("sdapi/v1/png-info", {"image": "data:image/png;base64," + made["images"][-1]})
    assert found["info"] == text and found["parameters"]["DDPM model"] == "first"


def send(page: Page, target: str) -> None:
    page.js("[...document.querySelectorAll('#tabs button')].find(b => b.textContent.trim() === 'DDPM').click()")
    page.tab("Generate")
    page.wait(lambda: page.all(f"#ddpm_send_to_{target}"), target)
    page.click(f"#ddpm_send_to_{target}")


def sizes(page: Page, css: str) -> list[list[int]]:
    return list(
        page.js(
            "return [...document.querySelectorAll(arguments[0])].map(i => [i.naturalWidth || i.width, i.naturalHeight || i.height])",
            css,
        )
    )


def test_the_panel_of_our_tab(host: WebUI, page: Page) -> None:
    open_txt2img(page)
    page.js("[...document.querySelectorAll('#tabs button')].find(b => b.textContent.trim() === 'DDPM').click()")
    page.tab("Generate")
    page.wait(lambda: page.js("return document.querySelector('#ddpm_model input').value") != "", "a model")
    page.write("#ddpm_seed", "7")
    number(page, "#ddpm_count", 2)
    number(page, "#ddpm_steps", 4)
    before = files(host)
    page.click("#ddpm_generate")
    page.wait(lambda: len(thumbnails(page, "ddpm")) >= 3, "two pictures and their grid", 120)
    assert len(files(host) - before) == 2
    for index in (1, 0):  # the text is that of the picture; the grid stands before them
        page.js("document.querySelectorAll('#ddpm_gallery .thumbnail-item')[arguments[0]].click()", index + 1)
        said = "return document.querySelector('#html_info_ddpm').textContent"
        page.wait(lambda index=index, said=said: f"Seed: {7 + index}," in page.js(said), "its text")
    page.shot("panel")
    # the host takes over the size of what it is sent
    send(page, "img2img")
    page.wait(
        lambda: page.js("return document.querySelector('#img2img_width input[type=number]').value") == "512", "512"
    )
    assert page.js("return document.querySelector('#img2img_height input[type=number]').value") == "512"
    pictures = "#img2img_image img, #img2img_image canvas, #img2img_image image"
    page.wait(lambda: [512, 512] in sizes(page, pictures), "the enlarged picture in img2img")
    send(page, "inpaint")
    pictures = "#img2maskimg img, #img2maskimg canvas, #img2maskimg image"
    page.wait(lambda: [512, 512] in sizes(page, pictures), "the enlarged picture in inpaint")
    send(page, "extras")
    page.wait(lambda: [512, 512] in sizes(page, "#extras_image img"), "the enlarged picture in extras")
    # the panel's Save
    page.js("[...document.querySelectorAll('#tabs button')].find(b => b.textContent.trim() === 'DDPM').click()")
    page.tab("Generate")
    page.click("#save_ddpm")
    page.wait(lambda: "Saved" in page.js("return document.querySelector('#html_log_ddpm').textContent"), "saved", 60)


def test_enlarged_in_our_tab(host: WebUI) -> None:
    job = host.post("ddpm/v1/sample", {"model": "first", "count": 1, "steps": 3, "upscaler": "Lanczos", "factor": 4})
    before = host.job_done(job["job"])
    assert before["state"] == "done", before["error"]
    newest = max(files(host), key=lambda path: path.stat().st_mtime_ns)
    with Image.open(newest) as image:
        assert (
            image.size == (128, 128)
            and "DDPM upscaler: Lanczos" in text_in(image)
            and "Size: 128x128" in text_in(image)
        )


def test_nothing_of_ours_in_the_log(host: WebUI) -> None:
    """No traceback goes through our code; the host has some of its own, of connections that closed."""
    frames = [line for line in host.log().splitlines() if line.strip().startswith("File ") and "ddpm_core" in line]
    assert not frames, frames
    assert "Error running" not in host.log()


def test_our_upscalers_are_among_the_hosts(host: WebUI) -> None:
    """Listed when they are trained, used in Extras, hires fix and beside a generation, gone when they are deleted."""

    def listed() -> list[str]:
        return [one["name"] for one in host.get("sdapi/v1/upscalers")]

    before = listed()
    small = {"block_out_channels": "8,16", "blocks_per_level": "1,1", "norm_num_groups": "4", "detail_channels": "8"}
    job = train(host, "large", 5, preset="upscale-4x-small", settings=small)
    assert host.job_done(job)["state"] == "done"
    entry = "DDPM: large"
    assert [name for name in listed() if name != entry] == before and entry in listed()
    made = host.txt2img(seed=3)
    width, height = picture(made).size
    smooth = picture(made).convert("RGB").resize((4, 4)).resize((width, height), Image.Resampling.BICUBIC)
    smooth = smooth.point(lambda value: 64 + value // 2)  # far from black and white, where nothing is clipped
    request = {"image": base64_of(smooth), "upscaler_1": entry, "upscaling_resize": 4}
    larger = host.post("sdapi/v1/extra-single-image", request)["image"]
    again = host.post("sdapi/v1/extra-single-image", request)["image"]
    with Image.open(io.BytesIO(b64decode(larger))) as image:
        assert image.size == (4 * width, 4 * height)
        shrunk = image.convert("RGB").resize((width, height), Image.Resampling.BOX)
    extremes = ImageChops.difference(shrunk, smooth).getextrema()
    # but for what a network of five steps draws beyond black and white
    assert max(high for _, high in extremes) <= 16, "it shrinks to what it came from"  # type: ignore[misc]
    assert larger == again, "the same image, the same result"
    # Forge's own default over the API is one that it cannot read
    more = {"hr_additional_modules": ["Use same choices"]} if family() in ("forge", "neo") else {}
    hires = {
        "enable_hr": True,
        "hr_upscaler": entry,
        "hr_scale": 2,
        "denoising_strength": 0.2,
        "hr_second_pass_steps": 2,
    }
    fixed = host.txt2img(seed=3, **hires, **more)
    assert picture(fixed).size == (2 * width, 2 * height)
    request = {"init_images": [base64_of(smooth)], "prompt": "", "seed": 3, "steps": 2, "denoising_strength": 0.2}
    resized = {"width": 2 * width, "height": 2 * height}
    by_ours, plainly = (
        host.post("sdapi/v1/img2img", {**request, **resized, "override_settings": {"upscaler_for_img2img": name}})
        for name in (entry, "Lanczos")
    )
    assert picture(by_ours).size == (2 * width, 2 * height) and pixels(by_ours, 0) != pixels(plainly, 0)
    script = {"script_name": "SD upscale", "script_args": ["", 16, entry, 2], "width": width, "height": height}
    tiles = host.post("sdapi/v1/img2img", {**request, **script})
    assert picture(tiles).size == (2 * width, 2 * height)
    assert f"SD upscale upscaler: {entry}" in texts_of(tiles)[0].replace('"', "")
    found = host.txt2img(seed=3, **beside("first", 1, "DPM++ 2M", 3, -1, entry, "ema"))
    (number,) = ours(texts_of(found))
    assert "DDPM upscaler: DDPM: large" in texts_of(found)[number] or '"DDPM: large"' in texts_of(found)[number]
    refused = host.txt2img(seed=3, **beside("large", 1, "DPM++ 2M", 3, -1, "Lanczos", "ema"))
    assert "enlarges images and makes none" in json.loads(refused["info"])["infotexts"][0] or not ours(
        texts_of(refused)
    )
    code, _, _ = host.ask("ddpm/ui/delete", {"kind": "model", "name": "large"}, {"X-DDPM": "1"})
    assert code == 200
    assert listed() == before
