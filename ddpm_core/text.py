"""Text that every file and every answer can hold."""

from __future__ import annotations


def legible(text: str) -> str:
    """The text with a question mark in place of each lone surrogate, which UTF-8 has no bytes for."""
    return text.encode("utf-8", "replace").decode("utf-8")
