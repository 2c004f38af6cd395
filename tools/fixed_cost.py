"""What a trial costs beyond the work that it measures: `python tools/fixed_cost.py`.

A random model of the shipped one's shape trains and infers, on one process and on two ranks of `ddp` under torchrun. Per trial:
fork to answer, less its steps, prefills and decode loops. Also from record to record, less the same, so that what is done
between trials (writing, a look at the machine, progress) counts too. Targets, on CPU: at most 0.3 s for one
process, 1 s for two ranks. No quality is measured (the weights are random): scoring documents is work, not a fixed cost.
The further passes in which meters count FLOPs, or profile communication, run in the first round: the largest figure shows them.
"""

import argparse
import tempfile
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from statistics import median

from runs import Trial, disturbed, run_suite

import effbench.reference

SUITE = """
name = "fixed-cost"
baseline = "stack"
models = ["config:{config}"]
workloads = ["docs"]
rounds = 1
device = "cpu"
[axes]
seq_len = [64]
batch_size = [4]
world_size = [{world_size}]
[training]
steps = 8
[inference]
new_tokens = 8
[sampling]
min_samples = 6
min_seconds = 0
interval = 1000
[limits]
dirty_repeats = 0  # a repeated trial would count as time that none was measured in
[stacks]
stack = {stack}
"""


def report(trials: Sequence[Trial]) -> str:
    """Both figures of one world size; `trials` are in the order in which they ran."""
    rests = [trial.rest_s for trial in trials]
    between = [after.written_at - before.written_at - after.measuring_s for before, after in pairwise(trials)]
    return (
        f"median {median(rests):.2f} s, largest {max(rests):.2f} s; from record to record {median(between):.2f} s "
        f"({len(trials)} trials of {median(trial.measuring_s for trial in trials):.2f} s measured work)"
    )


def main() -> None:
    """Measure each world size and print a line for it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--world-sizes", type=int, nargs="+", default=[1, 2])
    arguments = parser.parse_args()
    config = Path(effbench.reference.__file__).parent / "tiny-llama" / "config.json"
    with tempfile.TemporaryDirectory() as folder:
        for world_size in arguments.world_sizes:
            stack = "[]" if world_size == 1 else '["ddp"]'
            suite = SUITE.format(config=config, world_size=world_size, stack=stack)
            run = run_suite(suite, Path(folder) / str(world_size), "--rounds", str(arguments.rounds))
            print(f"world size {world_size}: {report(run.trials)}", flush=True)
            if note := disturbed(run.trials):
                print(note)


if __name__ == "__main__":
    main()
