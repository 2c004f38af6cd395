"""The same 12 cells here and in optimum-benchmark 0.6, each wall time split into measuring and rest: `python tools/peer.py`.

Sequence length 128, 256 and 512 × batch 1 and 4 × inference and training, of one random Llama of 20 M parameters in float32
on one CPU thread. The peer gets a virtual environment of its own (transformers 4.57, the torch version of this one), made at
first use. Every finished part is kept in `--work`: the same command goes on where it stopped; delete the folder to begin again.
About ten minutes on two quiet cores, and two more to make the environment. Close everything else first.

**Measuring** is the time in the calls that the numbers are made of, warm-up included, whether it is reported or not: training
steps, prefills and decode loops here; all training steps and all `generate` calls in the peer. **Rest** is everything else.
Training takes 7 steps in both: the peer calls the first 2 warm-up, effbench finds its warm-up itself. Inference generates 16
tokens: the peer 2 times and 2 more of 2 tokens for warm-up, then 5; effbench until 6 samples are left after its warm-up, the
fewest of which a 95 % interval exists.

What is not equal, and whom it favours:
- Cells share a start. The peer's total counts its imports once, as if one script had launched all cells, although each is
  launched here from a fresh process, as its command line does (favours the peer). effbench's counts the whole command.
- effbench trains and infers in one trial, and that trial's rest is shown half and half beside its two cells (neither).
- The peer loads its weights from a file, effbench draws them anew in each trial (the peer).
- The peer's tokens are random, effbench's are bytes of text: the same work for a dense model (neither).
- effbench also measures peak memory and sizes and counts FLOPs in one more pass of each kind, which are rest here; the peer is
  asked for times alone (the peer).
- The peer's Trainer clips gradients and fuses AdamW by default; both are turned off, so that its step is effbench's (neither).
- transformers is 4.57 there and 5 here; each tool's times therefore stand beside a loop written by hand in its own environment,
  at batch 1, in which nothing else runs.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

from runs import Trial, by_hand, disturbed, run_suite, trials_of

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 7680,
    "hidden_size": 384,
    "intermediate_size": 1024,
    "num_hidden_layers": 8,
    "num_attention_heads": 6,
    "num_key_value_heads": 6,
    "max_position_embeddings": 1024,
    "tie_word_embeddings": False,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
"""20.06 M parameters."""
SEQ_LENS, BATCH_SIZES, PHASES = (128, 256, 512), (1, 4), ("infer", "train")
SAMPLES, WARMUP, NEW_TOKENS = 5, 2, 16
SUITE = f"""
name = "peer"
baseline = "full"
models = ["config:CONFIG"]
workloads = ["docs"]
rounds = 1
device = "cpu"
meters = ["latency", "throughput", "memory", "size", "state"]  # the peer counts no FLOPs
[axes]
seq_len = {list(SEQ_LENS)}
batch_size = {list(BATCH_SIZES)}
[training]
steps = {WARMUP + SAMPLES}
[inference]
new_tokens = {NEW_TOKENS}
[sampling]
min_samples = {SAMPLES}
min_seconds = 0
interval = 1000
max_seconds = 600
[limits]
dirty_repeats = 0  # a repeated trial would count as time that none was measured in
[stacks]
full = []
"""
OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "LOG_TO_FILE": "0"}
MAKE_MODEL = (
    "import sys; from transformers import AutoConfig, AutoModelForCausalLM as M; d = sys.argv[1]; "
    "M.from_config(AutoConfig.from_pretrained(d)).save_pretrained(d)"
)


@dataclass(frozen=True)
class Cell:
    """One shape and phase."""

    phase: str
    seq_len: int
    batch_size: int

    @property
    def name(self) -> str:
        """Safe in a file name."""
        return f"{self.phase}-s{self.seq_len}-b{self.batch_size}"


@dataclass(frozen=True)
class Cost:
    """What one cell cost in one tool, and the figures it gave, in seconds."""

    wall_s: float
    measuring_s: float
    step_s: float
    """Median training step, or median prefill."""
    token_s: float | None = None
    """Per output token after the first: decode time / (new tokens - 1)."""
    process_s: float | None = None
    """Of the peer: the launching process from its start to its end, imports included."""
    reported: Mapping[str, float] | None = None
    """Of the peer: what its report says of the same thing, see `peer_cost`."""

    @property
    def rest_s(self) -> float:
        """All that is not measuring."""
        return self.wall_s - self.measuring_s


CELLS = [Cell(phase, length, batch) for phase in PHASES for length in SEQ_LENS for batch in BATCH_SIZES]
BY_HAND_CELLS = [cell for cell in CELLS if cell.batch_size == 1]


def effbench_costs(trials: Sequence[Trial]) -> dict[Cell, Cost]:
    """Two cells of each trial; the trial's rest is shared between them."""
    costs = {}
    for trial in trials:
        cell, metrics, half = trial.record.cell, trial.record.metrics, trial.rest_s / 2
        train, infer = sum(trial.samples["step"]), sum(trial.samples["end_to_end"])
        shape = (cell.seq_len, cell.batch_size)
        costs[Cell("train", *shape)] = Cost(train + half, train, metrics["train.step_s"].median)
        costs[Cell("infer", *shape)] = Cost(
            infer + half, infer, metrics["infer.prefill_s"].median, metrics["infer.decode_token_s"].median
        )
    return costs


