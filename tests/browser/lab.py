"""A private Jupyter server, and a notebook opened on it in a headless Chromium: in JupyterLab, or in Notebook 7."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, ConsoleMessage, FloatRect, Locator, Page, Request, sync_playwright

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking"]
# No test has a network: nothing is found but what runs here.
FLAGS += ["--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1"]
# Every cell is drawn, whether or not it is scrolled into view; no news from outside.
SETTINGS = {
    "@jupyterlab/notebook-extension:tracker": {"windowingMode": "none"},
    "@jupyterlab/apputils-extension:notification": {
        "fetchNews": "false",
        "checkForUpdates": False,
        "doNotDisturbMode": True,
    },
    "@jupyterlab/docmanager-extension:plugin": {"autosave": False},
}
# Any JupyterLab page says these, the last two any of Notebook 7 that starts: they are not about the notebook. Its file
# browser, which it does not show, opens the folder of the notebook by a command that may not be there yet.
USUAL = ("favicon", "ResizeObserver loop", "/lsp/status", "Third-party cookie", "api/me", "Autofill.")
USUAL += ("undefined (reading 'schema')", "'filebrowser:open-path' not registered")
# Of all that lies above and in the notebook.
HEIGHT = """() => {
  document.activeElement?.blur();
  const outer = document.querySelector('.jp-WindowedPanel-outer');
  outer.scrollTo(0, 0);
  return Math.ceil(Math.max(...[...outer.querySelectorAll('.jp-Cell')].map((c) => c.getBoundingClientRect().bottom)));
}"""
DRAWN = """async () => {
  await document.fonts.ready;
  for (let frame = 0; frame < 4; frame++) await new Promise((next) => requestAnimationFrame(next));
}"""
PANEL = """() => {
  const find = (area) => [...(window.jupyterapp?.shell.widgets(area) ?? [])];
  return find('main').find((widget) => widget.content?.model && widget.sessionContext);
}"""


def find_chromium() -> str | None:
    """QNB_CHROMIUM, else one of this machine, else the one that playwright brought."""
    names = ("chromium", "chromium-browser", "google-chrome")
    found = os.environ.get("QNB_CHROMIUM") or next(filter(None, map(shutil.which, names)), None)
    if found:
        return found
    with sync_playwright() as playwright:
        path = playwright.chromium.executable_path
    return path if Path(path).exists() else None


@dataclass
class Server:
    """A running JupyterLab, voila or marimo with its own folders."""

    port: int
    token: str
    root: Path
    log: Path
    process: subprocess.Popen[bytes]

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}/{path}?reset&token={self.token}"

    def end_kernels(self, path: str) -> None:
        """Of this notebook: what they still do would slow down what comes next."""
        with urllib.request.urlopen(self.url("api/sessions"), timeout=30) as answer:
            sessions = [session["id"] for session in json.load(answer) if session["path"] == path]
        for session in sessions:
            request = urllib.request.Request(self.url(f"api/sessions/{session}"), method="DELETE")
            urllib.request.urlopen(request, timeout=30).close()

    def answers(self) -> bool:
        try:
            urllib.request.urlopen(self.url("api/status"), timeout=2).close()
        except urllib.error.HTTPError:
            return True  # voila and marimo have no such page
        except OSError:
            return False
        return True


@contextlib.contextmanager
def serve(folder: Path, environment: dict[str, str]) -> Iterator[Server]:
    """Start JupyterLab on `folder/root`, with all it writes below `folder`; stop it with its kernels."""
    (folder / "config" / "labconfig").mkdir(parents=True)
    (folder / "config" / "labconfig" / "default_setting_overrides.json").write_text(json.dumps(SETTINGS))
    token = secrets.token_hex(16)
    command = ["jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1"]
    command += ["--ServerApp.port_retries=0", f"--IdentityProvider.token={token}", "--LabApp.news_url="]
    command += [f"--ServerApp.root_dir={folder / 'root'}", "--ServerApp.terminals_enabled=False"]
    command += [f"--{app}.expose_app_in_browser=True" for app in ("LabApp", "JupyterNotebookApp")]
    command += ["--LabApp.extension_manager=readonly"]
    with _running(folder, environment, token, command) as server:
        yield server


@contextlib.contextmanager
def serve_voila(folder: Path, environment: dict[str, str]) -> Iterator[Server]:
    """Start voila on the notebooks in `folder/root`: each is a page below `voila/render/`."""
    with _running(folder, environment, "", ["voila", "--no-browser", "--Voila.ip=127.0.0.1", "."]) as server:
        yield server


@contextlib.contextmanager
def serve_marimo(folder: Path, environment: dict[str, str], app: str) -> Iterator[Server]:
    """Start marimo on an app in `folder/root`: it is the page."""
    command = ["marimo", "run", app, "--headless", "--no-token", "--host=127.0.0.1"]
    with _running(folder, environment, "", command) as server:
        yield server


@contextlib.contextmanager
def _running(folder: Path, environment: dict[str, str], token: str, command: list[str]) -> Iterator[Server]:
    (folder / "root").mkdir(exist_ok=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", *command, f"--port={port}"]
    log = folder / "server.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, env=_environment(folder) | environment, cwd=folder / "root", stdout=output, stderr=output
        )
    server = Server(port, token, folder / "root", log, process)
    try:
        _wait_until_it_answers(server)
        yield server
    finally:
        process.send_signal(signal.SIGTERM)  # it stops its kernels first
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _environment(folder: Path) -> dict[str, str]:
    names = ("JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "JUPYTERLAB_SETTINGS_DIR", "JUPYTERLAB_WORKSPACES_DIR")
    own = {name: str(folder / name.lower()) for name in (*names, "IPYTHONDIR")}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    return (
        os.environ | own | {"JUPYTER_CONFIG_DIR": str(folder / "config"), "JUPYTER_PREFER_ENV_PATH": "1", "PATH": path}
    )


def _wait_until_it_answers(server: Server) -> None:
    end = time.monotonic() + 60
    while not server.answers():
        if server.process.poll() is not None or time.monotonic() > end:
            raise RuntimeError(f"the server does not answer:\n{server.log.read_text()[-3000:]}")
        time.sleep(0.1)


@dataclass
class Notebook:
    """A notebook in the browser. `console` has the errors that the page reported, `outside` what it asked of others."""

    page: Page
    server: Server
    path: str
    console: list[str] = field(default_factory=list)
    outside: list[str] = field(default_factory=list)

    def ask(self, expression: str, argument: Any = None) -> Any:
        """The value of a JavaScript expression in which `panel` is the notebook's panel and `app` the application."""
        code = f"(argument) => {{ const app = window.jupyterapp; const panel = ({PANEL})(); return {expression}; }}"
        return self.page.evaluate(code, argument)

    def wait(self, expression: str, seconds: float = 30) -> None:
        """Until a JavaScript expression is true."""
        code = f"() => {{ const app = window.jupyterapp; const panel = ({PANEL})(); return {expression}; }}"
        self.page.wait_for_function(code, timeout=seconds * 1000)

    def start(self) -> None:
        """Run all cells, without waiting for them."""
        self.ask("void app.commands.execute('notebook:run-all-cells').catch(() => null)")

    def run_all(self, seconds: float = 90) -> None:
        """Run all cells to their end."""
        self.start()
        self.wait_for_end(seconds)

    def wait_for_end(self, seconds: float = 90) -> None:
        """Until every cell has run."""
        cells = "panel.content.widgets.filter((cell) => cell.model.type === 'code' && cell.model.sharedModel.source)"
        self.wait(f"{cells}.every((cell) => cell.model.executionCount !== null)", seconds)
        self.wait("panel.sessionContext.session?.kernel?.status === 'idle'", seconds)

    def failed_cells(self) -> list[str]:
        """The errors in outputs, but for cells that are meant to fail."""
        cells = self.ask("panel.content.widgets.map((cell) => cell.model.toJSON())")
        return [
            f"{output['ename']}: {output['evalue']}"
            for cell in cells
            if "raises-exception" not in cell["metadata"].get("tags", [])
            for output in cell.get("outputs", [])
            if output["output_type"] == "error"
        ]

    def save(self) -> dict[str, Any]:
        """Save through JupyterLab, and read the file."""
        self.page.evaluate("() => window.jupyterapp.commands.execute('docmanager:save')")
        saved: dict[str, Any] = json.loads((self.server.root / self.path).read_text())
        return saved

    def leave(self) -> None:
        """Close it; a page in which something is left is closed too."""
        if self.page.evaluate("() => Boolean(window.jupyterapp)"):
            self.ask("panel.dispose()")
            if is_free(self.page):
                return
        self.page.close()

    def show(self, *, dark: bool, width: int, height: int = 900) -> None:
        """In this theme, in a window of this size."""
        theme = "JupyterLab Dark" if dark else "JupyterLab Light"
        self.page.set_viewport_size({"width": width, "height": height})
        self.ask("app.commands.execute('apputils:change-theme', {theme: argument})", theme)
        self.page.wait_for_function(f"() => document.body.dataset.jpThemeName === '{theme}'")
        self.wait_until_drawn()

    def wait_until_drawn(self) -> None:
        """Until style sheets and fonts are there, and what a new size changes has been drawn twice."""
        self.page.evaluate(DRAWN)

    def take_picture(self, target: Path, first: Locator | None = None, last: Locator | None = None) -> None:
        """Of the whole notebook, as high as it is; or from the top of one element to the bottom of another."""
        size = self.page.viewport_size or {"width": 1200, "height": 900}
        for _ in range(2):  # what is drawn only once it can be seen makes the page higher
            height = min(16000, max(300, self.page.evaluate(HEIGHT) + 40))
            self.page.set_viewport_size({"width": size["width"], "height": height})
            self.wait_until_drawn()
        self.page.evaluate("() => document.querySelector('.jp-WindowedPanel-outer').scrollTo(0, 0)")
        target.parent.mkdir(parents=True, exist_ok=True)
        upper, lower = (None if each is None else each.bounding_box() for each in (first, last))
        clip: FloatRect | None = None
        if upper is not None and lower is not None:
            height = lower["y"] + lower["height"] - upper["y"]
            clip = {"x": upper["x"], "y": upper["y"], "width": upper["width"], "height": height}
        self.page.screenshot(path=str(target), clip=clip)
        self.page.set_viewport_size(size)


