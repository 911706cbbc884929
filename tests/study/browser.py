"""A headless Chromium driven by the WebDriver protocol, with nothing but the standard library."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ELEMENT = "element-6066-11e4-a52e-4f735466cecf"  # what the protocol calls an element by
KEYS = {"left": "\ue012", "right": "\ue014", "space": " ", "backspace": "\ue003", "escape": "\ue00c"}
SWITCHES = [
    "--headless=new",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
]
START_SECONDS = 60.0
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # no proxy stands before this machine


def programs() -> tuple[str, str] | None:
    """Chromium and its driver, None where either is missing."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    return None if chromium is None or driver is None else (chromium, driver)


class Browser:
    """One window."""

    def __init__(self, address: str, options: dict[str, Any]) -> None:
        self.address = address
        capabilities = {"alwaysMatch": {"browserName": "chrome", "goog:chromeOptions": options}}
        self.session = self._call("POST", "/session", {"capabilities": capabilities})["sessionId"]

    def _call(self, method: str, path: str, values: Any = None) -> Any:
        body = None if values is None else json.dumps(values).encode()
        request = urllib.request.Request(self.address + path, body, {"Content-Type": "application/json"}, method=method)
        try:
            with DIRECT.open(request, timeout=START_SECONDS) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            raise RuntimeError(json.load(error)["value"]["message"]) from None

    def do(self, method: str, path: str, values: Any = None) -> Any:
        """One command of the protocol."""
        return self._call(method, f"/session/{self.session}{path}", values)

    def open(self, url: str) -> None:
        self.do("POST", "/url", {"url": url})

    def run(self, script: str) -> Any:
        """The value that JavaScript returns."""
        return self.do("POST", "/execute/sync", {"script": script, "args": []})

    def wait(self, condition: str) -> None:
        """Until a JavaScript expression is true."""
        wait_until(lambda: bool(self.run(f"return Boolean({condition})")), condition)

    def element(self, selector: str) -> str:
        found = self.do("POST", "/element", {"using": "css selector", "value": selector})
        return str(found[ELEMENT])

    def click(self, selector: str) -> None:
        self.do("POST", f"/element/{self.element(selector)}/click", {})

    def text(self, selector: str) -> str:
        return str(self.do("GET", f"/element/{self.element(selector)}/text"))

    def type(self, selector: str, text: str) -> None:
        self.do("POST", f"/element/{self.element(selector)}/value", {"text": text})

    def press(self, key: str) -> None:
        """One key, down and up, wherever the focus is."""
        value = KEYS.get(key, key)
        actions = [{"type": kind, "value": value} for kind in ("keyDown", "keyUp")]
        self.do("POST", "/actions", {"actions": [{"type": "key", "id": "keyboard", "actions": actions}]})

    def resize(self, width: int, height: int, is_phone: bool = False) -> None:
        """Size of the page itself."""
        values = {"width": width, "height": height, "deviceScaleFactor": 2 if is_phone else 1, "mobile": is_phone}
        for command, parameters in (
            ("Emulation.setDeviceMetricsOverride", values),
            ("Emulation.setTouchEmulationEnabled", {"enabled": is_phone}),
        ):
            self.do("POST", "/goog/cdp/execute", {"cmd": command, "params": parameters})

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self.do("GET", "/screenshot")))

    def logs(self) -> list[str]:
        """Errors and warnings of the page."""
        return [entry["message"] for entry in self.do("POST", "/se/log", {"type": "browser"})]

    def quit(self) -> None:
        self.do("DELETE", "")


def wait_until(is_done: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not is_done():
        assert time.monotonic() < deadline, f"waited in vain for: {what}"
        time.sleep(0.02)


@contextmanager
def browser(folder: Path) -> Iterator[Browser]:
    """A browser whose profile and downloads are in ``folder``, and which is gone after the block."""
    found = programs()
    assert found is not None
    chromium, driver = found
    profile, downloads = folder / "profile", folder / "downloads"
    downloads.mkdir(parents=True)
    sandbox = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
    options = {
        "binary": chromium,
        "args": [*SWITCHES, *sandbox, f"--user-data-dir={profile}", "--window-size=1280,800"],
        "prefs": {"download.default_directory": str(downloads), "download.prompt_for_download": False},
    }
    log = folder / "driver.log"
    with log.open("wb") as sink:
        process = subprocess.Popen([driver, "--port=0"], stdout=subprocess.PIPE, stderr=sink)
        try:
            window = Browser(f"http://127.0.0.1:{_port(process)}", options)
            try:
                yield window
            finally:
                window.quit()
        finally:
            process.terminate()
            process.wait()


def _port(process: subprocess.Popen[bytes]) -> int:
    assert process.stdout is not None
    for line in process.stdout:
        words = line.decode().rstrip().rstrip(".").split(" successfully on port ")
        if len(words) == 2:
            return int(words[1])
    raise RuntimeError("chromedriver ended without a port")
