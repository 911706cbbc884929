"""The page in a headless Chromium, as voters use it."""

from __future__ import annotations

import base64
import io
import json
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ras_dit.study import Ballot, Pair, Study, StudyConfig, build_study, read_ballots, tally
from ras_dit.study.server import PageOutline, StudyServer
from study.browser import Browser, browser, programs, wait_until
from study.conftest import NUM_PAIRS, colour, film, page_data

NUM_SCREENS = NUM_PAIRS + 3
MIDDLE = """
    const box = document.querySelector("{}").getBoundingClientRect();
    const [x, y] = [(box.left + box.right) / 2, (box.top + box.bottom) / 2];
"""
SMALL_PHONE, PHONE, DESKTOP = (320, 568), (390, 844), (1280, 800)

pytestmark = pytest.mark.skipif(
    programs() is None, reason="no chromium and chromedriver here (on Debian: apt-get install chromium chromium-driver)"
)


@pytest.fixture(scope="module")
def window(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with ExitStack() as stack:
        try:
            found = stack.enter_context(browser(tmp_path_factory.mktemp("browser")))
        except (OSError, RuntimeError) as error:  # such as a driver of another version
            pytest.skip(f"chromium does not start here: {error}")
        yield found


@pytest.fixture
def page(window: Browser, study: Study, tmp_path: Path) -> Iterator[Browser]:
    """The study's page, just opened by somebody who never saw it, from a file."""
    study.save(tmp_path / "study")
    window.resize(*DESKTOP)
    window.open((tmp_path / "study" / "study.html").as_uri())
    window.run("localStorage.clear()")
    window.open((tmp_path / "study" / "study.html").as_uri())
    yield window
    assert window.logs() == [], "nothing was refused or failed"
    window.run("localStorage.clear()")


def wait_for_screen(window: Browser, number: int, total: int = NUM_SCREENS) -> None:
    window.wait(
        f"document.getElementById('progress').textContent === '{number} of {total}'"
        " && document.getElementById('trial').dataset.ready === 'true'"
    )


def shown(window: Browser, side: str) -> int:
    """The colour of a picture on the screen."""
    script = f"""
        const canvas = document.createElement("canvas").getContext("2d");
        canvas.drawImage(document.querySelector("#show-{side} > #{side}"), 0, 0);
        return canvas.getImageData(0, 0, 1, 1).data[0];
    """
    return int(window.run(script))


def on_top(window: Browser, selector: str) -> str:
    """Id of what is seen in the middle of an element."""
    return str(window.run(f"{MIDDLE.format(selector)} return document.elementFromPoint(x, y).id"))


def screenshot(window: Browser, *selectors: str) -> list[tuple[int, int]]:
    """Red and green in the middle of elements, all at one moment: which video is there, and its frame."""
    middles = [window.run(f"{MIDDLE.format(selector)} return [x, y]") for selector in selectors]
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(window.do("GET", "/screenshot")))).convert("RGB"))
    colours = [pixels[int(y), int(x)] for x, y in middles]
    return [(int(red), round(int(green) / 20)) for red, green, _ in colours]


def frames_in_step(window: Browser) -> list[int]:
    """Frames that both sides show, while they show three others; both sides show the same one at any moment."""
    frames: list[int] = []

    def has_moved() -> bool:
        (_, left), (_, right) = screenshot(window, "#left", "#right")
        assert left == right, f"after {frames}"
        frames.append(left)
        return len(set(frames)) >= 4

    wait_until(has_moved, "videos that move")
    return frames


def download(window: Browser, folder: Path) -> dict:
    """What the download button gives."""
    window.do("POST", "/goog/cdp/execute", {"cmd": "Browser.setDownloadBehavior", "params": download_to(folder)})

    def whole() -> set[Path]:  # beside them lie those that are under way, and empty ones that keep a name
        return {path for path in folder.glob("*.json") if path.stat().st_size}

    before = whole()
    window.run("[...document.querySelectorAll('.download')].find((button) => button.offsetParent).click()")
    wait_until(lambda: bool(whole() - before), "the download")
    (path,) = whole() - before
    return json.loads(path.read_text(encoding="utf-8"))


