"""A web server on 127.0.0.1 with made files, which breaks off, dawdles or lies as a test asks for."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Site:
    """What is served and how.

    Args:
        files: contents by name.
        break_after: bytes after which each next connection breaks off; then none does.
        answers: status codes that the next requests get instead of a file.
        ranges: whether it can begin in the middle.
        silent_s: before each answer.
        piece, pause_s: bytes at once, and the time between them.
    """

    files: dict[str, bytes]
    break_after: list[int] = field(default_factory=list)
    answers: list[int] = field(default_factory=list)
    ranges: bool = True
    silent_s: float = 0.0
    piece: int = 2**20
    pause_s: float = 0.0
    asked: list[tuple[str, str | None]] = field(default_factory=list)
    sent: int = 0
    address: str = ""

    def at(self, name: str) -> str:
        """The address of a file."""
        return f"{self.address}/{name}"


@contextmanager
def serving(site: Site) -> Iterator[Site]:
    """The site, reachable at ``site.address``."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:  # noqa: N802
            _answer(self, site)

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=lambda: server.serve_forever(0.01))
    thread.start()
    site.address = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield site
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _answer(to: BaseHTTPRequestHandler, site: Site) -> None:
    name, wanted = to.path.lstrip("/"), to.headers.get("Range")
    site.asked.append((name, wanted))
    time.sleep(site.silent_s)
    data = site.files.get(name)
    if site.answers or data is None:
        to.send_error(site.answers.pop(0) if site.answers else 404)
        return
    start = 0
    if wanted and site.ranges:
        start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1])  # type: ignore[index]
        if start >= len(data):
            to.send_error(416)
            return
        to.send_response(206)
        to.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
    else:
        to.send_response(200)
    to.send_header("Content-Length", str(len(data) - start))
    to.end_headers()
    limit = site.break_after.pop(0) if site.break_after else len(data)
    _send(to, site, data[start : start + limit])


def _send(to: BaseHTTPRequestHandler, site: Site, data: bytes) -> None:
    try:
        for begin in range(0, len(data), site.piece):
            piece = data[begin : begin + site.piece]
            to.wfile.write(piece)
            site.sent += len(piece)
            time.sleep(site.pause_s)
    except OSError:
        pass  # the other side had enough
    to.close_connection = True
