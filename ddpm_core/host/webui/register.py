"""What the WebUI is told at each loading of the extension: callbacks; and the one service behind them.

*Reload UI* loads ``scripts/ddpm.py`` again, and the host has dropped all callbacks before. This module stays, and with
it the service: a training goes on while the page is built anew.
"""

from __future__ import annotations

import html
import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import gradio as gr
from modules import infotext_utils, script_callbacks

from ...errors import UserError
from .facts import AXES, OURS, flag
from .settings import add_settings

if TYPE_CHECKING:
    from ...service import Service
    from .memory import ModelMemory

_log = logging.getLogger("ddpm_core")
_guard = threading.Lock()
_service: Service | None = None
_listening = _attending = False


def service() -> Service:
    """The service of this process, made when it is first asked for."""
    global _service
    with _guard:
        if _service is None:
            from ...service import Service
            from .adapter import WebUIHost

            _service = Service(WebUIHost(listen, attend, _models_changed))
        return _service


def register() -> None:
    """Tell the host what we offer. Called each time the host loads the extension."""
    global _listening, _attending
    _listening = _attending = False
    # at once, not in the host's callback for it: that is never called without a page (--nowebui)
    add_settings(_collecting_changed)
    from .pages.upscalers import UpscalerDDPM

    UpscalerDDPM.service = service
    # for each callback the host looks through the whole call stack, and for its frames through all modules: on a
    # thread of its own the stack is short, and the host's start five times less delayed
    with ThreadPoolExecutor(1) as pool:
        pool.submit(_register_callbacks).result()


def _register_callbacks() -> None:
    script_callbacks.on_before_ui(_before_ui)
    script_callbacks.on_ui_tabs(_tabs)
    script_callbacks.on_app_started(_app_started)
    script_callbacks.on_infotext_pasted(_infotext_pasted)
    if _service is not None:  # a job may be running
        attend()


def _collecting_changed() -> None:
    try:
        if service().collector.rule.enabled:
            listen()
    except UserError as error:
        _log.error("%s", error)


def _model_loaded(model: Any) -> None:
    if _service is not None:
        _memory(_service).host_loaded_a_model()


def _models_changed() -> None:
    from .pages.upscalers import list_anew

    list_anew()


def _before_reload() -> None:
    """The scripts that a generation needs are about to be loaded anew; what is being generated goes on afterwards."""
    if _service is not None:
        _service.stop("collect")


def attend() -> None:
    """Be told of loaded models and of *Reload UI*; asked for when a job needs it: each callback slows the start."""
    global _attending
    if not _attending:
        _attending = True
        script_callbacks.on_model_loaded(_model_loaded)
        script_callbacks.on_before_reload(_before_reload)


def listen() -> None:
    """Be told of every file the host saves; asked for when collecting is switched on, so that it costs nothing else."""
    global _listening
    if not _listening:
        _listening = True
        script_callbacks.on_image_saved(_image_saved)


def _before_ui() -> None:
    """What the host's page is built from: here, a page of model cards; and the name by which prompts call our adapters."""
    from .pages.cards import add_page
    from .pages.network import register_network

    add_page(service)
    register_network()


def _infotext_pasted(text: str, params: dict[str, Any]) -> None:
    if "DDPM model" in params:
        from .pages.pasting import infotext_pasted

        infotext_pasted(text, params)


def _tabs() -> list[tuple[Any, str, str]]:
    bindings = infotext_utils.registered_param_bindings
    known = len(bindings)
    try:
        from ...ui.tab import build_tab

        with gr.Blocks(analytics_enabled=False) as page:
            build_tab(service())
    except Exception as error:
        del bindings[known:]  # the host would connect buttons that are on no page, and fail
        return failed_tab(error)
    return [(page, "DDPM", "ddpm")]


def failed_tab(error: BaseException) -> list[tuple[Any, str, str]]:
    """A tab that says what went wrong, where the host would only leave the tab away."""
    if not isinstance(error, UserError):
        _log.error("the DDPM tab could not be built", exc_info=error)
    said = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
    remedy = "Restart the WebUI; if it stays, update the extension, or report this with the lines in the console."
    if isinstance(error, UserError):  # says itself what to do
        remedy = "Then restart the WebUI."
    with gr.Blocks(analytics_enabled=False) as page:
        gr.HTML(
            '<div class="ddpm-failure"><p>The DDPM tab could not be built.</p>'
            f"<p>{html.escape(said)}</p><p>{remedy}</p></div>"
        )
    return [(page, "DDPM", "ddpm")]


def _app_started(demo: Any, app: Any) -> None:
    """Routes: the page's own where there is a page, the API where the host has its API."""
    from ...api import page, public

    try:
        ours = service()
        if demo is not None:
            page.add_routes(app, ours)
        if demo is None or flag("api", False) or flag("nowebui", False):
            public.add_routes(app, ours)
    except UserError as error:  # the tab says it too
        _log.error("%s", error)
    else:
        _collecting_changed()


def _image_saved(params: Any) -> None:
    try:
        from .collecting import image_saved

        image_saved(service().collector, params)
    except UserError as error:  # a workspace that cannot be written must not cost the host a line for each picture
        _log.debug("not collected: %s", error)


def before_generation(p: Any) -> None:
    """The host is about to generate: its model must be back where it was."""
    if _service is not None:
        from .facts import AXES

        _memory(_service).before_generation()
        if getattr(p, AXES, {}):
            from .pages.alongside import spare

            spare(p)


def generation_begins(p: Any, controls: tuple[Any, ...]) -> None:
    """The host's first batch is about to be made; ``controls`` are those of our accordion."""
    if _beside(p, controls):
        from .pages.alongside import count_in

        count_in(p)


def generation_ended(p: Any, processed: Any, controls: tuple[Any, ...]) -> None:
    """The host has generated.

    Pictures that it does not save are collected from memory, if that is wanted; then ours are put beside them.
    """
    try:
        if _service is not None and _service.collector.rule.enabled:
            from .collecting import generation_ended

            generation_ended(_service.collector, p, processed)
    except UserError as error:
        _log.debug("not collected: %s", error)
    if _beside(p, controls):
        from .pages.alongside import add

        add(service(), p, processed, controls)


def _beside(p: Any, controls: tuple[Any, ...]) -> bool:
    if not (controls and controls[0]) and not hasattr(p, AXES):
        return False
    # generations that no person looks at: those we ask for, and ADetailer's of each face
    return not getattr(p, OURS, False) and not getattr(p, "_ad_inner", False)


def _memory(ours: Service) -> ModelMemory:
    from .adapter import WebUIHost

    assert isinstance(ours.host, WebUIHost)
    return ours.host.memory
