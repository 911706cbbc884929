"""A small server for one page, which writes what its voters send into a folder."""

from __future__ import annotations

import json
import re
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from ras_dit.files import save_text
from ras_dit.study.votes import Ballot, ballot_json, parse_ballot

COLLECT = "/votes"
LOOPBACK = ("127.0.0.1", "localhost")
MAX_VOTERS = 10_000
BYTES_FOR_ALL, BYTES_PER_VOTE = 4096, 512
TIMEOUT = 30.0  # seconds for one read or write of a slow client


@dataclass(frozen=True)
class PageOutline:
    """What a server needs to know of a page.

    Attributes:
        html: the page, told to send votes here.
        study: its id.
        trials: ids of its trials.
    """

    html: bytes
    study: str
    trials: frozenset[str]

    @property
    def max_bytes(self) -> int:
        """Of a request: what every vote needs, and no more."""
        return BYTES_FOR_ALL + BYTES_PER_VOTE * len(self.trials)

    @classmethod
    def load(cls, path: Path) -> PageOutline:
        """Read a page that `study build` wrote.

        Raises:
            ValueError: no such file, or another page.
        """
        if not path.is_file():
            raise ValueError(f"study: got {str(path)!r}, which is no file; build a study first.")
        html = path.read_text(encoding="utf-8")
        _, start, rest = html.partition('<script type="application/json" id="study">')
        text, end, _ = rest.partition("</script>")
        marker = 'data-collect=""'
        if not (start and end and marker in html):
            raise ValueError(f"study: {path} is no page of a study; give the study.html that `study build` wrote.")
        data = json.loads(text)
        collecting = html.replace(marker, f'data-collect="{COLLECT}"', 1)
        return cls(collecting.encode(), data["id"], frozenset(trial["id"] for trial in data["trials"]))


class StudyServer(ThreadingHTTPServer):
    """Serves the page at ``/`` and takes votes at ``/votes``; one file for each voter, replaced by every new vote.

    Args:
        page: what to serve.
        folder: where votes go.
        host: address to listen on.
        port: 0 takes a free one.
        on_ballot: called with every ballot that was saved.
    """

    daemon_threads = True  # a slow client does not hold up the end

    def __init__(
        self,
        page: PageOutline,
        folder: Path,
        host: str = LOOPBACK[0],
        port: int = 0,
        on_ballot: Callable[[Ballot], None] = lambda ballot: None,
    ) -> None:
        self.page, self.folder, self.on_ballot = page, folder, on_ballot
        self.is_local = host in LOOPBACK
        self.saving = threading.Lock()
        super().__init__((host, port), _Handler)

    @property
    def url(self) -> str:
        """Where the page is."""
        return f"http://{self.server_address[0]!s}:{self.server_address[1]}/"

    def save(self, ballot: Ballot) -> bool:
        """Write a ballot whole; False if there are too many voters already."""
        path = self.folder / f"{ballot.voter}.json"
        with self.saving:
            if not path.exists() and len(list(self.folder.glob("*.json"))) >= MAX_VOTERS:
                return False
            save_text(ballot_json(ballot), path)
        self.on_ballot(ballot)
        return True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away, or is too slow, is no error of ours."""
        if not isinstance(sys.exc_info()[1], (ConnectionError, TimeoutError)):
            super().handle_error(request, client_address)

    def stop(self) -> None:
        """Close, after a vote that is being written."""
        self.server_close()
        with self.saving:
            pass


class _Handler(BaseHTTPRequestHandler):
    server: StudyServer
    timeout = TIMEOUT
    server_version, sys_version = "study", ""

    def do_GET(self) -> None:
        if not self._is_welcome():
            self._answer(HTTPStatus.FORBIDDEN, b"not from here")
        elif self.path == "/":
            self._answer(HTTPStatus.OK, self.server.page.html, "text/html; charset=utf-8")
        else:
            self._answer(HTTPStatus.NOT_FOUND, b"only / is here")

    def do_POST(self) -> None:
        page = self.server.page
        length = self.headers.get("Content-Length", "")
        if not self._is_welcome():
            self._answer(HTTPStatus.FORBIDDEN, b"not from here")
        elif self.path != COLLECT:
            self._answer(HTTPStatus.NOT_FOUND, b"votes go to " + COLLECT.encode())
        elif self.headers.get_content_type() != "application/json":
            self._answer(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, b"votes are JSON")
        elif not re.fullmatch("[0-9]{1,9}", length):
            self._answer(HTTPStatus.LENGTH_REQUIRED, b"how long?")
        elif int(length) > page.max_bytes:
            self._answer(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"at most {page.max_bytes} bytes".encode())
        else:
            self._take(self.rfile.read(int(length)))

    def _take(self, body: bytes) -> None:
        try:
            ballot = parse_ballot(body, self.server.page.study, self.server.page.trials, "votes")
        except ValueError as error:
            self._answer(HTTPStatus.BAD_REQUEST, str(error).encode())
            return
        try:
            is_saved = self.server.save(ballot)
        except OSError as error:
            self._answer(HTTPStatus.INTERNAL_SERVER_ERROR, f"could not be saved: {error.strerror}".encode())
            return
        status = HTTPStatus.NO_CONTENT if is_saved else HTTPStatus.INSUFFICIENT_STORAGE
        self._answer(status, b"" if is_saved else b"too many voters")

    def _is_welcome(self) -> bool:
        """No page of another site may send votes, nor reach a local server by a name that points here."""
        host, origin = self.headers.get("Host", ""), self.headers.get("Origin")
        name = host.rsplit(":", 1)[0]
        return (not self.server.is_local or name in LOOPBACK) and origin in (None, f"http://{host}")

    def _answer(self, status: HTTPStatus, body: bytes, kind: str = "text/plain; charset=utf-8") -> None:
        self.close_connection = True  # a body that was refused has not been read
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("X-Frame-Options", "DENY")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Quiet: votes are reported by ``on_ballot``, refusals to the client."""
