"""Tables for a paper: LaTeX with booktabs. Every text is escaped; pdflatex, xelatex and lualatex take it."""

import unicodedata
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import TYPE_CHECKING, ClassVar

from effbench.board.verdict import QUALITY, SIZE, SPEED
from effbench.plugin import TextReporter
from effbench.plugin.layout import Table
from effbench.plugin.reporter import slug
from effbench.plugin.text import (
    MISSING,
    clean,
    counted,
    human_of,
    in_bytes,
    interval,
    join,
    missing,
    number,
    plain,
    signed,
    three,
)

from .lengths import length_tables
from .tables import Column, Entry, laid_out

if TYPE_CHECKING:
    from effbench.board.leaderboard import Leaderboard

_HEAD = r"""% Needs \usepackage{booktabs} and \usepackage{graphicx}; tables wider than the line are scaled down to it.
\providecommand{\effbenchfit}[1]{\sbox0{#1}\ifdim\wd0>\linewidth\resizebox{\linewidth}{!}{\usebox0}\else\usebox0\fi}
"""
_ALONG = {
    "cost grows as": r"Exponent $k$ in cost $\sim$ length$^k$, and the complexity classes that the costs support.",
    "as cheap from": "Sequence length from which each cost is at most the baseline's and stays so.",
}
_BETTER = {SPEED.good, SIZE.good, QUALITY.good}
_WORSE = {SPEED.bad, SIZE.bad, QUALITY.bad}
_SPECIAL = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "%": r"\%", "_": r"\_",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}",
    '"': "''", "`": r"\textasciigrave{}", "–": "--", "—": "---", "…": r"\ldots{}", "’": "'", "�": "?",
    # At the beginning of a row, \\ would take these for its own arguments.
    "[": "{[}", "]": "{]}", "*": "{*}",
    **{sign: rf"\ensuremath{{{name}}}" for sign, name in {
        "×": r"\times", "÷": r"\div", "·": r"\cdot", "±": r"\pm", "−": "-", "√": r"\surd{}", "²": "^2", "≈": r"\approx",
        "≤": r"\le", "≥": r"\ge", "→": r"\to", "µ": r"\mu", "μ": r"\mu", "δ": r"\delta", "α": r"\alpha", "β": r"\beta",
    }.items()},
}  # fmt: skip
_SIGNS = str.maketrans({"-": "$-$", "+": "$+$"})
"""A hyphen is a minus in mathematics alone."""
_ACCENTED = range(0xC0, 0x100)
_NOT_IN_OT1 = "ÐðÞþ"


class LatexReporter(TextReporter):
    """Tables for a paper (booktabs): bold where clearly better than the baseline."""

    name: ClassVar = "latex"
    file: ClassVar = "leaderboard.tex"

    def render(self, boards: "list[Leaderboard]") -> str:
        """A `table` for each table of each board, to be read whole by `input` or copied one by one."""
        return "\n".join([_HEAD, *(_float(board, *named) for board in boards for named in _tables(board))])


def escape(text: str) -> str:
    """A text as LaTeX shows it, of one line. Letters that pdflatex has no font for are named by their code point."""
    line = unicodedata.normalize("NFC", clean(text))
    return "".join(_letter(before, character) for before, character in pairwise(f" {line}"))


def _letter(before: str, character: str) -> str:
    if before == character == "-":
        return "{-}"  # two in a row would become a dash
    if character in _SPECIAL:
        return _SPECIAL[character]
    if character.isascii() or (ord(character) in _ACCENTED and character not in _NOT_IN_OT1):
        return character
    return f"{{[}}U+{ord(character):04X}{{]}}"


def _float(board: "Leaderboard", what: str, kind: str, table: Table) -> str:
    titles, rows = table
    lines = [
        r"\begin{table}",
        r"\centering\footnotesize\setlength{\tabcolsep}{4pt}",
        rf"\caption{{{_caption(board, what)}}}",
        rf"\label{{tab:{slug(board.machine)}:{slug(board.title)}:{kind}}}",
        rf"\effbenchfit{{\begin{{tabular}}{{l{'r' * (len(titles) - 1)}}}",
        r"\toprule",
        " & ".join(map(escape, titles)) + r" \\",
        r"\midrule",
        *(" & ".join("--" if cell == MISSING else cell for cell in row) + r" \\" for row in rows),
        r"\bottomrule",
        r"\end{tabular}}",
        r"\end{table}",
        "",
    ]
    return "\n".join(lines)


def _caption(board: "Leaderboard", what: str) -> str:
    first, last = board.rounds
    rounds = f"{last} rounds" if first == last else f"{first} to {last} rounds"
    return (
        f"{what} {escape(board.title)}. Machine {escape(board.machine)}, {rounds}. Ratios to the baseline "
        f"{escape(board.baseline or MISSING)}, 95\\,\\% intervals over rounds in brackets. Where marked, bold: clearly better; "
        rf"$^\dagger$: clearly worse, the adjusted interval lying wholly beyond $\delta = {100 * board.delta:g}\,\%$. "
        "--: not measured."
    )


