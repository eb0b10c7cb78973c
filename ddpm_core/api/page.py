"""HTTP routes that the tab's page calls. Ids and names only, never paths of this machine.

They work on FastAPI 0.94 with pydantic 1 as on the newest: plain requests in, plain JSON out.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import FileResponse, JSONResponse, Response
from starlette.background import BackgroundTask

from ..collector import Rule
from ..dataset import words
from ..errors import UserError, mendable
from ..jobs import Job
from ..options import CROPS
from ..parsing import parse_json
from ..requests import TrainRequest
from ..service import Service

PREFIX = "/ddpm/ui"
_log = logging.getLogger("ddpm_core")
_FOREVER = {"Cache-Control": "private, max-age=86400, immutable"}
_NEVER = {"Cache-Control": "no-store"}
MOST_IDS = 10_000  # decided on at once
_MOST_TOGETHER = 60  # pictures in one answer
_ITEM_SIZES = (32, 48, 64, 96, 128, 192, 256)

Handler = Callable[[Service, dict[str, Any]], Any]
Endpoint = Callable[[Request], Awaitable[Response]]


def _text(values: dict[str, Any], key: str, most: int = 500) -> str:
    value = values.get(key)
    if not isinstance(value, str) or len(value) > most:
        raise UserError(f"The request lacks {key}.")
    return value


def _number(values: dict[str, Any], key: str, default: int | None = None) -> int:
    value = values.get(key, default)
    try:
        number = int(str(value))
    except ValueError:
        raise UserError(f"The request's {key} is no number.") from None
    if abs(number) >= 2**53:
        raise UserError(f"The request's {key} is out of range.")
    return number


def job_of(service: Service, values: dict[str, Any]) -> Job:
    """The job that a request names; UserError where it is no longer known."""
    job = service.jobs.get(_number(values, "job"))
    if job is None:
        raise UserError("That job is no longer known; the server was started anew.")
    return job


def _page(values: dict[str, Any]) -> str:
    return str(values.get("page", ""))[:32]


def _status(text: str) -> Response:
    return Response(text, media_type="application/json", headers=_NEVER)


def get_status(service: Service, values: dict[str, Any]) -> Any:
    """Return jobs, datasets, models and the trash, as JSON."""
    return _status(service.watch.status_text(_page(values)))


def fresh_status(service: Service, values: dict[str, Any]) -> Response | None:
    """Return the status if it is known without work, else None."""
    text = service.watch.fresh_status(_page(values))
    return None if text is None else _status(text)


def get_items(service: Service, values: dict[str, Any]) -> Any:
    """Return one page of a dataset's items."""
    search = _text(values, "search", 1000) if "search" in values else ""
    dataset = _text(values, "dataset")
    found = service.watch.items(
        dataset, _text(values, "view"), _number(values, "page", 0), _number(values, "size", 60), search
    )
    try:
        edited = words.changed_of(service.workspace.store(dataset))
    except UserError:  # the panel of words says what is wrong with them
        edited = {}
    return {**found, "items": [_with_words(item, edited.get(item["id"])) for item in found["items"]]}


def get_search(service: Service, values: dict[str, Any]) -> Any:
    """Return one page of what a search finds: by ``text``, ``like`` an item, or words that do not fit (``misfits``)."""
    dataset, page, size = _text(values, "dataset"), _number(values, "page", 0), _number(values, "size", 60)
    text = _text(values, "text", 1000) if "text" in values else ""
    like = _number(values, "like") if "like" in values else None
    misfits = values.get("misfits") == "1"
    return service.finding.page(dataset, text=text, like=like, misfits=misfits, page=page, size=size)


def _with_words(item: dict[str, Any], changed: words.Changed | None) -> dict[str, Any]:
    return item if changed is None else {**item, "added": list(changed.add), "removed": list(changed.remove)}


def shown_as(values: dict[str, Any]) -> tuple[tuple[int, int] | None, str]:
    """The size, ``None`` for as stored, and the crop."""
    size = _number(values, "size", 0)
    if size and size not in _ITEM_SIZES:
        raise UserError(f"Thumbnails come in {', '.join(map(str, _ITEM_SIZES))} pixels.")
    crop = values.get("crop", "center")
    if crop not in CROPS:
        raise UserError("The crop is center, top or pad.")
    return (size, size) if size else None, crop


