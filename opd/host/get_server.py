"""A small HTTP server in a thread, which answers GET and nothing else."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from typing import Any, NamedTuple
from urllib.parse import urlsplit

logger = logging.getLogger(__name__)

TEXT = "text/plain; charset=utf-8"

CLIENT_SECONDS = 5.0
"""Seconds that a client may take to send its request or to take its answer."""

_HEADERS = {
    "Cache-Control": "no-store",
    # Pages load nothing from elsewhere.
    "Content-Security-Policy": "default-src 'self'; img-src data:; base-uri 'none'; form-action 'none'",
    "X-Content-Type-Options": "nosniff",
}


class Reply(NamedTuple):
    """What a path is answered with."""

    code: int
    content: bytes
    kind: str = TEXT


Answer = Callable[[str], Reply]
"""Answers the path of a request, in a thread of its own."""


@contextmanager
def get_server(host: str, port: int, answer: Answer, name: str, own_names_only: bool = False) -> Iterator[int]:
    """Answer GET requests while the context lasts; yields the port.

    Args:
        host: address to listen on.
        port: any free one if 0.
        answer: gets the path without its query; if it fails, that is logged, and the answer is status 500.
        name: of the thread.
        own_names_only: answer requests with status 403 whose Host header :func:`is_own_name` does not accept.

    Raises:
        OSError: if it cannot listen there.
    """
    server = _Server((host, port), answer, own_names_only)
    threading.Thread(target=server.serve_forever, daemon=True, name=name).start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()


def is_own_name(header: str | None, host: str) -> bool:
    """Check whether a Host header names a server that listens on ``host``, so that no other site can read it.

    A site can let its own name lead to this machine once its page is open in a browser here (DNS rebinding); the Host
    header then has the site's name.

    Args:
        header: with or without a port; None if the request had none.
        host: that the server was told to listen on.

    Returns:
        True for localhost, loopback addresses and ``host``; for all addresses if ``host`` is the wildcard.
    """
    try:
        name = urlsplit(f"//{header or ''}").hostname or ""
    except ValueError:  # brackets without an address between them
        return False
    if name in ("localhost", host.lower()):
        return True
    try:
        return ip_address(name).is_loopback or ip_address(host).is_unspecified
    except ValueError:  # a name, not an address
        return False


class _Server(ThreadingHTTPServer):
    def __init__(self, address: tuple[str, int], answer: Answer, own_names_only: bool) -> None:
        super().__init__(address, _Handler)
        self.answer, self.host, self.own_names_only = answer, address[0], own_names_only

    def handle_error(self, *_: Any) -> None:
        """Leave out clients that went away; by default their stack traces are printed."""
        logger.debug("a client was not answered", exc_info=True)


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = CLIENT_SECONDS

    def do_GET(self) -> None:
        if self.server.own_names_only and not is_own_name(self.headers["Host"], self.server.host):
            own = f"this server answers requests to localhost or {self.server.host}, not to another host\n"
            self._send(Reply(403, own.encode()))
            return
        try:
            reply = self.server.answer(self.path.partition("?")[0])
        except Exception:
            logger.exception("GET %s failed", self.path)
            reply = Reply(500, b"the server failed; its log says why\n")
        self._send(reply)

    def _refuse(self) -> None:
        self._send(Reply(405, b"this server answers GET only\n"), Allow="GET")

    do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = _refuse

    def _send(self, reply: Reply, **more: str) -> None:
        self.send_response(reply.code)
        length = {"Content-Type": reply.kind, "Content-Length": str(len(reply.content))}
        for header, value in {**length, **_HEADERS, **more}.items():
            self.send_header(header, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(reply.content)

    def log_message(self, *_: Any) -> None:
        """Log nothing: probes and pages ask every few seconds."""
