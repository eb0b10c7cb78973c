"""The host's Stable Diffusion model on the device: put aside while a training needs the room, always brought back."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from modules import devices, sd_models
from modules.call_queue import queue_lock

from ...errors import is_out_of_memory
from .facts import ALWAYS, AUTOMATIC, option

_SPARE_MEGABYTES = 400.0


class ModelMemory:
    """What is where. All but :meth:`room_for` is called with the host's queue lock held."""

    def __init__(self, device: Callable[[], torch.device]) -> None:
        self._device = device
        self._training = False
        self._tight = False  # it would not fit beside the host's model
        self._clear = False  # the room has been made, and no generation has come since
        self._parked = False  # the host's model waits for us to bring it back

    @contextmanager
    def room_for(self, megabytes: Callable[[], float]) -> Iterator[None]:
        """While this is open the host's model is put aside whenever our work has its turn, if policy and need say so."""
        self._tight, self._clear, self._training = self._is_tight(megabytes), False, True
        try:
            yield
        finally:
            self._training = False
            with queue_lock:
                self.before_generation()
                devices.torch_gc()

    def _is_tight(self, megabytes: Callable[[], float]) -> bool:
        device = self._device()
        if device.type != "cuda":
            return False
        try:
            need = megabytes()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            return True
        free, _ = torch.cuda.mem_get_info(device)
        free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return need + _SPARE_MEGABYTES > free / 2**20

    def before_slice(self) -> None:
        """Make the room, if one is wanted and is not there."""
        policy = option("ddpm_memory", AUTOMATIC)
        if self._clear or not self._training or not (policy == ALWAYS or (policy == AUTOMATIC and self._tight)):
            return
        self._clear = True
        manager = _manager()
        if manager is not None:
            manager.unload_all_models()  # the host loads again by itself what its next generation needs
            return
        model = sd_models.model_data.sd_model  # not shared.sd_model, which would load one
        if model is not None:
            self._parked = True
            sd_models.send_model_to_cpu(model)

    def before_generation(self) -> None:
        """Bring the host's model back; our next slice will make the room anew."""
        self._clear = False
        if not self._parked:
            return
        devices.torch_gc()
        model = sd_models.model_data.sd_model
        if model is not None:
            sd_models.send_model_to_device(model)
        self._parked = False  # only now: where it failed, the next generation tries again

    def host_loaded_a_model(self) -> None:
        """What the host has just loaded lies on the device: the room must be made anew."""
        self._clear = False

    @property
    def parked(self) -> bool:
        """Move the host's model off the device for the body, where a setting says so."""
        return self._parked


def _manager() -> Any:
    """Forge's or reForge's memory management, which brings models back by itself; A1111 has none."""
    for name in ("backend.memory_management", "ldm_patched.modules.model_management"):
        module = sys.modules.get(name)
        if module is not None and hasattr(module, "unload_all_models"):
            return module
    return None
