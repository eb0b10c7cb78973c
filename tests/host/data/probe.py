"""A test's own extension in a real host: how long others wait for the queue, and what our callbacks cost."""

import sys
import threading
import time

from modules import fifo_lock, script_callbacks, shared

waits = []
costs = []
starts = {}
_enter = fifo_lock.FIFOLock.__enter__


def _timed_enter(self, *args, **kwargs):
    ours = threading.current_thread().name.startswith("ddpm-")
    began = time.perf_counter()
    result = _enter(self, *args, **kwargs)
    if not ours:
        waits.append(time.perf_counter() - began)
    return result


if not getattr(fifo_lock.FIFOLock, "probed", False):
    fifo_lock.FIFOLock.probed = True
    fifo_lock.FIFOLock.__enter__ = _timed_enter


def _timed_start(kind, function):
    def timed(*args):
        began = time.perf_counter()
        try:
            return function(*args)
        finally:
            starts[kind] = starts.get(kind, 0.0) + time.perf_counter() - began

    timed.__module__ = function.__module__
    return timed


def _time_starts():
    for kind in ("callbacks_before_ui", "callbacks_ui_tabs", "callbacks_ui_settings", "callbacks_app_started"):
        for callback in script_callbacks.callback_map[kind]:
            if "ddpm_core" in getattr(callback.callback, "__module__", ""):
                callback.callback = _timed_start(kind, callback.callback)
    pages = sys.modules.get("ddpm_core.host.webui.pages.script")
    for script in (pages.DDPMScript, pages.DDPMAloneScript) if pages else ():
        if not hasattr(script.ui, "timed"):
            script.ui = _timed_start(f"ui of {script.__name__}", script.ui)
            script.ui.timed = True


script_callbacks.on_before_ui(_time_starts)  # when every extension has been loaded


def _time_ours():
    from ddpm_core.host.webui import register

    for name in ("before_generation", "generation_ended"):
        if getattr(getattr(register, name), "timed", False):
            continue
        function = getattr(register, name)

        def timed(*args, _function=function, **kwargs):
            began = time.perf_counter()
            try:
                return _function(*args, **kwargs)
            finally:
                costs.append(time.perf_counter() - began)

        timed.timed = True
        setattr(register, name, timed)
    for callback in script_callbacks.callback_map["callbacks_image_saved"]:
        if "ddpm_core" in getattr(callback.callback, "__module__", ""):
            original = callback.callback

            def saved(params, _original=original):
                began = time.perf_counter()
                try:
                    return _original(params)
                finally:
                    costs.append(time.perf_counter() - began)

            saved.__module__ = original.__module__
            callback.callback = saved


def _started(demo, app):
    try:
        _time_ours()
    except ImportError:
        pass

    def facts(clear: bool = False):
        found = {
            "waits": list(waits),
            "costs": list(costs),
            "starts": starts,
            "threads": sorted(t.name for t in threading.enumerate()),
            "routes": sorted(
                [path, sorted(getattr(r, "methods", None) or [])]
                for r in app.routes
                if (path := getattr(r, "path", "")).startswith("/ddpm")
            ),
            "callbacks": {
                kind: sum("ddpm_core" in getattr(c.callback, "__module__", "") for c in callbacks)
                for kind, callbacks in script_callbacks.callback_map.items()
            },
            "interrupted": shared.state.interrupted,
        }
        if clear:
            waits.clear()
            costs.clear()
        return found

    def change(key: str, value: str = ""):
        """A setting, as the settings page changes it."""
        if value:
            shared.opts.set(key, value)
        return {"now": shared.opts.data.get(key)}

    app.add_api_route("/probe", facts, methods=["GET"])
    app.add_api_route("/probe/set", change, methods=["GET"])


script_callbacks.on_app_started(_started)
