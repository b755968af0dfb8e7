"""The HTTP server under the emulated API server and the emulated Prometheus."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

_REASONS = {400: "BadRequest", 401: "Unauthorized", 403: "Forbidden", 404: "NotFound", 409: "AlreadyExists"}


class Refusal(Exception):
    """An answer other than 2xx."""

    def __init__(self, code: int, message: str, **headers: str) -> None:
        super().__init__(message)
        self.code, self.headers = code, {name.replace("_", "-"): value for name, value in headers.items()}


class Drop(Exception):
    """The connection is closed without an answer."""


class Server(ThreadingHTTPServer):
    """Serves in a thread of its own from the start, until :meth:`stop` breaks every connection.

    Args:
        handler: class of the handlers.
        port: any free one if 0.
        **attributes: of the handlers' class.
    """

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, handler: type[Handler], port: int = 0, **attributes: Any) -> None:
        self._connections: set = set()
        super().__init__(("127.0.0.1", port), type("Handler", (handler,), attributes))
        self.port = self.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True, name=handler.__name__).start()

    def stop(self) -> None:
        """Stop listening and break every connection."""
        self.shutdown()
        self.server_close()
        for connection in self._connections:
            try:
                connection.shutdown(2)
            except OSError:
                continue

    def get_request(self) -> Any:
        connection, address = super().get_request()
        self._connections.add(connection)
        return connection, address

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Callers break connections as they like."""


class Handler(BaseHTTPRequestHandler):
    """Answers every request by :meth:`respond`, and refusals as an API server does."""

    protocol_version = "HTTP/1.1"
    # Otherwise an answer waits for the acknowledgement of its own headers.
    wbufsize = -1
    disable_nagle_algorithm = True

    def respond(self, body: Any) -> None:
        """Answer one request.

        Args:
            body: its content from JSON, None if it has none.

        Raises:
            Refusal: to answer with another status than 2xx.
            Drop: to close the connection without an answer.
        """
        raise NotImplementedError

    def _do(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length)) if length else None
        try:
            self.respond(body)
        except Refusal as refusal:
            reason = _REASONS.get(refusal.code, "Failure")
            status = {"kind": "Status", "code": refusal.code, "reason": reason, "message": str(refusal)}
            self.send(refusal.code, status, refusal.headers)
        except Drop:
            self.close_connection = True
        self.wfile.flush()

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _do

    def send(self, code: int, content: Any, headers: dict[str, str] | None = None) -> None:
        text = json.dumps(content).encode()
        self.send_response(code)
        for name, value in {
            "Content-Type": "application/json",
            "Content-Length": str(len(text)),
            **(headers or {}),
        }.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(text)

    def begin_stream(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.wfile.flush()

    def stream(self, content: Any) -> None:
        text = json.dumps(content).encode() + b"\n"
        self.wfile.write(f"{len(text):x}\r\n".encode() + text + b"\r\n")
        self.wfile.flush()

    def end_stream(self) -> None:
        self.wfile.write(b"0\r\n\r\n")
        self.wfile.flush()

    def broken(self) -> bool:
        return self.connection.fileno() < 0

    def log_message(self, *_: Any) -> None:
        """Log nothing; tests look at :attr:`ApiServer.requests`."""