@contextlib.contextmanager
def open_notebook(
    server: Server, browser: Browser, path: str, *, fresh: bool = False, classic: bool = False
) -> Iterator[Notebook]:
    """Open a notebook that lies under the server's root; ready when its kernel is idle.

    In the page that the one before left, since loading JupyterLab takes longer than most tests; `fresh`: in a new one.
    `classic`: in Notebook 7, which has a page of its own for each notebook.
    """
    fresh = fresh or classic
    page = new_page(browser) if classic else _take_page(server, browser, fresh)
    notebook = Notebook(page, server, path)

    def on_console(message: ConsoleMessage) -> None:
        text = f"{message.text} ({(message.location or {}).get('url', '')})"
        if message.type == "error" and not any(usual in text for usual in USUAL):
            notebook.console.append(text)

    def on_error(error: object) -> None:
        if not any(usual in str(error) for usual in USUAL):
            notebook.console.append(f"uncaught: {error}")

    def on_request(request: Request) -> None:
        if not request.url.startswith((f"http://127.0.0.1:{server.port}/", "data:", "blob:")):
            notebook.outside.append(request.url)

    page.on("console", on_console)
    page.on("pageerror", on_error)
    page.on("request", on_request)
    try:
        if classic:
            page.goto(server.url(f"notebooks/{path}"), wait_until="domcontentloaded")
        else:
            notebook.ask("void app.commands.execute('docmanager:open', {path: argument})", path)
        notebook.wait(f"panel?.context.path === {path!r}", 60)
        notebook.wait("panel.sessionContext.session?.kernel?.status === 'idle'", 60)
        yield notebook
    except BaseException:
        page.close()
        raise
    page.remove_listener("console", on_console)
    page.remove_listener("pageerror", on_error)
    page.remove_listener("request", on_request)
    if fresh:
        page.context.close()
    else:
        notebook.leave()


