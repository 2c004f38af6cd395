"""Whether a record lies where it says it belongs: file, cell, machine."""

from collections.abc import Iterator

from effbench.verify.finding import Finding
from effbench.verify.read import SuiteFolder, Trial


def check_folder(folder: SuiteFolder) -> Iterator[Finding]:
    """The folder against the files that describe it, and every record against the folder."""
    machine, suite = folder.path.parent.name, folder.path.name
    if folder.machine and folder.machine.slug != machine:
        yield folder.finding("machine", "the folder is not named by the machine's facts", f"expected {folder.machine.slug}")
    if folder.suite and folder.suite.name != suite:
        yield folder.finding("suite", "the folder is not named by its suite", f"expected {folder.suite.name}")
    for trial in folder.trials:
        yield from _check_trial(trial, machine, suite)


def _check_trial(trial: Trial, machine: str, suite: str) -> Iterator[Finding]:
    record = trial.record
    if record.machine != machine:
        yield trial.finding("folder", "a record is of another machine than its folder", f"{record.machine}, expected {machine}")
    if record.cell.suite != suite:
        yield trial.finding("folder", "a record is of another suite than its folder", f"{record.cell.suite}, expected {suite}")
    if record.cell_id != record.cell.id:
        yield trial.finding(
            "cell-id", "the cell's id is not that of its content", f"{record.cell_id}, expected {record.cell.id}"
        )
    stem = f"{record.cell_id}.r{record.round}"
    if trial.file.stem not in (stem, f"{stem}.{record.session}"):
        yield trial.finding("file-name", "a file is not named by its cell and round", f"expected {stem}.json")
