"""Estimates of cells: one process builds each on fake tensors, which take no memory, and says what it would take.

(`effbench.plan.estimate` is another thing: how long a plan may take, from rules of thumb and earlier records.)
"""

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from tempfile import TemporaryFile

from effbench.launch.requests import Sources
from effbench.launch.worker import WorkerError
from effbench.plan.plan import Plan
from effbench.plugin.cell import Cell
from effbench.store.footprint import Footprint

_SAID = 3000  # characters of what a process that failed has said


def footprints(plan: Plan, sources: Sources, cells: Sequence[Cell]) -> Iterator[Footprint]:
    """One for each cell, in order. Raises WorkerError where the process fails as a whole."""
    request = {
        "files": [str(file) for file in sources.files],
        "folders": [str(folder) for folder in sources.folders],
        "models": plan.models,
        "trust_remote_code": plan.suite.trust_remote_code,
        "cells": [{"cell": cell.model_dump(mode="json"), "phase_skips": plan.phase_skips.get(cell.id, {})} for cell in cells],
    }
    command = [sys.executable, "-m", "effbench.worker.estimate"]
    with (
        TemporaryFile("w+") as said,
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said, text=True) as process,
    ):
        asks, answers = process.stdin, process.stdout
        assert asks and answers  # noqa: S101, PT018 - they are pipes, which Popen's annotation cannot say
        try:
            with asks:
                json.dump(request, asks)
            for line in answers:
                yield Footprint.model_validate_json(line)
        except BaseException:
            process.kill()
            raise
        if process.wait() != 0:
            said.seek(0)
            raise WorkerError(f"the estimating process failed; it said:\n{said.read().strip()[-_SAID:]}")
