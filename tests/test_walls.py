"""The walls of the house: who may import what, what importing does, and what a good guest never touches."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

PACKAGE = ROOT / "ddpm_core"
# the pipeline that goes with an export is written for diffusers, and none of ours
FILES = [path for path in sorted(PACKAGE.rglob("*.py")) if path.parent.name != "assets"]
# a layer may import itself and what stands below it
LAYERS = [
    {"__init__", "text"},
    {"errors", "screen"},
    {"names", "files", "parsing"},
    {"options"},
    {"trash", "leftovers", "requests", "runs"},
    {"model"},
    {"sampling", "dataset", "evaluation"},
    {"training"},
    {"workspace"},
    {"renaming", "bundled"},
    {"operations"},
    {"jobs", "collector"},
    {"host"},
    {"watch", "results", "understand"},
    {"finding"},
    {"service"},
    {"api", "ui", "commands"},
    {"demo"},
    {"cli"},
    {"__main__"},
]
# host is handed in, never imported by what it serves: it stands beside, and its server builds the page
# and what it puts into the WebUI's own pages; these stand above the service
PAGES = PACKAGE / "host" / "webui" / "pages"
HOST_MAY_BUILD = {
    PACKAGE / "host" / "server.py",
    PACKAGE / "host" / "webui" / "register.py",
    *PAGES.glob("*.py"),
}


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    """Absolute names of the modules a file imports, anywhere in it; relative ones resolved."""
    found: set[str] = set()
    package = ("ddpm_core", *path.relative_to(PACKAGE).parts[:-1])
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(p for p in (base, node.module or "") if p)
            found |= {module} | {f"{module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_only_ui_and_host_import_gradio_and_only_host_the_webui(path: Path) -> None:
    tops = {name.split(".")[0] for name in imported(path)}
    if part_of(path) not in ("ui", "host"):
        assert "gradio" not in tops
    if part_of(path) != "host":
        assert "modules" not in tops


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_downward(path: Path) -> None:
    level = {part: i for i, layer in enumerate(LAYERS) for part in layer}
    own = part_of(path)
    assert own in level, f"say in LAYERS where {own} stands"
    for name in imported(path):
        parts = name.split(".")
        if (
            parts[0] != "ddpm_core"
            or len(parts) < 2
            or parts[1] == own
            or parts[1] not in level
            or path in HOST_MAY_BUILD
        ):
            continue
        if level[parts[1]] == level[own]:
            pytest.fail(f"{path.name} imports its neighbour {name}")
        assert level[parts[1]] < level[own], f"{path.name} imports {name} from above"


def test_no_two_files_need_each_other() -> None:
    """However long the way round, and wherever in the files the imports stand."""
    names = {".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): p for p in FILES}
    needs = {name: (imported(path) & set(names)) - {name} for name, path in names.items()}
    open_ones: list[str] = []
    done: set[str] = set()

    def visit(name: str) -> None:
        assert name not in open_ones, " needs ".join([*open_ones[open_ones.index(name) :], name])
        if name not in done:
            open_ones.append(name)
            for other in sorted(needs[name]):
                visit(other)
            done.add(open_ones.pop())

    for name in sorted(names):
        visit(name)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_what_is_public_says_what_it_does(path: Path) -> None:
    """A docstring on every public class, function and method, unless a method implements that of a base of ours or the host's."""
    silent = []

    def look(body: list[ast.stmt], owner: ast.ClassDef | None) -> None:
        for node in body:
            if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) or node.name.startswith("_"):
                continue
            bases = [ast.unparse(base) for base in owner.bases] if owner else []
            inherits = bool(set(bases) - {"nn.Module", "NamedTuple", "Protocol"}) and not isinstance(node, ast.ClassDef)
            setter = any(ast.unparse(found).endswith(".setter") for found in node.decorator_list)
            if not (ast.get_docstring(node) or inherits or setter):
                silent.append(f"{node.lineno} {node.name}")
            if isinstance(node, ast.ClassDef):
                look(node.body, node)

    look(ast.parse(path.read_text(encoding="utf-8")).body, None)
    assert not silent


