"""A real Chromium, one for all tests, and pages opened in it from files, which must stay silent and fetch nothing."""

import os
import shutil
from dataclasses import replace

import pytest
from effbench_plugins.site.data import site_data
from effbench_plugins.site.page import page as render
from playwright.sync_api import sync_playwright

from effbench.plugin import Summary
from effbench.plugin.discovery import discover
from tests.board import test_scaling as grown
from tests.board import test_world_sizes as spread
from tests.board.test_leaderboard import board_of, trials
from tests.records import make_cell, make_record

NAMES = ("chromium", "chromium-browser", "google-chrome")
SPEEDS = {"full": 1000, "double": 2000, "ninefold": 9000, "twelvefold": 12_000, "half": 500, "same": 1000}
"""By text, 12× would stand before 2×."""
CLAIM = {
    "source": "A et al. 2021", "says": "it is faster", "stack": "double", "metric": "train.tokens_per_s",
    "relation": "ratio to baseline above", "value": 1.5, "where": "", "verdict": "SUPPORTED", "evidence": "2.0× [1.9, 2.1]",
    "estimate": 2.0, "low": 1.9, "high": 2.1, "rounds": 3,
}  # fmt: skip


@pytest.fixture(scope="session")
def browser():
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        pytest.fail(f"none of {', '.join(NAMES)} is on the PATH; `make chromium` installs Debian's")
    root = ["--no-sandbox"] if os.geteuid() == 0 else []  # Chromium refuses root its sandbox
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=program, args=root)
        yield chromium
        chromium.close()


@pytest.fixture
def open_page(browser, tmp_path):
    """Opens HTML from a file. At the end: no error, no dialog, and not one request but for the file."""
    opened = []

    def start(html, address="", width=1280, scheme="light", before=None):
        file = tmp_path / f"page{len(opened)}.html"
        file.write_text(html, encoding="utf-8")
        context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
        page = context.new_page()
        page.set_default_timeout(10_000)
        found = []
        page.on("console", lambda message: found.append(f"console {message.type}: {message.text}"))
        page.on("pageerror", lambda error: found.append(f"error: {error}"))
        page.on("request", lambda request: found.append(request.url) if not request.url.startswith(file.as_uri()) else None)
        page.on("dialog", lambda dialog: (found.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        if before:
            page.add_init_script(before)
        opened.append((context, found))
        page.goto(file.as_uri() + address)
        return page

    yield start
    for context, found in opened:
        context.close()
        assert found == []


def plain_board(**changes):
    """Six stacks of which speeds are known, and one that failed."""
    lost = make_record(cell=make_cell("lost"), status="failed", error="Error: of purpose", metrics={}, quality=None)
    memory = {"full": 1000, "double": 500, "ninefold": 2000, "twelvefold": 4000, "half": 400, "same": 1000}
    records = [
        record.model_copy(
            update={
                "metrics": record.metrics | {"train.peak_memory_bytes": Summary(median=memory[record.cell.stack], unit="B")}
            }
        )
        for record in trials(SPEEDS)
    ]
    return replace(board_of([*records, lost]), **changes)


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """Two machines; boards with a single shape, along lengths, and across world sizes."""
    folder = tmp_path_factory.mktemp("results") / "s"
    folder.mkdir()
    long = grown.board_of(grown.trials({"full": grown.quadratic, "lean": grown.linear}))
    wide = spread.board_of(spread.trials(spread.ddp_cells()), folder, cores=2)
    boards = [
        plain_board(machine="one", suite="a"),
        replace(long, machine="one", suite="b"),
        replace(wide, machine="one", suite="c"),
    ]
    found = site_data([*boards, plain_board(machine="two", suite="a", title="a: other machine")], discover())
    found["boards"][0]["claims"] = [
        CLAIM,
        CLAIM | {"verdict": "REFUTED", "says": "it is slower"},
        CLAIM | {"verdict": "NOT-APPLICABLE", "says": "of another model"},
    ]
    found["boards"][0]["front"] = {
        "metrics": ["train.tokens_per_s", "bits_per_byte"],
        "knee": None,
        "stack": ["twelvefold", "half"],
        "probability": [0.98, None],
        "on_front": [True, False],
        "dominated_by": ["", "twelvefold"],
    }
    return found


@pytest.fixture(scope="session")
def html(data):
    return render(data)


def address(data, place=0, row=None):
    """The part behind # of a board's row."""
    board = data["boards"][place]
    return "#" + "/".join([board["machine"], board["suite"], board["name"], *([row] if row else [])])
