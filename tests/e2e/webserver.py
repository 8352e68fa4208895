"""A real HTTP server that takes webhooks, remembers them whole, and answers each path as a test tells it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass(frozen=True, slots=True)
class Post:
    """One request as it arrived. Header names are lower-case."""

    path: str
    headers: dict[str, str]
    body: bytes


class WebServer:
    """What was posted, and what is answered.

    Attributes:
        url: without a path.
        posts: every request, in order.
        answers: status by path; 204 for every other.
        gate: while it is cleared, no request is answered.
    """

    def __init__(self) -> None:
        self.url = ""
        self.posts: list[Post] = []
        self.answers: dict[str, int] = {}
        self.gate = threading.Event()
        self.gate.set()


def _handler(server: WebServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        """Answers POST."""

        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_POST(self) -> None:
            """Take one event."""
            body = self.rfile.read(int(self.headers["Content-Length"]))
            server.posts.append(Post(self.path, {name.lower(): value for name, value in self.headers.items()}, body))
            server.gate.wait(60)
            self.send_response(server.answers.get(self.path, 204))
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002 - the library's name
            """Say nothing: the tests look at what was posted."""

    return Handler


@contextmanager
def serving() -> Iterator[WebServer]:
    """Yield a web server on loopback."""
    server = WebServer()
    listener = ThreadingHTTPServer(("127.0.0.1", 0), _handler(server))
    listener.daemon_threads = True
    server.url = f"http://127.0.0.1:{listener.server_port}"
    thread = threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.05}, name="webserver", daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.gate.set()
        listener.shutdown()
        thread.join(10)
        listener.server_close()
