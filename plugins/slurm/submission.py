"""Arrays that Slurm has taken: submitted through submitit, watched with squeue, cancelled with scancel."""

import contextlib
import io
import secrets
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from effbench.plugin import Element, ElementState, InputError

from .node import OnNode

_DIED = ("BOOT_FAIL", "CANCELLED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "REVOKED", "TIMEOUT")


def submit(arrays: Sequence[tuple[Mapping[str, Any], Sequence[Element]]], title: str, folder: Path) -> "SlurmSubmission":
    """Submit arrays of parameters and elements under one name of their own. InputError in sbatch's words if it refuses."""
    try:
        import submitit
        from submitit.core.utils import FailedJobError, FailedSubmissionError
    except ImportError as error:
        raise InputError("launcher 'slurm' needs submitit: pip install 'effbench[slurm]'") from error
    for program in ("sbatch", "srun", "squeue", "scancel"):
        if not shutil.which(program):
            raise InputError(f"launcher 'slurm' needs {program}, which is not on PATH: run this where the cluster takes jobs")
    name = f"effbench-{title}-{secrets.token_hex(4)}"
    jobs: dict[Element, str] = {}
    try:
        for parameters, elements in arrays:
            executor = submitit.SlurmExecutor(folder=folder)
            executor.update_parameters(job_name=name, **parameters)
            with contextlib.redirect_stderr(io.StringIO()):  # submitit also prints what its exception says
                made = executor.submit_array([OnNode(element.arguments) for element in elements])
            jobs |= {element: job.job_id for element, job in zip(elements, made, strict=True)}
    except BaseException as error:
        refused = isinstance(error, FailedJobError | FailedSubmissionError)
        with contextlib.suppress(InputError) if refused else contextlib.nullcontext():  # why sbatch refused says more
            _cancel(name)  # by its name: at a Ctrl-C, sbatch may have submitted what it has not told yet
        if refused:
            raise InputError(f"sbatch did not take it: {_one_line(str(error))}") from error
        raise
    return SlurmSubmission(name, [jobs[element] for _, elements in arrays for element in elements], folder)


@dataclass
class SlurmSubmission:
    """Elements of one or more arrays that have a name of their own."""

    name: str
    jobs: Sequence[str]
    folder: Path
    _states: dict[str, ElementState] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Nothing is known yet."""
        self._states = {job: ElementState(job, "SUBMITTED") for job in self.jobs}

    def look(self) -> Sequence[ElementState]:
        """Ask Slurm. Where it does not answer, or knows an element no more, what was known last holds."""
        command = ("squeue", "--noheader", "--array", "--states=all", f"--name={self.name}", "--format=%i|%T|%r")
        answer = subprocess.run(command, capture_output=True, text=True, check=False)
        if answer.returncode:
            return [replace(state, reason=_one_line(answer.stderr)) for state in self._states.values()]
        shown = {job: (word, reason) for job, word, reason in (line.split("|", 2) for line in answer.stdout.splitlines())}
        for job, before in self._states.items():
            if job in shown:
                self._states[job] = _state(job, *shown[job])
            elif not before.ended:
                self._states[job] = ElementState(job, "GONE", ended=True, died=not self._came_to_its_end(job))
        return list(self._states.values())

    def last_words(self, job: str) -> str:
        """The last line of its log that is not srun's, which only says that something ended."""
        log = self.folder / f"{job}_0_log.err"
        lines = [line.strip() for line in log.read_text(errors="replace").splitlines()] if log.exists() else []
        own = [line for line in lines if line and not line.startswith("srun: ")]
        return own[-1] if own else "it wrote nothing"

    def cancel(self) -> None:
        """Cancel what has not ended. InputError in scancel's words where it fails."""
        _cancel(self.name)

    def _came_to_its_end(self, job: str) -> bool:
        """Whether submitit left a result. It is never read: it is a pickle, and all there is to know stands in records."""
        return (self.folder / f"{job}_0_result.pkl").exists()


def _state(job: str, word: str, reason: str) -> ElementState:
    why = reason if word == "PENDING" and reason != "None" else ""
    return ElementState(job, word, why, ended=word == "COMPLETED" or word in _DIED, died=word in _DIED)


def _cancel(name: str) -> None:
    answer = subprocess.run(("scancel", f"--name={name}"), capture_output=True, text=True, check=False)
    if answer.returncode:
        raise InputError(f"scancel --name={name}: {_one_line(answer.stderr)}")


def _one_line(text: str) -> str:
    lines = (line.strip().removeprefix("sbatch: ").removeprefix("error: ") for line in text.splitlines())
    return "; ".join(line for line in lines if line)
