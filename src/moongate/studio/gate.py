"""Who may talk to the studio: hosts, origins, the password, and what browsers may load.

Without a password only this computer is answered, under its own names, so that no page of another site can reach the
studio by a name that it has pointed here (DNS rebinding). Requests that another site's page sends are refused (CSRF).
With a password, a browser gets a cookie for it.
"""

import hashlib
import hmac
import html
import ipaddress
import secrets
import time
from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import HTTPConnection, Request
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from moongate.limits import MAX_UPLOAD_BYTES
from moongate.pages import style

__all__ = ["Gate", "SECURITY", "is_loopback"]

LOGIN = "/login"
COOKIE = "moongate"
HERE = ("localhost", "127.0.0.1", "::1")
ATTEMPTS, PERIOD_S = 5, 60
"""Wrong passwords that one address may send in this time; ten times as many come from all."""
MAX_PASSWORD_BYTES = 4096
SECURITY = {
    # The browser's part of NiceGUI compiles its templates and adds styles at run time.
    "content-security-policy": "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; object-src 'none'; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}
"""Headers of every answer: a page may load nothing from elsewhere, and no other site may show or read it."""


def is_loopback(host: str) -> bool:
    """Return whether an address is that of this computer alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


@dataclass(kw_only=True)
class Gate:
    """An ASGI application in front of another, which sees only what may pass."""

    app: ASGIApp
    password: str | None = None
    """None answers this computer alone."""
    clock: Callable[[], float] = time.monotonic
    _sessions: set[bytes] = field(default_factory=set, init=False, repr=False)
    _failures: dict[str, deque[float]] = field(default_factory=lambda: defaultdict(deque), init=False, repr=False)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        refusal = self._refusal(scope, headers)
        if refusal is None and scope["type"] == "http" and scope["path"] == LOGIN and self.password:
            refusal = await self._log_in(Request(scope, receive))
        elif refusal is None and not self._is_known(HTTPConnection(scope).cookies.get(COOKIE, "")):
            refusal = RedirectResponse(LOGIN, status_code=303)
        if refusal is None:
            await self.app(scope, _limited(receive), _secured(send))
        elif scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1008})
        else:
            await refusal(scope, receive, _secured(send))

    def _refusal(self, scope: Scope, headers: Headers) -> Response | None:
        """Return an answer to what comes from elsewhere or is too large; None for what may pass so far."""
        host = headers.get("host", "")
        if self.password is None and _name(host) not in HERE:
            return PlainTextResponse("The studio answers only to the names of this computer.", 403)
        origin, site = headers.get("origin"), headers.get("sec-fetch-site", "same-origin")
        is_link = scope["type"] == "http" and scope["method"] == "GET" and headers.get("sec-fetch-mode") == "navigate"
        if (origin is not None and origin.partition("://")[2] != host) or (
            site not in ("same-origin", "none") and not is_link
        ):
            return PlainTextResponse("The studio answers only to its own pages.", 403)
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > MAX_UPLOAD_BYTES:
            return PlainTextResponse(f"More than {MAX_UPLOAD_BYTES // 10**6} MB are not taken.", 413)
        return None

    def _is_known(self, token: str) -> bool:
        """Return whether a browser with this token in its cookie has given the password, if there is one."""
        if self.password is None:
            return True
        return any(hmac.compare_digest(_digest(token), known) for known in self._sessions)

    async def _log_in(self, request: Request) -> Response:
        """Answer the page that asks for the password, and take what it sends."""
        assert self.password is not None
        if request.method != "POST":
            return _form("")
        address = request.client.host if request.client else ""
        if (wait_s := max(self._wait_s(address, ATTEMPTS), self._wait_s("", 10 * ATTEMPTS))) > 0:
            return _form(f"Too many wrong passwords. Try again in {wait_s:.0f} seconds.", 429, retry_s=wait_s)
        body = b""
        async for part in request.stream():
            body += part
            if len(body) > MAX_PASSWORD_BYTES:
                return _form("That is too long for a password.", 413)
        given = parse_qs(body.decode(errors="replace")).get("password", [""])[0]
        if not hmac.compare_digest(_digest(given), _digest(self.password)):
            for who in (address, ""):
                self._failures[who].append(self.clock())
            return _form("That is not the password.", 401)
        token = secrets.token_urlsafe(32)
        self._sessions.add(_digest(token))
        answer = RedirectResponse("/", status_code=303)
        answer.set_cookie(COOKIE, token, httponly=True, samesite="strict", secure=request.url.scheme == "https")
        return answer

    def _wait_s(self, address: str, attempts: int) -> float:
        """Return for how long no further password is looked at; of those sent long ago nothing is remembered."""
        now, failures = self.clock(), self._failures[address]
        while failures and now - failures[0] > PERIOD_S:
            failures.popleft()
        wait_s = PERIOD_S - (now - failures[0]) if len(failures) >= attempts else 0.0
        if not failures:
            del self._failures[address]
        return wait_s


def _name(host: str) -> str:
    """Return the name of a Host header, without its port and brackets."""
    try:
        return (urlsplit(f"//{host}").hostname or "").rstrip(".")
    except ValueError:
        return ""


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode(errors="replace")).digest()


def _form(message: str, status: int = 200, *, retry_s: float = 0) -> Response:
    notice = f'<p class="notice bad" role="alert">{html.escape(message)}</p>' if message else ""
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Moongate</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{style('colors', 'style')}</style></head><body><main><h1>Moongate's studio</h1>{notice}"
        f'<form method="post" action="{LOGIN}"><p><label>Password <input type="password" name="password" autofocus '
        'autocomplete="current-password"></label> <button>Enter</button></p></form></main></body></html>'
    )
    return HTMLResponse(page, status, headers={"retry-after": str(round(retry_s))} if retry_s else None)


def _limited(receive: Receive) -> Receive:
    """Return `receive`, ending a body that is longer than what is taken, whatever its header said."""
    taken = 0

    async def limited() -> Message:
        nonlocal taken
        message = await receive()
        taken += len(message.get("body", b"")) if message["type"] == "http.request" else 0
        return {"type": "http.disconnect"} if taken > MAX_UPLOAD_BYTES else message

    return limited


def _secured(send: Send) -> Send:
    """Return `send`, adding the headers of `SECURITY`."""

    async def secured(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers: Any = MutableHeaders(scope=message)
            for name, value in SECURITY.items():
                headers.setdefault(name, value)
        await send(message)

    return secured
