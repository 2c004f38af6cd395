"""How all plots look, and how they become files: few colours (Okabe & Ito's, told apart by the colour-blind), black text."""

import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from io import BytesIO
from itertools import cycle, islice
from typing import TYPE_CHECKING, Any

from effbench.plugin.mark import mark_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

    from .plot import Plot

INK, SOFT, PALE, ZERO, GRID = "#222222", "#767676", "#a0a0a0", "#c4c4c4", "#e6e6e6"
BLUE, ORANGE = "#0072b2", "#d55e00"
_COLOURS = (BLUE, ORANGE, "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "h")
_LINES = ("-", "--", ":", "-.")
_STYLE: Any = {  # matplotlib types each key
    "font.family": "DejaVu Sans",  # comes with matplotlib, so that plots are the same everywhere
    "font.size": 8,
    "axes.titlesize": 8.5,
    "axes.titleweight": "bold",
    "axes.labelsize": 8,
    "axes.labelcolor": INK,
    "axes.edgecolor": SOFT,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "text.color": INK,
    "text.parse_math": False,  # names come from anybody: a dollar sign is a dollar sign
    "text.usetex": False,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
    "legend.frameon": False,
    "legend.fontsize": 7.5,
    "svg.fonttype": "none",  # text stays text: it can be searched, read aloud and scaled
    "svg.hashsalt": "effbench",  # ids are the same every time
}
_DPI = 160
LEFT, HEAD = 0.78, 0.72
"""Inches left of the axes, and above them for title, subtitle and legend."""


@contextmanager
def styled() -> Iterator[None]:
    """The project's style alone, whatever matplotlibrc says; letters that the font lacks are drawn as boxes."""
    import matplotlib

    with matplotlib.rc_context(), warnings.catch_warnings():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        warnings.filterwarnings("ignore", message="Glyph .* missing from font", category=UserWarning)
        yield


def mark_of_plot(plot: "Plot[Any]") -> str:
    """Of all that it shows."""
    return mark_of([plot.kind, plot.title, plot.subtitle, asdict(plot.data)])


def drawn(plot: "Plot[Any]") -> dict[str, bytes]:
    """A plot as `svg` and `png`, which carry the mark of its data and no date."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    mark = mark_of_plot(plot)
    with styled():
        width, height = plot.size
        figure = Figure(figsize=plot.size, dpi=_DPI, facecolor="white")
        FigureCanvasAgg(figure)
        figure.subplots_adjust(left=LEFT / width, right=1 - 0.18 / width, bottom=0.5 / height, top=1 - HEAD / height)
        figure.text(0.1 / width, 1 - 0.1 / height, shortened(plot.title, 88), va="top", size=10, weight="bold")
        figure.text(0.1 / width, 1 - 0.29 / height, shortened(plot.subtitle, 120), va="top", size=7.5, color=SOFT)
        plot.draw(figure, plot.data)
        files = {}
        nothing = {"svg": {"Date": None, "Creator": None}, "png": {"Software": None}}
        for ending, metadata in nothing.items():
            out = BytesIO()
            figure.savefig(out, format=ending, metadata=metadata | {"Source": mark})
            files[ending] = out.getvalue()
    return files


def shortened(text: str, longest: int = 30) -> str:
    """A name of one line that leaves room for others."""
    from effbench.plugin.text import clean

    text = clean(text)
    half = (longest - 1) // 2  # from the middle: names often begin alike, and their ends tell them apart
    return text if len(text) <= longest else f"{text[: longest - 1 - half]}…{text[-half:]}"


def line_styles(count: int) -> list[dict[str, Any]]:
    """As many ways to draw a line: colour and marker run apart, so that no two share both, and greyscale tells them too."""
    colours, markers = cycle(_COLOURS), cycle(_MARKERS)
    lines = (line for line in cycle(_LINES) for _ in _COLOURS)
    return [{"color": c, "marker": m, "linestyle": s} for c, m, s in islice(zip(colours, markers, lines, strict=False), count)]


def plain_log_ticks(axis: "Axis", limits: tuple[float, float], unit: str = "") -> None:
    """Ticks of a log axis as plain numbers: 1, 2, 5 of each decade, or the decades alone where there are many."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    low, high = limits
    decades = range(-12, 16)
    steps: tuple[float, ...] = (1, 2, 5)
    if high / low > 500:
        steps = (1,)
    elif high / low < 1.5:
        steps = (1, 1.05, 1.1, 1.15, 1.2, 1.3, 1.4, 2, 2.5, 3, 4, 5, 6, 7, 8, 8.5, 9, 9.5)
    elif high / low < 8:
        steps = (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8) if high / low < 3 else (1, 1.5, 2, 3, 5, 7)
    wanted = [step * 10.0**decade for decade in decades for step in steps]
    axis.set_major_locator(FixedLocator([tick for tick in wanted if low <= tick <= high]))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{_plain(value)}{unit}"))


def fixed_ticks(axis: "Axis", values: Iterable[float]) -> None:
    """Ticks at measured values alone."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    axis.set_major_locator(FixedLocator(sorted(values)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: _plain(value)))


def empty(axes: "Axes") -> None:
    """A place for a legend."""
    axes.set_axis_off()


def _plain(value: float) -> str:
    return f"{value:,.10g}" if abs(value) >= 1e-4 else f"{value:.3g}"
