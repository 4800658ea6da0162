"""A page in headless Chromium, driven over its DevTools protocol; and a web server for a folder."""

import asyncio
import base64
import functools
import http.server
import json
import re
import shutil
import subprocess
import threading
from contextlib import contextmanager
from pathlib import Path

from tornado.httpclient import AsyncHTTPClient
from tornado.websocket import websocket_connect

NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync "
    "--disable-background-networking --disable-component-update --remote-debugging-port=0"
).split()


@contextmanager
def served(folder):
    "`with served(folder) as address:` the files of a folder on this machine."

    class Handler(http.server.SimpleHTTPRequestHandler):
        extensions_map = {
            **http.server.SimpleHTTPRequestHandler.extensions_map,
            ".mjs": "text/javascript",
            ".wasm": "application/wasm",
        }

        def log_message(self, *_):
            pass

    make = functools.partial(Handler, directory=str(folder))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), make)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


class Page:
    "The one tab of a browser: `go` somewhere, `run` JavaScript, `type`, take a `picture`."

    def __init__(self, loop, socket):
        self.loop = loop
        self.socket = socket
        self.count = 0

    def send(self, method, **params):
        "One command of the DevTools protocol; its result."

        async def ask():
            await self.socket.write_message(
                json.dumps(dict(id=self.count, method=method, params=params))
            )
            while True:
                answer = json.loads(await self.socket.read_message())
                if answer.get("id") == self.count:
                    return answer

        self.count += 1
        answer = self.loop.run_until_complete(asyncio.wait_for(ask(), 300))
        assert "error" not in answer, f"{method}: {answer['error']}"
        return answer["result"]

    def run(self, script):
        "The value of an expression in the page; a Promise is awaited."
        found = self.send(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def wait(self, condition, seconds=240):
        "Until the expression is true in the page."
        poll = f"""new Promise((done, fail) => {{
            const end = Date.now() + {seconds * 1000};
            const look = () => ({condition}) ? done(true)
                : Date.now() > end ? done(false) : setTimeout(look, 50);
            look();
        }})"""
        assert self.run(poll), f"after {seconds} s still not: {condition}"

    def resize(self, width, height, dark=False):
        size = dict(width=width, height=height, deviceScaleFactor=1, mobile=width < 600)
        self.send("Emulation.setDeviceMetricsOverride", **size)
        scheme = dict(name="prefers-color-scheme", value="dark" if dark else "light")
        self.send("Emulation.setEmulatedMedia", features=[scheme])

    def go(self, address, width=1366, height=900, dark=False):
        self.resize(width, height, dark)
        self.send("Page.navigate", url=address)
        self.wait(f"document.readyState === 'complete' && location.href.startsWith({address!r})")

    def press(self, key):
        code = dict(Enter=13, Tab=9)[key]
        event = dict(key=key, code=key, windowsVirtualKeyCode=code)
        text = dict(text="\r") if key == "Enter" else {}
        self.send("Input.dispatchKeyEvent", type="keyDown", **event, **text)
        self.send("Input.dispatchKeyEvent", type="keyUp", **event)

    def type(self, text):
        self.send("Input.insertText", text=text)

    def picture(self, path, whole=True):
        shot = self.send("Page.captureScreenshot", captureBeyondViewport=whole)
        Path(path).write_bytes(base64.b64decode(shot["data"]))


@contextmanager
def opened(folder):
    "`with opened(tmp_path) as page:` a browser whose profile lies in a folder of its own."
    command = [CHROMIUM, *FLAGS, f"--user-data-dir={folder}", "about:blank"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    loop = asyncio.new_event_loop()
    try:
        address = next(
            found.group(1)
            for line in process.stderr
            if (found := re.search(r"listening on ws://([\d.:]+)/", line))
        )
        threading.Thread(target=process.stderr.read, daemon=True).start()

        async def connect():
            tabs = await AsyncHTTPClient().fetch(f"http://{address}/json")
            tab = next(t for t in json.loads(tabs.body) if t["type"] == "page")
            return await websocket_connect(tab["webSocketDebuggerUrl"], max_message_size=2**28)

        socket = loop.run_until_complete(connect())
        page = Page(loop, socket)
        page.send("Page.enable")
        yield page
        socket.close()
    finally:
        process.terminate()
        process.wait(20)
        loop.close()
