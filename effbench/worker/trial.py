"""One trial: load → apply → train → infer, in this process, measured. The whole flow is on this page."""

import random
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from effbench.plugin.cell import Cell, Phase
from effbench.plugin.meter import Meter, Observation, Summary
from effbench.plugin.model import LoadRequest, ModelSource
from effbench.plugin.sampling import Sampler
from effbench.plugin.technique import Batch, Context, Inference, Technique, TrainStep
from effbench.plugin.workload import HeldOut, Quality, Workload, weighted_mean
from effbench.worker import defaults
from effbench.worker.checkpoint import Checkpoints
from effbench.worker.ranks import Ranks, union
from effbench.worker.timing import Clock, clock_for, timer_for

T = TypeVar("T")


class DivergedError(Exception):
    """The loss, or a score, is not finite."""


@dataclass(frozen=True)
class TrialRequest:
    """What the host hands to a forked child."""

    cell: Cell
    seed: int
    techniques: Sequence[Technique]
    source: ModelSource
    workload: Workload
    meters: Sequence[Meter]
    phase_skips: dict[str, str]
    ranks: Ranks = field(default_factory=Ranks)
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    probe: bool = True
    """Whether meters may run the model again for what needs an instrument."""
    split: HeldOut = "test"
    """What quality is measured on. On validation a setting is being chosen: nothing that uses the test split happens."""


@dataclass
class Outcome:
    """What a trial found, filled as it goes, so that a failure keeps what came before it."""

    status: str = "ok"
    error: str | None = None
    phases: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    quality: dict[str, Any] | None = None
    quality_absent: str | None = None
    final_loss: float | None = None
    samples: dict[str, Any] = field(default_factory=dict)


def run(request: TrialRequest, announce: Callable[[str], None], clock: Clock = time.perf_counter) -> Outcome:
    """Run one trial; whatever a plugin raises ends up in the outcome."""
    outcome = Outcome()
    try:
        _Trial(request, outcome, announce, clock).run()
    except DivergedError as error:
        outcome.status, outcome.error = "diverged", str(error)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - a plugin's failure is its trial's result: recorded, not hidden
        outcome.status = "oom" if _is_out_of_memory(error) else "failed"
        outcome.error = "".join(traceback.format_exception(error, limit=-12))
    return outcome


