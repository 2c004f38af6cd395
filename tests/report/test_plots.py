import ast
import io
import re
import struct
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from xml.etree import ElementTree

import effbench_plugins.plots
import numpy as np
import pytest
from effbench_plugins.plots import PlotsReporter, plots_of
from effbench_plugins.plots.labels import place
from effbench_plugins.plots.style import drawn, styled

from effbench.plugin import InputError, Summary
from effbench.plugin.mark import shows_the_same
from effbench.plugin.reporter import slug
from tests.board import test_scaling as grown
from tests.board import test_world_sizes as spread
from tests.board.test_leaderboard import SETTINGS, board_of, trials
from tests.records import make_cell, make_record

HOSTILE = '$\\alpha_{$ <script>alert(1)</script> & "x" ]]> \x1b[31m\n' + "very " * 40 + "long"


def sized(record, sizes=None, bits=None):
    """The same with checkpoint bytes and a score by stack."""
    stack = record.cell.stack
    changes = {}
    if sizes:
        dense, sparse = sizes[stack]
        bytes_ = {
            "checkpoint.bytes": Summary(median=dense, unit="B"),
            "checkpoint.sparse_bytes": Summary(median=sparse, unit="B"),
        }
        changes["metrics"] = record.metrics | bytes_
    if bits:
        changes["quality"] = record.quality.model_copy(update={"scores": {"bits_per_byte": bits[stack]}})
    return record.model_copy(update=changes)


def board(sizes=None, bits=None, speeds=None, settings=SETTINGS):
    return board_of(
        [sized(record, sizes, bits) for record in trials(speeds or {"full": 1000, "fast": 2000, "same": 1000})], settings
    )


def by_kind(board_):
    return {plot.kind: plot for plot in plots_of(board_)}


def points(plot):
    return {point.label: point for point in plot.data.points}


def hostile_board():
    return board_of(trials({"full": 1000, HOSTILE: 2000, "中文 é": 1500}), SETTINGS)


def text_of(svg):
    return "".join(ElementTree.fromstring(svg).itertext())  # noqa: S314  # our own


def test_only_what_a_board_has_data_for_is_drawn(tmp_path):
    speeds = {"quality-train-speed", "quality-prefill-speed", "quality-decode-speed"}
    assert by_kind(board()).keys() == speeds
    same = {"full": (8000, 8000), "fast": (8000, 8000), "same": (8000, 8000)}
    assert by_kind(board(same)).keys() == speeds
    assert by_kind(board(same | {"fast": (2000, 2000)})).keys() == {*speeds, "compression"}
    assert by_kind(board(same | {"fast": (8000, 2000)})).keys() == {*speeds, "compression-without-zeros"}
    assert by_kind(grown.board_of(grown.trials({"full": grown.quadratic}))).keys() >= {"cost-by-length"}
    (tmp_path / "s").mkdir()
    assert "speedup-by-ranks" in by_kind(spread.board_of(spread.trials(spread.ddp_cells()), tmp_path / "s", cores=2))
    assert PlotsReporter().files([]) == {}


def test_files_are_a_vector_and_a_raster_image_of_the_same_data():
    files = PlotsReporter().files([board()])
    names = {name.rpartition(".")[0] for name in files}
    assert names == {f"plots/machine/s/tiny-llama-on-docs-quality-{speed}-speed" for speed in ("train", "prefill", "decode")}
    for name in names:
        svg, png = files[f"{name}.svg"], files[f"{name}.png"]
        assert {"fast", "same", "full"} <= {*re.findall(r"\w+", text_of(svg))}  # text, not outlines
        assert png.startswith(b"\x89PNG")
        width, height = struct.unpack(">II", png[16:24])
        assert (width, height) == (1184, 768)
        assert shows_the_same("plot.svg", svg, png)


def test_drawing_again_gives_the_same_bytes_and_no_date():
    plot = by_kind(board())["quality-train-speed"]
    first, again = drawn(plot), drawn(plot)
    assert first == again
    assert b"dc:date" not in first["svg"]
    assert b"matplotlib version" not in first["png"].lower()


def test_the_mark_changes_with_the_data_alone():
    plot, same, other = (
        drawn(by_kind(board(speeds={"full": 1000, "fast": fast, "same": 1000}))["quality-train-speed"])
        for fast in (2000, 2000, 3000)
    )
    for ending in ("svg", "png"):
        assert shows_the_same(f"plot.{ending}", plot[ending] + b" ", same[ending])
        assert not shows_the_same(f"plot.{ending}", plot[ending], other[ending])


