"""What a check finds, and how many of the same are told as one."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any, Literal

Severity = Literal["error", "warning"]

SEVERITIES: Mapping[str, Severity] = MappingProxyType(
    {
        # The file
        "unreadable": "error",
        "schema": "error",
        "file-name": "error",
        "cell-id": "error",
        "folder": "error",
        "machine": "error",
        "suite": "error",
        "sidecar": "error",
        "packed": "error",
        "stray": "warning",
        "private": "warning",
        # What the trial says of itself
        "phases": "error",
        "metrics": "error",
        "summary": "error",
        "unit": "error",
        "unknown-metric": "warning",
        "no-memory": "warning",
        "conditions": "error",
        "no-conditions": "warning",
        "no-quality": "error",
        # Recomputed from raw samples
        "samples": "error",
        "few-samples": "warning",
        "warm-up": "warning",
        "median": "error",
        "throughput": "error",
        "duration": "error",
        "loss": "error",
        "quality": "error",
        "mfu": "warning",
        # The suite
        "suite-cell": "error",
        "seed": "error",
        "rounds": "error",
        "baseline": "error",
        "unpaired": "warning",
        "missing-cells": "warning",
        "not-ok": "warning",
        "dirty": "warning",
        "mostly-dirty": "error",
        # Where it comes from
        "git": "warning",
        "fingerprint": "error",
        "methodology": "warning",
        "mixed-code": "warning",
        "other-code": "warning",
        "duplicate": "error",
        "copied": "error",
    }
)
"""Every check by its code, which stays as it is: docs/verifying.md says what each asks, and why."""

_SHOWN = 3


@dataclass(frozen=True)
class Finding:
    """One thing wrong with one file, or one folder."""

    code: str
    what: str
    """In general: findings that share it are told together."""
    file: str
    detail: str = ""
    """What this file has, and what is expected."""

    def __post_init__(self) -> None:
        """Text of records may be anybody's: what is no printable character is shown as `?`."""
        if self.code not in SEVERITIES:
            raise KeyError(self.code)
        for name in ("what", "file", "detail"):
            object.__setattr__(self, name, printable(getattr(self, name)))

    @property
    def severity(self) -> Severity:
        """error: may not stand on a shared board; warning: look at it."""
        return SEVERITIES[self.code]


@dataclass(frozen=True)
class Report:
    """All that was found below a path."""

    records: int
    findings: Sequence[Finding]

    def count(self, severity: Severity) -> int:
        """How many findings there are of this severity."""
        return sum(finding.severity == severity for finding in self.findings)

    def as_json(self) -> dict[str, Any]:
        """Every finding, not grouped."""
        return {
            "records": self.records,
            "errors": self.count("error"),
            "warnings": self.count("warning"),
            "findings": [{"severity": finding.severity, **asdict(finding)} for finding in self.findings],
        }

    def lines(self) -> Iterable[str]:
        """Errors first; what is wrong in the same way once, with the first files; then the counts."""
        groups: dict[tuple[str, str], list[Finding]] = {}
        for finding in sorted(self.findings, key=lambda finding: finding.severity):
            groups.setdefault((finding.code, finding.what), []).append(finding)
        for (code, what), found in groups.items():
            yield f"{found[0].severity} {code}: {what}" + (f" ({len(found)} times)" if len(found) > 1 else "")
            for finding in found[:_SHOWN]:
                yield f"      {finding.file}" + (f": {finding.detail}" if finding.detail else "")
            if len(found) > _SHOWN:
                yield f"      and {len(found) - _SHOWN} more"
        counts = (
            counted(self.records, "record"),
            counted(self.count("error"), "error"),
            counted(self.count("warning"), "warning"),
        )
        yield "{}: {}, {}".format(*counts)


def counted(number: int, thing: str) -> str:
    """`1 error`, `2 errors`."""
    return f"{number} {thing}" + ("" if number == 1 else "s")


def printable(text: str, limit: int = 400) -> str:
    """One line without control characters, cut where it is long."""
    line = "".join(character if character.isprintable() else "?" for character in text)
    return line if len(line) <= limit else line[: limit - 1] + "…"
