"""Real A/A runs: one stack under two names, so that every FASTER or SLOWER is false: `python tools/aa.py`.

Each run is a fresh `effbench run` with its own board. Prints each run's ratios with intervals and verdicts, the paired noise
(standard deviation of the rounds' log ratios), and how many runs called a difference. With `--results` the records are kept,
and the same command goes on where it stopped.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from runs import run_suite

import effbench
from effbench.board.leaderboard import build

SPEEDS = {"train": "train.tokens_per_s", "prefill": "infer.prefill_tokens_per_s", "decode": "infer.decode_tokens_per_s"}
SUITE = """
name = "aa"
baseline = "one"
models = ["tiny-llama"]
workloads = ["docs"]
device = "cpu"
[axes]
seq_len = [64]
batch_size = [4]
[training]
steps = 20
[inference]
new_tokens = 16
[quality]
documents = 1
[sampling]
min_seconds = 0.2
max_seconds = 1
[stacks]
one = []
two = []
"""


def log_ratios(results: Path, metric: str) -> "np.ndarray[Any, np.dtype[np.float64]]":
    """log(two / one) of each round."""
    frame = effbench.load(results)
    values = frame[frame["metric"] == metric].pivot_table(index=["session", "round"], columns="stack", values="value")
    return np.log(values["two"] / values["one"]).dropna().to_numpy()


def main() -> None:
    """Run, and count false calls."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--results", type=Path, metavar="DIR", help="keep the records there")
    arguments = parser.parse_args()
    noise: dict[str, list[float]] = {name: [] for name in SPEEDS}
    false_calls = 0
    with tempfile.TemporaryDirectory() as temporary:
        for number in range(1, arguments.runs + 1):
            folder = (arguments.results or Path(temporary)) / f"run-{number}"
            run_suite(SUITE, folder, "--rounds", str(arguments.rounds))
            row = build(folder / "results")[0].rows.set_index("stack").loc["two"]
            shown = []
            for name, metric in SPEEDS.items():
                ratio, low, high, verdict = (row[f"{name}_speed_{part}"] for part in ("ratio", "low", "high", "verdict"))
                spread = float(np.std(log_ratios(folder / "results", metric), ddof=1))
                noise[name].append(spread)
                shown.append(f"{name} {ratio:.3f} [{low:.3f}, {high:.3f}] {verdict} (noise {spread:.1%})")
            called = any(row[f"{name}_speed_verdict"] in ("FASTER", "SLOWER") for name in SPEEDS)
            false_calls += called
            print(f"run {number}: {'; '.join(shown)}", flush=True)
    medians = ", ".join(f"{name} {np.median(spreads):.2%}" for name, spreads in noise.items())
    print(f"paired noise of a round, median over runs: {medians}")
    print(f"{false_calls} of {arguments.runs} runs called a difference between a stack and itself")


if __name__ == "__main__":
    main()
