"""The grammar of claims: a published statement, which measured quantity it is about, and what it says of it."""

import math
import re
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, field_validator, model_validator

from effbench.plan.mistakes import mistake
from effbench.plugin.errors import unknown

BASELINE = "baseline"
"""Stands for the suite's baseline where a relation names a stack."""
PLACES = ("seq_len", "batch_size", "world_size", "dtype", "model", "workload")
"""What `where` may hold beside a technique's options."""
_NAMES = ("dtype", "model", "workload")
_ALONG = ("seq_len", "batch_size")
_FORMS = (
    r"(?P<ratio>ratio to (?P<stack>.+) (?P<side>below|above|equals))"
    r"|(?P<value>value (?P<side_of_value>below|above|equals))"
    r"|(?P<exponent>exponent (?P<side_of_exponent>below|above|equals))"
    r"|(?P<better>better than (?P<than>.+))"
    r"|(?P<along>(?P<direction>monotone|rises|falls) along (?P<axis>.+))"
)
_ALLOWED = (
    "allowed: 'ratio to baseline below|above|equals', 'ratio to STACK below|above|equals', 'value below|above|equals', "
    "'exponent below|above|equals', 'better than STACK', 'monotone|rises|falls along AXIS'"
)

Kind = Literal["ratio", "value", "exponent", "better", "along"]


class Relation(NamedTuple):
    """What a claim says, taken apart."""

    kind: Kind
    side: str
    """below, above or equals; of `along` monotone, rises or falls; empty of `better`."""
    subject: str = ""
    """The stack that is compared with, or the axis."""

    @property
    def stack(self) -> str | None:
        """The stack that is compared with, where it is named and not the baseline."""
        return self.subject if self.kind in ("ratio", "better") and self.subject != BASELINE else None

    @property
    def compares_with_value(self) -> bool:
        """Whether it needs a `value`."""
        return self.kind in ("ratio", "value", "exponent")


class Claim(BaseModel):
    """A published statement, to be checked on this machine."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: str
    """Who said it, when and where."""
    says: str
    stack: str
    metric: str
    """A metric, or a score: `quality.accuracy`, for which `accuracy` may be written."""
    relation: str
    value: FiniteFloat | None = None
    within: FiniteFloat | None = Field(default=None, gt=0)
    """Of `equals`: the relative difference that still counts as equal; the suite's delta when left out."""
    where: dict[str, Any] = {}
    """Which cells it is about; all of the stack's when empty."""

    @field_validator("metric")
    @classmethod
    def _whole_name(cls, given: str) -> str:
        return given if "." in given else f"quality.{given}"

    @field_validator("relation")
    @classmethod
    def _known(cls, given: str) -> str:
        found = re.fullmatch(_FORMS, given)
        if not found:
            raise ValueError(_ALLOWED)
        if (axis := found["axis"]) and axis not in _ALONG and axis.count(".") != 1:
            raise ValueError(f'{unknown("axis", axis, _ALONG)}; a technique\'s option is written "technique.option"')
        return given

    @field_validator("where")
    @classmethod
    def _known_places(cls, given: dict[str, Any]) -> dict[str, Any]:
        for key, value in given.items():
            if key not in PLACES and key.count(".") != 1:
                hint = f'{unknown("key", key, PLACES)}; a technique\'s option is written "technique.option"'
                raise mistake([key], hint)
            if key in _NAMES and not isinstance(value, str):
                raise mistake([key], f"{value!r}: allowed is a name")
            if key in PLACES and key not in _NAMES and not (type(value) is int and value >= 1):
                raise mistake([key], f"{value!r}: allowed is a whole number from 1")
            if key not in PLACES and not (isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value))):
                raise mistake([key], f"{value}: allowed is a number, a name, true or false")
        return given

    @model_validator(mode="after")
    def _value_where_needed(self) -> "Claim":
        if self.parts.compares_with_value and self.value is None:
            raise mistake(["value"], f"is missing: relation {self.relation!r} compares with it")
        if not self.parts.compares_with_value and self.value is not None:
            raise mistake(["value"], f"is not used: relation {self.relation!r} compares with none")
        if self.within is not None and self.parts.side != "equals":
            raise mistake(["within"], f"is not used: it belongs to 'equals', not to {self.relation!r}")
        return self

    @property
    def parts(self) -> Relation:
        """The relation, taken apart."""
        found = re.fullmatch(_FORMS, self.relation)
        if found is None:
            raise ValueError(_ALLOWED)
        if found["ratio"]:
            return Relation("ratio", found["side"], found["stack"])
        if found["better"]:
            return Relation("better", "", found["than"])
        if found["along"]:
            return Relation("along", found["direction"], found["axis"])
        if found["value"]:
            return Relation("value", found["side_of_value"])
        return Relation("exponent", found["side_of_exponent"])

    @property
    def options(self) -> Mapping[str, Any]:
        """What `where` says of techniques' options."""
        return {key: value for key, value in self.where.items() if key not in PLACES}

    @property
    def option_axes(self) -> set[str]:
        """The techniques' options that it names, in `where` or as the axis that it goes along."""
        along = {self.parts.subject} if self.parts.kind == "along" and "." in self.parts.subject else set()
        return {*self.options} | along
