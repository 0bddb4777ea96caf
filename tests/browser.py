"""A real headless Chromium, driven over its DevTools protocol."""

import asyncio
import base64
import json
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import aiohttp

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--remote-debugging-port=0",
)


@dataclass(frozen=True)
class Browser:
    """A running Chromium; each look opens a tab of its own, and closes it."""

    port: int

    def look(
        self,
        url: str,
        until: str,
        *,
        then: str | None = None,
        picture: Path | None = None,
        size: tuple[int, int] = (1600, 1000),
        media: str = "",
    ) -> Any:
        """Open a page, wait until a JavaScript expression is true there, and return the value of that or of another.

        Args:
            url: the page.
            until: asked again and again, for at most 60 seconds.
            then: asked once after that; None returns the value of `until`.
            picture: where a screenshot is stored as PNG.
            size: width and height of the window.
            media: "print" shows the page as a printer has it; empty as a screen.
        """
        return asyncio.run(self._look(url, until, then, picture, size, media))

    async def _look(
        self, url: str, until: str, then: str | None, picture: Path | None, size: tuple[int, int], media: str
    ) -> Any:
        async with aiohttp.ClientSession() as http:
            async with http.put(f"http://127.0.0.1:{self.port}/json/new?about:blank") as answer:
                tab = await answer.json(content_type=None)
            async with http.ws_connect(tab["webSocketDebuggerUrl"], max_msg_size=0) as socket:
                numbers = count(1)

                async def call(method: str, **params: Any) -> Any:
                    number = next(numbers)
                    await socket.send_json({"id": number, "method": method, "params": params})
                    while (message := json.loads((await socket.receive()).data)).get("id") != number:
                        pass
                    return message["result"]

                async def ask(expression: str) -> Any:
                    answer = await call("Runtime.evaluate", expression=expression, returnByValue=True)
                    return None if "exceptionDetails" in answer else answer["result"].get("value")

                window = {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": False}
                await call("Emulation.setDeviceMetricsOverride", **window)
                await call("Emulation.setEmulatedMedia", media=media)
                await call("Page.navigate", url=url)
                value, deadline = await ask(until), time.monotonic() + 60.0
                while not value and time.monotonic() < deadline:
                    await asyncio.sleep(0.2)
                    value = await ask(until)
                if picture is not None:
                    await asyncio.sleep(1.0)  # charts grow
                    shot = await call("Page.captureScreenshot", format="png")
                    picture.write_bytes(base64.b64decode(shot["data"]))
                assert value, f"{until} is not true after 60 seconds on {url}: {await ask('document.body.innerText')}"
                result = value if then is None else await ask(then)
            async with http.get(f"http://127.0.0.1:{self.port}/json/close/{tab['id']}"):
                return result


@contextmanager
def chromium() -> Iterator[Browser]:
    """Yield a Chromium with a profile of its own, and end it."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = [str(CHROMIUM), *FLAGS, f"--user-data-dir={profile}", "about:blank"]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            file, deadline = Path(profile) / "DevToolsActivePort", time.monotonic() + 30.0
            while not (file.exists() and file.read_text().strip()) and time.monotonic() < deadline:
                time.sleep(0.05)
            yield Browser(int(file.read_text().split()[0]))
        finally:
            process.terminate()
            process.wait(20)
