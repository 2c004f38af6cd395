"""load → apply → train → infer of one rank on fake tensors: the trial's flow, with books of memory in place of clocks."""

import gc
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from effbench.plugin.cell import Cell
from effbench.plugin.model import LoadRequest, ModelSource
from effbench.plugin.technique import Batch, Context, Technique
from effbench.store.footprint import InferFootprint, RankFootprint, TrainFootprint, Work
from effbench.worker import defaults
from effbench.worker.counting import UncountableError, counting
from effbench.worker.estimate.collectives import Collectives
from effbench.worker.estimate.fakes import fake_tensors
from effbench.worker.estimate.reasons import NothingToTrainError, reason
from effbench.worker.estimate.storages import Storages, held_bytes
from effbench.worker.ranks import Ranks

_SEED = 0


class RankEstimate:
    """One rank of one cell."""

    def __init__(self, cell: Cell, techniques: Sequence[Technique], source: ModelSource, ranks: Ranks) -> None:
        self._cell, self._techniques, self._source, self._ranks = cell, techniques, source, ranks
        ids = torch.ones(cell.batch_size, cell.seq_len, dtype=torch.int64)
        self._batch: Batch = ranks.share({"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids})
        self._memory = Storages()
        self._context = Context(
            cell=cell,
            device=torch.device("cpu"),
            rank=ranks.rank,
            world_size=ranks.world_size,
            seed=_SEED,
            base_model=lambda: self._load(LoadRequest(dtype=cell.dtype)),
            calibration=lambda count: [self._batch] * count,
            mesh=ranks.mesh,
        )

    def run(self, phase_skips: Mapping[str, str]) -> RankFootprint:
        """Estimate the phases that are not skipped."""
        absent, found = dict(phase_skips), dict[str, Any]()
        self._decode_steps = 0 if "decode" in phase_skips else self._cell.decode_steps
        with fake_tensors(), self._memory:
            torch.manual_seed(_SEED)
            model = self._apply()
            parameters, trainable = _numbers(model.parameters()), _numbers(_trainable(model))
            for phase, estimate in (("train", self._train), ("infer", self._infer)):
                if phase in absent:
                    continue
                try:
                    found[phase] = estimate(model)
                except Exception as error:  # noqa: BLE001 - what a plugin raises on fake tensors is why a phase is absent
                    absent[phase] = reason(error, self._techniques)
                    model = self._apply()  # who knows in which state it is
        mesh = self._ranks.mesh
        at = dict(zip(mesh.mesh_dim_names or (), mesh.get_coordinate() or (), strict=True)) if mesh is not None else {}
        return RankFootprint(rank=self._ranks.rank, mesh=at, parameters=parameters, trainable=trainable, absent=absent, **found)

    def _load(self, request: LoadRequest) -> nn.Module:
        return self._source.load(replace(request, weights=False), _SEED).to(self._context.device)

    def _apply(self) -> nn.Module:
        request = LoadRequest(dtype=self._cell.dtype)
        for technique in self._techniques:
            request = technique.load(request)
        model = self._load(request)
        for technique in self._techniques:
            model = technique.apply(model, self._context)
        return model

    def _train(self, model: nn.Module) -> TrainFootprint:
        """The second step: the first one makes the optimizer's state, and what is allocated once."""
        trainable = list(_trainable(model))
        if not trainable:
            raise NothingToTrainError("the stack leaves nothing to train")
        for technique in self._techniques:
            if (teacher := technique.teacher(self._context)) is not None:
                self._context.kept[technique.name] = teacher
        step = defaults.train_step(model, trainable, self._cell)
        for technique in self._techniques:
            step = technique.train(step, self._context)
        step.model.train()
        step.run(self._batch)
        gc.collect()  # what techniques took out of the model may refer to itself
        memory, start = self._memory, self._memory.live
        memory.restart()
        with Collectives() as sent:
            step.forward_backward(step, self._batch)
            step_peak = memory.peak
            gradients = [p.grad for p in step.model.parameters() if p.grad is not None]
            held, there = held_bytes(gradients), memory.held_at_start(gradients)  # buckets stay from step to step
            activations = memory.peak_beside(gradients) - (start - there)
            del gradients  # the update may drop them
            memory.restart()
            step.update(step)
            update_peak = memory.peak
        weights = _model_bytes(step.model)
        state = held_bytes(_tensors(getattr(step.optimizer, "state", {})))
        work = _work(_flops(lambda: step.forward_backward(step, self._batch)), sent)
        step.model.zero_grad()
        return TrainFootprint(
            weights=weights,
            gradients=held,
            optimizer_state=state,
            other=start - weights - state - there,
            activations=activations,
            step_peak=step_peak,
            update_peak=update_peak,
            work=work,
        )

    def _infer(self, model: nn.Module) -> InferFootprint:
        """A prefill of the prompts, and the first token behind it."""
        model.eval()
        model.zero_grad()
        inference = defaults.inference(model, causal=self._cell.facts.causal)
        for technique in self._techniques:
            inference = technique.infer(inference, self._context)
        ids, mask = self._batch["input_ids"], self._batch["attention_mask"]
        memory = self._memory
        with torch.no_grad():
            start = memory.live
            memory.restart()
            with Collectives() as sent:
                cache = inference.prefill(inference, ids, mask)[1]
            peak, kept = memory.peak - start, memory.live - start
            flops = _flops(lambda: inference.prefill(inference, ids, mask))
            prefill, decode, growth = _work(flops, sent), None, 0
            if self._decode_steps:
                with Collectives() as sent:
                    cache = inference.decode(inference, ids[:, :1], cache)[1]
                growth = memory.live - start - kept
                decode = _work(_flops(lambda: inference.decode(inference, ids[:, :1], cache)), sent)
        weights = _model_bytes(inference.model)
        return InferFootprint(
            weights=weights,
            prefill_peak=weights + peak,
            kv_cache=kept + self._decode_steps * growth if decode else None,
            prefill=prefill,
            decode_token=decode,
        )


def _trainable(model: nn.Module) -> Iterator[nn.Parameter]:
    return (parameter for parameter in model.parameters() if parameter.requires_grad)


def _numbers(parameters: Iterable[nn.Parameter]) -> int:
    return sum(parameter.numel() for parameter in parameters)


def _model_bytes(model: nn.Module) -> int:
    return held_bytes(chain(model.parameters(), model.buffers()))


def _tensors(thing: Any) -> Iterator[Tensor]:
    """Those of an optimizer's state: containers of containers."""
    if isinstance(thing, Tensor):
        yield thing
    elif isinstance(thing, Mapping):
        yield from chain.from_iterable(map(_tensors, thing.values()))
    elif isinstance(thing, list | tuple):
        yield from chain.from_iterable(map(_tensors, thing))


def _work(flops: tuple[int | None, str | None], sent: Collectives) -> Work:
    return Work(flops=flops[0], unknown_operator=flops[1], collectives=sent.found())


def _flops(action: Callable[[], object]) -> tuple[int | None, str | None]:
    """What the action multiplies, or the operator because of which nobody knows."""
    try:
        with counting() as counter:
            action()
    except UncountableError as error:
        return None, str(error)
    return (None, counter.unknown) if counter.unknown else (counter.total, None)
