"""Harvesting, images a second: first and repeated, over folder sizes, against a plain Pillow loop on the same files.

The plain loop decodes each file and shrinks it to the same short side; a second one also encodes the copy losslessly in the
same format: what is left when everything that makes a dataset of it is taken away.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from PIL import Image

from ddpm_core.demo import unpack

from . import common

BAR, BAR_AGAIN, BAR_MEMORY = 1.3, 0.05, 1.2
_HARVEST = """
import json, resource, sys, time
from pathlib import Path
from ddpm_core.workspace import Workspace
root = Path(sys.argv[1])
workspace = Workspace(root, root / "models")
began = time.perf_counter()
result = workspace.harvest("all", [Path(sys.argv[2])])
print(json.dumps({
    "seconds": time.perf_counter() - began, "found": result.found, "added": result.added,
    "megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))
"""


def make_folder(count: int, side: int) -> Path:
    """``count`` different pictures: the bundled portraits, and re-encoded ones that differ in some pixels; made once."""
    target = common.WORK / f"harvest-{count}-{side}"
    done = target / ".complete"
    if done.exists():
        return target
    shutil.rmtree(target, ignore_errors=True)
    sources = sorted((unpack(common.WORK / "images") / "txt2img-images").rglob("*.webp"))
    common.say(f"Making {count} pictures.")

    def one(number: int) -> None:
        folder = target / f"{number // 1000:03d}"
        folder.mkdir(parents=True, exist_ok=True)
        with Image.open(sources[number % len(sources)]) as image:
            picture = image.convert("RGB").resize((side, side))
        copy = number // len(sources)
        block = side // 32
        for bit in range(17):  # the copy's number, written in black and white blocks: another picture to every check
            colour = (255, 255, 255) if copy >> bit & 1 else (0, 0, 0)
            picture.paste(colour, (block * bit, 0, block * bit + block, block))
        picture.save(folder / f"{number:06d}.png", compress_level=1)

    with ThreadPoolExecutor() as pool:
        list(pool.map(one, range(count)))
    done.write_text("")
    return target


def plain(folder: Path, out: Path | None) -> float:
    """Seconds for decoding and shrinking each file, with ``out`` for writing it too, and nothing else."""
    if out is not None:
        out.mkdir(parents=True)
    began = time.perf_counter()

    def one(path: Path) -> None:
        with Image.open(path) as image:
            picture = image.convert("RGB")
        scale = min(1.0, 256 / min(picture.size))
        if scale < 1:
            picture = picture.resize(
                (round(picture.width * scale), round(picture.height * scale)), Image.Resampling.LANCZOS
            )
        picture.load()
        if out is not None:
            picture.save(out / f"{path.stem}.png", compress_level=1)

    with ThreadPoolExecutor() as pool:
        list(pool.map(one, sorted(folder.rglob("*.png"))))
    return time.perf_counter() - began


def harvest(root: Path, folder: Path) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, "-c", _HARVEST, str(root), str(folder)], capture_output=True, text=True, check=True
    )
    return dict(json.loads(done.stdout.splitlines()[-1]))


def run(argv: list[str] | None = None) -> int:
    options = common.parser(__doc__ or "")
    options.add_argument("--counts", type=int, nargs="+", default=[1000, 10_000], help="100000 takes half an hour")
    options.add_argument("--side", type=int, default=512, help="of the pictures, in pixels: the WebUI's own size")
    options.add_argument("--rounds", type=int, default=3, help="of the smallest size")
    a = options.parse_args(argv)
    scratch = common.WORK / "harvest-scratch"
    rows = []
    for number, count in enumerate(sorted(a.counts)):
        folder = make_folder(count, a.side)
        firsts, agains, plains, writing, memory = [], [], [], [], 0.0
        for turn in range(a.rounds if number == 0 else 1):
            shutil.rmtree(scratch, ignore_errors=True)
            first = harvest(scratch / "workspace", folder)
            assert first["added"] == count, first
            agains.append(harvest(scratch / "workspace", folder)["seconds"])
            firsts.append(first["seconds"])
            memory = max(memory, first["megabytes"])
            plains.append(plain(folder, None))
            writing.append(plain(folder, scratch / f"plain-{turn}"))
        rows.append(
            {
                "images": count,
                "images_per_second": round(count / common.summary(firsts)["median"], 1),
                "over_plain": round(common.paired_ratio(firsts, plains), 3),
                "over_plain_that_writes": round(common.paired_ratio(firsts, writing), 3),
                "again_over_first": round(common.paired_ratio(agains, firsts), 4),
                "megabytes": round(memory),
            }
        )
        common.say(str(rows[-1]))
    shutil.rmtree(scratch, ignore_errors=True)
    memory_ratio = rows[-1]["megabytes"] / rows[0]["megabytes"]
    result = {
        "what": "harvesting over a plain Pillow loop (seconds over seconds)",
        "ratio": rows[0]["over_plain"],
        "bar": BAR,
        "passed": rows[0]["over_plain"] <= BAR
        and all(row["again_over_first"] <= BAR_AGAIN for row in rows)
        and memory_ratio <= BAR_MEMORY,
        "memory_largest_over_smallest": round(memory_ratio, 3),
        "side": a.side,
        "rows": rows,
        **common.machine(torch.device("cpu")),
    }
    return common.answer(a, result)


if __name__ == "__main__":
    sys.exit(run())
