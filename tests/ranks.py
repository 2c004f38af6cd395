"""Several gloo ranks in a test, without the command line: `run_ranks` runs a function of a test module on every rank.

The function is given a `Here` and may make the real trial of its rank, phase by phase (`here.trial(stack).trained()`) or all
of it with its meters (`here.outcome(stack)`). Global batches are the same at every world size, and dropout is 0. Ranks are
forked from a server that has imported torch and transformers once and runs nothing: a test of two ranks takes a second.

    def losses(here, stack):
        return here.trial(stack).trained().losses

    def test_a_stack():
        one, two = run_ranks(1, losses, ["ddp"]), run_ranks(2, losses, ["ddp"])
        assert two[0] == two[1] == pytest.approx(one[0], rel=1e-4)

`train_losses(stack, world_size)` is that for the common case. A test that starts ranks belongs in tests/parallel, which has the
machine to itself.
"""

import faulthandler
import multiprocessing
import pickle
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from functools import cache
from multiprocessing.connection import wait
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors.torch import save_model
from torch import distributed as dist

from effbench.plan.plan import _spread
from effbench.plan.reasons import why_no_cell, why_no_phases
from effbench.plugin import Quality, Technique, Workload
from effbench.worker.ranks import Place, Ranks, Rendezvous, join, listen
from effbench.worker.trial import Outcome, TrialRequest, _Trial, run
from tests.records import make_cell
from tests.techniques.conftest import BASES, CATALOG

_TIMEOUT_S = 240
_PRELOAD = (
    "tests.ranks",
    "peft",
    "torch.distributed.fsdp",
    "torch.distributed.pipelining",
    "torch.distributed.tensor.parallel",
    *(f"transformers.models.{kind}.modeling_{kind}" for kind in BASES),
)
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(list(_PRELOAD))

Stack = Sequence[str | Technique | tuple[str, dict[str, Any]]]


def run_ranks(world_size: int, function: Callable[..., Any], *args: Any) -> list[Any]:
    """`function(here, *args)` on every rank, in processes of their own; results by rank. A rank's failure is raised here."""
    processes, ends = [], {}
    with listen("127.0.0.1") as store:
        for rank in range(world_size):
            ours, theirs = _CONTEXT.Pipe(duplex=False)
            rendezvous = (*store.getsockname(), store if rank == 0 else None)
            processes.append(
                _CONTEXT.Process(target=_rank, args=(theirs, Place(rank, rank, world_size), rendezvous, function, args))
            )
            processes[-1].start()
            theirs.close()
            ends[ours] = rank
        try:
            return _collect(ends)
        finally:
            for process in processes:
                process.kill()
                process.join()


def train_losses(stack: Stack, world_size: int, *, base: str | Callable[[], Any] = "llama", **cell: Any) -> list[float]:
    """The loss of each step, the same on every rank."""
    curves = run_ranks(world_size, _losses, stack, base, cell)
    assert all(curve == curves[0] for curve in curves)
    return curves[0]


class Here:
    """One rank of a test."""

    def __init__(self, place: Place, rendezvous: tuple[str, int, Any]) -> None:
        host, port, store = rendezvous
        self.rank, self.world_size = place.rank, place.world_size
        self._place, self._rendezvous = place, Rendezvous(host, port, store.detach() if store else None)
        self._ranks: Ranks | None = None

    def trial(self, stack: Stack, base: str | Callable[[], Any] = "llama", **cell: Any) -> "RankTrial":
        """The trial of a stack on this rank, its phases to be called one by one. Several trials must have one mesh."""
        return RankTrial(self._request(stack, base, **cell), Outcome(), lambda phase: None, time.perf_counter)

    def outcome(self, stack: Stack, base: str | Callable[[], Any] = "llama", **cell: Any) -> Outcome:
        """What a whole trial gives on this rank, with all meters, as its record would have it; it must not have failed."""
        meters = [CATALOG.meters.get(name)() for name in CATALOG.meters.names()]
        found = run(self._request(stack, base, meters, **cell), lambda phase: None)
        assert found.status == "ok", found.error
        return found

    def _request(self, stack: Stack, base: str | Callable[[], Any], meters: Sequence[Any] = (), **fields: Any) -> TrialRequest:
        source = source_of(BASES[base] if isinstance(base, str) else base)
        techniques = [_technique(use) for use in stack]
        defaults = {"batch_size": 4, "seq_len": 16, "steps": 10, "lr": 1e-2, "sampling": {"max_seconds": 0.01}}
        cell = make_cell(facts=source.facts(), world_size=self.world_size, **(defaults | fields))
        cell = _spread(cell, techniques)
        reason = why_no_cell(cell, techniques) if techniques or self.world_size > 1 else None
        assert reason is None, reason
        skips = why_no_phases(cell, techniques, Seeded.phases)
        return TrialRequest(cell, 1, techniques, source, Seeded(), meters, skips, self._join(techniques))

    def _join(self, techniques: Sequence[Technique]) -> Ranks:
        if self.world_size == 1:
            return Ranks()
        if self._ranks is None:
            self._ranks = join(self._place, self._rendezvous, torch.device("cpu"), techniques)
        return self._ranks


