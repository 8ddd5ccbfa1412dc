"""A real headless browser: opens a page, runs a script in it, takes a picture.

Enters: a file or a URL. Leaves: what the page says. Chromium is spoken to over two pipes, by its
DevTools protocol: JSON messages that end in a zero byte. No port is opened.
"""

from __future__ import annotations

import base64
import json
import os
import pathlib
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from types import TracebackType

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def find_browser() -> str | None:
    """The path of a browser that is installed; None where there is none."""
    return next((found for name in NAMES if (found := shutil.which(name))), None)


class Browser:
    """One page in a browser of its own; a context manager.

    Args:
      program: the browser's path.

    Attributes:
      events: what the page did meanwhile: (method, parameters).
    """

    def __init__(self, program: str) -> None:
        self._profile = tempfile.TemporaryDirectory(prefix="browser_", ignore_cleanup_errors=True)
        to_browser, self._write = os.pipe()
        self._read, from_browser = os.pipe()
        # Descriptors 3 and 4 are what the browser reads from and writes to.
        command = (
            f'exec "$0" --headless=new --no-sandbox --disable-gpu --no-first-run '
            f"--disable-background-networking --remote-debugging-pipe "
            f'--user-data-dir="{self._profile.name}" about:blank 3<&{to_browser} 4>&{from_browser}'
        )
        self._process = subprocess.Popen(
            ["bash", "-c", command, program],
            pass_fds=(to_browser, from_browser),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_browser)
        os.close(from_browser)
        self.events: list[tuple[str, dict[str, object]]] = []
        self._number = 0
        self._session: str | None = None
        self._messages = self._read_messages()
        targets = self._call("Target.getTargets")["targetInfos"]
        assert isinstance(targets, list)
        page = next(each["targetId"] for each in targets if each["type"] == "page")
        attached = self._call("Target.attachToTarget", targetId=page, flatten=True)
        self._session = str(attached["sessionId"])
        for domain in ("Page", "Runtime", "Network", "Log"):
            self._call(f"{domain}.enable")

    def __enter__(self) -> Browser:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._write)
        os.close(self._read)
        self._profile.cleanup()

    def _read_messages(self) -> Iterator[dict[str, object]]:
        pending = b""
        while block := os.read(self._read, 1 << 16):
            *whole, pending = (pending + block).split(b"\0")
            for message in whole:
                yield json.loads(message)

    def _call(self, method: str, **parameters: object) -> dict[str, object]:
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        for answer in self._messages:
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                result = answer["result"]
                assert isinstance(result, dict)
                return result
            self._note(answer)
        raise AssertionError("the browser ended")

    def _note(self, event: dict[str, object]) -> None:
        parameters = event.get("params")
        assert isinstance(parameters, dict)
        self.events.append((str(event["method"]), parameters))

    def open(self, page: pathlib.Path | str, width: int = 1200, height: int = 900) -> None:
        """Opens a file, or the page at a URL, and waits until all of it is there."""
        self.resize(width, height)
        url = page.as_uri() if isinstance(page, pathlib.Path) else page
        before = len(self.events)
        self._call("Page.navigate", url=url)
        while not any(method == "Page.loadEventFired" for method, _ in self.events[before:]):
            self._note(next(self._messages))

    def resize(self, width: int, height: int = 900) -> None:
        """Makes the window as large, in pixels."""
        self._call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )

    def run(self, expression: str) -> object:
        """The value of a JavaScript expression in the page."""
        answer = self._call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        result = answer["result"]
        assert isinstance(result, dict)
        return result.get("value")

    def take_picture(self, path: pathlib.Path) -> None:
        """The whole page as a PNG."""
        answer = self._call("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(str(answer["data"])))

    def requests(self) -> list[str]:
        """What the page asked for, as URLs."""
        return [
            str(request["url"])
            for method, parameters in self.events
            if method == "Network.requestWillBeSent"
            and isinstance(request := parameters["request"], dict)
        ]

    def complaints(self) -> list[str]:
        """Errors of the page: exceptions, refused loads, what its policy forbids."""
        return [
            json.dumps(parameters)
            for method, parameters in self.events
            if method == "Runtime.exceptionThrown"
            or (method == "Log.entryAdded" and '"error"' in json.dumps(parameters))
        ]
