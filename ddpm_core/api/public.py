"""The public API: JSON, documented in the OpenAPI page, names and ids instead of paths of this machine.

Models work on pydantic 1 as on 2. Who may come in is the host's decision at its API's door.
"""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import json
from collections.abc import Callable, Coroutine
from typing import Any, Optional

from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from fastapi.routing import APIRoute
from pydantic import BaseModel, Field, create_model
from starlette.concurrency import run_in_threadpool

from ..errors import UserError
from ..jobs import Job
from ..operations.pictures import png
from ..options import fields_of
from ..parsing import parse_json
from ..requests import INTERPOLATED, Collection, GenerationRequest, Interpolation, SampleRequest, TrainRequest
from ..sampling import SAMPLERS
from ..service import Service
from .page import MOST_IDS

PREFIX = "/ddpm/v1"


class HarvestBody(BaseModel):
    """Harvest the WebUI's folders into a dataset."""

    dataset: str
    folders: list[str] = Field(description="Labels from /ddpm/v1/folders; no paths.")


class DecideBody(BaseModel):
    """Keep or reject items."""

    ids: list[int]
    action: str = Field(description="keep or reject")


def body_of(name: str, request: type, about: str, **more: Any) -> type[BaseModel]:
    """The body of a route that takes a request: a field of the request a field; ``more``, besides or instead."""
    made: type[BaseModel] = create_model(name, **{**declared(request), **more})
    made.__doc__ = about
    return made


def declared(request: type) -> dict[str, Any]:
    """The fields of a request as pydantic declares them: kind, default and description."""
    fields: dict[str, Any] = {}
    required = {one.name for one in dataclasses.fields(request) if one.default is dataclasses.MISSING}
    for field in fields_of(request).values():
        kind = Optional[field.kind] if field.none else field.kind  # noqa: UP045 - pydantic 1 knows no other form
        default = ... if field.name in required else field.default
        fields[field.name] = (kind, Field(default, description=field.option.help or None))
    return fields


CollectBody: Any = body_of(
    "CollectBody",
    GenerationRequest,
    "Have the WebUI generate images into a dataset.",
    dataset=(str, ...),
    prompt=(str, ""),
    count=(int, 8),
    batch_size=(int, 1),
    seed=(int, -1),
    styles=(list[str], Field(default_factory=list, description="Names of the WebUI's styles.")),
    resume=(bool, Field(False, description="Resume what was left unfinished for the dataset.")),
)


TrainBody: Any = body_of(
    "TrainBody",
    TrainRequest,
    "Train a model; null leaves a value to the preset.",
    settings=(dict[str, str], Field(default_factory=dict)),
)


class StopBody(BaseModel):
    """Stop a running job."""

    kind: str = Field(description="harvest, collect, train, sample or evaluate")


SampleBody: Any = body_of(
    "SampleBody",
    SampleRequest,
    "Sample images from a model.",
    count=(int, 1),
    image=(Optional[str], Field(None, description="An image to begin with: a file in base64.")),  # noqa: UP045
    mask=(Optional[str], Field(None, description="White where it is drawn anew: a file in base64.")),  # noqa: UP045
    variation_of=(Optional[str], Field(None, description="An image to make others like it: a file in base64.")),  # noqa: UP045
)


InterpolateBody: Any = body_of(
    "InterpolateBody",
    Interpolation,
    "Generate what lies between two seeds, or two prompts.",
    **{name: one for name, one in declared(SampleRequest).items() if name in (*INTERPOLATED, "seed")},
)


class SearchBody(BaseModel):
    """Search a dataset: by words that images show, or by an image."""

    dataset: str
    prompt: str = ""
    image: Optional[str] = Field(None, description="An image that others are like: a file in base64.")  # noqa: UP045
    misfits: bool = Field(False, description="Instead: images with words that do not fit them.")
    count: int = 20


class Refusal(BaseModel):
    """Why a request was refused."""

    detail: str = Field(description="One sentence.")


