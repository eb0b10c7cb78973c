"""Who may come in: the page's door (gradio's login) and the API's door (--api-auth), each as the host keeps it."""

from __future__ import annotations

import base64
import binascii
import secrets
from typing import Any

from .facts import flag


def page_allows(request: Any) -> bool:
    """Whether a request comes from someone whom gradio's login lets see the page."""
    return _login(request) in (None, True)


def api_refusal(request: Any) -> tuple[int, dict[str, str]] | None:
    """None if the request may use the API; else 401, asking for credentials only where the host's API does so."""
    credentials = _api_credentials()
    if credentials is not None:
        return None if _basic_fits(request, credentials) else (401, {"WWW-Authenticate": "Basic"})
    return None if page_allows(request) else (401, {})


def _login(request: Any) -> bool | None:
    """None: the page has no login. Else whether the request carries the cookie of someone who logged in.

    gradio 3.41 calls its cookie ``access-token`` or ``access-token-unsecure``, 4.40 adds an id of the app.
    """
    app = request.app
    if getattr(app, "auth", None) is None:
        # the command line counts too: an app without the page (--nowebui) has no login, and none is asked for there
        return None
    tokens = getattr(app, "tokens", {})
    return any(name.startswith("access-token") and value in tokens for name, value in request.cookies.items())


def _api_credentials() -> dict[str, str] | None:
    given = flag("api_auth")
    if not given:
        return None
    return dict(pair.split(":", 1) for pair in str(given).split(",") if ":" in pair)


def _basic_fits(request: Any, credentials: dict[str, str]) -> bool:
    scheme, _, value = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "basic":
        return False
    try:
        user, _, password = base64.b64decode(value, validate=True).decode("utf-8").partition(":")
    except (binascii.Error, UnicodeDecodeError):
        return False
    expected = credentials.get(user)
    return expected is not None and secrets.compare_digest(password.encode(), expected.encode())
