"""An S3 on this machine: moto's server in a process of its own, and a proxy that misbehaves."""

from __future__ import annotations

import http.client
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from typing import Any

_SERVER = """
import sys
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()
server.stop()
"""
_ERROR = '<?xml version="1.0"?><Error><Code>{}</Code><Message>injected</Message></Error>'
_CODES = {500: "InternalError", 503: "SlowDown", 403: "AccessDenied"}
SLOW_SECONDS = 0.3

Action = int | str | Callable[[], object]


@dataclass(frozen=True)
class S3:
    """A running S3.

    Attributes
    ----------
    port : int
        Of its server, on loopback.
    """

    port: int
    _numbers: Any = field(default_factory=lambda: count(1))

    def options(self, port: int | None = None, **more: Any) -> dict[str, Any]:
        """Return what fsspec needs to reach it, or a proxy on another port, as plain JSON."""
        endpoint = f"http://127.0.0.1:{port or self.port}"
        return {"key": "key", "secret": "secret", "endpoint_url": endpoint, **more}

    def file_system(self) -> Any:
        """Return an fsspec file system that keeps no listings."""
        from s3fs import S3FileSystem

        return S3FileSystem(**self.options(), use_listings_cache=False)

    def make_bucket(self) -> str:
        """Make a bucket and return its name."""
        name = f"bucket-{next(self._numbers)}"
        self.file_system().mkdir(name)
        return name

    def objects(self, bucket: str) -> dict[str, bytes]:
        """Return all objects of a bucket."""
        files = self.file_system()
        return {path.partition("/")[2]: files.cat_file(path) for path in files.find(bucket)}

    def uploads(self, bucket: str) -> list[str]:
        """Return the keys of multipart uploads that are neither complete nor aborted."""
        return [upload["Key"] for upload in self.file_system().list_multipart_uploads(bucket)]


@contextmanager
def start_s3() -> Iterator[S3]:
    """Start moto's server in a process of its own, and stop it afterwards."""
    command = [sys.executable, "-W", "ignore", "-c", _SERVER]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        line = server.stdout.readline()
        assert line, "the server did not start"
        try:
            yield S3(int(line))
        finally:
            server.stdin.close()
            server.wait(30)


@dataclass
class Fault:
    """What happens to some requests.

    Attributes
    ----------
    action : int or str or callable
        A status to answer with (500, 503, 403); "slow": the answer comes late; "drop": the
        connection ends in the middle of the body, the request's or else the answer's; "lost": the
        request is carried out, but the connection ends before the answer. A function is called, and
        then the connection ends.
    method, text : str
        Of the requests it is for; `text` is part of path and query.
    skip, times : int
        So many of them pass first, and so many are hit.
    """

    action: Action
    method: str
    text: str = ""
    skip: int = 0
    times: int = 1
    hits: int = 0

    def strikes(self, method: str, path: str) -> bool:
        """Tell whether it hits this request, and count it."""
        if method != self.method or self.text not in path:
            return False
        if self.skip:
            self.skip -= 1
            return False
        if self.hits == self.times:
            return False
        self.hits += 1
        return True


class Proxy:
    """Passes requests on to a server, except for those that meet a fault.

    Attributes
    ----------
    port : int
        Where it listens.
    faults : list of Fault
        May be changed at any time.
    requests : list of str
        Method and path of each request, in the order they came.
    """

    def __init__(self, server_port: int) -> None:
        self.faults: list[Fault] = []
        self.requests: list[str] = []
        self._lock = threading.Lock()
        self._server = _Listener(("127.0.0.1", 0), _Handler)
        self._server.proxy = self
        self.server_port = server_port
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))

    def inject(self, action: Action, method: str, text: str = "", **more: int) -> Fault:
        """Add a fault."""
        self.faults.append(Fault(action, method, text, **more))
        return self.faults[-1]

    def meet(self, method: str, path: str) -> Action | None:
        """Return what happens to a request, if anything does."""
        with self._lock:
            self.requests.append(f"{method} {path}")
            return next((f.action for f in self.faults if f.strikes(method, path)), None)

    def __enter__(self) -> Proxy:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(30)


class _Listener(ThreadingHTTPServer):
    daemon_threads = True  # clients may keep connections for ever
    proxy: Proxy

    def handle_error(self, *_: object) -> None:
        """Say nothing: clients may leave at any time."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Listener

    def _serve(self) -> None:
        action = self.server.proxy.meet(self.command, self.path)
        length = int(self.headers.get("Content-Length") or 0)
        assert "Transfer-Encoding" not in self.headers
        if action == "drop" and length:
            self.rfile.read(length // 2)
            return self._hang_up()
        body = self.rfile.read(length)
        if callable(action):
            action()
            return self._hang_up()
        if action == "slow":
            time.sleep(SLOW_SECONDS)
        if isinstance(action, int):
            text = _ERROR.format(_CODES[action]).encode()
            return self._answer(action, [("Content-Length", str(len(text)))], text)
        status, headers, answer = self._pass_on(body)
        if action == "lost":
            return self._hang_up()
        if action == "drop":
            self._answer(status, headers, answer[: len(answer) // 2])
            return self._hang_up()
        return self._answer(status, headers, answer)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _serve

    def _pass_on(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.server.proxy.server_port)
        try:
            headers = {k: v for k, v in self.headers.items() if k.lower() != "expect"}
            connection.request(self.command, self.path, body or None, headers)
            response = connection.getresponse()
            found = [(k, v) for k, v in response.getheaders() if k.lower() not in _HOP]
            answer = response.read()
            if self.command != "HEAD" and response.status != 204:
                found = [(k, v) for k, v in found if k.lower() != "content-length"]
                found.append(("Content-Length", str(len(answer))))
            return response.status, found, answer
        finally:
            connection.close()

    def _answer(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        self.send_response_only(status)
        for name, value in headers:
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
        self.wfile.flush()

    def _hang_up(self) -> None:
        """End the connection; what has been sent arrives."""
        self.close_connection = True
        with suppress(OSError):
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 1))
            self.connection.shutdown(socket.SHUT_RDWR)


_HOP = {"connection", "keep-alive", "transfer-encoding"}