def download_to(folder: Path) -> dict:
    folder.mkdir(exist_ok=True)
    return {"behavior": "allow", "downloadPath": str(folder)}


def test_a_whole_study(page: Browser, study: Study, tmp_path: Path) -> None:
    """One who always prefers the darker picture, which is dense, by keys, buttons and a change of mind."""
    assert page.text("#welcome h1") == "Which picture is better?"
    page.type("#name", "Ann 2")
    page.click("#start")
    keys = {"left": ("left", "1"), "equal": ("space", "2"), "right": ("right", "3")}
    for number in range(1, NUM_SCREENS + 1):
        wait_for_screen(page, number)
        left, right = shown(page, "left"), shown(page, "right")
        side = "equal" if left == right else "left" if left < right else "right"
        if number == 2:
            page.press("3" if side != "right" else "1")  # by mistake
            wait_for_screen(page, 3)
            page.press("backspace")
            wait_for_screen(page, 2)
        if number % 3:
            page.press(keys[side][number % 2])
        else:
            page.click(f"#choose-{side}")
    page.wait("!document.getElementById('end').hidden")
    assert page.text("#end-count") == f"You have judged all {NUM_SCREENS} pairs."
    votes = tmp_path / "votes.json"
    votes.write_text(json.dumps(download(page, tmp_path / "downloads")))
    found = read_ballots([votes], study.key.study, study.key.trial_ids)
    assert not found.notes
    results = tally(study.key, found.ballots)
    assert results.voters[0].label == "Ann 2"
    assert (results.tally.win, results.tally.tie, results.tally.loss) == (0, 0, NUM_PAIRS)
    assert (results.same.count, results.same.total, results.reversed.count) == (2, 2, 0)
    assert (results.caught.count, results.caught.total) == (1, 1)
    sides = {vote.trial: vote.left for vote in found.ballots[0].votes}
    ours_left = [sides[trial.id] == trial.ours for trial in study.key.trials if trial.kind == "pair"]
    assert sum(ours_left) == NUM_PAIRS // 2, "balanced for every voter"
    first = {trial.pair: trial.id for trial in study.key.trials if trial.kind == "pair"}
    for trial in study.key.trials:
        if trial.kind == "repeat":
            order = [vote.trial for vote in found.ballots[0].votes]
            assert sides[trial.id] != sides[first[trial.pair]], "sides are swapped"
            assert order.index(trial.id) > order.index(first[trial.pair])


def stored(page: Browser) -> list[Any]:
    """The voter whose votes this browser keeps, and how many."""
    script = "const state = JSON.parse(localStorage.getItem(Object.keys(localStorage)[0]) || '{}');"
    found: list[Any] = page.run(f"{script} return [state.voter, Object.keys(state.answers || {{}}).length]")
    return found


def test_coming_back_loses_nothing(page: Browser, tmp_path: Path) -> None:
    """Chromium with a fresh profile now and then forgets what is stored, or gives what was there before, whoever stores
    it: then once more."""
    for _ in range(10):
        page.type("#name", "Ben")
        page.click("#start")
        for number in (1, 2, 3):
            wait_for_screen(page, number)
            page.press("space")
        wait_for_screen(page, 4)
        before, kept = (shown(page, "left"), shown(page, "right")), stored(page)
        assert kept[1] == 3
        page.do("POST", "/refresh", {})
        if stored(page) == kept:
            break
        page.run("localStorage.clear()")
        page.do("POST", "/refresh", {})
    wait_for_screen(page, 4)
    assert (shown(page, "left"), shown(page, "right")) == before
    votes = download(page, tmp_path / "downloads")
    assert votes["name"] == "Ben"
    assert [vote["choice"] for vote in votes["votes"]] == ["equal"] * 3


