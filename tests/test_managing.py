"""What a person does with datasets, models and jobs beside training: rename, merge, search, count, queue, cancel."""

from __future__ import annotations

import json
import shutil
import threading
import time
import zipfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import pytest
from conftest import CommandLine, random_pictures
from PIL import Image, PngImagePlugin

from ddpm_core import bundled
from ddpm_core.dataset import merging
from ddpm_core.dataset.handing_out import thumbnail
from ddpm_core.dataset.harvest import harvest
from ddpm_core.dataset.store import NewItem, Store
from ddpm_core.dataset.views import Views
from ddpm_core.errors import UserError
from ddpm_core.host.standalone import StandaloneHost
from ddpm_core.requests import SampleRequest, TrainRequest
from ddpm_core.service import Service
from ddpm_core.workspace import Workspace

SMALL = {"block_out_channels": "8,16,16", "norm_num_groups": "4", "attention_head_dim": "8"}


def request(model: str, steps: int = 2) -> TrainRequest:
    return TrainRequest(model, "d", preset="tiny-32", size=16, steps=steps, batch_size=4, settings=SMALL)


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    service = Service(StandaloneHost(tmp_path / "ws"))
    service.workspace.harvest("d", [random_pictures(tmp_path / "in", 12)])
    try:
        yield service
    finally:
        service.shutdown()


def trained(service: Service, model: str, steps: int = 2) -> None:
    job = service.start_training(request(model, steps))
    assert job.finished.wait(120) and job.state == "done", job.error


# -- names --------------------------------------------------------------------------------------------------------------------


def test_a_renamed_dataset_is_trained_on_as_before(service: Service) -> None:
    trained(service, "m")
    workspace = service.workspace
    before = workspace.store("d").fingerprint()
    assert service.rename("dataset", "d", "  faces ") == "faces"
    assert workspace.dataset_names() == ["faces"] and workspace.store("faces").fingerprint() == before
    assert workspace.run("m").dataset == "faces"
    job = service.start_training(TrainRequest("m", resume=True, steps=4))
    assert job.finished.wait(120) and job.result["steps"] == 4
    result = service.start_evaluation("m", "faces", 16)
    assert result.finished.wait(120) and result.result["own_images"] is True  # the same images under another name


def test_a_renamed_model_keeps_its_run(service: Service) -> None:
    trained(service, "m")
    before = service.workspace.model_path("m").read_bytes()
    assert service.rename("model", "m", "mine") == "mine"
    assert service.workspace.model_names() == [*bundled.names(), "mine"] and service.workspace.run_names() == ["mine"]
    assert service.workspace.model_path("mine").read_bytes() == before
    job = service.start_training(TrainRequest("mine", resume=True, steps=4))
    assert job.finished.wait(120) and job.result["steps"] == 4


@pytest.mark.parametrize(
    ("kind", "old", "new", "why"),
    [
        ("dataset", "d", "e", "already"),
        ("dataset", "d", "E", "already a dataset 'e'"),
        ("dataset", "d", "d", "called d already"),
        ("dataset", "d", "../x", "cannot be the name"),
        ("dataset", "gone", "x", "no dataset 'gone'"),
        ("model", "gone", "x", "no model 'gone'"),
        ("folder", "d", "x", "Choose a dataset or a model"),
    ],
)
def test_a_name_that_is_taken_or_none_is_refused(
    service: Service, tmp_path: Path, kind: str, old: str, new: str, why: str
) -> None:
    service.workspace.harvest("e", [random_pictures(tmp_path / "more", 2, seed=3)])
    with pytest.raises(UserError, match=why):
        service.rename(kind, old, new)
    assert service.workspace.dataset_names() == ["d", "e"]


def test_nothing_in_use_is_renamed(service: Service) -> None:
    job = service.start_training(request("m", 10**6))
    while not job.progress.get("done") and not job.finished.is_set():
        time.sleep(0.01)
    for kind, name in (("dataset", "d"), ("model", "m")):
        with pytest.raises(UserError, match="being used"):
            service.rename(kind, name, "other")


