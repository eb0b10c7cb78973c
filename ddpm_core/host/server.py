"""The standalone server: our tab as a local page."""

from __future__ import annotations

import os
import re
import socket
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from starlette.requests import HTTPConnection, Request
from starlette.responses import JSONResponse

from ..errors import UserError
from .standalone import StandaloneHost

_PACKAGE = Path(__file__).resolve().parents[1]
# a checkout has them at its top, where the WebUI wants them; a wheel has no such place (setup.py)
_ROOT = _PACKAGE / "page" if (_PACKAGE / "page").is_dir() else _PACKAGE.parent
_SCRIPTS = [f"/ddpm/{path.name}" for path in sorted((_ROOT / "javascript").glob("*.js"))]  # in the WebUI's order
_ASSETS = {
    "/ddpm/style.css": (_ROOT / "style.css", "text/css"),
    **{url: (_ROOT / "javascript" / url.rsplit("/", 1)[1], "text/javascript") for url in _SCRIPTS},
}
# relative: a proxy may serve the page below any path
_HEAD = (
    '<link rel="stylesheet" href="./ddpm/style.css">'
    + "".join(f'<script src=".{url}" defer></script>' for url in _SCRIPTS)
    + "</head>"
).encode()


class _AddHead:
    """ASGI middleware: the WebUI adds an extension's CSS and JavaScript to its page; here we do, alike on every gradio."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http" or scope["path"] != "/" or scope["method"] != "GET":
            await self.app(scope, receive, send)
            return
        headers = [
            (k, v) for k, v in scope["headers"] if k != b"accept-encoding"
        ]  # a compressed page cannot be added to
        start: dict[str, Any] = {}
        body = b""

        async def collect(message: dict[str, Any]) -> None:
            nonlocal body
            if message["type"] == "http.response.start":
                start.update(message)
                return
            body += message.get("body", b"")
            if message.get("more_body"):
                return
            page = body.replace(b"</head>", _HEAD, 1).replace(b'"/manifest.json"', b'"./manifest.json"', 1)
            kept = [(k, v) for k, v in start["headers"] if k.lower() != b"content-length"]
            await send({**start, "headers": [*kept, (b"content-length", str(len(page)).encode())]})
            await send({"type": "http.response.body", "body": page})

        await self.app({**scope, "headers": headers}, receive, collect)


class _Straight:
    """ASGI middleware: what pages read again and again is answered before the frameworks' layers, which cost more than the answers
    themselves, and which a training beside them pays for."""

    def __init__(self, app: Any, endpoints: dict[str, Any]) -> None:
        self.app = app
        self.endpoints = endpoints

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        endpoint = self.endpoints.get(scope["path"]) if scope["type"] == "http" and scope["method"] == "GET" else None
        app = self.app if endpoint is None else await endpoint(Request(scope, receive))
        await app(scope, receive, send)


class _Guard:
    """ASGI middleware for all that is served, gradio's own routes and events included: a local page is asked for by a local
    name (a web site can have its own name resolved to this machine), and what changes something comes from the page itself."""

    def __init__(self, app: Any, host: StandaloneHost) -> None:
        self.app = app
        self.host = host

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        refusal = "" if self._allows(scope) else "This page is for this machine only."
        if not refusal and not _is_of_the_page(scope["path"]):
            refusal = "That is no file of this page."
        if not refusal:
            await self.app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            await JSONResponse({"error": refusal}, status_code=403)(scope, receive, send)

    def _allows(self, scope: Any) -> bool:
        request = HTTPConnection(scope)
        if not self.host.page_allows(request):
            return False
        origin = request.headers.get("origin")
        # OPTIONS does not count as reading: gradio would tell any site's browser that it may send anything
        reads = scope["type"] == "http" and scope["method"] in ("GET", "HEAD")
        if reads or origin is None:
            return True
        # what a proxy was asked for: no page of another site can set this header without asking first
        names = [request.headers.get("host"), request.headers.get("x-forwarded-host") if self.host.proxied else None]
        return urlsplit(origin).netloc in names


_FILE = re.compile(r"/+(?:gradio_api/+)?file[=/]")


def _is_of_the_page(path: str) -> bool:
    """Whether a path is none of gradio's file routes, or asks for what gradio keeps for its pages.

    gradio 3.41 hands out whatever lies below the current folder, which the workspace is in as a rule.
    """
    match = _FILE.match(path)
    if match is None:
        return True
    kept = Path(os.environ.get("GRADIO_TEMP_DIR") or Path(tempfile.gettempdir()) / "gradio").resolve()
    try:
        return Path(path[match.end() :]).resolve().is_relative_to(kept)
    except (OSError, ValueError, RuntimeError):
        return False


def build_app(host: StandaloneHost, root_path: str = "") -> tuple[Any, Any]:
    """The FastAPI application and its service. ``root_path``: below which path of a proxy the page is."""
    import gradio as gr
    from fastapi import FastAPI
    from fastapi.responses import FileResponse

    from ..api.page import add_routes, straight
    from ..service import Service
    from ..ui.tab import build_tab

    service = Service(host)
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    add_routes(app, service)

    def asset(path: str) -> Callable[[], FileResponse]:
        def read() -> FileResponse:
            file, kind = _ASSETS[path]
            return FileResponse(file, media_type=kind, headers={"Cache-Control": "no-cache"})

        read.__annotations__ = {}
        return read

    for path in _ASSETS:
        app.add_api_route(path, asset(path), methods=["GET"])
    options: dict[str, Any] = {"analytics_enabled": False, "title": "DDPM"}
    with gr.Blocks(**options) as page:
        build_tab(service)
    page.queue()
    # gradio 6 looks for a pressed button every millisecond, which takes 5 % of a core from a training; 20 ms nobody feels
    queue = getattr(page, "_queue", None)
    for name, seconds in (("sleep_when_free", 0.02), ("progress_update_sleep_when_free", 0.1)):
        if hasattr(queue, name):
            setattr(queue, name, max(seconds, getattr(queue, name)))
    # gradio keeps 0.2 MiB for each page ever opened, 10,000 of them; ours keep nothing there that a page could miss
    page.state_session_capacity = 200
    app.add_middleware(_AddHead)
    app.add_middleware(_Straight, endpoints=straight(service))
    app.add_middleware(_Guard, host=host)
    import inspect

    known = inspect.signature(gr.mount_gradio_app).parameters
    extra = {
        key: value
        for key, value in {
            "ssr_mode": False,
            "show_error": True,
            "footer_links": [],
            "root_path": root_path or None,
        }.items()
        if key in known
    }
    if root_path and "root_path" not in known:
        raise UserError("This gradio cannot serve below a path; update it, or leave out --root-path.")
    return gr.mount_gradio_app(app, page, path="/", **extra), service


def serve(
    host: StandaloneHost,
    address: str,
    port: int,
    stop: threading.Event,
    say: Callable[[str], None],
    root_path: str = "",
    *,
    page: str = "",
    meanwhile: Callable[[Any], None] = lambda service: None,
) -> dict[str, Any]:
    """Serve until ``stop`` is set; running jobs are then stopped with their work saved.

    ``page``: the fragment of the address to open; ``meanwhile``: what to do with the service once it can be reached.
    ``root_path``: the path, or the whole address, below which a proxy in front of this serves the page.
    """
    import uvicorn

    root_path = root_path.strip().rstrip("/")
    if root_path and not re.fullmatch(r"(https?://[^/\s?#]+)?(/[\w.~-]+)*", root_path):
        raise UserError(
            f"--root-path is a path like /ddpm, or an address like https://example.org/ddpm; got {root_path!r}."
        )
    if not 0 <= port <= 65535:
        raise UserError(f"A port is a number between 0 and 65535; got {port}.")
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except OSError as error:
            raise UserError(
                f"Cannot serve at {address}:{port} ({error.strerror}); choose another with --port."
            ) from None
        port = probe.getsockname()[1]
    host.proxied = bool(root_path)  # by whom, this cannot know
    host.local = address in ("127.0.0.1", "localhost", "::1") and not host.proxied
    if not host.local:
        say("This page has no sign-in: everyone who can reach this machine can use it. Typed folders are refused.")
    app, service = build_app(host, root_path)
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            host=address,
            port=port,
            log_level="warning",
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=2,
        )
    )
    thread = threading.Thread(target=server.run, name="ddpm-server", daemon=True)
    thread.start()
    while thread.is_alive() and not server.started:
        stop.wait(0.05)
    if not thread.is_alive():
        raise UserError(f"The server at {address}:{port} did not start; see the lines above.")
    url = f"http://{f'[{address}]' if ':' in address else address}:{port}/"
    say(f"Open {url}{page} in a browser. Ctrl+C stops the server; running work is saved.")
    try:
        try:
            meanwhile(service)
        except UserError as error:  # the page goes on
            say(str(error))
        while thread.is_alive() and not stop.wait(0.5):
            pass
    finally:
        service.shutdown()
        server.should_exit = True  # open pages get two seconds to hang up
        thread.join(10)
    return {"url": url, "stopped": True}
