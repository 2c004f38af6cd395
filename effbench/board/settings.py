"""What of a suite decides how its numbers are compared, as it was copied beside its records."""

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, Field

from effbench.plan.claim import Claim
from effbench.plugin.workload import higher_is_better

if TYPE_CHECKING:
    import pandas as pd


class Ranking(BaseModel):
    """By which metric rows are ordered."""

    by: str | None = None
    better: Literal["lower", "higher"] | None = None


class QualitySettings(BaseModel):
    """Which score stands beside cost, and the ratio to the baseline that a ranked row may not pass."""

    metric: str = "bits_per_byte"
    floor: float | None = None
    better: Literal["lower", "higher"] | None = None

    @property
    def direction(self) -> Literal["lower", "higher"]:
        """As the suite says, or as the score's name does."""
        return self.better or ("higher" if higher_is_better(self.metric) else "lower")


class Settings(BaseModel):
    """What of a suite decides how its numbers are compared."""

    baseline: str | None = None
    delta: float = 0.03
    ranking: Ranking = Ranking()
    quality: QualitySettings = QualitySettings()
    fit_from: int | None = None
    columns: list[Annotated[str, Field(pattern=r"^\w+\.\w+$")]] = []
    """Further metrics that its tables show."""
    claims: list[Claim] = []
    front: list[str] | None = None
    """The metrics of its Pareto front; what it ranks by and its quality where none are given."""


def settings_of(frame: "pd.DataFrame", given: Mapping[str, Any] | None) -> tuple[Settings, list[str]]:
    """The suite's settings as they were copied beside its records."""
    if given is not None:
        return Settings.model_validate(given), []
    file = Path(frame["file"].iloc[0]).parent / "suite.json"
    if not file.exists():
        return Settings(), ["no suite.json beside the records: baseline, delta and ranking are defaults"]
    try:
        return Settings.model_validate(json.loads(file.read_text())), []
    except (OSError, ValueError, RecursionError) as error:
        warnings.warn(f"{file}: not a suite's settings, defaults are used ({type(error).__name__})", stacklevel=2)
        return Settings(), ["suite.json cannot be read: baseline, delta and ranking are defaults"]