def test_a_name_may_change_by_case_alone(cli: CommandLine, tmp_path: Path) -> None:
    cli.run("harvest", "--dataset", "faces", random_pictures(tmp_path / "in", 2))
    assert cli.run("dataset", "rename", "faces", "Faces")["renamed"] == "Faces"
    assert [d["name"] for d in cli.run("dataset", "list")["datasets"]] == ["Faces"]  # type: ignore[attr-defined]


def test_merging_keeps_what_was_decided_and_adds_nothing_twice(cli: CommandLine, tmp_path: Path) -> None:
    one = random_pictures(tmp_path / "one", 4)
    two = random_pictures(tmp_path / "two", 3, seed=5)
    with Image.open(one / "00000-0.png") as image:
        image.save(two / "same.webp", lossless=True)
    cli.run("harvest", "--dataset", "a", one)
    cli.run("harvest", "--dataset", "b", two)
    cli.run("dataset", "reject", "b", 2)
    assert cli.run("dataset", "merge", "a", "b")["added"] == 3
    assert cli.run("dataset", "merge", "a", "b")["added"] == 0
    merged = Workspace(cli.workspace, cli.workspace / "models")
    assert merged.store("a").counts() == {"items": 7, "kept": 6, "rejected": {"user": 1}}
    for item in merged.store("a").items():
        assert thumbnail(merged.store("a"), item["id"], None)
    assert merged.store("b").counts()["items"] == 4  # as it was
    assert "other datasets" in str(cli.run("dataset", "merge", "a", "a", code=2)["error"])
    assert cli.run("dataset", "merge", "new", "a", "b")["added"] == 7


def test_a_merge_takes_over_what_a_person_decided_and_skips_lost_copies(service: Service, tmp_path: Path) -> None:
    one, two = random_pictures(tmp_path / "one", 3), tmp_path / "two"
    shutil.copytree(one, two)
    random_pictures(two / "more", 2, seed=8)
    workspace = service.workspace
    workspace.harvest("a", [one])
    workspace.harvest("b", [two])
    other = workspace.store("b")
    other.decide([1], "rejected", "user", "Rejected by hand.")
    lost = other.items()[-1]
    other.copy_path(lost["sha256"]).unlink()
    found = service.merge("a", ["b"])
    assert found["added"] == 1
    assert workspace.store("a").counts() == {"items": 4, "kept": 3, "rejected": {"user": 1}}
    assert service.merge("fresh", ["b"])["added"] == 4


def test_merging_large_datasets_takes_seconds(tmp_path: Path) -> None:
    one, two = Store(tmp_path / "one"), Store(tmp_path / "two")
    for store, first in ((one, 0), (two, 10_000)):
        store.add(
            [
                NewItem(f"/x/{i}.png", 1, 1, f"{i:064x}", 48, 48, pixels=f"48x48 {i:x}")
                for i in range(first, first + 10_000)
            ]
        )
    began = time.process_time()
    assert merging.absorb(one, two) == 10_000 and merging.absorb(one, two) == 0
    assert time.process_time() - began < 20


# -- looking for items --------------------------------------------------------------------------------------------------------


def with_prompt(path: Path, prompt: str, seed: int) -> None:
    made = random_pictures(path.parent / ".made", 1, 64, seed=seed) / "00000-0.png"
    info = PngImagePlugin.PngInfo()
    info.add_itxt("parameters", f"{prompt}\nSteps: 20, Sampler: Euler, Seed: {seed}, Size: 64x64")
    with Image.open(made) as image:
        image.save(path, pnginfo=info)
    made.unlink()


