"""A technique's time here over the same thing written with its library: `python tools/over_libraries.py`.

Both sides live in one process and take turns, call by call: a training step, a prefill, a decode loop, on the same model, batch
and number of earlier steps. A pair is the median of `--calls` calls of either side; which side goes first changes from call to
call. Before inference is timed both must have computed the same logits, so that the times are of the same work. Shown are the
median ratio and its 95 % t interval over pairs; one that lies beyond the target of 1.03 is marked. About two minutes.

Ours goes through `load`, `apply`, `train` and `infer` as a trial composes them; the library's side is by_library.py. peft's
prompt tuning also runs the head on its virtual positions: there the library does more work for the same logits.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

import numpy as np
import torch
from by_library import RECIPES, VIRTUAL_TOKENS, Batch, ByLibrary
from transformers.utils.logging import disable_progress_bar

import effbench.reference
from effbench.board.stats import ratio_interval
from effbench.plan.plan import plan, techniques_of
from effbench.plan.suite import Suite
from effbench.plugin import Context, LoadRequest
from effbench.plugin.discovery import discover
from effbench.worker import defaults

T = TypeVar("T")
SEED = 0
TARGET = 1.03
WARMUP = 2  # calls of each side that are not counted
TOLERANCE = 1e-4  # of logits; they were equal to the last bit on CPUs

STACKS: dict[str, list[dict[str, Any]]] = {
    "lora": [{"technique": "lora"}],
    "lora-unmerged": [{"technique": "lora", "merged": False}],
    "ia3": [{"technique": "ia3"}],
    "ia3-unmerged": [{"technique": "ia3", "merged": False}],
    "prompt-tuning": [{"technique": "prompt_tuning", "tokens": VIRTUAL_TOKENS}],
    "int8-weight-only": [{"technique": "int8_weight_only"}],
    "int8-dynamic": [{"technique": "int8_dynamic"}],
    "int4": [{"technique": "int4"}],
    "nf4": [{"technique": "nf4"}],
    "qlora": [{"technique": "nf4"}, {"technique": "lora"}],
    "qlora-unmerged": [{"technique": "nf4"}, {"technique": "lora", "merged": False}],
}
"""By the name of the recipe that each is compared with."""


@dataclass(frozen=True)
class Work:
    """What both sides are made to do, and how often."""

    model: Path
    seq_len: int
    batch_size: int
    new_tokens: int
    rounds: int
    calls: int

    @property
    def steps(self) -> int:
        """Training steps, those for warm-up included."""
        return WARMUP + self.rounds * self.calls

    def batch(self) -> Batch:
        """Random bytes. The first is not predicted: in peft's prompt tuning the last virtual token would predict it."""
        ids = torch.randint(1, 256, (self.batch_size, self.seq_len), generator=torch.Generator().manual_seed(SEED))
        labels = ids.clone()
        labels[:, 0] = -100
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}

    def suite(self, stack: Sequence[dict[str, Any]]) -> Suite:
        """Of the one cell that this is."""
        return Suite.model_validate({
            "name": "over-libraries",
            "baseline": "ours",
            "models": [f"path:{self.model}"],
            "workloads": ["docs"],
            "device": "cpu",
            "axes": {"seq_len": [self.seq_len], "batch_size": [self.batch_size]},
            "training": {"steps": self.steps},
            "inference": {"new_tokens": self.new_tokens},
            "stacks": {"ours": list(stack)},
        })  # fmt: skip


class Ours:
    """A stack as a trial composes it."""

    def __init__(self, stack: Sequence[dict[str, Any]], work: Work) -> None:
        catalog, suite = discover(), work.suite(stack)
        planned = plan(suite, catalog)
        if planned.skips:
            raise SystemExit(f"{stack}: {planned.skips[0].reason}")
        [cell] = planned.cells
        self.techniques, source = techniques_of(cell, catalog), catalog.model(suite.models[0])
        base = LoadRequest(dtype=cell.dtype)
        self.context = Context(
            cell=cell,
            device=torch.device("cpu"),
            rank=0,
            world_size=1,
            seed=SEED,
            base_model=lambda: source.load(base, SEED),
            calibration=lambda count: [work.batch()] * count,
        )
        model = source.load(self._composed("load", base), SEED)
        torch.manual_seed(SEED)
        self.model = self._composed("apply", model, self.context)

    def _composed(self, method: str, thing: Any, *context: Context) -> Any:
        for technique in self.techniques:
            thing = getattr(technique, method)(thing, *context)
        return thing

    def prepare_training(self) -> Callable[[int], float]:
        """The step, with every technique's part in it; its learning rate by step."""
        trainable = [p for p in self.model.parameters() if p.requires_grad]
        self.training = self._composed("train", defaults.train_step(self.model, trainable, self.context.cell), self.context)
        self.training.model.train()
        factor = self.training.schedule.lr_lambdas[0]
        return lambda step: self.context.cell.lr * factor(step)

    def step(self, batch: Batch) -> None:
        """Forward, backward, update."""
        self.training.run(batch)

    def convert(self) -> None:
        """From training to inference."""
        self.inference = self._composed("infer", defaults.inference(self.model.eval()), self.context)

    def logits(self, ids: torch.Tensor) -> torch.Tensor:
        """Of every position."""
        found: torch.Tensor = self.inference.logits(self.inference, ids, torch.ones_like(ids))
        return found

    def prefill(self, ids: torch.Tensor) -> tuple[torch.Tensor, Any]:
        """Logits of the last position, and the cache."""
        return self.inference.prefill(self.inference, ids, torch.ones_like(ids))

    def decode(self, ids: torch.Tensor, cache: Any) -> tuple[torch.Tensor, Any]:
        """One more token."""
        return self.inference.decode(self.inference, ids, cache)