def _tables(board: "Leaderboard") -> Iterator[tuple[str, str, Table]]:
    """What each is of, its short name, titles and finished cells."""
    entries = [{str(key): value for key, value in entry.items()} for entry in board.rows.to_dict("records")]
    extra = [_size(metric, key, human_of(metric)) for key, metric in board.extra_columns.items()]
    wanted = [
        ("Speed.", "speed", [_STACK, _RANK], _SPEED),
        ("Memory and quality.", "cost", [_STACK], [*_COST, Column(board.quality_metric, _quality)]),
        ("Bytes.", "bytes", [_STACK], _BYTES),
        ("Further metrics.", "further", [_STACK], extra),
    ]
    for what, kind, names, columns in wanted:
        if table := laid_out(names, columns, entries):
            yield what, kind, table
    for titles, rows in length_tables(board):
        what = _ALONG.get(titles[0]) or f"{titles[0].removesuffix(' at').capitalize()} by sequence length."
        yield what, slug(titles[0]), _escaped(titles, rows)
    if board.world_sizes is not None:
        spread = [{str(key): value for key, value in entry.items()} for entry in board.world_sizes.to_dict("records")]
        if table := laid_out([_STACK, _RANKS], _ACROSS, spread):
            yield "Speedup over the same stack on a single rank, and efficiency.", "ranks", table


def _escaped(titles: list[str], rows: list[list[str]]) -> Table:
    """Of tables whose cells are text; intervals become small."""
    return ["stack", *titles[1:]], [[escape(row[0]), *(_small(cell) for cell in row[1:])] for row in rows]


def _small(cell: str) -> str:
    if cell == MISSING:
        return cell
    figure, bracket, rest = cell.replace("\n", " ").partition("[")
    ends, closing, words = rest.partition("]")
    return escape(figure) + (
        rf"{{\scriptsize {escape(bracket + ends + closing)}}}" + escape(words) if closing else escape(rest)
    )


def _ratio(entry: Entry, key: str) -> str:
    if entry[f"{key}_verdict"] == "baseline":
        return "1"
    return _judged(number(entry[f"{key}_ratio"], lambda x: f"{three(x)}×"), entry, key, three)


def _quality(entry: Entry) -> str:
    score, difference = number(entry["quality"], lambda x: f"{x:.3f}"), number(entry["quality_difference"], signed)
    if MISSING in (score, difference) or entry["quality_verdict"] == "baseline":
        return score
    return join(" ", score, _judged(f"({difference})", entry, "quality", signed))


def _judged(estimate: str, entry: Entry, key: str, human: Callable[[float], str]) -> str:
    """Bold, plain or with a dagger, and the interval behind it."""
    if estimate == MISSING:
        return MISSING
    low, high, word = (entry[f"{key}_{part}"] for part in ("low", "high", "verdict"))
    estimate = escape(estimate).translate(_SIGNS)
    marked = rf"\textbf{{{estimate}}}" if word in _BETTER else estimate + (r"$^\dagger$" if word in _WORSE else "")
    ends = interval(low, high, human)
    return marked + (rf" {{\scriptsize {ends.translate(_SIGNS)}}}" if ends else "")


def _of(title: str, key: str) -> Column:
    return Column(title, lambda entry: _ratio(entry, key))


def _size(title: str, key: str, human: Callable[[float], str]) -> Column:
    """A figure, and its ratio to the baseline's."""

    def show(entry: Entry) -> str:
        figure, beside = escape(number(entry[key], human)), _ratio(entry, key)
        return MISSING if missing(entry[key]) else join(" ", figure, "" if beside == "1" else beside)

    return Column(title, show)


def _text(title: str, key: str) -> Column:
    return Column(title, lambda entry: MISSING if missing(entry[key]) else escape(plain(entry[key])))


def _any_lost(entries: list[Entry]) -> bool:
    return any(entry["status"] != "ok" for entry in entries)


_STACK = _text("stack", "stack")
_RANK = _text("rank", "rank")
_RANKS = _text("ranks", "world_size")
_STATUS = Column("status", lambda entry: escape(plain(entry["status"])), _any_lost)
_SPEED = [_of("training", "train_speed"), _of("prefill", "prefill_speed"), _of("decoding", "decode_speed"), _STATUS]
_COST = [
    _size("train memory", "train_memory", in_bytes),
    _size("infer memory", "infer_memory", in_bytes),
    _size("trainable", "trainable", counted),
    Column("steps", lambda entry: number(entry["steps"], lambda x: f"{x:.0f}")),
]
_BYTES = [
    _size("checkpoint", "checkpoint", in_bytes),
    _size("without zeros", "sparse", in_bytes),
    Column("bits/weight", lambda entry: number(entry["bits"], lambda x: f"{x:.3g}")),
    _size("delta", "delta", in_bytes),
    _size("KV cache", "kv_cache", in_bytes),
]
_ACROSS = [
    _of("training", "train_speed"),
    Column("efficiency", lambda entry: number(entry["train_speed_efficiency"], three)),
    _of("prefill", "prefill_speed"),
    Column("efficiency", lambda entry: number(entry["prefill_speed_efficiency"], three)),
    _of("decoding", "decode_speed"),
    Column("efficiency", lambda entry: number(entry["decode_speed_efficiency"], three)),
    _size("train memory", "train_memory", in_bytes),
    _STATUS,
]
