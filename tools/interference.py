"""Step time inside effbench over a hand-written loop, and the orchestrator's own CPU time: `python tools/interference.py`.

Both train the shipped model on the same batches in fresh processes that take turns, `--pairs` times, the order changing from
pair to pair; the first steps of both are left out, and medians compared. Target: within 0.98–1.02, at 1 and at 2 threads.

The orchestrator's CPU time while trials run is the difference between runs of few and of more rounds, so that its start and
the board at the end, when nothing is measured, do not count. Target: under 2 % of the workers'.
"""

import argparse
import tempfile
from pathlib import Path
from statistics import median

from runs import Trial, by_hand, run_suite

from effbench.plugin.discovery import discover

WARMUP = 3
SUITE = """
name = "interference"
baseline = "full"
models = ["tiny-llama"]
workloads = ["docs"]
phases = ["train"]
rounds = 1
device = "cpu"
threads = {threads}
[axes]
seq_len = [128]
batch_size = [4]
[training]
steps = {steps}
[quality]
documents = 1
[limits]
dirty_repeats = 0  # pairs take turns in time
[stacks]
full = []
"""


def same_work_by_hand(trial: Trial) -> list[float]:
    """The hand-written loop's steps on the batches that this trial had."""
    cell, catalog = trial.record.cell, discover()
    source = catalog.model(cell.model)
    batches = catalog.workload(cell.workload).training_batches(source.tokenizer(), cell, cell.steps, trial.record.seed)
    work = {"phase": "train", "optimizer": {"lr": cell.lr}, "ids": [batch["input_ids"].tolist() for batch in batches]}
    return by_hand(source.directory(), [work], cell.threads)[0]


def ratios(suite: str, folder: Path, pairs: int) -> list[float]:
    """Median step inside over median step by hand, of each pair."""
    found = []
    trial = run_suite(suite, folder / "first").trials[0]  # not counted; says which batches the loop needs
    for number in range(pairs):
        if number % 2:
            outside, trial = same_work_by_hand(trial), run_suite(suite, folder / str(number)).trials[0]
        else:
            trial = run_suite(suite, folder / str(number)).trials[0]
            outside = same_work_by_hand(trial)
        found.append(median(trial.samples["step"][WARMUP:]) / median(outside[WARMUP:]))
    return found


def orchestrator_share(suite: str, folder: Path, rounds: int) -> tuple[float, float]:
    """The orchestrator's CPU time over the workers': while trials run, and over the whole command."""
    few, many = (run_suite(suite, folder / f"{count}", "--rounds", str(count)) for count in (1, 1 + rounds))
    during = (many.orchestrator_cpu_s - few.orchestrator_cpu_s) / (many.workers_cpu_s - few.workers_cpu_s)
    return during, many.orchestrator_cpu_s / many.workers_cpu_s


def main() -> None:
    """Alternate, and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=6)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=15, help="by which the orchestrator's two runs differ")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for threads in arguments.threads:
            suite, place = SUITE.format(threads=threads, steps=arguments.steps), Path(folder) / f"{threads}"
            found = ratios(suite, place, arguments.pairs)
            shown = ", ".join(f"{ratio:.3f}" for ratio in found)
            print(f"{threads} threads: inside / by hand = {median(found):.3f} ({shown})", flush=True)
            during, whole = orchestrator_share(suite, place / "share", arguments.rounds)
            print(f"{threads} threads: orchestrator's CPU over the workers': {during:.2%} while trials run, {whole:.1%} in all")


if __name__ == "__main__":
    main()
