"""The command line: ``python -m ddpm_core [--workspace DIR] COMMAND ... [--json]``."""

from __future__ import annotations

import argparse
import dataclasses
import io
import json
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from . import __version__
from .errors import UserError, mendable
from .options import fields_of
from .requests import INTERPOLATED, SampleRequest, TrainRequest
from .screen import Screen, printable

_DEVICES = "cpu, cuda, cuda:1, mps (default: the best there is)"
DONE, FAILED, BAD_INPUT, STOPPED = 0, 1, 2, 3


class _Parser(argparse.ArgumentParser):
    """Raises UserError instead of printing usage and exiting, so that --json can answer too."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message[0].upper()}{message[1:]}. See: {self.prog} --help")


def add_flags(parser: argparse.ArgumentParser, request: type, leave_out: Sequence[str] = (), **defaults: Any) -> None:
    """A flag for each field of a request; its default is the field's, unless ``defaults`` names another."""
    required = {one.name for one in dataclasses.fields(request) if one.default is dataclasses.MISSING}
    for name, field in fields_of(request).items():
        if name in leave_out:
            continue
        option, about = field.option, field.option.help or None
        if field.kind is bool and field.none:
            parser.add_argument(field.flag, dest=name, action=argparse.BooleanOptionalAction, help=about)
            continue
        if field.kind is bool:
            action = "store_false" if field.default else "store_true"
            parser.add_argument(field.flag, dest=name, action=action, help=about)
            continue
        kinds: dict[str, Any] = {"choices": option.choices} if option.choices else {"type": field.kind}
        kinds |= {"metavar": option.metavar} if option.metavar else {}
        parser.add_argument(
            field.flag,
            dest=name,
            default=defaults.get(name, field.default),
            required=name in required,
            help=about,
            **kinds,
        )


def _add_adapters(parser: argparse.ArgumentParser, required: bool = False) -> None:
    parser.add_argument(
        "--adapter",
        action="append",
        default=[],
        required=required,
        metavar="NAME[:WEIGHT]",
        help="with this adapter of the model, as strong as its weight says (default 1); may be given several times",
    )


