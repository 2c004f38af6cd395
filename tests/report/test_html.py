import base64
import hashlib
import json
import re
from dataclasses import replace
from html import unescape
from pathlib import Path
from types import SimpleNamespace

import effbench_plugins.site
import numpy as np
import pandas as pd
import pytest
from effbench_plugins.site import HtmlReporter
from effbench_plugins.site.data import site_data, tidy
from effbench_plugins.site.judged import claim_data, front_data
from effbench_plugins.site.page import page, script_json

from effbench.board.frame import tidy as frame_of
from effbench.board.leaderboard import build
from effbench.plugin import Summary
from effbench.plugin.discovery import discover
from tests.board import test_scaling as grown
from tests.board import test_world_sizes as spread
from tests.board.test_leaderboard import SETTINGS, board_of, trials
from tests.records import make_cell, make_record

HOSTILE = "</script><script>alert(1)</script><!-- \"'`&amp; \u202egnp.\x1b[31m\u2028" + "x" * 3000


@pytest.fixture(scope="module")
def catalog():
    return discover()


@pytest.fixture(scope="module")
def hostile_board():
    """Text of every kind that a record can hold, and a figure that is none."""
    cell = make_cell(HOSTILE, techniques=((HOSTILE, {HOSTILE: HOSTILE}),), option_axes={f"{HOSTILE}.rank": HOSTILE})
    bad = {"train.tokens_per_s": Summary(median=float("nan"), unit=HOSTILE), HOSTILE: Summary(median=1.0, unit=HOSTILE)}
    lost = make_record(cell=make_cell("lost"), status="failed", error=HOSTILE, metrics={}, quality=None)
    odd = [make_record(cell=cell, round_number=r, metrics=bad, leaks=HOSTILE, dirty=HOSTILE) for r in (1, 2, 3)]
    return board_of([*trials(), *odd, lost])


def data_of(html):
    [text] = re.findall(r'<script type="application/json" id="data">(.*?)</script>', html, re.S)
    return json.loads(text)


def test_the_page_is_found_by_its_name(catalog):
    assert catalog.text_reporter("html").file == "index.html"


def test_data_are_the_board_s(catalog):
    board = board_of(trials())
    [found] = site_data([board], catalog)["boards"]
    assert found["rows"]["stack"] == board.rows["stack"].tolist()
    fast = found["rows"]["stack"].index("fast")
    speed = {part: column[fast] for part, column in found["values"]["train_speed"].items()}
    assert speed["ratio"] == pytest.approx(2, rel=0.02)
    assert speed["low"] < speed["ratio"] < speed["high"]
    assert speed["verdict"] == "FASTER"
    [cell] = found["details"][fast]["cells"]
    assert cell["round"] == [1, 2, 3]
    rates = board.table.rows[[row.label for row in board.table.rows].index("fast")].values["train.tokens_per_s"]
    assert cell["values"]["train.tokens_per_s"] == pytest.approx([rates[key] for key in sorted(rates)], rel=1e-5)
    assert cell["values"]["parameters.trainable"] == 2_000_000  # the same in every round: once


def test_metrics_are_defined_by_who_measures_them(catalog):
    metrics = site_data([board_of(trials())], catalog)["metrics"]
    assert metrics["train.tokens_per_s"]["definition"] == catalog.metrics()["train.tokens_per_s"].definition
    assert metrics["quality.bits_per_byte"]["definition"]
    assert "infer.kv_cache_bytes" not in metrics  # measured nowhere here


def test_lengths_and_world_sizes_are_there_where_boards_have_them(catalog, tmp_path):
    (tmp_path / "s").mkdir()
    boards = [
        grown.board_of(grown.trials({"full": grown.quadratic, "lean": grown.linear})),
        spread.board_of(spread.trials(spread.ddp_cells()), tmp_path / "s", cores=2),
        board_of(trials()),
    ]
    lengths, ranks, plain = site_data(boards, catalog)["boards"]
    assert sorted(set(lengths["by_length"]["columns"]["seq_len"])) == sorted(grown.LENGTHS)
    assert 4 in ranks["world_sizes"]["columns"]["world_size"]
    assert plain["by_length"] is None
    assert plain["world_sizes"] is None
    assert len({(board["suite"], board["name"]) for board in (lengths, ranks, plain)}) == 3


