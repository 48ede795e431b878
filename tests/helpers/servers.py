"""A web server of a folder on loopback, as object stores are: no listings, but parts of files."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http import HTTPStatus
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

PAGE = b"\n<!DOCTYPE html><html><body>Not here.</body></html>"


def _query(url: str) -> list[tuple[str, str]]:
    return parse_qsl(url.partition("?")[2], keep_blank_values=True)


class Handler(SimpleHTTPRequestHandler):
    """Serves files, whole and in part; says nothing about folders."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        """Send a file, or the part that is asked for."""
        path = Path(self.translate_path(self.path))
        self.server.seen.append(self.path)  # type: ignore[attr-defined]
        manners = self.server.manners  # type: ignore[attr-defined]
        if "query" in manners and _query(self.path) != _query(f"?{manners['query']}"):
            self.send_error(HTTPStatus.FORBIDDEN)
            return
        fault = next(self.server.faults, None)  # type: ignore[attr-defined]
        if fault == "error":
            self.send_error(HTTPStatus.INTERNAL_SERVER_ERROR)
            return
        absent = manners.get("absent", HTTPStatus.NOT_FOUND)
        if not path.is_file() and absent != HTTPStatus.OK:
            self.send_error(absent)
            return
        content = path.read_bytes() if path.is_file() else PAGE
        asked = self.headers.get("Range")
        if manners.get("parts") == "none" or (
            manners.get("parts") == "no ends" and (asked or "").startswith("bytes=-")
        ):
            asked = None
        more = b"more" if manners.get("long") and asked else b""
        first, last = 0, len(content)
        if asked:
            begin, _, end = asked.removeprefix("bytes=").partition("-")
            first, last = (
                (int(begin), int(end) + 1 if end else last) if begin else (last - int(end), last)
            )
        part = content[first:last] + more
        self.send_response(HTTPStatus.PARTIAL_CONTENT if asked else HTTPStatus.OK)
        self.send_header("Content-Length", str(len(part)))
        if asked:
            self.send_header("Content-Range", f"bytes {first}-{last - 1}/{len(content)}")
        self.end_headers()
        if fault == "drop":
            self.wfile.write(part[: len(part) // 2])
            self.close_connection = True
            return
        self.wfile.write(part)

    def do_HEAD(self) -> None:
        """Tell the size of a file."""
        path = Path(self.translate_path(self.path))
        self.send_response(HTTPStatus.OK if path.is_file() else HTTPStatus.NOT_FOUND)
        self.send_header("Content-Length", str(path.stat().st_size if path.is_file() else 0))
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


@contextmanager
def serving(
    folder: Path, faults: Iterator[str | None] | None = None, **manners: Any
) -> Iterator[str]:
    """Serve a folder; `faults` says what goes wrong with each request ("error" or "drop").

    Manners that are not by the book: `absent` is the status for what is not there (200 sends a web
    page), `parts` is "none" or "no ends" where Range is ignored, `query` what each URL must end
    with, and `long` makes parts longer than they were asked for.
    """
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
    server.faults = faults if faults is not None else iter(())  # type: ignore[attr-defined]
    server.seen = []  # type: ignore[attr-defined]
    server.manners = manners  # type: ignore[attr-defined]
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