def _take_page(server: Server, browser: Browser, fresh: bool) -> Page:
    """A page of JupyterLab in which no document is open."""
    pages = [page for context in browser.contexts for page in context.pages]
    empty = (page for page in pages if page.url.startswith(server.url("").split("?")[0]) and is_free(page))
    page = None if fresh else next(empty, None)
    if page is None:
        page = new_page(browser)
        page.goto(server.url("lab"), wait_until="domcontentloaded")
        page.wait_for_function("() => window.jupyterapp?.commands.hasCommand('docmanager:open')")
        page.evaluate("() => window.jupyterapp.restored")
        page.evaluate("() => window.jupyterapp.commands.execute('application:set-mode', {mode: 'single-document'})")
        page.evaluate("() => window.jupyterapp.shell.collapseLeft()")
    page.set_viewport_size({"width": 1200, "height": 900})
    return page


def new_page(browser: Browser) -> Page:
    """In a context of its own: of two pages in one, JupyterLab would load the second anew, for another workspace."""
    page = browser.new_context(viewport={"width": 1200, "height": 900}).new_page()
    page.set_default_timeout(120_000)
    return page


def is_free(page: Page) -> bool:
    """Whether a page of JupyterLab was left with nothing in it."""
    free: bool = page.evaluate(f"() => !({PANEL})() && !document.querySelector('.jp-Dialog')")
    return free


@contextlib.contextmanager
def launch(executable: str) -> Iterator[Browser]:
    """A headless Chromium."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, headless=True, args=FLAGS)
        try:
            yield browser
        finally:
            browser.close()