@pytest.fixture
def results(tmp_path):
    folder = tmp_path / "secret place" / "machine" / "s"
    folder.mkdir(parents=True)
    (folder / "suite.json").write_text(json.dumps(SETTINGS))
    facts = {"cpu": "A <CPU>", "flags": "f", "cores": 2, "memory_gib": 4, "gpus": [], "system": "Linux"}
    (folder.parent / "machine.json").write_text(json.dumps(facts))
    for record in trials():
        (folder / f"{record.cell_id}.r{record.round}.json").write_text(record.model_dump_json())
    return folder.parent.parent


def test_where_a_record_is_counts_from_the_results_folder(results, catalog):
    boards = build(results)
    data = site_data(boards, catalog)
    assert data["boards"][0]["folder"] == "machine/s"
    assert data["machines"]["machine"]["cpu"] == "A <CPU>"
    cell = data["boards"][0]["details"][0]["cells"][0]
    assert cell["files"] == {}  # all are called as cell and round say
    assert data["boards"][0]["common"]["lr"] == 1e-3
    assert data["boards"][0]["common"]["versions"] == {"torch": "2.13.0"}
    html = page(data)
    assert "secret place" not in html
    assert str(results) not in html


def test_odd_file_names_are_told_and_lead_nowhere_else(catalog):
    records = [(Path("/secret/else/odd.json"), record) for record in trials(rounds=1)]
    [found] = site_data(build(frame_of(records), SETTINGS), catalog)["boards"]
    assert found["folder"] == ""
    assert found["details"][0]["cells"][0]["files"] == {"0": "odd.json"}


def test_the_same_records_give_the_same_page(results):
    assert HtmlReporter().render(build(results)) == HtmlReporter().render(build(results))


def test_nothing_in_a_record_ends_or_changes_an_element(hostile_board):
    html = HtmlReporter().render([hostile_board])
    plain = HtmlReporter().render([board_of(trials())])
    for mark in ("<script", "</script", "<!--", "alert(1)"):
        expected = plain.count(mark) + (html.count("alert(1)") if mark == "alert(1)" else 0)
        assert html.count(mark) == expected
    data = data_of(html)
    assert any("</script><script>alert(1)</script>" in name for name in data["boards"][0]["rows"]["stack"])
    text = json.dumps(data, ensure_ascii=False)
    assert not any(mark in text for mark in ("\u202e", "\x1b", "\u2028"))


def test_what_is_no_number_is_null(hostile_board, catalog):
    def refuse(constant):
        raise AssertionError(constant)

    text = script_json(site_data([hostile_board], catalog))
    [board] = json.loads(text, parse_constant=refuse)["boards"]
    place = next(i for i, name in enumerate(board["rows"]["stack"]) if "alert" in name)
    assert board["values"]["train_speed"]["value"][place] is None
    assert tidy([float("nan"), float("-inf"), np.float64(2), 0.1234567891, 1e300]) == [None, None, 2, 0.123457, 1e300]


def test_json_in_a_script_is_ascii_and_comes_back():
    text = script_json({HOSTILE: "\u2028 & <"})
    assert text.isascii()
    assert not set("<>&") & set(text)
    assert json.loads(text) == {HOSTILE: "\u2028 & <"}


def test_the_policy_allows_these_scripts_and_styles_alone():
    html = HtmlReporter().render([board_of(trials())])
    [policy] = map(unescape, re.findall(r'http-equiv="Content-Security-Policy" content="(.*?)"', html))
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'"
    assert "unsafe" not in policy

    def hashes(bodies):
        return {f"'sha256-{base64.b64encode(hashlib.sha256(body.encode()).digest()).decode()}'" for body in bodies}

    assert set(rules["script-src"].split()) == hashes(re.findall(r"<script>(.*?)</script>", html, re.S))
    assert set(rules["style-src"].split()) == hashes(re.findall(r"<style>(.*?)</style>", html, re.S))
    assert " style=" not in html.partition("<style>")[0]


def test_scripts_never_parse_text_as_html():
    for file in (Path(effbench_plugins.site.__file__).parent / "js").glob("*.js"):
        text = file.read_text(encoding="utf-8")
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|\beval\(|new Function", text), (
            file
        )


def test_the_bundled_library_is_the_one_that_is_named():
    folder = Path(effbench_plugins.site.__file__).parent / "vendor"
    said = (folder / "README.md").read_text()
    library = (folder / "chart.umd.min.js").read_bytes()
    assert hashlib.sha256(library).hexdigest() in said
    [version] = re.findall(rb"Chart\.js v([\d.]+)", library[:100])
    assert f") {version.decode()}, MIT" in said
    assert "MIT License" in (folder / "LICENSE.md").read_text()