class _Route(APIRoute):
    """A route that refuses a wrong request by a sentence of ours. FastAPI's own list repeats what was sent, and where that
    is NaN or no valid text it cannot be written."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()

        async def answer(request: Request) -> Response:
            try:
                body = await request.body()
                if body and parse_json(body) != json.loads(body):
                    raise HTTPException(
                        422, "The request holds a number that is not finite, or text that is no Unicode."
                    )
            except ValueError:
                pass  # it is no JSON: FastAPI says so
            try:
                return await handler(request)
            except RequestValidationError as error:
                raise HTTPException(422, str(UserError(_sentence(error)))) from None

        return answer


def _sentence(error: RequestValidationError) -> str:
    first = error.errors()[0]
    if "json" in first["type"]:
        return "The request is no valid JSON."
    place = ".".join(str(part) for part in first["loc"][1:])[:200]
    return f"The request's {place or 'content'} is wrong: {first['msg']}."


def add_routes(app: FastAPI, service: Service) -> None:
    """Register the API; every route asks the host whether it may answer."""

    def guard(request: Request) -> None:
        refusal = service.host.api_refusal(request)
        if refusal is not None:
            status, headers = refusal
            raise HTTPException(status, "Sign in first, or give the credentials of --api-auth.", headers)
        kind = request.headers.get("content-type", "")
        if request.method != "GET" and not kind.startswith("application/json"):
            # a page of another site can send anything but this without asking first
            raise HTTPException(415, "Send JSON, with Content-Type: application/json.")

    guard.__annotations__["request"] = Request

    def route(method: str, path: str, handler: Callable[..., Any], summary: str) -> None:
        app.router.add_api_route(
            PREFIX + path,
            handler,
            methods=[method],
            dependencies=[Depends(guard)],
            summary=summary,
            tags=["DDPM"],
            responses={422: {"model": Refusal, "description": "The request is wrong"}},
            route_class_override=_Route,
        )

    def told(action: Callable[[], Any]) -> Any:
        try:
            return action()
        except UserError as error:
            raise HTTPException(400, str(error)) from None

    def started(job: Job) -> dict[str, Any]:
        return {"job": job.id}

    def status() -> Any:
        return told(service.watch.status)

    def folders() -> Any:
        return {"folders": list(service.host.image_folders())}

    def datasets() -> Any:
        return told(lambda: {"datasets": service.workspace.list_datasets()})

    def items(name: str, view: str = "all", page: int = 0, size: int = 60) -> Any:
        return told(lambda: service.watch.items(name, view, page, size))

    def decide(name: str, body: DecideBody) -> Any:
        workspace = service.workspace
        if body.action not in ("keep", "reject") or any(abs(i) >= 2**53 for i in body.ids) or len(body.ids) > MOST_IDS:
            raise HTTPException(400, f"The action is keep or reject, on ids of items, at most {MOST_IDS} at once.")
        act = workspace.keep if body.action == "keep" else workspace.reject
        return told(lambda: {"changed": act(name, body.ids)})

    def harvest(body: HarvestBody) -> Any:
        unknown = [label for label in body.folders if label not in service.host.image_folders()]
        if unknown:
            raise HTTPException(400, f"There is no folder {unknown[0]!r}; /ddpm/v1/folders lists the labels.")
        return told(lambda: started(service.start_harvest(body.dataset, body.folders)))

    def collect(body: CollectBody) -> Any:
        asked = {name: getattr(body, name) for name in fields_of(GenerationRequest)}
        request = GenerationRequest(**asked, styles=list(body.styles))
        wanted = None if body.resume else Collection(request, body.count, body.batch_size, body.seed)
        return told(lambda: started(service.start_collecting(body.dataset, wanted)))

    def train(body: TrainBody) -> Any:
        return told(lambda: started(service.start_training(TrainRequest(**dict(body)))))

    def stop(body: StopBody) -> Any:
        return {"stopping": service.stop(body.kind)}

    def models() -> Any:
        return told(lambda: {"models": service.workspace.list_models()})

    def job(number: int) -> Any:
        found = service.jobs.get(number)
        if found is None:
            raise HTTPException(404, "That job is no longer known.")
        return found.to_json()

    def steps_of(body: Any) -> int:
        if body.sampler not in SAMPLERS:
            raise HTTPException(400, f"There is no sampler {body.sampler!r}; there are: {', '.join(SAMPLERS)}.")
        return int(body.steps or SAMPLERS[body.sampler].default_steps)

    async def sample(body: SampleBody) -> Any:
        steps = steps_of(body)

        def start() -> Job:
            from ..operations.editing import decoded_image, image_of, mask_of

            given = {
                "image": decoded_image(body.image, image_of, "image"),
                "mask": decoded_image(body.mask, mask_of, "mask"),
                "variation_of": decoded_image(body.variation_of, image_of, "image"),
            }
            return service.start_sampling(SampleRequest(**{**dict(body), "steps": steps, **given}))

        return await answered(start)

    async def interpolate(body: InterpolateBody) -> Any:
        values = {**dict(body), "steps": steps_of(body)}
        between = Interpolation(**{name: values.pop(name) for name in fields_of(Interpolation)})
        return await answered(lambda: service.start_interpolation(SampleRequest(**values), between))

    async def answered(start: Callable[[], Job]) -> dict[str, Any]:
        """The images of a job, when it is done."""
        running = await run_in_threadpool(told, start)
        results = running.artifacts  # held here: a later sampling drops the older one's pictures
        while not running.finished.is_set():
            await asyncio.sleep(0.05)  # not in a thread: some dozens that wait in line would leave none for the others
        if running.error:
            raise HTTPException(400, running.error)
        pictures = results.get("results", [])

        def encoded() -> list[str]:
            return [base64.b64encode(png(r.image)).decode("ascii") for r in pictures]

        return {
            "images": await run_in_threadpool(encoded),
            "infotexts": [r.text for r in pictures],
            "job": running.id,
        }

    def search(body: SearchBody) -> Any:
        from ..operations.editing import decoded_image, image_of

        def find() -> dict[str, Any]:
            if not 1 <= body.count <= 200:
                raise UserError(f"A search finds 1 to 200 images; got {body.count}.")
            if body.image is not None:
                image = decoded_image(body.image, image_of, "image")
                if image is None:
                    raise UserError("The image is empty; send a file in base64.")
                found = service.finding.by_image(body.dataset, image, body.count)
                return {"items": [{"id": one, "score": round(score, 4)} for one, score in found]}
            return service.finding.page(body.dataset, text=body.prompt, misfits=body.misfits, size=body.count)

        return told(find)

    route("GET", "/status", status, "Jobs, datasets, models, unfinished work")
    route("GET", "/folders", folders, "Labels of the folders that can be harvested")
    route("GET", "/datasets", datasets, "Datasets and what they hold")
    route("GET", "/datasets/{name}/items", items, "A page of a dataset's items")
    route("POST", "/datasets/{name}/decide", decide, "Keep or reject items")
    route("POST", "/search", search, "Find images of a dataset by words, by an image, or where words do not fit")
    route("POST", "/harvest", harvest, "Harvest the WebUI's folders into a dataset")
    route("POST", "/collect", collect, "Have the WebUI generate images into a dataset")
    route("POST", "/train", train, "Train a new model, or go on with one")
    route("POST", "/stop", stop, "Stop a kind of job with its work saved")
    route("GET", "/models", models, "Models and what they say of themselves")
    route("GET", "/jobs/{number}", job, "One job")
    route("POST", "/sample", sample, "Sample images from a model; answers when they are done")
    route("POST", "/interpolate", interpolate, "Generate what lies between two samples; answers when it is done")