def get_thumb(service: Service, values: dict[str, Any]) -> Response:
    """Return one item's image as PNG or WebP."""
    from ..dataset import handing_out

    store = service.workspace.store(_text(values, "dataset"))
    data = handing_out.thumbnail(store, _number(values, "id"), *shown_as(values))
    kind = "image/webp" if data.startswith(b"RIFF") else "image/png"
    return Response(data, media_type=kind, headers=_FOREVER)


def get_thumbs(service: Service, values: dict[str, Any]) -> Response:
    """Several items' pictures, in the order of ``ids``: of each its length, four bytes with the highest first, and itself.

    Where they are large, or the disk is slow, the answer has fewer, at least one; the page asks again for the rest. One that is
    missing has length 0.
    """
    from ..dataset import handing_out

    ids = [_number({"ids": part}, "ids") for part in _text(values, "ids", 18 * _MOST_TOGETHER).split(",")]
    if len(ids) > _MOST_TOGETHER:
        raise UserError(f"At most {_MOST_TOGETHER} images come in one answer.")
    found = handing_out.thumbnails(service.workspace.store(_text(values, "dataset")), ids, *shown_as(values))
    data = b"".join(part for picture in found for part in (len(picture).to_bytes(4, "big"), picture))
    # pictures are compressed as they are: the WebUI would do it once more
    headers = {**(_FOREVER if all(found) else _NEVER), "Content-Encoding": "identity"}
    return Response(data, media_type="application/octet-stream", headers=headers)


def get_curves(service: Service, values: dict[str, Any]) -> Any:
    """Return the losses and previews of a run."""
    return service.watch.curves(_text(values, "model"))


def get_preview(service: Service, values: dict[str, Any]) -> Response:
    """Return the preview of a step as PNG."""
    path = service.watch.preview_path(_text(values, "model"), _number(values, "step"))
    return FileResponse(path, media_type="image/png", headers=_NEVER)


def get_emerging(service: Service, values: dict[str, Any]) -> Response:
    """Return a running job's predicted images as PNG."""
    return Response(service.watch.emerging_png(job_of(service, values)), media_type="image/png", headers=_NEVER)


def get_animation(service: Service, values: dict[str, Any]) -> Response:
    """Return the denoising of a finished sampling as an animated WebP."""
    return Response(service.watch.animation(job_of(service, values)), media_type="image/webp", headers=_NEVER)


def get_neighbours(service: Service, values: dict[str, Any]) -> Response:
    """Return samples beside their nearest training images, as PNG."""
    path = job_of(service, values).artifacts.get("picture")
    if not isinstance(path, Path):
        raise UserError("There is no such image.")
    return FileResponse(path, media_type="image/png", headers=_NEVER)


def get_words(service: Service, values: dict[str, Any]) -> Any:
    """The words of a dataset that a model would learn, and those that are left out."""
    return words.words_of(service.workspace.store(_text(values, "dataset"))).to_json()


def post_words(service: Service, values: dict[str, Any]) -> Any:
    """Leave words of a dataset out (drop), take them (keep), make them one (merge), or undo the last of these."""
    store, action, chosen = (
        service.workspace.store(_text(values, "dataset")),
        _text(values, "action"),
        values.get("words", []),
    )
    if not isinstance(chosen, list) or len(chosen) > _MOST_TOGETHER or not all(isinstance(w, str) for w in chosen):
        raise UserError("The request lacks a list of words.")
    if action == "undo":
        words.undo(store)
    elif action in ("keep", "drop", "merge"):
        words.choose(store, *(chosen if action == one else [] for one in ("keep", "drop", "merge")))
    else:
        raise UserError("Words are kept, dropped or merged.")
    return words.words_of(store).to_json()


def post_edit_words(service: Service, values: dict[str, Any]) -> Any:
    """Add words to images of a dataset, or take words from them; ``words`` of the dataset undoes it."""
    ids = values.get("ids")
    if (
        not isinstance(ids, list)
        or len(ids) > MOST_IDS
        or not all(isinstance(i, int) and not isinstance(i, bool) for i in ids)
    ):
        raise UserError("The request lacks the ids of images.")
    add = _text(values, "add", 10_000) if values.get("add") else ""
    remove = _text(values, "remove", 10_000) if values.get("remove") else ""
    store = service.workspace.store(_text(values, "dataset"))
    changed = words.edit(store, ids, [add] if add else [], [remove] if remove else [])
    edited = words.changed_of(store)
    return {"changed": changed, "items": [_with_words({"id": i}, edited.get(i, words.Changed())) for i in ids]}