def build_parser() -> argparse.ArgumentParser:
    """Make the parser of all commands."""
    common = _Parser(add_help=False)
    common.add_argument(
        "--json", action="store_true", default=argparse.SUPPRESS, help="print one JSON object as the last line"
    )
    common.add_argument(
        "--workspace", metavar="DIR", default=argparse.SUPPRESS, help="where everything lives (or DDPM_WORKSPACE)"
    )
    parser = _Parser(
        prog="ddpm_core",
        parents=[common],
        description="Train your own diffusion model on the images you generate, and generate with it.",
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=_Parser)

    def command(name: str, text: str, parent: Any = commands) -> argparse.ArgumentParser:
        return parent.add_parser(name, help=text, description=text, parents=[common])  # type: ignore[no-any-return]

    def group(name: str, text: str) -> Any:
        return command(name, text).add_subparsers(dest="action", metavar="ACTION", required=True, parser_class=_Parser)

    p = command("harvest", "Collect the images of folders into a dataset.")
    p.add_argument("--dataset", required=True, metavar="NAME")
    p.add_argument(
        "--keep-size", type=int, default=256, metavar="PX", help="short side of the copies kept (default 256)"
    )
    p.add_argument("--since", default="", metavar="DATE", help="only files from this day on (YYYY-MM-DD)")
    p.add_argument("--until", default="", metavar="DATE", help="only files up to this day")
    p.add_argument(
        "--prompt", default="", metavar="WORDS", help="only where the prompt has all of these, comma-separated"
    )
    p.add_argument("--checkpoint", default="", metavar="NAME", help="only images of checkpoints of this name or hash")
    p.add_argument("--size", default="", metavar="WxH", help="only images of this size")
    p.add_argument("folders", nargs="+", metavar="FOLDER")

    actions = group("dataset", "Review datasets and decide what they hold.")
    command("list", "List the datasets.", actions)
    p = command("show", "List the items of a dataset.", actions)
    p.add_argument("name")
    p.add_argument("--status", choices=("kept", "rejected"))
    p.add_argument("--suspects", action="store_true", help="the kept ones, outliers first")
    p = command("rename", "Give a dataset another name.", actions)
    p.add_argument("name")
    p.add_argument("new", metavar="NEW")
    p = command("merge", "Add the items of other datasets to one; the others stay.", actions)
    p.add_argument("name", metavar="INTO")
    p.add_argument("others", nargs="+", metavar="OTHER")
    p = command(
        "tags", "Show the words of a dataset's prompts that a model would learn, and choose among them.", actions
    )
    p.add_argument("name")
    for flag, text in (
        ("--keep", "learn these, too"),
        ("--drop", "leave these out"),
        ("--merge", "take these for one word"),
    ):
        p.add_argument(flag, nargs="+", default=[], metavar="WORD", help=text)
    p.add_argument("--undo", action="store_true", help="take the last choice or edit back")
    p.add_argument("--items", nargs="+", type=int, default=[], metavar="ID", help="images whose words are edited")
    p.add_argument("--add", nargs="+", default=[], metavar="WORD", help="add words to these images")
    p.add_argument("--remove", nargs="+", default=[], metavar="WORD", help="take words from these images")
    for name, text in (("keep", "Keep items."), ("reject", "Reject items.")):
        p = command(name, text, actions)
        p.add_argument("name")
        p.add_argument("ids", nargs="+", type=int, metavar="ID")
        if name == "reject":
            p.add_argument("--reason", default="user")
    for name, text in (
        ("undo", "Take the last keep or reject back."),
        ("delete", "Move a dataset to the trash."),
        ("restore", "Bring a dataset back from the trash."),
    ):
        command(name, text, actions).add_argument("name")
    p = command("export", "Copy the kept images and their prompts into a folder.", actions)
    p.add_argument("name")
    p.add_argument("folder", metavar="DIR")

    p = command("train", "Train a model on a dataset, or resume one.")
    named = p.add_mutually_exclusive_group(required=True)
    named.add_argument("--model", metavar="NAME")
    named.add_argument("--adapter", metavar="NAME", help="instead of a model, an adapter of --base")
    add_flags(p, TrainRequest, ["model"])
    p.add_argument("--device", help=_DEVICES)
    p.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change any other setting")

    p = command("sample", "Generate images with a model.")
    add_flags(p, SampleRequest, seed=0)
    p.add_argument(
        "--variation-of", metavar="FILE", help="an image to make others like it, by a model of the condition image"
    )
    p.add_argument("--init", metavar="FILE", help="an image to begin with")
    p.add_argument("--mask", metavar="FILE", help="of that image: white where is drawn anew; the rest stays as it is")
    _add_adapters(p)
    p.add_argument("--out", required=True, metavar="DIR")
    p.add_argument("--batch-size", type=int, default=64)
    p.add_argument("--device", help=_DEVICES)

    p = command("interpolate", "Generate what lies between two seeds, or two prompts: frames, a strip, an animation.")
    p.add_argument("--seeds", type=int, nargs=2, required=True, metavar=("A", "B"), help="from that of A to that of B")
    p.add_argument("--frames", type=int, default=9)
    p.add_argument("--to-prompt", metavar="TEXT", help="of the last frame (default: that of the first)")
    p.add_argument("--loop", action="store_true", help="around a circle through both, back to the first")
    p.add_argument("--out", required=True, metavar="DIR")
    p.add_argument("--device", help=_DEVICES)
    add_flags(p, SampleRequest, sorted(set(fields_of(SampleRequest)) - {*INTERPOLATED}))

    p = command("evaluate", "Measure how near a model comes to a dataset, and whether it copies.")
    p.add_argument("--model", metavar="NAME or FILE")
    p.add_argument("--images", metavar="DIR", help="evaluate these images instead of a model")
    p.add_argument("--upscaler", metavar="MODEL", help="evaluate an upscaler: is its detail real, and does it invent?")
    p.add_argument("--dataset", required=True, metavar="NAME")
    p.add_argument("--count", type=int, default=512)
    p.add_argument("--prompts", action="store_true", help="also whether it does what prompts ask for")
    _add_adapters(p)
    p.add_argument("--device", help=_DEVICES)
    others = set(fields_of(SampleRequest)) - {"sampler", "steps", "seed", "cfg_scale"}
    add_flags(p, SampleRequest, sorted(others), seed=0)

    p = command("search", "Find images of a dataset by words, by an image, or where words do not fit.")
    p.add_argument("--dataset", required=True, metavar="NAME")
    p.add_argument("--prompt", default="", metavar="TEXT", help="words that the images show")
    p.add_argument("--image", metavar="FILE", help="an image that they are like")
    p.add_argument("--misfits", action="store_true", help="images with words that do not fit them")
    p.add_argument(
        "--model", metavar="NAME", help="an image-text encoder (default: the newest that learned from the dataset)"
    )
    p.add_argument("--count", type=int, default=20)
    p.add_argument("--device", help=_DEVICES)

    p = command("merge", "Make a model and adapters of it one new model.")
    p.add_argument("--model", required=True, metavar="NAME")
    _add_adapters(p, required=True)
    p.add_argument("--name", required=True, metavar="NEW")

    p = command("export", "Write a model for other programs.")
    p.add_argument("--model", required=True, metavar="NAME or FILE")
    _add_adapters(p)
    p.add_argument("--format", choices=("diffusers",), default="diffusers")
    p.add_argument("--out", required=True, metavar="DIR")

    actions = group("models", "List, rename and delete models.")
    command("list", "List the models.", actions)
    for name, text in (
        ("show", "Show a model's configuration."),
        ("delete", "Move a model and its run to the trash."),
        ("restore", "Bring a model back from the trash."),
    ):
        command(name, text, actions).add_argument("name")
    p = command("rename", "Give a model another name, with its run.", actions)
    p.add_argument("name")
    p.add_argument("new", metavar="NEW")

    actions = group("trash", "Look at what was deleted, or delete it for good.")
    command("list", "List what lies in the trash, newest first.", actions)
    command("empty", "Delete it all for good.", actions)

    p = command("serve", "Serve the tab as a local web page.")
    p.add_argument("--host", default="127.0.0.1", help="address to listen on (127.0.0.1: this machine only)")
    p.add_argument("--port", type=int, default=7870, help="port of the page (7870)")
    p.add_argument("--root-path", default="", metavar="PATH", help="behind a proxy: the path it serves the page below")

    p = command("demo", "From bundled images to new ones, in the tab: harvest, train, sample, evaluate.")
    p.add_argument("--headless", action="store_true", help="without the tab, and end with the story")
    p.add_argument("--minutes", type=float, help="how long to train")
    p.add_argument("--port", type=int, default=7870)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status: 0 done, 1 our own failure, 2 a mistake, 3 stopped."""
    argv = list(sys.argv[1:] if argv is None else argv)
    as_json = "--json" in argv
    for stream in (sys.stdout, sys.stderr):  # a redirected Windows console cannot print every prompt
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    stop = threading.Event()
    screen = Screen()
    try:
        arguments = build_parser().parse_args(argv)
        _listen_for_signals(stop)
        result = _dispatch(arguments, stop, screen)
        screen.close()
        if as_json and result:  # of several processes at one training only the first has something to say
            print(json.dumps(result, ensure_ascii=True), flush=True)
        else:
            _print_for_people(result)
        return STOPPED if stop.is_set() else DONE
    except UserError as error:
        return _fail(str(error), STOPPED if stop.is_set() else BAD_INPUT, as_json, screen)
    except KeyboardInterrupt:
        return _fail("Stopped.", STOPPED, as_json, screen)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    except Exception as error:
        if sentence := mendable(error):
            return _fail(sentence, BAD_INPUT, as_json, screen)
        traceback.print_exc()
        return _fail(f"Our own failure, please report it: {type(error).__name__}: {error}", FAILED, as_json, screen)


def _fail(message: str, code: int, as_json: bool, screen: Screen) -> int:
    screen.close()
    print(f"ddpm: {printable(message)}", file=sys.stderr, flush=True)
    if as_json:
        print(json.dumps({"error": message}), flush=True)
    return code


def _listen_for_signals(stop: threading.Event) -> None:
    """The first SIGINT, SIGTERM or SIGHUP (a closed terminal) asks for a stop with the work saved; a second interrupts."""

    def handler(number: int, frame: Any) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()
        print("\nStopping; the work is being saved.", file=sys.stderr, flush=True)

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, handler)
        signal.signal(signal.SIGTERM, handler)
        hang_up = getattr(signal, "SIGHUP", None)  # not on Windows
        if hang_up is not None and signal.getsignal(hang_up) != signal.SIG_IGN:  # nohup ignores it on purpose
            signal.signal(hang_up, handler)


def _print_for_people(result: dict[str, Any]) -> None:
    for key, value in result.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            print(f"{key}:")
            for entry in value:
                print("  " + "  ".join(f"{k}={_short(v)}" for k, v in entry.items() if v not in (None, "", {}, [])))
        elif isinstance(value, list) and len(value) > 12:
            print(f"{key}: {len(value)}, the first {_short(value[0])}")
        else:
            print(f"{key}: {_short(value)}")


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return ", ".join(f"{k}={_short(v)}" for k, v in value.items())
    text = printable(str(value).replace("\n", " "))
    return text if len(text) <= 100 else text[:97] + "..."


def _dispatch(a: argparse.Namespace, stop: threading.Event, screen: Screen) -> dict[str, Any]:
    # torch comes in here, so that --help and mistakes answer at once
    from . import commands, demo

    handler: Callable[..., dict[str, Any]] = demo.run if a.command == "demo" else getattr(commands, f"run_{a.command}")
    return handler(a, stop, screen)
