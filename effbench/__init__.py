"""effbench: does this efficiency technique help, on this model, on this machine, and at what cost in quality?"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd

__version__ = "0.1.0"


def load(path: "str | Path") -> "pd.DataFrame":
    """All trials below a results folder as a tidy DataFrame: one row per trial and metric (see docs/records.md)."""
    from effbench.board.frame import load as load_frame

    return load_frame(path)
