"""The check of every request before it reaches a handler: who asks, from where, and how much."""

import asyncio
import ipaddress
import socket
import time
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dkuxnet.serve.limits import Limits, Refused

EVERYWHERE = ("", "0.0.0.0", "::")  # bind to every address of the machine
FORM_BYTES = 2**20  # what a form may hold besides the scan
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' data: blob:; connect-src 'self' data: blob:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class Guard:
    """ASGI middleware. bound: the address that the server listens on."""

    def __init__(self, app: ASGIApp, bound: str, limits: Limits):
        self.app, self.bound, self.limits = app, bound, limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer what is refused, and pass on all else with its body limited."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send) if scope["type"] == "lifespan" else None
        try:
            self._check(scope["method"], Headers(scope=scope))
        except Refused as refused:
            answer = JSONResponse({"detail": str(refused)}, refused.status, {"Connection": "close"})
            return await answer(scope, receive, _with_headers(send))
        await self.app(scope, self._limited(receive), _with_headers(send))

    def _check(self, method: str, headers: Headers) -> None:
        """Raise Refused for a foreign host name (DNS rebinding) or page, and for a large body."""
        if not host_is_ours(headers.get("host", ""), self.bound):
            raise Refused(403, "This server answers under its own address only.")
        if method not in ("GET", "HEAD") and from_another_site(headers):
            raise Refused(403, "This server takes nothing from other sites' pages.")
        length = headers.get("content-length", "0")
        if not length.isdigit() or int(length) > self.limits.upload_bytes + FORM_BYTES:
            raise self.limits.too_large()

    def _limited(self, receive: Receive) -> Receive:
        """Receive the body, within the limits of size, of rate and of time."""
        limits, count, whole = self.limits, 0, False
        started = time.monotonic()
        mark, due = 0, started + limits.silence_seconds  # of the bytes that must come by then

        async def limited() -> Message:
            nonlocal count, whole, mark, due
            until = min(due, started + limits.upload_seconds)
            try:
                message = await asyncio.wait_for(
                    receive(), None if whole else max(until - time.monotonic(), 0)
                )
            except TimeoutError:
                raise limits.too_slow(due > started + limits.upload_seconds) from None
            count += len(message.get("body", b""))
            whole = whole or not message.get("more_body", False)
            if count > limits.upload_bytes + FORM_BYTES:
                raise limits.too_large()
            if count >= mark + limits.least_bytes:
                mark, due = count, time.monotonic() + limits.silence_seconds
            return message

        return limited


def host_is_ours(host: str, bound: str) -> bool:
    """Whether a Host header names this machine.

    It may be localhost or the bound address; where bound to all addresses, also any numeric address
    or the machine's own name. A page that points its own name at this machine is refused.
    """
    try:
        name = (urlsplit(f"//{host}").hostname or "").rstrip(".")
    except ValueError:
        return False
    if name in ("localhost", bound.lower()) and name:
        return True
    everywhere = bound in EVERYWHERE
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return everywhere and bool(name) and name == socket.gethostname().lower()
    return address.is_loopback or everywhere


def from_another_site(headers: Headers) -> bool:
    """Whether a browser says that another site's page sent the request.

    Programs such as 3D Slicer send no such headers.
    """
    if headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        return True
    origin = headers.get("origin")
    return origin is not None and urlsplit(origin).netloc.lower() != headers.get("host", "").lower()


def _with_headers(send: Send) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in HEADERS.items():
                headers.setdefault(name, value)
        await send(message)

    return sending