def peer_cost(cell: Cell, answer: Mapping[str, Any]) -> Cost:
    """From what `peer_cell.py` printed.

    `reported` has for training the `samples_per_s` and the `mean_step_s` of its report; for inference the `token_s` (mean) and
    `tokens` (how many values) of its per-token latency.
    """
    report, wall_s, process_s = answer["report"], answer["launch_s"], answer["process_s"]
    if cell.phase == "train":
        reported = {
            "samples_per_s": report["train"]["throughput"]["value"],
            "mean_step_s": report["train"]["latency"]["mean"],
        }
        return Cost(wall_s, report["overall"]["latency"]["total"], report["train"]["latency"]["p50"], None, process_s, reported)
    token_s = report["decode"]["latency"]["p50"] / (NEW_TOKENS - 1)
    per_token = report["per_token"]["latency"]
    reported = {"token_s": per_token["mean"], "tokens": per_token["count"]}
    return Cost(wall_s, answer["generate_s"], report["prefill"]["latency"]["p50"], token_s, process_s, reported)


class Work:
    """The folder of finished parts."""

    def __init__(self, folder: Path, peer_venv: Path, timeout_s: float) -> None:
        self.folder, self.venv, self.timeout_s = folder, peer_venv, timeout_s
        self.model, self.python = folder / "model", peer_venv / "bin" / "python"
        inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        self.peer_env = inherited | OFFLINE | {"OMP_NUM_THREADS": "1"}

    def prepare(self) -> None:
        """The peer's environment, and the model: one config, with random weights for the peer."""
        installed = self.venv / ".installed"
        if not installed.exists():
            print(f"making the peer's environment in {self.venv} (minutes)", flush=True)
            subprocess.run([sys.executable, "-m", "venv", self.venv], check=True)
            torch = version("torch").partition("+")[0]
            packages = ["optimum-benchmark==0.6.0", "transformers==4.57.*", f"torch=={torch}"]
            subprocess.run([self.python, "-m", "pip", "install", "--quiet", *packages], check=True)
            installed.touch()
        if not (self.model / "model.safetensors").exists():
            self.model.mkdir(parents=True, exist_ok=True)
            (self.folder / "config.json").write_text(json.dumps(CONFIG))
            shutil.copy(self.folder / "config.json", self.model)
            subprocess.run([self.python, "-c", MAKE_MODEL, self.model], env=self.peer_env, check=True)

    def effbench(self) -> tuple[float, list[Trial]]:
        """Wall time of the whole command, and its trials."""
        done, folder = self.folder / "effbench.json", self.folder / "effbench"
        suite = SUITE.replace("CONFIG", str(self.folder / "config.json"))
        kept = _read(done)
        if kept is None or kept["suite"] != suite:
            print(f"effbench: {len(CELLS)} cells, about two minutes", flush=True)
            shutil.rmtree(folder, ignore_errors=True)
            kept = {"suite": suite, "wall_s": run_suite(suite, folder).wall_s}
            done.write_text(json.dumps(kept))
        return kept["wall_s"], trials_of(folder)

    def peer(self, cell: Cell) -> dict[str, Any]:
        """The peer's answer for one cell, with the wall time of the process that launched it (`process_s`)."""
        settings = {
            **asdict(cell),
            "samples": SAMPLES,
            "warmup": WARMUP,
            "new_tokens": NEW_TOKENS,
            "model": str(self.model),
        }
        done = self.folder / f"peer-{cell.name}.json"
        kept = _read(done)
        if kept is None or kept["settings"] != settings:
            given = self.folder / "cell.json"
            given.write_text(json.dumps(settings))
            start = time.perf_counter()
            output = self._in_peer(str(Path(__file__).with_name("peer_cell.py")), str(given))
            process_s = time.perf_counter() - start
            kept = {"settings": settings, "process_s": process_s, **json.loads(output.strip().splitlines()[-1])}
            done.write_text(json.dumps(kept))
        return kept

    def by_hand(self, where: str) -> dict[Cell, float]:
        """Median step or prefill after warm-up of the hand-written loop, in the environment of `effbench` or the `peer`."""
        done = self.folder / f"by-hand-{where}.json"
        kept = _read(done)
        if kept is None:
            cells = [
                {"phase": c.phase, "optimizer": {"lr": 1e-3}, "ids": [_ids(c)] * (WARMUP + SAMPLES)} for c in BY_HAND_CELLS
            ]
            python, env = (sys.executable, os.environ) if where == "effbench" else (str(self.python), self.peer_env)
            kept = [median(durations[WARMUP:]) for durations in by_hand(self.model, cells, 1, python, env)]
            done.write_text(json.dumps(kept))
        return dict(zip(BY_HAND_CELLS, kept, strict=True))

    def _in_peer(self, *command: str) -> str:
        """Run the peer's python; what is still there at the time-out is killed with all its children."""
        process = subprocess.Popen(
            [self.python, *command],
            env=self.peer_env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        try:
            output, errors = process.communicate(timeout=self.timeout_s)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            raise SystemExit(f"the peer's cell took over {self.timeout_s:g} s; --timeout gives it more") from None
        if process.returncode != 0:
            raise SystemExit(f"the peer's cell ended with {process.returncode}:\n{errors[-3000:] or output[-3000:]}")
        return output


def _read(file: Path) -> Any:
    return json.loads(file.read_text()) if file.exists() else None


def _ids(cell: Cell) -> list[list[int]]:
    return [[(7 * position + row) % CONFIG["vocab_size"] for position in range(cell.seq_len)] for row in range(cell.batch_size)]


def table(costs: Mapping[str, Mapping[Cell, Cost]], hand: Mapping[str, Mapping[Cell, float]]) -> str:
    """Every cell in both tools, as Markdown."""
    lines = [
        "| cell | effbench: wall = measuring + rest, s | peer: wall = measuring + rest, s | step or prefill, ms: effbench "
        "(× by hand) | peer (× by hand) | token, ms: effbench | peer | peer says |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for cell in CELLS:
        ours, theirs = costs["effbench"][cell], costs["peer"][cell]
        steps = [
            f"{1000 * cost.step_s:.1f}" + (f" ({cost.step_s / hand[tool][cell]:.2f})" if cell in hand[tool] else "")
            for tool, cost in (("effbench", ours), ("peer", theirs))
        ]
        says = (theirs.reported or {}).get("token_s")
        tokens = ["" if seconds is None else f"{1000 * seconds:.1f}" for seconds in (ours.token_s, theirs.token_s, says)]
        lines.append("| " + " | ".join([cell.name, _sum(ours), _sum(theirs), *steps, *tokens]) + " |")
    return "\n".join(lines)


def _sum(cost: Cost) -> str:
    return f"{cost.wall_s:.2f} = {cost.measuring_s:.2f} + {cost.rest_s:.2f}"


@dataclass(frozen=True)
class Totals:
    """Over all cells, in seconds."""

    effbench_s: float
    effbench_measuring_s: float
    peer_s: float
    """All launches, and the launching process's own start once."""
    peer_measuring_s: float
    peer_processes_s: float
    """The peer as it was run here, a process for each cell."""


def totals(command_s: float, ours: Mapping[Cell, Cost], theirs: Mapping[Cell, Cost]) -> Totals:
    """`command_s`: wall time of the whole `effbench run`."""
    processes = [cost.process_s or cost.wall_s for cost in theirs.values()]
    launches = [cost.wall_s for cost in theirs.values()]
    start_s = median(process - launch for process, launch in zip(processes, launches, strict=True))
    return Totals(
        effbench_s=command_s,
        effbench_measuring_s=sum(cost.measuring_s for cost in ours.values()),
        peer_s=sum(launches) + start_s,
        peer_measuring_s=sum(cost.measuring_s for cost in theirs.values()),
        peer_processes_s=sum(processes),
    )


def findings(total: Totals, theirs: Mapping[Cell, Cost]) -> str:
    """Totals against their targets, and what the peer's own figures say beside its own samples."""
    rest, peer_rest = total.effbench_s - total.effbench_measuring_s, total.peer_s - total.peer_measuring_s
    share = rest / total.effbench_measuring_s
    factors = [
        cost.reported["samples_per_s"] * cost.reported["mean_step_s"] / cell.batch_size
        for cell, cost in theirs.items()
        if cell.phase == "train" and cost.reported
    ]
    counts = {int(cost.reported["tokens"]) for cell, cost in theirs.items() if cell.phase == "infer" and cost.reported}
    return "\n".join([
        f"effbench: {total.effbench_s:.1f} s = {total.effbench_measuring_s:.1f} measuring + {rest:.1f} rest; rest is "
        f"{share:.1%} of measuring ({_target(share <= 0.10)}: at most 10 %)",
        f"peer: {total.peer_s:.1f} s = {total.peer_measuring_s:.1f} measuring + {peer_rest:.1f} rest, its imports counted once "
        f"({total.peer_processes_s:.1f} s with a process for each cell)",
        f"effbench / peer: {_third(total.effbench_s / total.peer_s)}",
        f"effbench / peer with a process for each cell: {_third(total.effbench_s / total.peer_processes_s)}",
        f"the peer's training throughput is {min(factors):.2f} to {max(factors):.2f} times batch / mean step",
        f"the peer's per-token latency has {sorted(counts)} values; {SAMPLES} samples make {SAMPLES * (NEW_TOKENS - 1)}",
    ])  # fmt: skip


def _third(ratio: float) -> str:
    return f"{ratio:.3f} ({_target(ratio <= 1 / 3)}: at most a third)"


def _target(met: bool) -> str:
    return "met" if met else "MISSED"


def main() -> None:
    """Run what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    temporary = Path(tempfile.gettempdir())
    parser.add_argument("--peer-venv", type=Path, default=temporary / "effbench-peer-venv", metavar="DIR")
    parser.add_argument("--work", type=Path, default=temporary / "effbench-peer", metavar="DIR", help="finished parts")
    parser.add_argument("--timeout", type=float, default=300, metavar="S", help="of one of the peer's cells")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there as well")
    arguments = parser.parse_args()
    work = Work(arguments.work.resolve(), arguments.peer_venv.resolve(), arguments.timeout)
    work.prepare()
    command_s, trials = work.effbench()
    hand = {"effbench": work.by_hand("effbench"), "peer": work.by_hand("peer")}
    theirs = {}
    print(f"peer: {len(CELLS)} cells, five to nine minutes", flush=True)
    for number, cell in enumerate(CELLS, start=1):
        print(f"peer: cell {number} of {len(CELLS)}, {cell.name}", flush=True)
        theirs[cell] = peer_cost(cell, work.peer(cell))
    ours = effbench_costs(trials)
    total = totals(command_s, ours, theirs)
    if note := disturbed(trials):
        print(note)
    print(f"\n{table({'effbench': ours, 'peer': theirs}, hand)}\n\n{findings(total, theirs)}")
    if arguments.json:
        rows = [
            {**asdict(cell), "effbench": asdict(ours[cell]), "peer": asdict(theirs[cell])}
            | {f"by_hand_{tool}_s": found.get(cell) for tool, found in hand.items()}
            for cell in CELLS
        ]
        arguments.json.write_text(json.dumps({"totals": asdict(total), "cells": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