class _Trial:
    def __init__(self, request: TrialRequest, outcome: Outcome, announce: Callable[[str], None], clock: Clock) -> None:
        self.request, self.outcome, self.announce = request, outcome, announce
        self.cell, self.ranks, self.device = request.cell, request.ranks, request.device
        self.clock = clock_for(self.device, clock)
        self.timer = timer_for(self.device, clock)
        self.tokenizer = request.source.tokenizer()
        self.checkpoints = Checkpoints(request.techniques)
        self.context = Context(
            cell=self.cell,
            device=self.device,
            rank=self.ranks.rank,
            world_size=self.ranks.world_size,
            seed=request.seed,
            base_model=self._load_base,
            calibration=partial(self._batches, whole=True),
            mesh=self.ranks.mesh,
        )

    def run(self) -> None:
        torch.set_num_threads(self.cell.threads)
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        self._seed()
        model = self._load()
        model = self._apply(model)
        if "train" not in self.request.phase_skips:
            self._train(model)
        else:
            self._skip("train")
        if "infer" not in self.request.phase_skips:
            self._infer(model)
        else:
            self._skip("infer")

    def _load(self) -> nn.Module:
        observation = self._begin("load")
        start = self.clock()
        load_request = LoadRequest(dtype=self.cell.dtype)
        for technique in self.request.techniques:
            load_request = _checked(technique, "load", technique.load(load_request), LoadRequest)
        model = self.request.source.load(load_request, self.request.seed)
        if not load_request.host:
            model = model.to(self.device)
        observation.facts["load.duration_s"] = self.clock() - start
        self._end(observation)
        self.base_parameters = sum(union(_parameters(model)).values())
        self.checkpoints.remember_base(model)
        return model

    def _apply(self, model: nn.Module) -> nn.Module:
        observation = self._begin("apply")
        start = self.clock()
        self._seed()  # new weights depend on the round's seed alone, not on what loading drew
        for technique in self.request.techniques:
            model = _checked(technique, "apply", technique.apply(model, self.context), nn.Module)
        observation.facts["apply.duration_s"] = self.clock() - start
        observation.facts["parameters.total"] = sum(union(_parameters(model)).values())
        self._end(observation)
        self.checkpoints.remember_base(model)  # what `apply` makes of the base it can make again
        return model

    def _train(self, model: nn.Module) -> None:
        trainable = [p for p in model.parameters() if p.requires_grad]
        trained = union({name: p.numel() for name, p in model.named_parameters() if p.requires_grad})
        if not trained:
            self.outcome.phases["train"] = "skipped: the stack leaves nothing to train"
            return
        teacher_facts, teacher_scores = self._teacher()
        step = defaults.train_step(model, trainable, self.cell)
        for technique in self.request.techniques:
            step = _checked(technique, "train", technique.train(step, self.context), TrainStep)
        before = self._quality(self._spread_inference(step.model)) if self.request.source.trained else None
        batches = self._batches(self.cell.steps)
        self._seed(self.ranks.data_rank)  # dropout differs between shares of a batch
        step.model.train()
        observation = self._begin("train", step.model, step=step, batch=batches[0])
        observation.facts = {"parameters.trainable": sum(trained.values())} | teacher_facts
        observation.samples["step"], observation.losses = self._steps(step, batches)
        observation.stopped["step"] = "steps"
        self._counted()  # before meters take steps of their own
        self._end(observation)
        step.model.eval()
        self.outcome.quality = {"before": before.scores, "teacher": teacher_scores} if before else None
        size = self.checkpoints.delta_bytes(model, self.context)
        self._end(replace(self._observation("train"), facts={"checkpoint.delta_bytes": size}), meters_of="size")

    def _teacher(self) -> tuple[dict[str, float], dict[str, float]]:
        """Let a technique that learns from a teacher have it; the seconds that took, as a fact, and the teacher's quality."""
        start, found = self.clock(), None
        for technique in self.request.techniques:
            if (teacher := technique.teacher(self.context)) is not None:
                found = self.context.kept[technique.name] = _checked(technique, "teacher", teacher, nn.Module)
        if found is None:
            return {}, {}
        seconds = self.clock() - start
        quality = self._quality(defaults.inference(found)) if self.request.split == "test" else None
        return {"train.teacher_s": seconds}, quality.scores if quality else {}

    def _counted(self) -> None:
        """What techniques counted while they trained."""
        for technique in self.request.techniques:
            units = {metric.name: metric.unit for metric in technique.metrics}
            for name, value in technique.counted(self.context).items():
                if name not in units:
                    raise KeyError(f"{technique.name}.counted gave {name!r}, which is not one of its metrics")
                self.outcome.metrics[name] = Summary(median=value, unit=units[name]).model_dump(exclude_none=True)

    def _steps(self, step: TrainStep, batches: Sequence[Batch]) -> tuple[list[float], list[float]]:
        """Durations and losses. Looking at the loss, which synchronises, stays outside of the timed region."""
        durations, losses = [], []
        for number, batch in enumerate(batches):
            seconds, tensor = self.timer(partial(step.run, batch))
            seconds, loss = self.ranks.agree(seconds, float(tensor) if tensor.numel() else None)
            durations.append(seconds)
            losses.append(loss)
            if not np.isfinite(loss):
                raise DivergedError(f"loss is {loss} at step {number + 1} of {len(batches)}")
        self.outcome.final_loss = losses[-1]
        return durations, losses

    def _infer(self, model: nn.Module) -> None:
        model.eval()
        for parameter in model.parameters():
            parameter.grad = None  # the optimizer and its state are gone with `_train`
        inference = self._convert(model)
        size, sparse = self.checkpoints.full_bytes(inference.model, self.context)
        self._record_quality(inference)
        if self.request.split == "validation":
            self.outcome.phases["infer"] = "skipped: only its quality was asked for"
            return
        prompt = self.ranks.rows(self.request.workload.prompts(self.tokenizer, self.cell)).to(self.device)
        with torch.inference_mode():
            self._compile(inference, prompt)
        base = self.context.base_model
        seen = {
            "inference": inference,
            "prompt": prompt,
            "base_model": base,
            "decodes": "decode" not in self.request.phase_skips,
        }
        observation = self._begin("infer", inference.model, **seen)
        observation.facts["checkpoint.bytes"] = size
        observation.facts["checkpoint.sparse_bytes"] = sparse
        observation.facts["checkpoint.bits_per_weight"] = 8 * size / self.base_parameters
        with torch.inference_mode():
            self._sample_inference(inference, prompt, observation)
        self._end(observation)

    def _convert(self, model: nn.Module) -> Inference:
        observation = self._begin("convert", model)
        start = self.clock()
        inference = self._plain_inference(model)
        for technique in self.request.techniques:
            inference = _checked(technique, "infer", technique.infer(inference, self.context), Inference)
        observation.facts["infer.convert_s"] = self.clock() - start
        self._end(observation)
        return inference

    def _plain_inference(self, model: nn.Module) -> Inference:
        return defaults.inference(model, causal=self.cell.facts.causal)

    def _compile(self, inference: Inference, ids: Tensor) -> None:
        """Call what compiles when it is first called, so that no sample contains it: the time cap would end at the first."""
        if any(technique.compiles for technique in self.request.techniques):
            self.announce("compile")
            logits, cache = inference.prefill(inference, ids, torch.ones_like(ids))
            for _ in range(0 if "decode" in self.request.phase_skips else self.cell.decode_steps):
                logits, cache = inference.decode(inference, logits.argmax(-1, keepdim=True), cache)

    def _spread_inference(self, model: nn.Module) -> Inference:
        """Nothing merged or converted, but used over the ranks as it will be."""
        inference = self._plain_inference(model)
        for technique in self.request.techniques:
            if technique.dimension:
                inference = _checked(technique, "infer", technique.infer(inference, self.context), Inference)
        return inference

    def _sample_inference(self, inference: Inference, ids: Tensor, observation: Observation) -> None:
        """Prefill and decode in turn, each timed by itself, until both are known well enough."""
        mask = torch.ones_like(ids)
        prefills, decodes = Sampler(self.cell.sampling), Sampler(self.cell.sampling)
        steps = observation.decode_steps
        samplers = [prefills, decodes] if steps else [prefills]
        reason = None

        def prefill() -> tuple[Tensor, Any]:
            return inference.prefill(inference, ids, mask)

        def decode(logits: Tensor, cache: Any) -> Any:
            for _ in range(steps):
                logits, cache = inference.decode(inference, logits.argmax(-1, keepdim=True), cache)
            return cache

        while reason is None:
            seconds, (logits, cache) = self._timed(prefill)
            prefills.add(seconds)
            if steps:
                seconds, observation.cache = self._timed(partial(decode, logits, cache))
                decodes.add(seconds)
            # Every rank sees the same durations, so all stop after the same sample.
            reasons = [sampler.enough() for sampler in samplers]
            reason = "cap" if "cap" in reasons else "interval" if all(reasons) else None
        observation.samples["prefill"] = prefills.samples
        observation.stopped = dict.fromkeys(("prefill", "decode", "end_to_end"), reason)
        if steps:
            observation.samples["decode"] = decodes.samples
            observation.samples["end_to_end"] = [p + d for p, d in zip(prefills.samples, decodes.samples, strict=True)]
        elif "decode" in self.request.phase_skips:
            self._skip("decode")
        elif not self.cell.facts.causal:
            self.outcome.phases["decode"] = f"skipped: {self.cell.facts.model_type} does not predict the next token"

    def _timed(self, action: Callable[[], T]) -> tuple[float, T]:
        """Seconds of the slowest rank, all starting together, and this rank's result."""
        self.ranks.meet()
        seconds, result = self.timer(action, flush=self.cell.sampling.flush_l2)
        seconds, _ = self.ranks.agree(seconds)
        return seconds, result

    def _record_quality(self, inference: Inference) -> None:
        earlier = self.outcome.quality or {"before": {}}
        if quality := self._quality(inference):
            chance = {name: weighted_mean(values, quality.weights) for name, values in quality.chance.items()}
            self.outcome.quality = earlier | {"scores": quality.scores, "chance": chance, "n": len(quality.names)}
            self.outcome.samples["quality"] = {
                "names": quality.names,
                "weights": quality.weights,
                "per_sample": quality.per_sample,
                "chance": quality.chance,
            }

    def _quality(self, inference: Inference) -> Quality | None:
        if not (self.request.source.trained or self.request.source.from_scratch):
            self.outcome.quality_absent = "not applicable: the model's weights are random"
            return None
        self.announce("quality")
        model = inference.model
        was_training = model.training
        model.eval()

        def logits(ids: Tensor, mask: Tensor) -> Tensor:
            return inference.logits(inference, ids.to(self.device), mask.to(self.device)).float().cpu()

        with torch.inference_mode():
            quality = self.request.workload.quality(logits, self.tokenizer, self.cell, self.request.split)
        model.train(was_training)
        for name, score in quality.scores.items():
            if not np.isfinite(score):
                raise DivergedError(f"quality: {name} is {score}")
        return quality

    def _batches(self, count: int, *, whole: bool = False) -> list[Batch]:
        """This rank's share of each batch; or whole batches, by which all ranks come to the same choices."""
        batches = self.request.workload.training_batches(self.tokenizer, self.cell, count, self.request.seed)
        shares = batches if whole else [self.ranks.share(batch) for batch in batches]
        return [{name: tensor.to(self.device) for name, tensor in share.items()} for share in shares]

    def _load_base(self) -> nn.Module:
        return self.request.source.load(LoadRequest(dtype=self.cell.dtype), self.request.seed).to(self.device)

    def _seed(self, share: int = 0) -> None:
        seed = self.request.seed + share
        random.seed(seed)
        np.random.seed(seed)  # plugins may draw from the global generator
        torch.manual_seed(seed)

    def _skip(self, phase: str) -> None:
        self.outcome.phases[phase] = f"skipped: {self.request.phase_skips[phase]}"

    def _observation(self, phase: Phase, model: nn.Module | None = None, **seen: Any) -> Observation:
        return Observation(cell=self.cell, phase=phase, model=model, rank=self.ranks.rank, **seen)

    def _begin(self, phase: Phase, model: nn.Module | None = None, **seen: Any) -> Observation:
        self.announce(phase)
        observation = self._observation(phase, model, **seen)
        for meter in self.request.meters:
            meter.begin(observation)
        return observation

    def _end(self, observation: Observation, meters_of: str | None = None) -> None:
        meters = [meter for meter in self.request.meters if meters_of in (None, meter.name)]
        probes = [meter.probe for meter in meters] if self.request.probe else []
        for measure in [*(meter.end for meter in meters), *probes]:
            for name, summary in measure(observation).items():
                if not np.isfinite(summary.median):
                    raise DivergedError(f"{name} is {summary.median}")
                self.outcome.metrics[name] = summary.model_dump(exclude_none=True)
        curves = {"loss": observation.losses} if observation.losses else {}
        self.outcome.samples.setdefault("samples", {}).update(observation.samples | curves)
        self.outcome.phases[observation.phase] = "ok"


def _checked(technique: Technique, method: str, result: object, expected: type[T]) -> T:
    if not isinstance(result, expected):
        raise TypeError(
            f"{technique.name}.{method} returned {type(result).__name__}, not {expected.__name__}; "
            "a technique's method returns the thing it was given, changed or not"
        )
    return result


def _parameters(model: nn.Module) -> dict[str, int]:
    """How many weights each is. bitsandbytes packs several into one element and keeps their shape in `quant_state`."""
    return {name: getattr(getattr(p, "quant_state", None), "shape", p.shape).numel() for name, p in model.named_parameters()}


def _is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)