def get_model_words(service: Service, values: dict[str, Any]) -> Any:
    """The words that a model knows."""
    name = _text(values, "model")
    if name not in service.workspace.model_names():
        raise UserError(f"There is no model {name!r}.")
    config = service.workspace.model_config(name)
    words = config.tags
    if config.image is not None and (own := service.workspace.encoder_by(config.image.fingerprint)) is not None:
        words = service.workspace.model_config(own).tags  # a prior makes images' places of them
    return {"words": list(words), "encoder": config.text.name if config.text is not None else ""}


def post_decide(service: Service, values: dict[str, Any]) -> Any:
    """Keep or reject items by their ids."""
    ids = values.get("ids")
    if (
        not isinstance(ids, list)
        or not all(isinstance(i, int) and not isinstance(i, bool) and abs(i) < 2**53 for i in ids)
        or len(ids) > MOST_IDS
    ):
        raise UserError("The request lacks a list of item ids.")
    dataset, action = _text(values, "dataset"), _text(values, "action")
    if action not in ("keep", "reject"):
        raise UserError("An item is kept or rejected.")
    changed = service.workspace.keep(dataset, ids) if action == "keep" else service.workspace.reject(dataset, ids)
    return {"changed": changed, "counts": service.workspace.store(dataset).counts()}


def post_undo(service: Service, values: dict[str, Any]) -> Any:
    """Undo the last decision."""
    dataset = _text(values, "dataset")
    touched = service.workspace.store(dataset).undo()
    return {"changed": len(touched), "ids": touched, "counts": service.workspace.store(dataset).counts()}


def post_keep_one(service: Service, values: dict[str, Any]) -> Any:
    """Of each group of near duplicates keep one."""
    store = service.workspace.store(_text(values, "dataset"))
    return {"changed": store.keep_one_of_each(), "counts": store.counts()}


def post_rename(service: Service, values: dict[str, Any]) -> Any:
    """Rename a dataset or a model."""
    return {"name": service.rename(_text(values, "kind"), _text(values, "name"), _text(values, "new"))}


def post_merge(service: Service, values: dict[str, Any]) -> Any:
    """Add the items of another dataset to one."""
    return service.merge(_text(values, "into"), [_text(values, "dataset")])


def post_collecting(service: Service, values: dict[str, Any]) -> Any:
    """Switch collecting as I generate on or off, as it is set."""
    rule = service.collector.rule
    enabled = values.get("enabled") is True
    if enabled and not rule.dataset:
        raise UserError("Choose in the DDPM tab where to collect into.")
    service.collector.set_rule(Rule(enabled, rule.dataset, rule.words))
    return {"enabled": enabled}


def get_understand(service: Service, values: dict[str, Any]) -> Any:
    """Return what a page of the Understand tab asks for; nothing of it is remembered."""
    return service.understand(values)


def get_export(service: Service, values: dict[str, Any]) -> Response:
    """A model as a folder for diffusers, in a zip file."""
    name = _text(values, "model")
    path = service.export(name)
    return FileResponse(
        path,
        media_type="application/zip",
        filename=f"{name}-diffusers.zip",
        headers=_NEVER,
        background=BackgroundTask(path.unlink),
    )


def post_stop(service: Service, values: dict[str, Any]) -> Any:
    """Stop a running job of a kind."""
    kind = _text(values, "kind")
    return {"stopping": service.stop(kind)}


def post_cancel(service: Service, values: dict[str, Any]) -> Any:
    """Take back a training that waits for its turn."""
    return {"cancelled": service.cancel(_number(values, "job"))}


def post_collect(service: Service, values: dict[str, Any]) -> Any:
    """Go on with a generate-and-collect."""
    return {"job": service.start_collecting(_text(values, "dataset"), None).id}


def post_give_up(service: Service, values: dict[str, Any]) -> Any:
    """Discard what a dataset still waits to have generated."""
    return {"given_up": service.give_up_collecting(_text(values, "dataset"))}


