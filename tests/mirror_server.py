"""A server of files on loopback that can be told to misbehave."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Mirror:
    """The server's address, its files by name, what was asked of it, and how it misbehaves."""

    url: str
    files: dict[str, bytes]
    requests: list[tuple[str, str | None]] = field(default_factory=list)  # name, Range
    break_after: list[int] = field(default_factory=list)  # bytes after which each next reply breaks off
    ranges: bool = True
    awake: threading.Event = field(default_factory=threading.Event)


@contextmanager
def serving() -> Iterator[Mirror]:
    """Serve files until the block ends."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            name, asked = self.path.rpartition("/")[2], self.headers["Range"]
            state.requests.append((name, asked))
            state.awake.wait(10)
            with suppress(ConnectionError):  # the client may have hung up
                self.answer(state.files.get(name), asked if state.ranges else None)

        def answer(self, content: bytes | None, asked: str | None) -> None:
            start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked else 0
            if content is None or start >= len(content):
                self.send_error(404 if content is None else 416)
                return
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(content) - start))
            self.end_headers()
            limit = state.break_after.pop(0) if state.break_after else len(content)
            self.wfile.write(content[start:][:limit])

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    state = Mirror(f"http://127.0.0.1:{server.server_port}/some/folder/", {})
    state.awake.set()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
