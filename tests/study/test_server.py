"""The server takes votes of its own study from its own page, and nothing else."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from ras_dit.study import Ballot, Study, read_ballots
from ras_dit.study import server as module
from ras_dit.study.server import PageOutline, StudyServer
from study.conftest import ballot


class Running:
    """A server in a thread, and the ballots that it told of."""

    def __init__(self, study: Study, folder: Path) -> None:
        study.save(folder)
        self.heard: list[Ballot] = []
        self.votes = folder / "votes"
        self.server = StudyServer(PageOutline.load(folder / "study.html"), self.votes, on_ballot=self.heard.append)
        self.host = f"127.0.0.1:{self.server.server_address[1]}"

    def ask(self, method: str, path: str, body: bytes | None = None, **headers: str) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(self.host, timeout=30)
        try:
            connection.request(method, path, body, {name.replace("_", "-"): text for name, text in headers.items()})
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def vote(self, values: object, **headers: str) -> int:
        status, _ = self.ask("POST", "/votes", json.dumps(values).encode(), Content_Type="application/json", **headers)
        return status


@pytest.fixture
def running(study: Study, tmp_path: Path) -> Iterator[Running]:
    found = Running(study, tmp_path / "study")
    thread = threading.Thread(target=found.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield found
    found.server.shutdown()
    thread.join()
    found.server.stop()


def test_page_and_nothing_else(running: Running, study: Study) -> None:
    status, page = running.ask("GET", "/")
    assert status == 200
    assert page.decode() == study.html.replace('data-collect=""', 'data-collect="/votes"')
    for path in ("/key.json", "/study.html", "/../key.json", "/votes", "/votes/"):
        assert running.ask("GET", path)[0] == 404
    assert running.server.url == f"http://{running.host}/"


def test_votes_are_kept_whole(running: Running, study: Study) -> None:
    first = ballot(study.key, lambda *_: "win", "Ann", 1)
    first["votes"] = first["votes"][:1]
    assert running.vote(first) == 204
    assert running.vote(ballot(study.key, lambda *_: "win", "Ann", 1)) == 204
    assert running.vote(ballot(study.key, lambda *_: "loss", "Ben", 2)) == 204
    assert [(b.label, len(b.votes)) for b in running.heard] == [("Ann", 1), ("Ann", 9), ("Ben", 9)]
    found = read_ballots([running.votes], study.key.study, study.key.trial_ids)
    assert [(b.label, len(b.votes)) for b in found.ballots] == [("Ann", 9), ("Ben", 9)]
    assert not found.notes
    assert sorted(path.name for path in running.votes.iterdir()) == [f"{voter:032x}.json" for voter in (1, 2)]


def test_many_voters_at_once(running: Running, study: Study) -> None:
    statuses = []
    threads = [
        threading.Thread(
            target=lambda voter=voter: statuses.append(running.vote(ballot(study.key, lambda *_: "tie", "", voter)))
        )
        for voter in range(12)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert statuses == [204] * 12
    assert len(list(running.votes.iterdir())) == 12


def test_refusals(running: Running, study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    good = ballot(study.key, lambda *_: "win")
    body = json.dumps(good).encode()
    assert running.vote({**good, "study": "feed"}) == 400
    assert running.vote({**good, "voter": "../key"}) == 400
    assert running.ask("POST", "/votes", b"{", Content_Type="application/json")[0] == 400
    assert running.ask("POST", "/votes", body, Content_Type="text/plain")[0] == 415, "a form of another site"
    assert running.ask("POST", "/key.json", body, Content_Type="application/json")[0] == 404
    assert running.ask("POST", "/votes", None, Content_Type="application/json", Content_Length="much")[0] == 411
    assert running.ask("POST", "/votes", None, Content_Type="application/json", Content_Length="9999999")[0] == 413
    assert running.vote(good, Origin="http://elsewhere.example") == 403
    assert running.vote(good, Host="elsewhere.example") == 403, "a name that points here"
    assert running.ask("GET", "/", Host="elsewhere.example")[0] == 403
    assert not running.heard
    assert not running.votes.exists()
    assert running.vote(good, Origin=f"http://{running.host}") == 204
    monkeypatch.setattr(module, "MAX_VOTERS", 1)
    assert running.vote(ballot(study.key, lambda *_: "win", voter=2)) == 507
    assert running.vote(good) == 204, "those who have begun may go on"


def test_a_full_disk_is_told(running: Running, study: Study) -> None:
    running.votes.write_text("a file in the way")
    assert running.vote(ballot(study.key, lambda *_: "win")) == 500
    assert not running.heard


def test_longest_ballot_fits(running: Running, study: Study) -> None:
    values = ballot(study.key, lambda *_: "tie", "\U0001f98a" * 80)
    for vote in values["votes"]:
        vote["seconds"] = 1234567.1
    assert len(json.dumps(values, indent=1)) < running.server.page.max_bytes
    assert running.vote(values) == 204


def test_pages_are_checked(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="build a study first"):
        PageOutline.load(tmp_path / "study.html")
    (tmp_path / "study.html").write_text("<!doctype html>")
    with pytest.raises(ValueError, match="no page of a study"):
        PageOutline.load(tmp_path / "study.html")