def test_a_search_finds_words_of_prompts_and_names(service: Service, tmp_path: Path) -> None:
    folder = tmp_path / "searched"
    folder.mkdir()
    prompts = ["a RED cat", "a red dog", "Straße 微笑", "100% cotton_wool"]
    for number, prompt in enumerate(prompts):
        with_prompt(folder / f"{number}-name.png", prompt, number)
    store = service.workspace.store("s", create=True)
    harvest(store, [folder])
    views = Views()

    def found(search: str, view: str = "all") -> list[str]:
        return [item["prompt"] for item in views.page(store, view, 0, 60, search)[0]]

    assert found("red") == prompts[:2] and found("red, CAT") == prompts[:1]
    assert found("strasse") == [prompts[2]] and found("微笑") == [prompts[2]]
    assert found("0%") == [prompts[3]] and found("n_w") == [prompts[3]] and found("a_r") == []
    assert found("2-name") == [prompts[2]]
    store.decide([1], "rejected", "user")
    assert found("red", "rejected") == prompts[:1] and found("red", "kept") == prompts[1:2]
    with pytest.raises(UserError, match="search"):
        found("x" * 2000)


def test_of_each_group_of_near_duplicates_one_is_kept(service: Service, tmp_path: Path) -> None:
    folder = random_pictures(tmp_path / "twins", 12, side=96)
    for name in ("00003-3", "00005-5"):
        with Image.open(folder / f"{name}.png") as image:
            image.resize((128, 128)).save(folder / f"{name}-larger.png")
            image.resize((90, 90)).save(folder / f"{name}-smaller.png")
    store = service.workspace.store("t", create=True)
    harvest(store, [folder])
    assert store.keep_one_of_each() == 4 and store.counts()["kept"] == 12
    kept = {Path(item["source"]).stem for item in store.items(status="kept")}
    assert {"00003-3-larger", "00005-5-larger"} <= kept and not {"00003-3", "00005-5-smaller"} & kept
    assert len(store.undo()) == 4 and store.counts()["kept"] == 16
    assert service.workspace.store("d").keep_one_of_each() == 0


def test_counting_says_what_a_harvest_would_find_and_stores_nothing(service: Service, tmp_path: Path) -> None:
    folder = random_pictures(tmp_path / "counted", 5)
    Image.new("RGB", (64, 64)).save(folder / "black.png")
    job = service.start_harvest("", [str(folder)], count_only=True)
    assert job.finished.wait(60) and job.state == "done"
    assert (job.kind, job.result["found"], job.result["kept"], job.result["rejected"]) == ("count", 6, 5, {"blank": 1})
    assert service.workspace.dataset_names() == ["d"]


# -- jobs ---------------------------------------------------------------------------------------------------------------------


def test_a_training_waits_for_the_one_before_it_and_can_be_cancelled(service: Service) -> None:
    first = service.start_training(request("first", 10**6))
    second = service.start_training(request("second"))
    third = service.start_training(request("third"))
    while not first.progress.get("done") and not first.finished.is_set():
        time.sleep(0.01)
    waiting = service.watch.status()["waiting"]
    assert [(one["kind"], one["subject"]) for one in waiting] == [("train", "second"), ("train", "third")]
    with pytest.raises(UserError, match="waits to be trained"):
        service.start_training(request("second"))
    assert service.cancel(third.id) and not service.cancel(10**6) and not service.cancel(first.id)
    assert third.finished.is_set() and third.state == "stopped"  # at once: its name is free again
    fourth = service.start_training(request("third"))
    assert service.cancel(fourth.id) and first.state == "running"
    assert [one["subject"] for one in service.watch.status()["waiting"]] == ["second"]
    assert service.stop("train")  # the one that runs; the next goes on
    assert first.finished.wait(60) and first.state == "stopped"
    assert second.finished.wait(120) and second.state == "done"
    assert service.workspace.model_names() == [*bundled.names(), "first", "second"]


