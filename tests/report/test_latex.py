import re

import pytest
from effbench_plugins.reporters import LatexReporter
from effbench_plugins.reporters.latex import escape

from tests.board import test_scaling as grown
from tests.board import test_world_sizes as spread
from tests.board.test_leaderboard import SETTINGS, board_of, trials
from tests.records import make_cell, make_record

HOSTILE = '\\end{table} $\\alpha$ 50 % & #1 a_b ^ ~ {x} <y> |z| "q" `b` [red] * 中 é -- \x1b\n\\input{/etc/passwd}'


@pytest.fixture
def text():
    lost = make_record(cell=make_cell(HOSTILE, techniques=(("odd", {}),)), status="failed", metrics={}, quality=None)
    return LatexReporter().render([board_of([*trials(), lost])])


@pytest.mark.parametrize(
    ("character", "shown"),
    [
        ("\\", r"\textbackslash{}"), ("{", r"\{"), ("}", r"\}"), ("$", r"\$"), ("&", r"\&"), ("#", r"\#"), ("%", r"\%"),
        ("_", r"\_"), ("~", r"\textasciitilde{}"), ("^", r"\textasciicircum{}"), ("<", r"\textless{}"),
        (">", r"\textgreater{}"), ("|", r"\textbar{}"), ("[", "{[}"), ("]", "{]}"), ("*", "{*}"), ("`", r"\textasciigrave{}"),
        ('"', "''"), ("δ", r"\ensuremath{\delta}"), ("×", r"\ensuremath{\times}"), ("–", "--"), ("é", "é"), ("e\u0301", "é"),
        ("中", "{[}U+4E2D{]}"), ("ð", "{[}U+00F0{]}"), ("a\nb", "a b"), ("\x1b", "?"), ("--", "-{-}"),
    ],
)  # fmt: skip
def test_every_special_character_is_escaped(character, shown):
    assert escape(character) == shown


def test_whatever_is_escaped_is_known_to_pdflatex():
    """Letters that pdflatex's standard fonts have, and no command but those that `escape` writes."""
    found = escape("".join(chr(code) for code in range(0x2500)))
    assert all(ord(character) < 0x100 for character in found)
    known = [
        "textbackslash",
        "textasciitilde",
        "textasciicircum",
        "textless",
        "textgreater",
        "textbar",
        "textasciigrave",
        "ensuremath",
        "ldots",
    ]
    mathematics = ["times", "div", "cdot", "pm", "surd", "approx", "le", "ge", "to", "mu", "delta", "alpha", "beta"]
    assert set(re.findall(r"\\([a-z]+)", found)) <= {*known, *mathematics}
    bare = re.sub(r"\\[{}]", "", found)
    assert bare.count("{") == bare.count("}")


def test_environments_are_balanced_and_rows_have_as_many_cells_as_columns(text):
    opened, closed = (re.findall(rf"\\{word}{{(\w+)}}", text) for word in ("begin", "end"))
    assert sorted(opened) == sorted(closed)
    assert set(opened) == {"table", "tabular"}
    for columns, body in re.findall(r"\\begin{tabular}{(\w+)}(.*?)\\end{tabular}", text, re.S):
        rows = [line for line in body.splitlines() if line.endswith(r" \\")]
        assert len(rows) == 5
        assert {len(re.findall(r"(?<!\\)&", row)) + 1 for row in rows} == {len(columns)}


def test_hostile_names_stay_text(text):
    assert r"\textbackslash{}input\{/etc/passwd\}" in text
    assert "\\input" not in text.replace("\\textbackslash{}input", "")
    assert "\x1b" not in text


def test_what_is_clearly_better_is_bold_and_what_is_clearly_worse_has_a_dagger():
    text = LatexReporter().render([board_of(trials({"full": 1000, "fast": 2000, "slow": 500, "same": 1000}))])
    rows = {line.partition(" & ")[0]: line for line in text.splitlines()[::-1] if line.endswith(r" \\")}
    assert re.search(r"\\textbf{2.00\\ensuremath{\\times}} {\\scriptsize \[\d.\d\d, \d.\d\d\]}", rows["fast"])
    assert r"0.50\ensuremath{\times}$^\dagger$" in rows["slow"]
    assert "textbf" not in rows["same"] + rows["slow"] + rows["full"]
    assert "dagger" not in rows["same"] + rows["fast"] + rows["full"]
    assert not re.search("FASTER|SLOWER|SAME|UNCLEAR", text)


def test_captions_say_what_was_measured_where_and_labels_are_unique(text):
    for words in ("s: tiny-llama on docs", "Machine machine, 3 rounds", "baseline full", r"\delta = 2\,\%"):
        assert text.count(words) == text.count(r"\begin{table}")
    labels = re.findall(r"\\label{(.*?)}", text)
    assert len(set(labels)) == len(labels) == 2


def test_growth_and_ranks_have_tables(tmp_path):
    long = LatexReporter().render([grown.board_of(grown.trials({"full": grown.quadratic, "lean": grown.linear}))])
    assert "Exponent $k$" in long
    assert r"n\ensuremath{^2}" in long
    assert "Train speed by sequence length." in long
    (tmp_path / "s").mkdir()
    ranks = LatexReporter().render([spread.board_of(spread.trials(spread.ddp_cells()), tmp_path / "s", cores=8)])
    assert re.search(r"^ddp & 4 & \\textbf{1.60", ranks, re.M)


def test_missing_is_a_dash_and_no_boards_are_no_tables():
    lost = make_record("lost", status="failed", metrics={}, quality=None)
    text = LatexReporter().render([board_of([*trials(), lost], SETTINGS)])
    assert re.search(r"^lost & -- & -- & -- & -- & 1 failed \\\\$", text, re.M)
    assert "nan" not in text
    assert "table" not in LatexReporter().render([]).replace("tables", "")
