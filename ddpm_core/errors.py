"""The one kind of failure whose text is meant for the person in front of the screen."""

from __future__ import annotations


class UserError(Exception):
    """Bad input or a state that the user can mend: one clear sentence that says what to do.

    The command line prints it and exits 2, the tab and the API show it; no traceback is shown.
    """