def test_a_training_lets_a_sampling_go_first(tmp_path: Path) -> None:
    """No slice of the training begins while somebody samples."""
    slices: list[float] = []

    class Host(StandaloneHost):
        def gpu_slice(self) -> AbstractContextManager[object]:
            if threading.current_thread().name == "ddpm-training":
                slices.append(time.monotonic())
            return nullcontext()

    service = Service(Host(tmp_path / "ws"))
    try:
        service.workspace.harvest("d", [random_pictures(tmp_path / "in", 12)])
        trained(service, "m")
        job = service.start_training(request("long", 10**6))
        while not job.progress.get("done"):
            time.sleep(0.01)
        sampling = service.start_sampling(SampleRequest("m", 16, steps=200))
        assert sampling.finished.wait(120) and sampling.state == "done"
        grace = 0.1  # a training that has just looked
        assert sampling.ended - sampling.began > 2 * grace
        assert not [moment for moment in slices if sampling.began + grace < moment < sampling.ended]
        before = len(slices)
        time.sleep(1.5)
        assert len(slices) > before  # and goes on
    finally:
        service.shutdown()


def test_an_ending_says_what_ended_it(service: Service) -> None:
    trained(service, "m")
    assert service.jobs.latest("train").result["ended"] == "steps"  # type: ignore[union-attr]
    by_time = service.start_training(
        TrainRequest("t", "d", preset="tiny-32", size=16, steps=10**6, minutes=0.02, batch_size=4, settings=SMALL)
    )
    assert by_time.finished.wait(120)
    assert (by_time.result["ended"], by_time.result["total"], by_time.state) == ("time", 10**6, "done")


# -- models -------------------------------------------------------------------------------------------------------------------


def test_older_checkpoints_can_be_sampled(cli: CommandLine, tmp_path: Path) -> None:
    cli.run("harvest", "--dataset", "d", random_pictures(tmp_path / "in", 12))
    options = [f"--set={key}={value}" for key, value in SMALL.items()]
    base = ["--preset", "tiny-32", "--size", 16, "--batch-size", 4, "--checkpoint-every", 20]
    cli.run("train", "--dataset", "d", "--model", "m", "--steps", 40, *base, *options)

    def pixels(*more: object) -> bytes:
        out = tmp_path / "-".join(map(str, ("out", *more)))
        files = cli.run("sample", "--model", "m", "--count", 1, "--seed", 3, "--steps", 5, "--out", out, *more)["files"]
        with Image.open(files[0]) as image:  # type: ignore[index]
            older = "--checkpoint-step" in more
            assert ("DDPM checkpoint step" in image.info["parameters"]) == older
            return image.tobytes()

    newest = pixels()
    assert pixels("--checkpoint-step", 40) == newest  # the averaged weights of the last step are the model's
    assert pixels("--checkpoint-step", 20) != newest
    assert pixels("--checkpoint-step", 20, "--weights", "raw") != pixels("--weights", "raw")
    said = cli.run("sample", "--model", "m", "--out", tmp_path / "x", "--checkpoint-step", 7, code=2)["error"]
    assert "no checkpoint of step 7; there are those of step 40, 20" in str(said)


def test_an_export_is_a_zip_that_diffusers_opens(service: Service, tmp_path: Path) -> None:
    from diffusers import DDPMPipeline

    trained(service, "m")
    path = service.export("m")
    with zipfile.ZipFile(path) as archive:
        archive.extractall(tmp_path / "out")
    path.unlink()
    pipeline = DDPMPipeline.from_pretrained(tmp_path / "out" / "m")
    assert pipeline.unet.config.sample_size == 16
    with pytest.raises(UserError, match="no model"):
        service.export("../x")


def test_an_evaluation_says_against_what_it_was_made(service: Service, tmp_path: Path) -> None:
    trained(service, "m")
    service.workspace.harvest("others", [random_pictures(tmp_path / "others", 12, seed=9)])
    for dataset, own in (("d", True), ("others", False)):
        job = service.start_evaluation("m", dataset, 16)
        assert job.finished.wait(120) and job.state == "done", job.error
        found = (job.result["dataset"], job.result["learned_from"], job.result["own_images"])
        assert found == (dataset, "d", own)
        assert any("not from others" in text for text in job.messages) == (not own)
    assert json.dumps(job.result)
