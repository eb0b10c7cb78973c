"""The one kind of failure whose text is meant for the person in front of the screen."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from .text import legible


class UserError(Exception):
    """Bad input or a state that the user can mend: one clear sentence that says what to do.

    The command line prints it and exits 2, the tab and the API show it; no traceback is shown.
    """

    def __init__(self, sentence: str) -> None:
        # it may repeat a name that is no valid text (a lone surrogate), which no answer could be written with
        super().__init__(legible(sentence))


class Stopped(UserError):
    """A person's stop ended the work before it had a result; the sentence says what became of it."""


# how allocators and libraries say it
_MEMORY_SIGNS = ("out of memory", "can't allocate memory", "not enough memory", "alloc_failed")
_NO_MEMORY = (
    "There is not enough memory left. What was saved is intact: close what else uses memory, or choose a smaller batch, size "
    "or network, and go on."
)


_OF_THE_MACHINE = {
    getattr(errno, name)
    for name in ("EACCES", "EPERM", "EROFS", "ENOSPC", "EDQUOT", "EFBIG", "EIO", "EMFILE", "ENFILE", "ESTALE")
    if hasattr(errno, name)
}


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of Python, torch or a driver means that memory has run out."""
    if isinstance(error, MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error).lower() for sign in _MEMORY_SIGNS)


def mendable(error: BaseException) -> str:
    """The sentence for a failure of the machine that a person can do something about; empty for a mistake of ours."""
    if is_out_of_memory(error):
        return _NO_MEMORY
    if isinstance(error, OSError) and error.errno in _OF_THE_MACHINE:
        # pages show it too: no more of the path than says what is meant
        file = "/".join(Path(os.fsdecode(error.filename)).parts[-2:]) if error.filename else "A file"
        return str(
            UserError(
                f"{file} cannot be used ({error.strerror}); check the disk and the permissions, and go on. "
                "What was saved is intact."
            )
        )
    return ""