class RankTrial(_Trial):
    """The real trial of one rank in a test's hands."""

    def made(self) -> "RankTrial":
        """Load and apply: `self.model`, not trained."""
        self._seed()
        self.model = self._apply(self._load())
        return self

    def trained(self) -> "RankTrial":
        """Load, apply and train: `self.losses` and `self.model`."""
        self.made()
        self._train(self.model)
        self.losses: list[float] = self.outcome.samples["samples"]["loss"]
        return self

    def inference(self) -> Any:
        """The model in use, after every technique's `infer`."""
        self.model.eval()
        return self._convert(self.model)

    def logits(self, inference: Any) -> torch.Tensor:
        """Of fixed token ids, the same on every rank, as quality gets them."""
        ids = torch.randint(1, 256, (2, 12), generator=torch.Generator().manual_seed(5))
        with torch.inference_mode():
            return inference.logits(inference, ids, torch.ones_like(ids)).float()


class Seeded(Workload):
    """Two batches of random tokens in turn, the same at every world size: they can be learned by heart."""

    name = "seeded"

    def data_hash(self):
        return "seeded"

    def training_batches(self, tokenizer, cell, count, seed):
        generator = torch.Generator().manual_seed(seed)
        ids = [torch.randint(1, 256, (cell.batch_size, cell.seq_len), generator=generator) for _ in range(2)]
        batches = [{"input_ids": i, "attention_mask": torch.ones_like(i), "labels": i} for i in ids]
        return [batches[number % 2] for number in range(count)]

    def prompts(self, tokenizer, cell):
        return self.training_batches(tokenizer, cell, 1, 7)[0]["input_ids"]

    def quality(self, logits, tokenizer, cell, split="test"):
        ids = self.prompts(tokenizer, cell)
        found = logits(ids, torch.ones_like(ids))
        bits = float(torch.nn.functional.cross_entropy(found.flatten(0, 1), ids.flatten()))
        return Quality({"bits_per_byte": bits}, {"bits_per_byte": [bits]}, [1.0], ["seeded"])


@cache
def source_of(base: Callable[[], Any]) -> Any:
    """The model in a folder, without dropout."""
    model, folder = base(), TemporaryDirectory()
    for name, value in model.config.to_dict().items():
        if "drop" in name and isinstance(value, float):
            setattr(model.config, name, 0.0)
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder.name)  # model.save_pretrained writes on rank 0 alone
    save_model(model, f"{folder.name}/model.safetensors", metadata={"format": "pt"})
    source = CATALOG.model(f"path:{folder.name}")
    source.folder = folder  # removed with the source
    return source


def _losses(here: Here, stack: Stack, base: str | Callable[[], Any], cell: dict[str, Any]) -> list[float]:
    return here.trial(stack, base, **cell).trained().losses


def _technique(use: str | Technique | tuple[str, dict[str, Any]]) -> Technique:
    if isinstance(use, Technique):
        return use
    name, options = (use, {}) if isinstance(use, str) else use
    return CATALOG.technique(name, options)


def _collect(ends: dict[Any, int]) -> list[Any]:
    results, deadline = {}, time.monotonic() + _TIMEOUT_S
    while ends:
        ready = wait(list(ends), timeout=deadline - time.monotonic())
        if not ready:
            raise TimeoutError(f"ranks {sorted(ends.values())} gave no result in {_TIMEOUT_S} s")
        for end in ready:
            rank = ends.pop(end)
            try:
                failure, results[rank] = pickle.loads(end.recv_bytes())  # noqa: S301 - from a process this one started
            except EOFError:
                raise ChildProcessError(f"rank {rank} died") from None
            if failure:
                raise AssertionError(f"rank {rank}:\n{failure}")
    return [results[rank] for rank in sorted(results)]


def _rank(end: Any, place: Place, rendezvous: tuple[str, int, Any], function: Callable[..., Any], args: Sequence[Any]) -> None:
    torch.set_num_threads(1)
    faulthandler.enable()
    failure = result = None
    try:
        result = function(Here(place, rendezvous), *args)
    except BaseException:  # noqa: BLE001 - told to the test, which raises it
        failure = traceback.format_exc()
    end.send_bytes(pickle.dumps((failure, result)))
    end.close()
    sys.stdout.flush()
    if dist.is_initialized():
        dist.destroy_process_group()