@pytest.mark.filterwarnings("error")
def test_hostile_names_are_drawn_as_they_are():
    long = grown.board_of(grown.trials({"full": grown.quadratic, HOSTILE: grown.linear}))
    files = PlotsReporter().files([hostile_board(), long])
    assert len(files) == 8
    for name, content in files.items():
        if name.endswith(".svg"):
            text = text_of(content)  # well-formed
            assert "$\\alpha_{$" in text
            assert "\x1b" not in text
            assert b"<script" not in content


def test_names_of_files_are_safe_and_unique(monkeypatch):
    monkeypatch.setattr("effbench_plugins.plots.style.drawn", lambda plot: {"svg": b"", "png": b""})
    boards = [
        board_of([r.model_copy(update={"machine": machine}) for r in trials(cell_changes)], SETTINGS)
        for machine, cell_changes in (("../../etc", {"full": 1000, "x": 2000}), ("..|..|etc", {"full": 1000, "x": 2000}))
    ]
    files = PlotsReporter().files(boards)
    assert len(files) == 12
    assert all(re.fullmatch(r"plots/etc/s/[a-z0-9-]+\.(svg|png)", name) for name in files)


@pytest.mark.parametrize("text", ["", "..", "../..", "/", "中", "a" * 500, ".hidden", "con\x00trol\n", "A B: c/d"])
def test_slugs_are_names_of_files(text):
    assert re.fullmatch(r"[a-z0-9]([a-z0-9.-]{0,78}[a-z0-9])?", slug(text))


def test_points_are_ratios_and_differences_with_their_intervals():
    bits = {"full": 2.0, "fast": 2.1, "same": 1.9}
    found = points(by_kind(board(bits=bits))["quality-train-speed"])
    assert found["full"].baseline
    assert (found["full"].x, found["full"].y) == (1, 0)
    assert found["fast"].x == pytest.approx(2, rel=0.02)
    assert found["fast"].x_ends[0] < found["fast"].x < found["fast"].x_ends[1]
    assert found["fast"].y == pytest.approx(0.1)


def test_compression_is_the_inverse_of_the_ratio_of_bytes():
    found = points(by_kind(board({"full": (8000, 8000), "fast": (2000, 2000), "same": (8000, 8000)}))["compression"])
    assert found["fast"].x == pytest.approx(4)
    assert found["same"].x == 1


def test_the_front_is_of_ranked_stacks_that_none_beats_in_both():
    speeds = {"full": 1000, "fast": 2000, "slow": 500, "worse": 1500, "broken": 3000}
    bits = {"full": 2.0, "fast": 2.02, "slow": 2.01, "worse": 2.05, "broken": 4.0}  # beyond the floor of 1.05
    plot = by_kind(board(bits=bits, speeds=speeds))["quality-train-speed"]
    found = points(plot)
    assert {label for label, point in found.items() if point.front} == {"full", "fast"}
    assert not found["broken"].ranked
    assert plot.data.floor == pytest.approx(0.1)


def test_where_a_higher_score_is_better_the_front_is_at_the_top():
    bits = {"full": 2.0, "fast": 2.1, "same": 1.9}
    settings = SETTINGS | {"quality": {"metric": "bits_per_byte", "better": "higher", "floor": 1.25}}
    plot = by_kind(board(bits=bits, settings=settings))["quality-train-speed"]
    assert {label for label, point in points(plot).items() if point.front} == {"fast"}
    assert plot.data.floor == pytest.approx(2.0 / 1.25 - 2.0)


def test_without_a_common_baseline_score_there_is_no_point_and_no_plot():
    lost = board_of([r.model_copy(update={"quality": None}) for r in trials()], SETTINGS)
    assert plots_of(lost) == []


def test_curves_are_geometric_means_with_intervals():
    long = grown.board_of(grown.trials({"full": grown.quadratic, "lean": grown.linear}, noise=0.001, drift=0))
    panels = {panel.title: panel for panel in by_kind(long)["cost-by-length"].data.panels}
    assert len(panels) == 5
    [full, lean] = sorted(panels["training step (s)"].curves, key=lambda curve: curve.label)
    assert full.baseline
    assert not lean.baseline
    assert full.lengths == tuple(grown.LENGTHS)
    assert full.costs == pytest.approx([grown.quadratic(n) for n in grown.LENGTHS], rel=0.01)
    assert all(low < cost < high for cost, (low, high) in zip(lean.costs, lean.ends, strict=True))
    [decode] = [panel for title, panel in panels.items() if title == "decoded token (ms)"]
    assert max(decode.curves, key=lambda c: c.baseline).costs[0] == pytest.approx(
        1e3 * grown.quadratic(grown.LENGTHS[0]), rel=0.01
    )


