"""Report of a run that still goes, served to browsers of this machine: the page asks for changes and renews itself.

The server listens on 127.0.0.1 and answers only requests with the token of its address and with a host name of this
machine, so neither another user without the address nor a page of another site can read the run.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock, Thread
from urllib.parse import parse_qs, urlsplit

from demopsd_dist.report.page import page
from demopsd_dist.report.read_run import read_run
from demopsd_dist.run_record import samples
from demopsd_dist.run_record.folder import RunFolder
from demopsd_dist.util.errors import ConfigError, DataError

HOST = "127.0.0.1"
_PAUSES = 9


class LivePage:
    """Report of a run folder, written again when the folder has changed.

    Writing the page of a long run takes seconds, on a machine that trains: after each writing, changes wait for nine
    times as long, so that it takes at most a tenth of one core. The end of the run does not wait.

    Attributes:
        token: secret that a request must bring.
    """

    def __init__(self, folder: Path) -> None:
        self.token = secrets.token_urlsafe(24)
        self._folder = RunFolder(folder)
        self._lock = Lock()
        self._written: tuple[str, bytes] = ("", b"")
        self._not_before = 0.0  # time from which changes are shown again

    def state(self) -> str:
        """Text that changes when the run has recorded something (a step, an evaluation, samples, its end), and the
        page may be written again."""
        folder = self._folder
        size = folder.metrics.stat().st_size if folder.metrics.is_file() else 0
        done = "done" if folder.summary.is_file() else "running"
        state = f"{done}-{size}-{len(samples.files(folder.samples))}"
        ended = done == "done" and not self._written[0].startswith("done")
        return state if ended or time.monotonic() >= self._not_before else self._written[0]

    def html(self) -> bytes:
        """Page of the present state; the one before it where a file is just being written.

        Raises:
            DataError: as in `read_run`, for the first page.
        """
        with self._lock:
            state = self.state()
            if state != self._written[0]:
                started = time.monotonic()
                try:
                    self._written = state, page([read_run(self._folder.path)], live=state).encode()
                    self._not_before = time.monotonic() + _PAUSES * (time.monotonic() - started)
                except DataError:
                    if not self._written[0]:
                        raise
                    self._not_before = time.monotonic() + _PAUSES * (time.monotonic() - started)
            return self._written[1]


@contextmanager
def serve_page(folder: Path, port: int = 0) -> Iterator[str]:
    """Serve the run's report inside the block; its address, with the token.

    Args:
        port: port on 127.0.0.1; 0 for a free one.

    Raises:
        ConfigError: the port is taken.
    """
    live = LivePage(folder)
    try:
        server = ThreadingHTTPServer((HOST, port), partial(_Handler, live))
    except (OSError, OverflowError) as error:
        reason = error.strerror if isinstance(error, OSError) else "no port has this number"
        raise ConfigError(f"--port {port}: {reason}. Choose another port, or 0 for a free one.") from None
    server.daemon_threads = True
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://{HOST}:{server.server_port}/?token={live.token}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    """Answers for `/` (the page) and `/state` (its state); nothing else is served."""

    def __init__(self, live: LivePage, *args: object) -> None:
        self._live = live
        super().__init__(*args)  # type: ignore[arg-type]

    def do_GET(self) -> None:
        address = urlsplit(self.path)
        given = parse_qs(address.query).get("token", [""])[0]
        if self._foreign_host() or not secrets.compare_digest(given.encode(), self._live.token.encode()):
            self._answer(403, "text/plain", b"open the address that demopsd watch has printed\n")
        elif address.path == "/state":
            self._answer(200, "application/json", json.dumps(self._live.state()).encode())
        elif address.path == "/":
            try:
                self._answer(200, "text/html; charset=utf-8", self._live.html())
            except DataError as error:
                self._answer(503, "text/plain; charset=utf-8", f"{error}\n".encode())
        else:
            self._answer(404, "text/plain", b"there is only /\n")

    def _foreign_host(self) -> bool:
        """Whether the request names another host than this machine: another site's name that leads here."""
        return self.headers.get("Host", "").rpartition(":")[0] not in (HOST, "localhost")

    def _answer(self, code: int, kind: str, body: bytes) -> None:
        self.send_response(code)
        for name, value in (
            ("Content-Type", kind),
            ("Content-Length", str(len(body))),
            ("Cache-Control", "no-store"),
            ("Referrer-Policy", "no-referrer"),
            ("X-Content-Type-Options", "nosniff"),
            ("Cross-Origin-Resource-Policy", "same-origin"),
        ):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: a line for each request would stand among those of the run, with the token."""