def post_resume(service: Service, values: dict[str, Any]) -> Any:
    """Resume a training."""
    return {"job": service.start_training(TrainRequest(model=_text(values, "model"), resume=True)).id}


def post_delete(service: Service, values: dict[str, Any]) -> Any:
    """Move a dataset or a model to the trash."""
    service.delete(_text(values, "kind"), _text(values, "name"))
    return {}


def post_restore(service: Service, values: dict[str, Any]) -> Any:
    """Restore an item of the trash."""
    return {"restored": service.restore(_text(values, "place"))}


def post_empty_trash(service: Service, values: dict[str, Any]) -> Any:
    """Delete what lies in the trash."""
    return {"deleted": service.workspace.empty_trash()}


AT_ONCE: dict[str, Handler] = {"status": fresh_status}  # asked first, without a thread of the pool; None: it takes time
GETS: dict[str, Handler] = {
    "status": get_status,
    "items": get_items,
    "search": get_search,
    "thumb": get_thumb,
    "thumbs": get_thumbs,
    "curves": get_curves,
    "preview": get_preview,
    "emerging": get_emerging,
    "animation": get_animation,
    "neighbours": get_neighbours,
    "words": get_words,
    "model_words": get_model_words,
    "understand": get_understand,
    "export": get_export,
}
POSTS: dict[str, Handler] = {
    "decide": post_decide,
    "words": post_words,
    "edit_words": post_edit_words,
    "undo": post_undo,
    "stop": post_stop,
    "cancel": post_cancel,
    "keep_one": post_keep_one,
    "rename": post_rename,
    "merge": post_merge,
    "collecting": post_collecting,
    "collect": post_collect,
    "give_up": post_give_up,
    "resume": post_resume,
    "delete": post_delete,
    "restore": post_restore,
    "empty_trash": post_empty_trash,
}


def straight(service: Service) -> dict[str, Endpoint]:
    """What open pages read again and again, by path, for a server that is ours alone: it may be asked before all else."""
    return {
        f"{PREFIX}/{name}": _endpoint(service, GETS[name], changes=False, at_once=AT_ONCE.get(name))
        for name in ("status", "items", "thumbs")
    }


def add_routes(app: FastAPI, service: Service) -> None:
    """Register the page's routes; every one refuses whom the host does not allow."""
    for name, handler in GETS.items():
        app.add_api_route(
            f"{PREFIX}/{name}",
            _endpoint(service, handler, changes=False, at_once=AT_ONCE.get(name)),
            methods=["GET"],
            include_in_schema=False,
        )
    for name, handler in POSTS.items():
        app.add_api_route(
            f"{PREFIX}/{name}", _endpoint(service, handler, changes=True), methods=["POST"], include_in_schema=False
        )


def _endpoint(service: Service, handler: Handler, changes: bool, at_once: Handler | None = None) -> Endpoint:
    def changing(service: Service, values: dict[str, Any]) -> Any:
        try:
            return handler(service, values)
        finally:
            service.watch.forget_status()

    async def endpoint(request: Request) -> Response:
        if not service.host.page_allows(request):
            return JSONResponse({"error": "Sign in to the page first."}, status_code=403)
        values: Any = dict(request.query_params)
        if changes:
            # a page of another site cannot set this header without asking, and we answer no such question
            if request.headers.get("x-ddpm") != "1":
                return JSONResponse({"error": "The request did not come from the tab."}, status_code=403)
            try:
                values = parse_json(await request.body())
            except ValueError:
                values = None
            if not isinstance(values, dict):
                return JSONResponse({"error": "The request is no JSON object."}, status_code=400)
        try:
            answer = at_once(service, values) if at_once else None
            if answer is None:
                answer = await run_in_threadpool(changing if changes else handler, service, values)
        except UserError as error:
            return JSONResponse({"error": str(error)}, status_code=400)
        except Exception as error:
            _log.exception("the tab's request for %s failed", request.url.path)
            sentence = mendable(error) or f"That failed ({type(error).__name__}); the console has more."
            return JSONResponse({"error": sentence}, status_code=500)
        return answer if isinstance(answer, Response) else JSONResponse(answer, headers=_NEVER)

    # FastAPI reads annotations by name in this module's globals, whatever __future__ says
    endpoint.__annotations__ = {"request": Request}
    return endpoint
