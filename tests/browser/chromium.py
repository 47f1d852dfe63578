"""Headless Chromium, driven over the DevTools protocol: navigation, input events, and the problems of a page."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from websockets.sync.client import ClientConnection, connect

POOR_CONTRAST = (Path(__file__).parent / "contrast.js").read_text(encoding="utf-8")
NAMES = ("chromium", "chromium-browser", "google-chrome")
START_TIMEOUT_S, REPLY_TIMEOUT_S = 60.0, 60.0
KEYS = {"ArrowDown": 40, "ArrowUp": 38, "ArrowLeft": 37, "ArrowRight": 39, "Tab": 9, "Enter": 13, "End": 35, "Home": 36}


def chromium_path() -> str | None:
    """Path of the installed Chromium; None without one."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Tab:
    """One page. `problems` are console errors and uncaught exceptions, `requests` the addresses it tried to load."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket
        self._calls = 0
        self._events: list[str] = []
        self.problems: list[str] = []
        self.requests: list[str] = []
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Call a method of the DevTools protocol."""
        self._calls += 1
        self._socket.send(json.dumps({"id": self._calls, "method": method, "params": params}))
        while True:
            message = json.loads(self._socket.recv(timeout=REPLY_TIMEOUT_S))
            if message.get("id") == self._calls:
                assert "error" not in message, f"{method}: {message['error']}"
                return message["result"]
            self._record(message)

    def open(self, page: Path | str, *, width: int = 1280, height: int = 900, dark: bool = False) -> float:
        """Load a file or an address; the seconds until the page is drawn and shows a sample."""
        self.problems.clear()
        self.requests.clear()
        self.size(width, height)
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.call("Emulation.setEmulatedMedia", features=scheme)
        started = time.monotonic()
        self.call("Page.navigate", url=page if isinstance(page, str) else page.resolve().as_uri())
        self.wait("document.documentElement?.dataset.ready && document.querySelector('.token, #samples > .note')")
        return time.monotonic() - started

    def size(self, width: int, height: int) -> None:
        phone = width < 600
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=phone)

    def run(self, script: str) -> Any:
        """Evaluate an expression, awaited where it is a promise."""
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait(self, script: str, within_s: float = 30.0) -> None:
        """Wait until the expression is true."""
        deadline = time.monotonic() + within_s
        while not self.run(f"Boolean({script})"):
            assert time.monotonic() < deadline, f"still false after {within_s:g} s: {script}"
            time.sleep(0.02)

    def click(self, selector: str, index: int = 0) -> None:
        x, y = self._middle(selector, index)
        for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def hover(self, selector: str, index: int = 0) -> None:
        x, y = self._middle(selector, index)
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def press(self, key: str) -> None:
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=KEYS[key])

    def type(self, text: str) -> None:
        self.call("Input.insertText", text=text)

    def choose(self, selector: str, value: str) -> None:
        """Set the value of a select, a slider or a text field."""
        script = f"""(() => {{
            const node = document.querySelector({json.dumps(selector)});
            node.value = {json.dumps(value)};
            for (const kind of ["input", "change"]) node.dispatchEvent(new Event(kind, {{ bubbles: true }}));
        }})()"""
        self.run(script)

    def _middle(self, selector: str, index: int) -> tuple[float, float]:
        script = f"""(() => {{ const node = document.querySelectorAll({json.dumps(selector)})[{index}];
            node.scrollIntoView({{ block: "center", behavior: "instant" }}); const box = node.getBoundingClientRect();
            return [box.x + box.width / 2, box.y + box.height / 2]; }})()"""
        x, y = self.run(script)
        return x, y

    def _record(self, message: dict[str, Any]) -> None:
        params = message.get("params", {})
        match message["method"]:
            case "Runtime.exceptionThrown":
                self.problems.append(json.dumps(params["exceptionDetails"].get("exception", params)))
            case "Runtime.consoleAPICalled" if params["type"] in ("error", "warning", "assert"):
                self.problems.append(json.dumps(params["args"]))
            case "Log.entryAdded" if params["entry"]["level"] in ("error", "warning"):
                self.problems.append(params["entry"]["text"])
            case "Network.requestWillBeSent":
                self.requests.append(params["request"]["url"])


@contextmanager
def chromium() -> Iterator[Tab]:
    """Open a tab of a new browser with a profile of its own; both are removed at the end."""
    program = chromium_path()
    assert program is not None
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        words = [
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--hide-scrollbars",
            "--no-first-run",
            "--mute-audio",
        ]
        command = [program, *words, "--remote-debugging-port=0", f"--user-data-dir={profile}", "about:blank"]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            with connect(_page_address(Path(profile)), max_size=None, proxy=None) as socket:
                yield Tab(socket)
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _page_address(profile: Path) -> str:
    """Address of the first tab's protocol; Chromium writes the port into its profile."""
    from urllib.request import ProxyHandler, build_opener

    port_file = profile / "DevToolsActivePort"
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        try:
            port = port_file.read_text().split()[0]
            with build_opener(ProxyHandler({})).open(f"http://127.0.0.1:{port}/json/list", timeout=5) as answer:
                pages = [entry for entry in json.load(answer) if entry["type"] == "page"]
            return pages[0]["webSocketDebuggerUrl"]
        except (OSError, IndexError):
            assert time.monotonic() < deadline, f"Chromium did not start within {START_TIMEOUT_S:g} s"
            time.sleep(0.05)


def texts(tab: Tab, selector: str) -> list[str]:
    """Texts of all elements that the selector matches."""
    return tab.run(f"[...document.querySelectorAll({selector!r})].map((node) => node.textContent)")
