"""What we use of the WebUI, read from our adapter's source; and what a WebUI offers, read from its source.

``python tests/contract.py FOLDER NAME`` writes what the WebUI in FOLDER offers of it into host_contract.json as NAME.
"""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections import defaultdict
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parent
ADAPTER = TESTS.parent / "ddpm_core" / "host" / "webui"
CONTRACT = TESTS / "host_contract.json"

# module-level objects of the host and the class whose names count for them
INSTANCES = {
    "shared.state": "shared_state.State",
    "shared.total_tqdm": "shared_total_tqdm.TotalTQDM",
    "sd_models.model_data": "sd_models.SdModelData",
    "scripts.scripts_txt2img": "scripts.ScriptRunner",
}
# what the host hands to us, by the name it has in our source
HANDED = {
    "p": "processing.StableDiffusionProcessing",
    "edited": "processing.StableDiffusionProcessingImg2Img",
    "processed": "processing.Processed",
    "params": "script_callbacks.ImageSaveParams",
    "runner": "scripts.ScriptRunner",
}


@dataclass
class Use:
    """Names as ``module.name`` or ``module.Class.name``, each with its calls as (positional count, keywords)."""

    names: dict[str, list[tuple[int, tuple[str, ...]]]] = field(default_factory=lambda: defaultdict(list))
    options: set[str] = field(default_factory=set)
    flags: set[str] = field(default_factory=set)


