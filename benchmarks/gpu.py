"""Measures a training step on a GPU and what each lever is worth, for a machine that is available for minutes only.

Each rung runs in a process of its own with a time limit, so that a failure stays its own, and appends JSON lines to
``gpu.jsonl`` in ``--out``. ``--first`` (about four minutes on an H200) measures the device, our kernels, the ladder of the
step, its profile and numerics, and the convolutions; ``--second`` (about eight) learning, the other presets, constants of our
kernels, sampling, the peers and torch.compile; ``--third`` upscalers and adapters. The last lines name the rungs that are still missing in ``--out``.
``--miniature`` runs everything with tiny networks on any device, to show that it works; its figures mean nothing.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ddpm_core.model import ways as all_ways
from ddpm_core.model.config import ModelConfig, UNetConfig, UpscalerConfig
from ddpm_core.model.products import folded
from ddpm_core.model.unet import UNet
from ddpm_core.model.ways import Ways
from ddpm_core.training.how import How
from ddpm_core.training.settings import PRESETS, RunConfig
from ddpm_core.training.trainer import Trainer

from . import common

TINY = UNetConfig((16, 16), 3, 3, (16, 32), (False, True), 1, 16, 4)
TINY_UPSCALER = UpscalerConfig(
    image_size=(32, 32), crop_size=16, block_out_channels=(16, 32), blocks_per_level=(1, 1), norm_num_groups=4
)
Limits = dict[str, int]


@dataclasses.dataclass
class Bench:
    """Where rungs run and write, and what they share."""

    device: torch.device
    miniature: bool
    out: Path
    precision: str = "auto"

    def note(self, rung: str, **values: Any) -> None:
        line = json.dumps({"rung": rung, **values})
        with open(self.out / "gpu.jsonl", "a", encoding="utf-8") as file:
            file.write(line + "\n")
        print(line, flush=True)

    def config(self, preset: str, **changes: Any) -> RunConfig:
        found = PRESETS[preset]
        model, train = found.model, dataclasses.replace(found.train, **changes)
        if self.miniature:
            tiny = TINY if model.kind == "unet" else TINY_UPSCALER
            model = ModelConfig(dataclasses.replace(tiny, dropout=model.unet.dropout), model.diffusion)
            train = dataclasses.replace(train, batch_size=2)
        return RunConfig(model, train)

    def images(self, config: RunConfig, count: int = 512) -> Tensor:
        shape = (count, 3, *config.model.unet.image_size)
        return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(0), dtype=torch.uint8)

    def trainer(self, preset: str = "article-64", how: How | None = None, **changes: Any) -> Trainer:
        config = self.config(preset, **changes)
        return Trainer(config, self.images(config), self.device, common.say, how=how)

    def ways(self) -> tuple[Ways, Ways]:
        """PyTorch's kernels, and ours (on a CPU those that work there)."""
        cuda = self.device.type == "cuda"
        return all_ways.plain(self.device), all_ways.FAST if cuda else Ways(joined=True, folded=True)

    def hows(self) -> tuple[How, How]:
        """The plain step and the fast one."""
        cuda = self.device.type == "cuda"
        plain, fast = self.ways()
        return How(plain), How(fast, captured=cuda, flat=cuda, aside=cuda)

    def synchronise(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def milliseconds(self, work: Callable[[], object], repeats: int = 10, rounds: int = 3) -> float:
        """Milliseconds of one call: the median of replaying ``repeats`` calls as one CUDA graph."""
        work()
        work()
        if self.device.type != "cuda":
            began = time.perf_counter()
            work()
            return 1000 * (time.perf_counter() - began)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            work()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            for _ in range(repeats):
                work()
        graph.replay()
        times = []
        for _ in range(rounds):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            graph.replay()
            end.record()
            end.synchronize()
            times.append(begin.elapsed_time(end) / repeats)
        return statistics.median(times)


# -- the first command --------------------------------------------------------------------------------------------------


def machine(bench: Bench) -> None:
    values: dict[str, Any] = common.machine(bench.device)
    if bench.device.type == "cuda":
        from .training import peaks

        found = torch.cuda.get_device_properties(bench.device)
        values.update(peaks(bench.device), multiprocessors=found.multi_processor_count, memory=found.total_memory)
        values.update(cudnn=torch.backends.cudnn.version())
    bench.note("machine", **values)


def norm_shapes(config: UNetConfig) -> Counter[tuple[int, int, int]]:
    """Count the network's norms by (channels, height, width)."""
    found: Counter[tuple[int, int, int]] = Counter()
    plain = F.group_norm

    def counting(x: Tensor, *rest: Any) -> Tensor:
        found[tuple(x.shape[1:])] += 1  # type: ignore[index]
        return plain(x, *rest)

    F.group_norm = counting  # type: ignore[assignment]
    try:
        UNet(config, "meta")(torch.empty(1, 3, *config.image_size, device="meta"), torch.zeros(1, device="meta"))
    finally:
        F.group_norm = plain
    return found


def kernels(bench: Bench) -> None:
    """Our norm at each shape: error against float64 beside PyTorch's, time and bandwidth."""
    from ddpm_core.model import kernels as ours

    config = bench.config("article-64")
    unet, batch = config.model.unet, config.train.batch_size
    groups = unet.norm_num_groups
    total = {"forward": 0.0, "backward": 0.0, "bytes": 0.0}
    dtype = torch.bfloat16
    for (channels, height, width), count in sorted(norm_shapes(unet).items()):
        numbers = torch.Generator(device=bench.device).manual_seed(0)

        def draw(*shape: int, numbers: torch.Generator = numbers) -> Tensor:
            return torch.randn(shape, generator=numbers, device=bench.device).to(dtype)

        shape = (batch, channels, height, width)
        x, dy, around = (draw(*shape).contiguous(memory_format=torch.channels_last) for _ in range(3))
        gamma, beta, shift = draw(channels), draw(channels), draw(batch, channels)
        inputs = [value.requires_grad_() for value in (x, gamma, beta, shift)]
        y, same, _ = ours.norm(x, gamma, beta, groups, 1e-5, shift=shift)
        got = [y.detach(), *torch.autograd.grad([y, same], inputs, [dy, around], retain_graph=True)]
        exact = [value.detach().double().requires_grad_() for value in inputs]
        z = F.silu(F.group_norm(exact[0] + exact[3][:, :, None, None], groups, exact[1], exact[2], 1e-5))
        right = [z.detach(), *torch.autograd.grad([z, exact[0]], exact, [dy.double(), around.double()])]
        plain = F.silu(F.group_norm(x + shift[:, :, None, None], groups, gamma, beta, 1e-5))
        theirs = [plain.detach(), *torch.autograd.grad([plain, x * 1], inputs, [dy, around])]
        far = [[float((a.double() - b).norm() / b.norm()) for a, b in zip(some, right)] for some in (got, theirs)]
        forward = bench.milliseconds(lambda: ours.norm(x, gamma, beta, groups, 1e-5, shift=shift))  # noqa: B023

        def both(inputs: Any = inputs, dy: Tensor = dy, around: Tensor = around) -> object:
            y, same, _ = ours.norm(*inputs[:3], groups, 1e-5, shift=inputs[3])
            return torch.autograd.grad([y, same], inputs, [dy, around])

        times = {"forward": forward, "backward": bench.milliseconds(both) - forward}
        size = x.numel() * x.element_size()
        held = ours.Plan(height * width, channels, groups).held
        passes = {"forward": 2 if held else 3, "backward": 4 if held else 6}
        bench.note(
            "kernels",
            shape=shape,
            count=count,
            held=held,
            microseconds={k: round(1000 * v, 1) for k, v in times.items()},
            gb_per_s={k: round(passes[k] * size / v / 1e6) for k, v in times.items()},
            error={"ours": [float(f"{e:.2e}") for e in far[0]], "torch": [float(f"{e:.2e}") for e in far[1]]},
        )
        for key, value in times.items():
            total[key] += count * value
        total["bytes"] += count * size
    bench.note("kernels", total_ms={k: round(v, 3) for k, v in total.items() if k != "bytes"}, gigabytes=total["bytes"] / 1e9)  # fmt: skip


def _norm_of(
    shape: tuple[int, int, int, int], device: torch.device
) -> tuple[Callable[[], object], Callable[[], object]]:
    """Our norm forward, and forward and backward, at a shape."""
    from ddpm_core.model import kernels as ours

    like = {"device": device, "dtype": torch.bfloat16}
    x, dy, around = (torch.randn(shape, **like).contiguous(memory_format=torch.channels_last) for _ in range(3))  # type: ignore[arg-type]
    gamma, beta = (torch.randn(shape[1], **like) for _ in range(2))  # type: ignore[arg-type]
    shift = torch.randn(shape[:2], **like)  # type: ignore[arg-type]
    inputs = [value.requires_grad_() for value in (x, gamma, beta, shift)]

    def both() -> object:
        y, same, _ = ours.norm(*inputs[:3], 32, 1e-5, shift=inputs[3])
        return torch.autograd.grad([y, same], inputs, [dy, around])

    return lambda: ours.norm(x, gamma, beta, 32, 1e-5, shift=shift), both


def _settle(choice: dict[str, int]) -> None:
    from ddpm_core.model import kernels as ours

    for name, value in choice.items():
        setattr(ours, name, value)


def _compile(job: tuple[dict[str, int], tuple[int, int, int, int]]) -> None:
    _settle(job[0])
    _norm_of(job[1], torch.device("cuda"))[1]()
    torch.cuda.synchronize()


def tuning(bench: Bench) -> None:
    """Time our norm with other block sizes; compiled by many processes in parallel, timed by one."""
    if bench.device.type != "cuda":
        bench.note("tuning", skipped="needs a GPU")
        return
    large = [(64, 64, 64, 64), (64, 192, 64, 64), (64, 128, 32, 32), (64, 384, 32, 32)]
    small = [(64, 256, 16, 16), (64, 768, 16, 16), (64, 512, 8, 8), (64, 1024, 8, 8)]
    jobs = [({"TILE": tile, "TILES": loops}, s) for s in large for tile in (2048, 4096) for loops in (1, 2, 4, 8)]
    jobs += [({"MOST_HELD": held}, s) for s in small for held in (2048, 4096, 8192)]
    began = time.perf_counter()
    with multiprocessing.get_context("spawn").Pool(min(12, os.cpu_count() or 1)) as pool:
        pool.map(_compile, jobs, chunksize=1)
    bench.note("tuning", compiled_s=round(time.perf_counter() - began, 1))
    for choice, shape in jobs:
        _settle({"TILE": 4096, "TILES": 4, "MOST_HELD": 4096, **choice})
        one, both = _norm_of(shape, bench.device)
        forward = bench.milliseconds(one)
        backward = bench.milliseconds(both) - forward
        bench.note(
            "tuning", shape=shape, **choice, forward=round(1000 * forward, 1), backward=round(1000 * backward, 1)
        )


def convolutions(config: UNetConfig) -> Counter[tuple[int, int, int, int, int, bool]]:
    """Count the network's convolutions by (in, out, input side, kernel, stride, follows upsampling)."""
    found: Counter[tuple[int, int, int, int, int, bool]] = Counter()
    plain, enlarge, enlarged = F.conv2d, F.interpolate, [0]

    def counting(x: Tensor, weight: Tensor, *rest: Any, **options: Any) -> Tensor:
        key = (weight.shape[1], len(weight), x.shape[2], weight.shape[2], options["stride"], bool(enlarged[0]))
        found[key] += 1
        enlarged[0] = 0
        return plain(x, weight, *rest, **options)

    def marking(x: Tensor, *rest: Any, **options: Any) -> Tensor:
        enlarged[0] = 1
        return enlarge(x, *rest, **options)

    F.conv2d, F.interpolate = counting, marking  # type: ignore[assignment]
    try:
        UNet(config, "meta")(torch.empty(1, 3, *config.image_size, device="meta"), torch.zeros(1, device="meta"))
    finally:
        F.conv2d, F.interpolate = plain, enlarge
    return found


def bill(bench: Bench) -> None:
    """The convolution bill: forward, dx and dw of each convolution alone, by memory format, and with cudnn.benchmark."""
    config = bench.config("article-64")
    batch = config.train.batch_size
    shapes = sorted(convolutions(config.model.unet).items())
    backward = torch.ops.aten.convolution_backward.default
    cuda = bench.device.type == "cuda"
    kinds = [("channels last", torch.channels_last, False)]
    if cuda:
        kinds += [
            ("channels last, searched", torch.channels_last, True),
            ("contiguous", torch.contiguous_format, False),
        ]
    for kind, layout, search in kinds:
        torch.backends.cudnn.benchmark = search
        sums: Counter[str] = Counter()
        by_side: Counter[int] = Counter()
        worst = []
        for (inputs, out, side, kernel, stride, up), count in shapes:
            if inputs < 16 or out < 16:
                continue
            like = {"device": bench.device, "dtype": torch.bfloat16}
            x = torch.randn(batch, inputs, side, side, **like).contiguous(memory_format=layout)  # type: ignore[arg-type]
            w = torch.randn(out, inputs, kernel, kernel, **like).contiguous(memory_format=layout)  # type: ignore[arg-type]
            pad = kernel // 2
            dy = torch.randn_like(F.conv2d(x, w, stride=stride, padding=pad))
            rest = ([0], [stride, stride], [pad, pad], [1, 1], False, [0, 0], 1)

            def gradient(which: list[bool]) -> object:
                return backward(dy, x, w, *rest, which)  # noqa: B023

            times = {
                "forward": bench.milliseconds(lambda: F.conv2d(x, w, stride=stride, padding=pad)),  # noqa: B023
                "dx": bench.milliseconds(lambda: gradient([True, False, False])),
                "dw": bench.milliseconds(lambda: gradient([False, True, False])),
            }
            if up:  # instead of upsampling and this convolution
                small = torch.randn(batch, inputs, side // 2, side // 2, **like).contiguous(memory_format=layout)  # type: ignore[arg-type]
                k = folded(w)
                at = ([0], [2, 2], [1, 1], [1, 1], True, [0, 0], 1)
                some = {
                    "up": bench.milliseconds(lambda: F.interpolate(small, scale_factor=2.0)),  # noqa: B023
                    "folded forward": bench.milliseconds(lambda: F.conv_transpose2d(small, k, stride=2, padding=1)),  # noqa: B023
                    "folded dx": bench.milliseconds(lambda: backward(dy, small, k, *at, [True, False, False])),  # noqa: B023
                    "folded dw": bench.milliseconds(lambda: backward(dy, small, k, *at, [False, True, False])),  # noqa: B023
                }
                bench.note("bill", kind=kind, shape=(inputs, out, side), microseconds={k: round(1000 * v, 1) for k, v in (times | some).items()})  # fmt: skip
            flop = 2 * dy.numel() * inputs * kernel * kernel
            for key, value in times.items():
                sums[key] += count * value
                by_side[side // stride] += count * value  # type: ignore[assignment]
            rates = {key: round(flop / value / 1e9) for key, value in times.items()}
            worst.append((count * sum(times.values()), (inputs, out, side, kernel, stride), count, rates))
        bench.note(
            "bill",
            kind=kind,
            ms={k: round(v, 3) for k, v in sums.items()},
            total_ms=round(sum(sums.values()), 3),
            by_side={k: round(v, 3) for k, v in by_side.items()},
            tflops=[{"shape": s, "count": c, "ms": round(ms, 3), **r} for ms, s, c, r in sorted(worst, reverse=True)],
        )
    torch.backends.cudnn.benchmark = False


def measure(
    bench: Bench, rung: str, makers: dict[str, Callable[[], Trainer]], rounds: int = 4, seconds: float = 0.6
) -> None:
    """Milliseconds per step of several trainers, alternating."""
    found: dict[str, Callable[[], float]] = {}
    facts: dict[str, dict[str, Any]] = {}
    for name, make in makers.items():
        began = time.perf_counter()
        try:
            if bench.device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(bench.device)
                before = torch.cuda.memory_allocated(bench.device)
            trainer = make()
            trainer.run_steps(2 if bench.miniature else 6)
            pace = trainer.run_steps(2).seconds / 2
        except Exception as error:
            bench.note(rung, kind=name, failed=f"{type(error).__name__}: {str(error)[:300]}")
            continue
        facts[name] = {"first_steps_s": round(time.perf_counter() - began, 1)}
        if bench.device.type == "cuda":
            facts[name]["gib"] = round((torch.cuda.max_memory_allocated(bench.device) - before) / 2**30, 2)
        captured = trainer.work.captured
        facts[name]["captured"] = captured is not None and captured.captured
        steps = 1 if bench.miniature else max(2, int(seconds / pace))

        def one(trainer: Trainer = trainer, steps: int = steps) -> float:
            return 1000 * trainer.run_steps(steps).seconds / steps

        found[name] = one
        bench.note(rung, kind=name, first_ms=round(1000 * pace, 2), **facts[name])
    times = common.alternate(found, 1 if bench.miniature else rounds, lambda text: None)
    base = next(iter(times.values()), [])
    for name, values in times.items():
        bench.note(
            rung,
            kind=name,
            ms=round(statistics.median(values), 2),
            low=round(min(values), 2),
            high=round(max(values), 2),
            times_as_fast=round(common.paired_ratio(base, values), 2),
        )


def ladder(bench: Bench) -> None:
    """The step of article-64: plain, captured, with our kernels, and with single levers changed."""
    plain, fast = bench.hows()
    ours = fast.network

    def of(how: How, **changes: Any) -> Callable[[], Trainer]:
        return lambda: bench.trainer(how=how, **changes)

    def other(**changes: Any) -> How:
        return dataclasses.replace(fast, network=dataclasses.replace(ours, **changes))

    measure(
        bench,
        "ladder",
        {
            "plain": of(plain),
            "captured": of(dataclasses.replace(plain, captured=fast.captured)),
            "our kernels, captured": of(dataclasses.replace(fast, flat=False, aside=False)),
            "... and flat updates": of(dataclasses.replace(fast, aside=False)),
            "... and second streams": of(fast),
            "... upsampling not folded": of(other(folded=False)),
            "... attention's products apart": of(other(joined=False)),
            "... Muon": of(fast, optimizer="muon"),
            "... Muon, one stream": of(dataclasses.replace(fast, aside=False), optimizer="muon"),
        },
    )


def profile(bench: Bench) -> None:
    """Where the fast step's time goes, kernel by kernel."""
    cuda = bench.device.type == "cuda"
    for optimizer in ("adamw", "muon"):
        _profile(bench, optimizer, cuda)


def _profile(bench: Bench, optimizer: str, cuda: bool) -> None:
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as watching

    trainer = bench.trainer(how=bench.hows()[1], optimizer=optimizer)
    trainer.run_steps(2 if bench.miniature else 8)
    steps = 1 if bench.miniature else 3
    with watching(activities=[ProfilerActivity.CUDA if cuda else ProfilerActivity.CPU]) as seen:
        trainer.run_steps(steps)
    rows = []
    for event in seen.key_averages():
        spent = getattr(event, "self_device_time_total", 0.0) if cuda else event.self_cpu_time_total
        if spent > 0:
            rows.append((spent / steps / 1000, event.count / steps, event.key))
    rows.sort(reverse=True)
    (bench.out / f"profile-{optimizer}.txt").write_text(
        "".join(f"{ms:9.4f} ms {count:7.1f} {key}\n" for ms, count, key in rows)
    )
    bench.note(
        "profile", optimizer=optimizer, busy_ms=round(sum(r[0] for r in rows), 3), launches=sum(r[1] for r in rows)
    )
    for ms, count, key in rows[:12]:
        print(f"{ms:8.3f} ms {count:6.1f} {key[:140]}")


def numbers(bench: Bench) -> None:
    """The fast step against the plain one: gradients, losses, exact resuming."""
    plain, fast = bench.ways()

    def first_gradients(ways: Ways, precision: str) -> dict[str, Tensor]:
        trainer = bench.trainer(how=How(ways), precision=precision)
        begun = torch.Generator().manual_seed(1)
        with torch.no_grad():  # what begins at zero would hide what comes after it
            for parameter in trainer.net.parameters():
                parameter.add_(0.02 * torch.randn(parameter.shape, generator=begun).to(bench.device))
        kept: dict[str, Tensor] = {}

        def keep(*_: object, **__: object) -> None:
            kept.update({n: p.grad.clone() for n, p in trainer.net.named_parameters() if p.grad is not None})

        trainer.work.optimizer.step = keep  # type: ignore[method-assign]
        trainer.run_steps(1)
        return kept

    _going_on(bench)
    exact = first_gradients(plain, "fp32")
    far: dict[str, dict[str, float]] = {}
    for name, ways, precision in (
        ("plain bf16", plain, "bf16"),
        ("fast bf16", fast, "bf16"),
        ("folded bf16", dataclasses.replace(fast, folded=True), "bf16"),
        ("fast fp32", fast, "fp32"),
    ):
        got = first_gradients(ways, precision)
        far[name] = {k: float((got[k] - v).norm() / v.norm()) for k, v in exact.items() if float(v.norm()) > 1e-6}
        ordered = sorted(far[name].values())
        bench.note("numbers", kind=name, gradients={"median": ordered[len(ordered) // 2], "worst": ordered[-1]})
    ratio = {k: far["fast bf16"][k] / far["plain bf16"][k] for k in far["plain bf16"]}
    worst = sorted(ratio.items(), key=lambda pair: -pair[1])[:4]
    bench.note("numbers", fast_over_plain=statistics.median(ratio.values()), worst={k: round(v, 2) for k, v in worst})


def _going_on(bench: Bench) -> None:
    """Compare a captured run with an eager one, a second one, and one that was saved and resumed."""
    fast = bench.hows()[1]
    count = 4 if bench.miniature else 16
    for preset in ("portrait-64",):
        for changes in ({"optimizer": "adamw"}, {"optimizer": "muon"}):
            made = {"learning_rate": 4e-4, **changes}
            eager = bench.trainer(preset, dataclasses.replace(fast, captured=False), **made)
            whole, again, half = (bench.trainer(preset, fast, **made) for _ in range(3))
            losses = {
                name: [t.run_steps(1).loss for _ in range(count)] for name, t in (("eager", eager), ("whole", whole))
            }
            again.run_steps(count)
            half.run_steps(count // 2)
            other = bench.trainer(preset, fast, **made)
            other.load_state(half.state_tensors(), half.state_numbers())
            other.run_steps(count // 2)
            alone = bench.trainer(preset, dataclasses.replace(fast, aside=False), **made)
            alone.run_steps(count)
            states = {"eager": eager, "whole": whole, "again": again, "resumed": other, "one stream": alone}
            tensors = {name: trainer.state_tensors() for name, trainer in states.items()}
            bench.note(
                "numbers",
                preset=preset,
                **changes,
                captured=whole.work.captured is not None and whole.work.captured.captured,
                losses=[round(losses["whole"][i], 5) for i in (0, 1, count // 2, count - 1)],
                eager_losses=[round(losses["eager"][i], 5) for i in (0, 1, count // 2, count - 1)],
                apart={
                    name: max(float((tensors[name][k] - v).abs().max()) for k, v in tensors["whole"].items())
                    for name in ("eager", "again", "resumed", "one stream")
                },
                average_moves=not torch.equal(whole.ema.conv_in.weight, whole.net.conv_in.weight),
            )
            for trainer in states.values():
                trainer.free()


# -- the second command --------------------------------------------------------------------------------------------------


def presets(bench: Bench) -> None:
    """The other presets and a larger batch."""
    plain, fast = bench.hows()
    for preset, changes in (("portrait-64", {}), ("detail-128", {}), ("article-64", {"batch_size": 128})):
        makers = {
            "plain": lambda: bench.trainer(preset, plain, **changes),  # noqa: B023
            "fast": lambda: bench.trainer(preset, fast, **changes),  # noqa: B023
            "fast, Muon": lambda: bench.trainer(preset, fast, optimizer="muon", **changes),  # noqa: B023
        }
        measure(bench, f"presets {preset} {changes or ''}".strip(), makers, rounds=2)


def constants(bench: Bench) -> None:
    """The fast step with other block sizes and streams, one changed at a time."""
    if bench.device.type != "cuda":
        bench.note("constants", skipped="needs a GPU")
        return
    from ddpm_core.model import aside, kernels

    modules = {"BRANCHES": aside}
    now: dict[str, Any] = {name: getattr(kernels, name) for name in ("TILE", "TILES", "MOST_HELD", "SUM_PROGRAMS")}
    now |= {name: getattr(module, name) for name, module in modules.items()}

    def of(**changed: Any) -> Callable[[], Trainer]:
        def make() -> Trainer:
            for name, value in {**now, **changed}.items():  # a captured step keeps what it was captured with
                setattr(modules.get(name, kernels), name, value)
            trainer = bench.trainer(how=bench.hows()[1])
            trainer.run_steps(6)
            return trainer

        return make

    trials: tuple[dict[str, Any], ...] = (
        {},
        {"BRANCHES": False},
        {"TILES": 2},
        {"MOST_HELD": 8192},
        {"SUM_PROGRAMS": 64},
        {"SUM_PROGRAMS": 256},
    )
    measure(bench, "constants", {str(changed or "now"): of(**changed) for changed in trials})


def learning(bench: Bench) -> None:
    """KID of portrait-64 after equal seconds of training with AdamW and Muon, three seeds in turn; saves sample grids."""
    from ddpm_core.operations.pictures import make_grid

    from .quality import Course, Score

    preset = "portrait-64"
    packed: Any = _Images(bench.images(bench.config(preset), 64)) if bench.miniature else common.portraits(64)
    score = Score(packed.images)
    trials: dict[str, dict[str, Any]] = {
        "adamw 4e-4": {"optimizer": "adamw", "learning_rate": 4e-4},
        "muon 0.01": {},
        "muon 0.01 falling": {"decay_start": 200},
    }
    for changes in ({}, trials["adamw 4e-4"]):  # compile first, outside the measured time
        warm = bench.trainer(preset, **changes)
        warm.run_steps(6)
        warm.free()
    for seed in (0,) if bench.miniature else (0, 1, 2):
        for name, changes in trials.items():
            course = Course(bench.config(preset, warmup_steps=100, **changes), packed, bench.device, seed)
            while course.seconds < (0.1 if bench.miniature else 18.0):
                began = time.perf_counter()
                course.trainer.run_slice(1000, 0.25)
                course.seconds += time.perf_counter() - began
            samples = course.samples(32) if bench.miniature else course.samples()
            facts = {"seconds": round(course.seconds, 1), "steps": course.trainer.step, **score(samples)}
            bench.note("learning", kind=name, seed=seed, **facts)
            if seed == 0:
                make_grid(samples[:64]).save(bench.out / f"{name.replace(' ', '-')}.png")
            course.trainer.free()


@dataclasses.dataclass
class _Images:
    images: Tensor

    @property
    def train(self) -> Tensor:
        return self.images


def compiled(bench: Bench) -> None:
    """For comparison: the network by torch.compile, channels last forced, in our captured step."""
    if bench.device.type != "cuda":
        bench.note("compiled", skipped="needs a GPU")
        return
    os.environ["TORCHINDUCTOR_FORCE_LAYOUT_OPT"] = "1"
    trainer = bench.trainer(how=How(Ways(joined=True), captured=True))
    assert trainer.work.cast is not None
    began = time.perf_counter()
    trainer.work.cast.network.forward = torch.compile(trainer.work.cast.network.forward)
    trainer.run_steps(6)
    bench.note("compiled", seconds=round(time.perf_counter() - began, 1))
    times = [1000 * trainer.run_steps(30).seconds / 30 for _ in range(4)]
    bench.note("compiled", ms=round(statistics.median(times), 2), low=round(min(times), 2), high=round(max(times), 2))


def sampling(bench: Bench) -> None:
    """Seconds for 64 images by 20 calls, with PyTorch's kernels and ours; the first run compiles."""
    from ddpm_core.model.diffusion import Diffusion
    from ddpm_core.sampling.generate import SampleSettings, generate

    config = bench.config("portrait-64")
    unet = config.model.unet
    dtype = torch.bfloat16 if bench.device.type == "cuda" else torch.float32
    for name, ways in zip(("plain", "fast"), bench.ways()):
        net = UNet(unet, bench.device, ways=ways)
        times = []
        for _ in range(2 if bench.miniature else 4):
            began = time.perf_counter()
            generate(net, Diffusion(config.model.diffusion, bench.device), (3, *unet.image_size), 2 if bench.miniature else 64, SampleSettings(steps=2 if bench.miniature else 20), dtype=dtype)  # fmt: skip
            bench.synchronise()
            times.append(round(time.perf_counter() - began, 3))
        bench.note("sampling", kind=name, seconds=times)


def upscalers(bench: Bench) -> None:
    """Steps of the upscalers, and seconds for 16 images by 10 calls."""
    from ddpm_core.model.build import build
    from ddpm_core.model.diffusion import Diffusion
    from ddpm_core.sampling.upscale import UpscaleSettings, upscale

    plain, fast = bench.hows()
    for preset in ("upscale-4x", "upscale-4x-small"):
        makers = {
            "plain": lambda: bench.trainer(preset, plain),  # noqa: B023
            "fast": lambda: bench.trainer(preset, fast),  # noqa: B023
        }
        measure(bench, f"upscalers {preset}", makers, rounds=2)
        config = bench.config(preset).model
        assert isinstance(config.unet, UpscalerConfig)
        dtype = torch.bfloat16 if bench.device.type == "cuda" else torch.float32
        count, calls = (2, 2) if bench.miniature else (16, 10)
        height, width = config.unet.image_size
        small = torch.zeros((count, 3, height // config.unet.factor, width // config.unet.factor))
        for name, ways in zip(("plain", "fast"), bench.ways()):
            net, process = build(config, bench.device, ways=ways), Diffusion(config.diffusion, bench.device)
            times = []
            for _ in range(2 if bench.miniature else 4):
                began = time.perf_counter()
                upscale(net, process, config.unet, small, range(count), UpscaleSettings(calls), dtype=dtype)
                bench.synchronise()
                times.append(round(time.perf_counter() - began, 3))
            bench.note(f"upscalers {preset}", kind=f"{count} images, {name}", seconds=times)


def adapters(bench: Bench) -> None:
    """Steps of portrait-64: of the whole network, of an adapter, of one that preserves its base; the last two captured, too."""
    from ddpm_core.model.build import build
    from ddpm_core.model.config import AdapterConfig
    from ddpm_core.training.settings import AdapterSettings
    from ddpm_core.training.tuning import Prior, Tuning

    plain = bench.hows()[0]
    captured = dataclasses.replace(plain, captured=bench.device.type == "cuda")

    def of(how: How, preserve: float) -> Callable[[], Trainer]:
        def make() -> Trainer:
            config = bench.config("portrait-64", optimizer="adamw", flip_probability=0.0)
            images = bench.images(config)
            base = {name: value.detach() for name, value in build(config.model, "cpu").named_parameters()}
            settings = AdapterSettings("base", "", AdapterConfig(), preserve)
            tuning = Tuning(settings, base, Prior(images, torch.arange(len(images)) < 8))
            tuned = dataclasses.replace(config, tuning=settings)
            return Trainer(tuned, images, bench.device, common.say, how=how, tuning=tuning)

        return make

    measure(
        bench,
        "adapters",
        {
            "whole": lambda: bench.trainer("portrait-64", plain, optimizer="adamw", flip_probability=0.0),
            "adapter": of(plain, 0.0),
            "preserving": of(plain, 1.0),
            "adapter, captured": of(captured, 0.0),
            "preserving, captured": of(captured, 1.0),
        },
        rounds=2,
    )


def peers(bench: Bench) -> None:
    """Against diffusers' and lucidrains' loops: same topology, their mixed precision on."""
    from . import training

    if bench.miniature:
        bench.note("peers", skipped="benchmarks.training has tests of its own")
        return
    training.run(["--rounds", "3", "--seconds", "2", "--run-minutes", "0", "--json"])


# seconds
FIRST: Limits = {"machine": 30, "tuning": 60, "kernels": 110, "ladder": 130, "profile": 45, "numbers": 160, "bill": 60}
SECOND: Limits = {"learning": 300, "presets": 160, "constants": 170, "sampling": 60, "peers": 150, "compiled": 150}
THIRD: Limits = {"upscalers": 150, "adapters": 120}
RUNGS: dict[str, Callable[[Bench], None]] = {
    "machine": machine,
    "tuning": tuning,
    "kernels": kernels,
    "ladder": ladder,
    "bill": bill,
    "profile": profile,
    "numbers": numbers,
    "presets": presets,
    "constants": constants,
    "learning": learning,
    "sampling": sampling,
    "peers": peers,
    "compiled": compiled,
    "upscalers": upscalers,
    "adapters": adapters,
}


def one_after_another(a: argparse.Namespace, names: Limits, out: Path) -> int:
    """Run each rung in a process of its own; returns how many failed."""
    failed = 0
    for name, limit in names.items():
        began = time.perf_counter()
        command = [sys.executable, "-m", "benchmarks.gpu", "--rungs", name, "--alone", "--out", str(out)]
        command += ["--miniature"] if a.miniature else []
        command += ["--device", a.device] if a.device else []
        try:
            status = subprocess.run(command, timeout=limit).returncode
            how = "done" if status == 0 else f"FAILED with {status}"
        except subprocess.TimeoutExpired:
            how = f"ENDED at its limit of {limit} s"
        failed += how != "done"
        print(f"== {name}: {how}, {time.perf_counter() - began:.1f} s", flush=True)
    return failed


def run(argv: list[str] | None = None) -> int:
    options = common.parser(__doc__ or "")
    options.add_argument("--first", action="store_true", help="the default")
    options.add_argument("--second", action="store_true")
    options.add_argument("--third", action="store_true")
    options.add_argument("--rungs", nargs="+", choices=sorted(RUNGS), default=[])
    options.add_argument("--miniature", action="store_true", help="tiny networks, on any device")
    options.add_argument("--alone", action="store_true", help="run the rungs in this process")
    options.add_argument("--out", type=Path, default=common.WORK / "gpu", help="folder for the figures")
    a = options.parse_args(argv)
    a.out.mkdir(parents=True, exist_ok=True)
    if a.alone:
        bench = Bench(common.device_of(a), a.miniature, a.out)
        for name in a.rungs:
            RUNGS[name](bench)
        return 0
    names: Limits = {
        **(FIRST if a.first else {}),
        **(SECOND if a.second else {}),
        **(THIRD if a.third else {}),
    }
    names.update({name: {**FIRST, **SECOND, **THIRD}[name] for name in a.rungs})
    failed = one_after_another(a, names or FIRST, a.out)
    missing = sorted(set(RUNGS) - measured(a.out))
    print(f"Not measured in {a.out}: {', '.join(missing) or 'nothing'}.")
    return 1 if failed else 0


def measured(out: Path) -> set[str]:
    """Rungs with figures in a folder."""
    try:
        lines = [json.loads(line) for line in (out / "gpu.jsonl").read_text(encoding="utf-8").splitlines()]
    except FileNotFoundError:
        return set()
    return {line["rung"].split()[0] for line in lines if not {"failed", "skipped"} & set(line)}


if __name__ == "__main__":
    sys.exit(run())
