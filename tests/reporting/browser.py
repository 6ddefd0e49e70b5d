"""A headless Chromium by its own protocol over two pipes: no package is needed to drive it."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
import subprocess

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
_OPTIONS = (
    *("--headless", "--remote-debugging-pipe", "--no-first-run", "--disable-gpu"),
    # Tests may run as root, and where /dev/shm is small.
    *("--no-sandbox", "--disable-dev-shm-usage", "--disable-background-networking"),
)


def find_browser():
    """The path of a Chromium; None if there is none on the PATH or in NNABLA_DQA_BROWSER."""
    named = os.environ.get("NNABLA_DQA_BROWSER")
    return named or next((found for name in NAMES if (found := shutil.which(name))), None)


class Page:
    """A tab: what it logged, what it asked for, and what is measured in it."""

    def __init__(self, stream_in, stream_out):
        self._in, self._out, self._count, self._buffer = stream_in, stream_out, 0, b""
        self._session = None
        self.logged, self.requests = [], []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method, **params):
        """Send a command and wait for its answer."""
        self._count += 1
        message = {"id": self._count, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._in, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._count:
                assert "error" not in answer, answer
                return answer["result"]

    def _next(self):
        while b"\0" not in self._buffer:
            part = os.read(self._out, 1 << 20)
            assert part, "the browser has ended"
            self._buffer += part
        text, _, self._buffer = self._buffer.partition(b"\0")
        message = json.loads(text)
        self._note(message)
        return message

    def _note(self, message):
        method, params = message.get("method"), message.get("params", {})
        if method == "Runtime.consoleAPICalled":
            self.logged.append(str(params["args"]))
        elif method == "Runtime.exceptionThrown":
            self.logged.append(params["exceptionDetails"]["text"])
        elif method == "Log.entryAdded":
            self.logged.append(params["entry"]["text"])
        elif method == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        self.loaded = method == "Page.loadEventFired" or getattr(self, "loaded", False)

    def open(self, path, width, height=900, dark=False):
        """Show a file in a window of this size."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.loaded = False
        self.call("Page.navigate", url=path.resolve().as_uri())
        while not self.loaded:
            self._next()

    def evaluate(self, expression):
        """The value of a JavaScript expression."""
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        return result["result"].get("value")

    def press(self, key):
        """Press and release a key."""
        codes = {"Tab": 9, "Enter": 13}
        text = {"text": "\r"} if key == "Enter" else {}
        for kind in ("keyDown", "keyUp"):
            self.call(
                "Input.dispatchKeyEvent",
                type=kind,
                key=key,
                code=key,
                windowsVirtualKeyCode=codes[key],
                **(text if kind == "keyDown" else {}),
            )

    def screenshot(self, path, height=None):
        """The page as PNG, whole or its first ``height`` pixels."""
        size = self.call("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "scale": 1}
        clip["height"] = min(height or size["height"], size["height"])
        data = self.call("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)["data"]
        path.write_bytes(base64.b64decode(data))


@contextlib.contextmanager
def browser(folder):
    """A page of a browser with its profile in ``folder``."""
    read_in, write_in = os.pipe()
    read_out, write_out = os.pipe()

    def connect():
        # Away from 3 and 4 first: one of them may be either number.
        command, answer = os.dup(read_in), os.dup(write_out)
        command, answer = os.dup2(command, 50), os.dup2(answer, 51)
        os.dup2(command, 3)
        os.dup2(answer, 4)

    process = subprocess.Popen(
        [find_browser(), *_OPTIONS, f"--user-data-dir={folder}"],
        preexec_fn=connect,
        close_fds=False,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(read_in)
    os.close(write_out)
    try:
        yield Page(write_in, read_out)
    finally:
        process.terminate()
        process.wait(20)
        os.close(write_in)
        os.close(read_out)