def test_private_names_are_used_at_home_only() -> None:
    """In the package, the tests and the benchmarks: what others need gets a name for others."""

    def private(name: str) -> bool:
        return name.startswith("_") and not name.startswith("__")

    homes: dict[str, set[Path]] = {}
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            own = (ast.Name, ast.FunctionDef, ast.ClassDef, ast.AsyncFunctionDef, ast.Attribute)
            name = (
                getattr(node, "id", getattr(node, "name", getattr(node, "attr", ""))) if isinstance(node, own) else ""
            )
            at_home = not isinstance(node, ast.Attribute) or ast.unparse(node.value) == "self"
            if private(name or "") and at_home:
                homes.setdefault(name, set()).add(path)
    for path in [*FILES, *sorted((ROOT / "tests").rglob("*.py")), *sorted((ROOT / "benchmarks").rglob("*.py"))]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.level or (node.module or "").startswith("ddpm_core")):
                assert not any(private(alias.name) for alias in node.names), f"{path.name}:{node.lineno}"
            if isinstance(node, ast.Attribute) and private(node.attr) and path not in homes.get(node.attr, {path}):
                pytest.fail(f"{path.name}:{node.lineno} {ast.unparse(node)}")


@pytest.mark.parametrize(
    "path",
    [
        p
        for p in FILES
        if part_of(p) in ("model", "sampling", "training", "evaluation", "dataset", "workspace", "operations", "jobs")
    ],
    ids=lambda p: str(p.relative_to(PACKAGE)),
)
def test_the_core_does_not_know_its_host(path: Path) -> None:
    assert not any(name.startswith("ddpm_core.host") for name in imported(path))


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_no_pickle(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert not {"pickle", "dill", "joblib", "shelve", "marshal"} & {name.split(".")[0] for name in imported(path)}
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Call):
            assert ast.unparse(node.func) not in ("torch.load", "torch.save", "np.load", "numpy.load", "eval", "exec")


FORBIDDEN = {
    "torch.manual_seed",
    "torch.seed",
    "torch.cuda.manual_seed",
    "torch.cuda.manual_seed_all",
    "torch.set_num_threads",
    "torch.set_num_interop_threads",
    "torch.set_default_dtype",
    "torch.set_default_device",
    "torch.use_deterministic_algorithms",
    "torch.set_grad_enabled",
    "torch.set_float32_matmul_precision",
    "random.seed",
    "np.random.seed",
    "numpy.random.seed",
    "logging.basicConfig",
    "warnings.simplefilter",
    "warnings.filterwarnings",
    "os.chdir",
    "locale.setlocale",
    "socket.setdefaulttimeout",
}


@pytest.mark.parametrize(
    "path", [p for p in FILES if p.name not in ("cli.py", "__main__.py")], ids=lambda p: str(p.relative_to(PACKAGE))
)
def test_nothing_global_is_changed(path: Path) -> None:
    """Only the command line, which owns its process, handles signals."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            assert name not in FORBIDDEN and not name.startswith("signal."), f"{path.name}:{node.lineno} {name}"
        if isinstance(node, (ast.Assign, ast.AugAssign)):
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                name = ast.unparse(target)
                assert not name.startswith(
                    (
                        "torch.backends",
                        "Image.MAX",
                        "ImageFile.",
                        "PngImagePlugin.MAX",
                        "os.environ",
                        "sys.path",
                        "sys.excepthook",
                    )
                ), f"{path.name}:{node.lineno} {name}"


@pytest.mark.parametrize(
    "path",
    [p for p in FILES if part_of(p) in ("model", "sampling", "training", "evaluation")],
    ids=lambda p: str(p.relative_to(PACKAGE)),
)
def test_every_random_number_comes_from_our_own_generator(path: Path) -> None:
    drawing = {
        "randn",
        "rand",
        "randint",
        "randperm",
        "normal",
        "bernoulli",
        "bernoulli_",
        "uniform_",
        "normal_",
        "multinomial",
        "randn_like",
        "rand_like",
        "dropout",
        "shuffle",
        "exponential_",
    }
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in drawing:
            assert any(keyword.arg == "generator" for keyword in node.keywords), (
                f"{path.name}:{node.lineno} {ast.unparse(node)}"
            )


@pytest.mark.parametrize(
    "path",
    [p for p in FILES if part_of(p) in ("model", "sampling", "training", "evaluation")],
    ids=lambda p: str(p.relative_to(PACKAGE)),
)
def test_no_layer_of_the_host_is_used_and_no_module_is_moved(path: Path) -> None:
    """torch.nn's layers are patched by hosts; of torch.nn only Module, ModuleList, Parameter and gradient clipping are."""
    allowed = {"Module", "ModuleDict", "ModuleList", "Parameter", "utils"}
    if path.name == "team.py":
        allowed.add("parallel")  # only begun by torchrun, where no host is
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "nn":
            assert node.attr in allowed, f"{path.name}:{node.lineno} nn.{node.attr}"


