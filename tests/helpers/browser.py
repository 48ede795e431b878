"""A Chromium without a window, driven through a pipe: pages opened, looked at, listened to."""

from __future__ import annotations

import fcntl
import json
import os
import select
import shutil
import signal
import subprocess
import time
from base64 import b64decode
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("chrome")
OPTIONS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-dev-shm-usage", "--disable-background-networking", "--disable-component-update",
    "--disable-default-apps", "--disable-extensions", "--disable-sync", "--no-pings",
]  # fmt: skip


class Tab:
    """A page of a browser, which cannot use the network; what it asks for and says is kept."""

    def __init__(self, into: int, out: int) -> None:
        self._into, self._out = into, out
        self._pending = b""
        self._number = 0
        self._session: str | None = None
        self.events: list[dict[str, Any]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Network", "Log", "Runtime"):
            self.call(f"{domain}.enable")
        self.call("Network.emulateNetworkConditions", offline=True, latency=0,
                  downloadThroughput=0, uploadThroughput=0)  # fmt: skip

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command of the DevTools protocol; return its result."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._into, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return answer["result"]

    def _receive(self) -> dict[str, Any]:
        """Return the next message; events are kept."""
        end = time.monotonic() + 60
        while b"\0" not in self._pending:
            ready, _, _ = select.select([self._out], [], [], max(0, end - time.monotonic()))
            assert ready, "the browser does not answer"
            part = os.read(self._out, 1 << 20)
            assert part, "the browser has ended"
            self._pending += part
        raw, _, self._pending = self._pending.partition(b"\0")
        message: dict[str, Any] = json.loads(raw)
        if "method" in message:
            self.events.append(message)
        return message

    def open(self, path: Path, *, scheme: str = "light", width: int = 1000) -> None:
        """Open a file as a page, light or dark, and wait until it is loaded."""
        self.events.clear()
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.call("Emulation.setEmulatedMedia", media="", features=features)
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=800,
                  deviceScaleFactor=1, mobile=False)  # fmt: skip
        self.call("Page.navigate", url=path.as_uri())
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self._receive()

    def run(self, script: str) -> Any:
        """Return the value of a JavaScript expression; a promise's when it is there."""
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True,
                           awaitPromise=True)  # fmt: skip
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def requests(self) -> list[str]:
        """Return the URLs that the page has asked for; what is in the page itself is none."""
        return [
            event["params"]["request"]["url"]
            for event in self.events
            if event["method"] == "Network.requestWillBeSent"
            and not event["params"]["request"]["url"].startswith("data:")
        ]

    def complaints(self) -> list[str]:
        """Return what stands in the console: errors, warnings, what a policy has refused."""
        kinds = ("Log.entryAdded", "Runtime.exceptionThrown", "Runtime.consoleAPICalled")
        return [json.dumps(event["params"]) for event in self.events if event["method"] in kinds]

    def screenshot(self, target: Path) -> None:
        """Write a picture of the whole page."""
        found = self.call("Page.captureScreenshot", captureBeyondViewport=True)
        target.write_bytes(b64decode(found["data"]))

    def pdf(self) -> bytes:
        """Return the page as it is printed."""
        return b64decode(self.call("Page.printToPDF", printBackground=False)["data"])


@contextmanager
def tab(folder: Path) -> Iterator[Tab]:
    """Give a tab of a browser of our own, and close that browser with all its processes."""
    assert CHROMIUM is not None, "Chromium has to be installed where CI=true"
    ends = [*os.pipe(), *os.pipe()]
    theirs = [fcntl.fcntl(fd, fcntl.F_DUPFD, 10) for fd in (ends[0], ends[3])]
    command = f'exec "$@" 3<&{theirs[0]} 4>&{theirs[1]}'
    with (folder / "chromium.log").open("wb") as log:
        process = subprocess.Popen(
            ["bash", "-c", command, "bash", CHROMIUM, *OPTIONS, "--remote-debugging-pipe",
             f"--user-data-dir={folder / 'profile'}"],
            stdout=log, stderr=log, start_new_session=True, pass_fds=theirs,
        )  # fmt: skip
    for fd in (ends[0], ends[3], *theirs):
        os.close(fd)
    try:
        yield Tab(ends[1], ends[2])
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(30)
        os.close(ends[1])
        os.close(ends[2])