def test_speedups_have_the_ideal_and_what_cores_allow(tmp_path):
    (tmp_path / "s").mkdir()
    plot = by_kind(spread.board_of(spread.trials(spread.ddp_cells()), tmp_path / "s", cores=2))["speedup-by-ranks"]
    [ddp] = [stack for stack in plot.data.phases[0].stacks if stack.label == "ddp"]
    assert dict(zip(ddp.ranks, ddp.speedups, strict=True))[4] == pytest.approx(1.6, rel=0.02)
    assert dict(plot.data.bound) == {1: 1, 2: 2, 4: 2}
    assert "ideal" in text_of(drawn(plot)["svg"])


def test_many_names_become_numbers_with_a_key():
    speeds = {"full": 1000} | {f"stack-{i}": 1000 + 40 * i for i in range(1, 25)}
    text = text_of(drawn(by_kind(board_of(trials(speeds), SETTINGS))["quality-train-speed"])["svg"])
    assert all(name in text for name in speeds)
    assert re.search(r"\b25\b", text)


def test_the_legend_of_everything_at_once_fits_into_the_picture():
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    bits = {"full": 2.0, "fast": 2.0002, "slow": 2.0001, "wide": 2.08, "broken": 9.0}
    speeds = {"full": 1000, "fast": 2000, "slow": 500, "wide": 600, "broken": 9000}
    plot = by_kind(board(bits=bits, speeds=speeds))["quality-train-speed"]
    ends = {"slow": (-0.0001, 0.0003), "wide": (0.07, 0.09), "fast": (0.0001, 0.0003)}
    uncertain = tuple(replace(point, y_ends=ends.get(point.label)) for point in plot.data.points)
    with styled():
        figure = Figure(figsize=plot.size, dpi=100)
        FigureCanvasAgg(figure)
        plot.draw(figure, replace(plot.data, points=uncertain, floor=0.08))
        [legend] = [axes.get_legend() for axes in figure.axes]
        words = [text.get_text() for text in legend.get_texts()]
        assert legend.get_window_extent().x1 <= figure.bbox.x1
    assert [word.split()[0] for word in words] == ["baseline", "front", "ranked", "not", "linear", "quality"]
    assert "1 beyond the axes" in words[3]


def test_labels_overlap_neither_each_other_nor_points_nor_the_edge():
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.text import Text

    where = np.random.default_rng(0).normal(0.5, 0.12, (14, 2))
    with styled():
        figure = Figure(figsize=(7, 5), dpi=100)
        FigureCanvasAgg(figure)
        axes = figure.add_subplot(xlim=(0, 1), ylim=(0, 1))
        options = {"xytext": (0, 0), "textcoords": "offset points", "ha": "center", "va": "center", "size": 7}
        labels = [
            axes.annotate(f"stack number {i}", xy, arrowprops={"arrowstyle": "-"}, **options) for i, xy in enumerate(where)
        ]
        boxes = [Text.get_window_extent(label) for label in labels]  # without their leaders
        assert any(a.overlaps(b) for a, b in combinations(boxes, 2))
        place(axes, labels, where, [])
        boxes = [Text.get_window_extent(label) for label in labels]  # without their leaders
        assert not [1 for a, b in combinations(boxes, 2) if a.overlaps(b)]
        pixels = axes.transData.transform(where)
        assert not [1 for box in boxes for x, y in pixels if box.contains(x, y)]
        assert all(axes.bbox.x0 <= box.x0 and box.x1 <= axes.bbox.x1 for box in boxes)


def test_without_matplotlib_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"effbench\[plots\]"):
        PlotsReporter().files([board()])


def test_matplotlib_is_imported_where_it_is_used_alone():
    for file in Path(effbench_plugins.plots.__file__).parent.glob("*.py"):
        names = [node for node in ast.parse(file.read_text()).body if isinstance(node, ast.Import | ast.ImportFrom)]
        assert not [node for node in names if "matplotlib" in ast.unparse(node)], file


def test_images_can_be_opened():
    from PIL import Image

    plot = by_kind(hostile_board())["quality-train-speed"]
    with Image.open(io.BytesIO(drawn(plot)["png"])) as image:
        colours = np.asarray(image.convert("RGB")).reshape(-1, 3)
    assert len(np.unique(colours, axis=0)) > 50


def test_a_lost_stack_is_no_point():
    lost = make_record(cell=make_cell("lost", techniques=(("odd", {}),)), status="failed", metrics={}, quality=None)
    assert "lost" not in points(by_kind(board_of([*trials(), lost], SETTINGS))["quality-train-speed"])