def test_a_claim_and_what_it_stands_on():
    claim = SimpleNamespace(
        source="A et al. 2021", says="it is faster", stack="fast", metric="train.tokens_per_s",
        relation="ratio to baseline above", value=1.5, where={"seq_len": 64},
    )  # fmt: skip
    judged = SimpleNamespace(
        claim=claim, verdict="SUPPORTED", evidence="2.0× [1.9, 2.1]", estimate=2.0, low=1.9, high=2.1, rounds=3
    )
    found = claim_data(judged)
    assert found["says"] == "it is faster"
    assert found["verdict"] == "SUPPORTED"
    assert json.loads(found["where"]) == {"seq_len": 64}


def test_a_front_keeps_its_order():
    rows = pd.DataFrame({"stack": ["a", "b"], "probability": [0.9, None], "on_front": [True, False], "dominated_by": ["", "a"]})
    found = tidy(front_data(SimpleNamespace(metrics=("x", "y"), knee="a", rows=rows)))
    assert found["stack"] == ["a", "b"]
    assert found["probability"] == [0.9, None]
    assert found["on_front"] == [True, False]


def palettes():
    """The variables of the light and the dark palette."""
    text = (Path(effbench_plugins.site.__file__).parent / "site.css").read_text(encoding="utf-8")
    blocks = re.findall(r":root(?:\[data-theme=\"dark\"\]|:not\(\[data-theme=\"light\"\]\))? \{(.*?)\}", text, re.S)
    return [dict(re.findall(r"--([\w-]+): (#\w{6})", block)) for block in blocks]


def contrast(one, other):
    """Of two colours, after WCAG 2.2, which defines relative luminance too."""

    def luminance(colour):
        channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    bright, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (bright + 0.05) / (dark + 0.05)


def test_text_has_the_contrast_of_wcag_aa_and_graphics_theirs():
    light, dark, system = palettes()
    assert dark == system  # chosen or asked for by the system: the same dark
    assert light.keys() == dark.keys()
    for palette in (light, dark):
        for ground in ("page", "raised"):
            for ink in ("text", "muted", "accent", "good", "bad"):
                assert contrast(palette[ink], palette[ground]) >= 4.5, (ink, ground)
        for ink, ground in (("good", "good-soft"), ("bad", "bad-soft"), ("text", "same-soft")):
            assert contrast(palette[ink], palette[ground]) >= 4.5, (ink, ground)
        for name in ["focus", *(f"series-{number}" for number in range(1, 9))]:
            assert contrast(palette[name], palette["page"]) >= 3, name


def many(cells, rounds):
    """Records with as many measured metrics as real ones; every timing differs."""
    rng = np.random.default_rng(0)
    names = [
        "train.peak_memory_bytes", "infer.peak_memory_bytes", "checkpoint.bytes", "checkpoint.sparse_bytes",
        "checkpoint.bits_per_weight", "checkpoint.delta_bytes", "infer.kv_cache_bytes", "train.step_s", "infer.prefill_s",
        "infer.decode_token_s", "train.final_loss",
    ]  # fmt: skip
    base = make_record().metrics
    for place in range(cells):
        stack = "full" if place < 4 else f"stack-with-a-readable-name-{place // 4}"
        cell = make_cell(stack, techniques=() if place < 4 else ((stack, {}),), seq_len=64 * 2 ** (place % 4))
        for number in range(1, rounds + 1):
            metrics = {name: Summary(median=float(rng.lognormal(5, 1)), unit="s") for name in [*base, *names]}
            yield make_record(cell=cell, round_number=number, metrics=metrics, bits=float(rng.normal(2, 0.1)))


def big_site(catalog):
    """Twenty boards of 50 cells and 10 rounds each; nothing is compressed, so copies take what other boards would."""
    board = board_of(many(50, 10))
    return site_data([replace(board, suite=f"suite-{number}") for number in range(20)], catalog)


def test_a_thousand_cells_of_ten_rounds_stay_under_three_megabytes(catalog):
    html = page(big_site(catalog))
    boards = data_of(html)["boards"]
    assert sum(len(cell["round"]) for board in boards for row in board["details"] for cell in row["cells"]) == 10_000
    assert all(len(board["metrics"]) >= 15 for board in boards)
    assert len(html.encode()) < 3_000_000