def test_every_voter_has_another_order(page: Browser) -> None:
    orders = set()
    for _ in range(5):
        page.run("localStorage.clear()")
        page.do("POST", "/refresh", {})
        key = "localStorage.getItem(Object.keys(localStorage)[0])"
        state = json.loads(page.run(f"return {key}"))
        orders.add(tuple(entry["trial"] for entry in state["order"]))
        assert len(state["order"]) == NUM_SCREENS
    assert len(orders) == 5


def test_next_voter_only_when_votes_are_safe(page: Browser, tmp_path: Path) -> None:
    page.click("#start")
    for number in range(1, NUM_SCREENS + 1):
        wait_for_screen(page, number)
        page.press("1")
    page.wait("!document.getElementById('end').hidden")
    assert page.run("return document.getElementById('next-voter').disabled")
    first = download(page, tmp_path / "downloads")
    page.click("#next-voter")
    page.wait("!document.getElementById('welcome').hidden")
    page.click("#start")
    wait_for_screen(page, 1)
    page.press("1")
    wait_for_screen(page, 2)
    second = download(page, tmp_path / "downloads")
    assert first["voter"] != second["voter"]
    assert (len(first["votes"]), len(second["votes"])) == (NUM_SCREENS, 1)


@pytest.mark.parametrize("size", [DESKTOP, PHONE, SMALL_PHONE, SMALL_PHONE[::-1]])
def test_everything_is_on_the_screen(page: Browser, size: tuple[int, int]) -> None:
    page.resize(*size, is_phone=size != DESKTOP)
    page.click("#start")
    wait_for_screen(page, 1)
    for selector in ("#left", "#right", "#choose-left", "#choose-equal", "#choose-right", "#undo", "#prompt"):
        box = page.run(f"return document.querySelector('{selector}').getBoundingClientRect().toJSON()")
        assert box["left"] >= 0, selector
        assert box["top"] >= 0, selector
        assert box["right"] <= size[0], selector
        assert box["bottom"] <= size[1], selector
    left, right = (
        page.run(f"return document.getElementById('{side}').getBoundingClientRect().toJSON()")
        for side in ("left", "right")
    )
    assert (left["width"], left["height"]) == (right["width"], right["height"])
    if size[0] < size[1]:
        assert left["bottom"] <= right["top"], "one above the other"
        assert page.text("#choose-left").startswith("Upper")
    else:
        assert left["right"] <= right["left"], "side by side"
        assert page.text("#choose-left").startswith("Left")
    assert min(left["width"], left["height"]) >= 48


def test_enlarged_pictures(page: Browser) -> None:
    page.click("#start")
    wait_for_screen(page, 1)
    page.click("#show-right")
    page.wait("document.getElementById('zoom').open")
    assert page.text("#zoom-label") == "Right picture"
    assert on_top(page, "#zoom-pictures img") == "right"
    page.press("left")
    assert page.text("#zoom-label") == "Left picture"
    assert on_top(page, "#zoom-pictures img") == "left"
    page.press("escape")
    page.wait("!document.getElementById('zoom').open")
    wait_for_screen(page, 1)
    page.wait("document.querySelector('#show-left > #left') && document.querySelector('#show-right > #right')")
    page.click("#show-left")
    page.wait("document.getElementById('zoom').open")
    assert on_top(page, "#zoom-pictures img") == "left"
    page.click("#zoom-pictures")
    page.wait("!document.getElementById('zoom').open")