Side = Ours | ByLibrary


@dataclass(frozen=True)
class Row:
    """One phase of one stack: ours over the library's, pair by pair."""

    stack: str
    phase: str
    ratios: list[float]

    def __str__(self) -> str:
        interval = ratio_interval(np.log(self.ratios))
        missed = f"   MISSED: at most {TARGET}" if interval.low > TARGET else ""
        return f"{self.stack:<18}{self.phase:<9}{median(self.ratios):>7.3f}   [{interval.low:.3f}, {interval.high:.3f}]{missed}"


def compare(name: str, work: Work) -> list[Row]:
    """Every phase of one stack. SystemExit where the sides do not compute the same."""
    ours, library, batch = Ours(STACKS[name], work), ByLibrary(work.model, RECIPES[name], SEED), work.batch()
    sides, rows = (ours, library), []
    if library.trains:
        library.prepare_training(ours.prepare_training())
        rows.append(Row(name, "train", *ratios(lambda side: [timed(lambda: side.step(batch))[0]], sides, work)))
    with torch.inference_mode():
        for side in sides:
            side.convert()
        if (difference := difference_of_logits(sides, batch["input_ids"])) > TOLERANCE:
            raise SystemExit(f"{name}: the two sides' logits differ by {difference:.2g}: their times are not of the same work")
        prefill, decode = ratios(lambda side: generate(side, batch["input_ids"], work.new_tokens), sides, work)
    return [*rows, Row(name, "prefill", prefill), Row(name, "decode", decode)]


def ratios(call: Callable[[Side], list[float]], sides: tuple[Ours, ByLibrary], work: Work) -> list[list[float]]:
    """Ours over the library's: for each duration that a call gives, a ratio for each pair."""
    for side in sides * WARMUP:
        call(side)
    pairs = []
    for number in range(work.rounds):
        durations: dict[Side, list[list[float]]] = {side: [] for side in sides}
        for turn in range(work.calls):
            for side in sides if (number + turn) % 2 else sides[::-1]:
                durations[side].append(call(side))
        ours, library = (np.median(durations[side], axis=0) for side in sides)
        pairs.append(ours / library)
    return np.transpose(pairs).tolist()


def generate(side: Side, ids: torch.Tensor, new_tokens: int) -> list[float]:
    """Seconds of the prefill, and of the decode loop behind it."""

    def decode() -> None:
        token, cache = logits.argmax(-1, keepdim=True), past
        for _ in range(new_tokens - 1):
            following, cache = side.decode(token, cache)
            token = following.argmax(-1, keepdim=True)

    prefill_s, (logits, past) = timed(lambda: side.prefill(ids))
    return [prefill_s, timed(decode)[0]]


def timed(action: Callable[[], T]) -> tuple[float, T]:
    """Seconds, and what the action returned."""
    start = time.perf_counter()
    result = action()
    return time.perf_counter() - start, result


def difference_of_logits(sides: tuple[Ours, ByLibrary], ids: torch.Tensor) -> float:
    """The largest, of all positions at once and of the last one decoded behind the others."""
    whole, stepped = [], []
    for side in sides:
        whole.append(side.logits(ids).float())
        _, cache = side.prefill(ids[:, :-1])
        stepped.append(side.decode(ids[:, -1:], cache)[0].float())
    return max(float((ours - library).abs().max()) for ours, library in (whole, stepped))


def main() -> None:
    """Compare, and print each row when it is known."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--technique", nargs="+", choices=sorted(STACKS), default=list(STACKS), help="all by default")
    shipped = Path(effbench.reference.__file__).parent / "tiny-llama"
    parser.add_argument("--model", type=Path, default=shipped, metavar="DIR", help="the shipped one by default")
    parser.add_argument("--rounds", type=int, default=10, help="pairs of each row, 2 at least")
    parser.add_argument("--calls", type=int, default=3, help="of each side in a pair")
    parser.add_argument("--seq-len", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--new-tokens", type=int, default=16)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    disable_progress_bar()  # of loading
    work = Work(**{field.name: getattr(arguments, field.name) for field in fields(Work)})
    print(f"{'ours / library':<18}{'phase':<9}{'median':>7}   95 % of {work.rounds} pairs")
    for name in arguments.technique:
        for row in compare(name, work):
            print(row, flush=True)


if __name__ == "__main__":
    main()