@pytest.mark.alone
def test_importing_starts_nothing_and_is_cheap(tmp_path: Path) -> None:
    """What the host would not already have loaded costs it under 150 ms at every start but the first, which compiles it, and no thread, handler
    or setting changes."""
    code = """
import time, threading, signal, logging, torch, numpy, PIL.Image, safetensors.torch, sqlite3, gradio, fastapi
before = (threading.active_count(), signal.getsignal(signal.SIGINT), logging.getLogger().handlers[:], torch.get_num_threads(),
          torch.backends.cudnn.benchmark, torch.get_rng_state().sum(), PIL.Image.MAX_IMAGE_PIXELS)
start = time.perf_counter()
import ddpm_core, ddpm_core.service, ddpm_core.api, ddpm_core.ui.tab
spent = time.perf_counter() - start
after = (threading.active_count(), signal.getsignal(signal.SIGINT), logging.getLogger().handlers[:], torch.get_num_threads(),
         torch.backends.cudnn.benchmark, torch.get_rng_state().sum(), PIL.Image.MAX_IMAGE_PIXELS)
assert before == after, (before, after)
print(spent)
"""
    keeping = {**os.environ, "PYTHONPYCACHEPREFIX": str(tmp_path)}
    times = [
        float(
            subprocess.run(
                [sys.executable, "-c", code], cwd=ROOT, env=keeping, capture_output=True, text=True, check=True
            ).stdout
        )
        for _ in range(4)
    ]
    assert min(times) < 0.15, times


def test_the_network_is_right_while_a_host_patches_torch() -> None:
    """A1111 while it loads a checkpoint: layers on meta, initialisers that do nothing, Module.to that returns None."""
    code = """
import torch
from ddpm_core.model.unet import UNet
from ddpm_core.model.config import DiffusionConfig, ModelConfig, UNetConfig
from ddpm_core.model.build import network_of
config = UNetConfig((8, 8), block_out_channels=(8, 16), attention_levels=(False, True), layers_per_block=1, attention_head_dim=8, norm_num_groups=4)
x, t = torch.ones(1, 3, 8, 8), torch.tensor([3])
plain = UNet(config)
with torch.no_grad():
    for p in plain.parameters():
        p.add_(0.01)
    wanted = plain(x, t)
def broken(*a, **k):
    raise AssertionError("a patched layer was used")
for layer in (torch.nn.Linear, torch.nn.Conv2d, torch.nn.GroupNorm, torch.nn.MultiheadAttention):
    layer.__init__ = broken
    layer.forward = broken
torch.nn.Module.to = lambda self, *a, **k: None
torch.nn.init.kaiming_uniform_ = lambda tensor, *a, **k: tensor
torch.nn.init._no_grad_normal_ = lambda tensor, *a, **k: tensor
other = UNet(config)
with torch.no_grad():
    for p in other.parameters():
        p.add_(0.01)
    assert torch.equal(wanted, other(x, t))
torch.set_default_dtype(torch.bfloat16)
loaded = network_of(ModelConfig(config, DiffusionConfig()), {n: p.detach() for n, p in plain.named_parameters()}, "cpu")
for ours, theirs in zip(plain.parameters(), loaded.parameters()):
    assert theirs.dtype == torch.float32 and theirs.stride() == ours.stride()
torch.set_default_dtype(torch.float32)
with torch.no_grad():
    assert torch.equal(wanted, loaded(x, t))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_install_script_installs_nothing_and_imports_no_torch() -> None:
    names = {
        name.split(".")[0]
        for node in ast.walk(ast.parse((ROOT / "install.py").read_text(encoding="utf-8")))
        for name in (
            [a.name for a in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    assert names <= {"os", "re", "sys"}
    done = subprocess.run([sys.executable, str(ROOT / "install.py")], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_installer_says_that_sdnext_lacks_what_we_need(tmp_path: Path) -> None:
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "ui_control.py").write_text("")  # which no other WebUI has
    command = [sys.executable, str(ROOT / "install.py")]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(tmp_path)})
    assert done.returncode == 0 and "does not work in SD.Next" in done.stdout and done.stdout.count("\n") == 1


def test_each_promise_of_security_names_a_test_that_there_is() -> None:
    promised = (ROOT / "SECURITY.md").read_text(encoding="utf-8").split("## What is not promised")[0]
    rows = [line for line in promised.splitlines() if line.startswith("| ")][2:]
    assert len(rows) > 10
    for row in rows:
        shown_by = row.rsplit(" | ", 1)[1]
        text = ""
        for named in re.findall("`(.*?)`", shown_by):
            found = re.fullmatch(
                r"(tests/[\w/]+\.py)?(?:(?:::)?(\w+))?", named
            )  # a name goes on with the file before it
            assert found, named
            text = (ROOT / found[1]).read_text(encoding="utf-8") if found[1] else text
            assert text and (not found[2] or f"\ndef {found[2]}(" in text), named
        assert text, row