def test_videos_run_in_step(window: Browser, tmp_path: Path) -> None:
    """From their first moment, enlarged and back, and when they are shown again."""
    pairs = []
    for index in range(2):
        paths = [tmp_path / name / f"{index}.png" for name in ("ras", "dense")]
        for path in paths:
            film(path, colour(path.parent.name, index), duration=100, num_frames=12)
        pairs.append(Pair(str(index), *paths))
    study = build_study(pairs, "ras", "dense", StudyConfig(num_repeats=1, num_catches=1))
    study.save(tmp_path / "study")
    total = len(study.key.trials)
    window.resize(*DESKTOP)
    window.open((tmp_path / "study" / "study.html").as_uri())
    assert window.text("#welcome h1") == "Which video is better?"
    assert "You will see 4 pairs of videos." in window.text("#welcome")
    window.click("#start")
    for number in range(1, total + 1):
        wait_for_screen(window, number, total)
        reds = [red for red, _ in screenshot(window, "#left", "#right")]
        assert reds == [shown(window, side) for side in ("left", "right")]
        frames_in_step(window)
        if number == 2:
            window.press("backspace")
            wait_for_screen(window, 1, total)
            frames_in_step(window)
            window.press("1")
            wait_for_screen(window, 2, total)
            assert [red for red, _ in screenshot(window, "#left", "#right")] == reds
        window.click("#show-right")
        window.wait("document.getElementById('zoom').open")
        assert window.text("#zoom-label") == "Right video"
        assert screenshot(window, "#zoom-pictures")[0][0] == reds[1]
        window.press("left")
        assert screenshot(window, "#zoom-pictures")[0][0] == reds[0]
        window.press("escape")
        window.wait("document.querySelector('#show-left > #left')")
        frames_in_step(window)
        window.press("1")
    window.wait("!document.getElementById('end').hidden")
    assert window.logs() == []
    window.run("localStorage.clear()")


def test_served_page_sends_votes(window: Browser, study: Study, tmp_path: Path) -> None:
    """Every vote is with the organiser at once; what could not be sent is sent later."""
    study.save(tmp_path / "study")
    heard: list[Ballot] = []
    votes = tmp_path / "study" / "votes"
    server = StudyServer(PageOutline.load(tmp_path / "study" / "study.html"), votes, on_ballot=heard.append)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        window.resize(*DESKTOP)
        window.open(server.url)
        window.type("#name", "Cleo")
        window.click("#start")
        wait_for_screen(window, 1)
        window.press("left")
        wait_until(lambda: [len(ballot.votes) for ballot in heard] == [1], "the first vote")
        window.wait("document.querySelector('#trial .status').textContent === 'Votes saved.'")
        window.run("window.kept = window.fetch; window.fetch = () => Promise.reject(new Error('away'))")
        wait_for_screen(window, 2)
        window.press("right")
        window.wait("document.querySelector('#trial .status').textContent.startsWith('Not sent yet')")
        assert len(download(window, tmp_path / "copy")["votes"]) == 2  # a copy: they are sent all the same
        window.run("window.fetch = window.kept")
        wait_until(lambda: [len(ballot.votes) for ballot in heard] == [1, 2], "the second vote, sent again")
        assert window.logs() == []
    finally:
        server.shutdown()
        thread.join()
        server.stop()
    (path,) = votes.iterdir()
    (found,) = read_ballots([path], study.key.study, study.key.trial_ids).ballots
    assert found.name == "Cleo"
    assert len(found.votes) == 2


def test_pictures_are_those_of_the_page(page: Browser, study: Study) -> None:
    page.click("#start")
    wait_for_screen(page, 1)
    state = json.loads(page.run("return localStorage.getItem(Object.keys(localStorage)[0])"))
    entry = state["order"][0]
    trial = next(trial for trial in study.key.trials if trial.id == entry["trial"])
    data = next(found for found in page_data(study.html)["trials"] if found["id"] == trial.id)
    assert page.text("#prompt") == f"“{data['prompt']}”"
    if trial.ours is not None:
        ours_side = "left" if entry["left"] == trial.ours else "right"
        assert shown(page, ours_side) == colour("ras", trial.pair)