def used() -> Use:
    found = Use()
    for path in sorted([*ADAPTER.rglob("*.py"), TESTS.parent / "scripts" / "ddpm.py"]):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        aliases: dict[str, str] = {}
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.level == 0 and (node.module or "").split(".")[0] == "modules":
                base = ".".join((node.module or "").split(".")[1:])
                for alias in node.names:
                    name = ".".join(part for part in (base, alias.name) if part)
                    aliases[alias.asname or alias.name] = name
                    if base:
                        found.names[name]
        calls = {id(node.func): node for node in ast.walk(tree) if isinstance(node, ast.Call)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("option", "flag"):
                kept = found.options if node.func.id == "option" else found.flags
                if node.args and isinstance(node.args[0], ast.Constant):
                    kept.add(node.args[0].value)
            name = _name(node, aliases)
            if name is None:
                continue
            found.names[name]
            call = calls.get(id(node))
            if call is not None and not any(k.arg is None for k in call.keywords):
                found.names[name].append((len(call.args), tuple(k.arg or "" for k in call.keywords)))
    return found


def _name(node: ast.AST, aliases: dict[str, str]) -> str | None:
    if isinstance(node, ast.Name) and node.id in aliases and "." in aliases[node.id]:
        return aliases[node.id]
    if not isinstance(node, ast.Attribute):
        return None
    parts = ast.unparse(node).split(".")
    if not all(part.isidentifier() for part in parts):
        return None
    if parts[0] in HANDED and len(parts) == 2:
        return f"{HANDED[parts[0]]}.{parts[1]}"
    if parts[0] not in aliases:
        return None
    full = ".".join([aliases[parts[0]], *parts[1:]])
    for instance, kind in INSTANCES.items():
        if full.startswith(instance + ".") and full.count(".") == 2:
            return f"{kind}.{parts[-1]}"
    return full if full.count(".") == 1 or full.split(".")[1][0].isupper() else None


# -- what a host offers -----------------------------------------------------------------------------------------------


@cache
def _tree(path: Path) -> ast.Module | None:
    return ast.parse(path.read_text(encoding="utf-8")) if path.is_file() else None


def offered(root: Path, use: Use) -> dict[str, Any]:
    """For each used name what it is in the host: a list of parameters, or its kind; None where it is not there."""
    names = {name: _find(root, name) for name in sorted(use.names)}
    text = "\n".join(path.read_text(encoding="utf-8") for path in sorted((root / "modules").glob("shared_options.py")))
    arguments = (root / "modules" / "cmd_args.py").read_text(encoding="utf-8")
    extra = (root / "modules" / "shared_cmd_options.py").read_text(encoding="utf-8")
    theirs = sorted(o for o in use.options if not o.startswith("ddpm_"))
    forge_flags = root / "backend" / "args.py"
    patched_flags = root / "ldm_patched" / "modules" / "args_parser.py"
    for more in (forge_flags, patched_flags):
        arguments += more.read_text(encoding="utf-8") if more.is_file() else ""
    flags = sorted(f for f in use.flags if not f.startswith("ddpm_"))
    return {
        "names": names,
        "options": {o: f'"{o}":' in text for o in theirs},
        "flags": {f: f'--{f.replace("_", "-")}"' in arguments or f"cmd_opts.{f} " in extra for f in flags},
    }


def _find(root: Path, name: str) -> Any:
    module, *rest = name.split(".")
    tree = _tree(root / "modules" / f"{module}.py")
    if tree is None:
        return None
    if len(rest) == 1:
        return _top(root, tree, rest[0])
    return _member(root, tree, rest[0], rest[1])


def _top(root: Path, tree: ast.Module, name: str) -> Any:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and node.name == name and node in tree.body:
            return _parameters(node)
        if isinstance(node, ast.ClassDef) and node.name == name:
            start = next((m for m in node.body if isinstance(m, ast.FunctionDef) and m.name == "__init__"), None)
            return {"class": _parameters(start)[1:] if start else _fields(tree, node)}
        if isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if any(isinstance(t, ast.Name) and t.id == name for t in targets):
                return "object"
        if isinstance(node, ast.ImportFrom) and node in tree.body:
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    found = _find(root, f"{(node.module or '').removeprefix('modules.')}.{alias.name}")
                    return found if found is not None else "object"
    # a property of the module's class, as shared.sd_model is
    for node in ast.walk(_tree(root / "modules" / "shared_items.py") or ast.Module([], [])):
        if isinstance(node, ast.FunctionDef) and node.name == name:
            return "object"
    return None


def _fields(tree: ast.Module, node: ast.ClassDef) -> list[str]:
    own = [m.target.id for m in node.body if isinstance(m, ast.AnnAssign) and isinstance(m.target, ast.Name)]
    for base in node.bases:
        parent = next((n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == ast.unparse(base)), None)
        if parent is not None:
            own = [*_fields(tree, parent), *own]
    return own


def _member(root: Path, tree: ast.Module, kind: str, name: str) -> Any:
    node = next((n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == kind), None)
    if node is None:
        return None
    for inner in ast.walk(node):
        if isinstance(inner, ast.FunctionDef) and inner.name == name:
            return _parameters(inner)[1:]
        if isinstance(inner, ast.Name) and inner.id == name and isinstance(inner.ctx, ast.Store):
            return "attribute"
        if (
            isinstance(inner, ast.Attribute)
            and ast.unparse(inner) == f"self.{name}"
            and isinstance(inner.ctx, ast.Store)
        ):
            return "attribute"
    for base in node.bases:
        found = _member(root, tree, ast.unparse(base), name)
        if found is not None:
            return found
    return None


def _parameters(node: ast.FunctionDef) -> list[str]:
    arguments = node.args
    names = [a.arg for a in (*arguments.posonlyargs, *arguments.args)]
    names += ["*" + arguments.vararg.arg] if arguments.vararg else []
    names += [a.arg for a in arguments.kwonlyargs]
    return names + (["**" + arguments.kwarg.arg] if arguments.kwarg else [])


def write(root: Path, label: str) -> None:
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True).stdout.strip()
    kept = json.loads(CONTRACT.read_text(encoding="utf-8")) if CONTRACT.exists() else {}
    kept[label] = {"commit": commit, **offered(root, used())}
    text = json.dumps(dict(sorted(kept.items())), separators=(",", ":"))
    for end in ("},", "],"):  # a line for each name, so that a difference can be read
        text = text.replace(f'{end}"', f'{end}\n"')
    CONTRACT.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    write(Path(sys.argv[1]), sys.argv[2])
