"""The name of our adapters in the host's prompts, ``<ddpm:NAME:WEIGHT>``: the host knows it and does nothing for it; ours read it from the prompt."""

from __future__ import annotations

from typing import Any

from modules import extra_networks


class AdapterNetwork(extra_networks.ExtraNetwork):  # type: ignore[misc]
    """What the host calls in each of its generations: its own networks are none of our adapters' business."""

    def __init__(self) -> None:
        super().__init__("ddpm")

    def activate(self, p: Any, params_list: list[Any]) -> None:
        """Nothing."""

    def deactivate(self, p: Any) -> None:
        """Nothing."""


def register_network() -> None:
    """Make it known; the host forgets all networks when it loads its extensions anew."""
    extra_networks.register_extra_network(AdapterNetwork())
