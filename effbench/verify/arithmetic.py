"""Figures computed again from the raw samples, by their definitions in docs/metrics.md and docs/measuring.md.

A sidecar keeps six significant digits, so a mean is known to 5e-6 of itself. Lists of more than `KEPT_SAMPLES` were thinned
to every k-th: what is computed from them only has to agree with the record within its sampling error.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from statistics import fmean, median, pstdev

from effbench.plugin.meter import Summary
from effbench.plugin.sampling import median_interval, warmup_length
from effbench.plugin.workload import weighted_mean
from effbench.store.store import KEPT_SAMPLES
from effbench.verify.action import Action, actions
from effbench.verify.finding import Finding
from effbench.verify.read import PerSample, Sidecar, Trial

_ROUNDING = 2e-5
"""Relative: what six digits of the samples and nine of the record can make of equal figures, twice over."""
_SCORE_ROUNDING = 1e-4
"""Relative to the largest score, for scores of both signs may cancel."""
_FAR = 6.0
"""Standard errors that a thinned list may lie from the whole one: beyond that lie 2 of 10⁹."""


def check_arithmetic(trial: Trial) -> Iterator[Finding]:
    """A trial that ended well, against its sidecar."""
    if trial.record.status != "ok" or trial.sidecar is None:
        return
    for action in actions(trial.record):
        yield from _timed(trial, action, trial.sidecar.samples.get(action.samples, []))
    yield from _end_to_end(trial, trial.sidecar.samples)
    yield from _duration(trial, trial.sidecar.samples)
    yield from _stopped(trial, trial.sidecar.samples)
    yield from _loss(trial, trial.sidecar.samples.get("loss", []))
    yield from _quality(trial, trial.sidecar)


def _timed(trial: Trial, action: Action, samples: Sequence[float]) -> Iterator[Finding]:
    """Warm-up, median and throughput of one timed action."""
    summary = trial.record.metrics.get(action.time)
    if summary is None:
        return  # a meter that the suite leaves out, or a finding of its own
    total = summary.n + (summary.warmup or 0)
    every = -(-total // KEPT_SAMPLES) or 1
    if not samples or len(samples) != -(-total // every) or min(samples) <= 0:
        have = f"{len(samples)} for n = {summary.n} after {summary.warmup or 0} of warm-up"
        yield trial.finding("samples", f"{action.time}: the raw samples are not those of the summary", have)
        return
    if every == 1 and (found := warmup_length(samples)) != (summary.warmup or 0):
        yield trial.finding("warm-up", f"{action.time}: other samples were given up than the rule says", f"{found} by the rule")
    kept = samples[-(-(summary.warmup or 0) // every) :]
    if not kept:
        yield trial.finding("samples", f"{action.time}: all samples were given up as warm-up", f"{summary.warmup}")
        return
    yield from _median(trial, action, summary, [sample / action.parts for sample in kept], thinned=every > 1)
    rate = trial.record.metrics.get(action.rate or "")
    if rate is not None:
        if rate.n != summary.n:
            detail = f"{rate.n}, {action.time} has {summary.n}"
            yield trial.finding("samples", f"{action.rate} is of another number of samples than its time", detail)
        yield from _throughput(trial, action, rate, kept, thinned=every > 1)


def _median(trial: Trial, action: Action, summary: Summary, kept: Sequence[float], *, thinned: bool) -> Iterator[Finding]:
    if thinned:
        least, most = median_interval(kept, 1 - 1e-9) or (min(kept), max(kept))
        if not least * (1 - _ROUNDING) <= summary.median <= most * (1 + _ROUNDING):
            detail = f"{summary.median:g}, thinned samples say {least:g} to {most:g}"
            yield trial.finding("median", f"{action.time} is not the median of its raw samples", detail)
        return
    low, high = median_interval(kept) or (None, None)
    for name, have, expected in (
        ("the median", summary.median, median(kept)),
        ("the lower limit", summary.low, low),
        ("the upper limit", summary.high, high),
    ):
        if not _same(have, expected):
            what = f"{action.time}: {name} is not that of its raw samples"
            yield trial.finding("median", what, f"{_shown(have)}, expected {_shown(expected)}")


def _throughput(trial: Trial, action: Action, rate: Summary, kept: Sequence[float], *, thinned: bool) -> Iterator[Finding]:
    """Volume / mean time.

    Thinning may lose the few long pauses that the mean of all samples feels. So a thinned list only says that a rate is not
    too high; too low, all samples would have to fit into the trial.
    """
    mean = fmean(kept)
    expected = action.volume / mean
    allowed = _FAR * pstdev(kept) / math.sqrt(len(kept)) / mean if thinned else 0.0
    low = action.volume * rate.n / trial.record.wall_s if thinned and trial.record.wall_s > 0 else expected
    if not low * (1 - _ROUNDING) <= rate.median <= expected * (1 + allowed + _ROUNDING):
        detail = f"{rate.median:g}, expected {expected:g}: {action.volume} tokens in {mean:g} s"
        yield trial.finding("throughput", f"{action.rate} is not volume / mean time of the raw samples", detail)


def _end_to_end(trial: Trial, samples: Mapping[str, Sequence[float]]) -> Iterator[Finding]:
    """A prefill and its decode loop are timed in turn; their sum is no third measurement."""
    if "end_to_end" in samples:
        sums = zip_longest(samples.get("prefill", ()), samples.get("decode", ()), samples["end_to_end"], fillvalue=math.nan)
        if not all(_same(whole, prefill + decode) for prefill, decode, whole in sums):
            yield trial.finding("samples", "end_to_end is not prefill + decode, sample by sample")


def _duration(trial: Trial, samples: Mapping[str, Sequence[float]]) -> Iterator[Finding]:
    """What was timed took place within the trial."""
    timed = sum(sum(samples.get(name, ())) for name in ("step", "prefill", "decode"))
    if timed > 1.01 * trial.record.wall_s:
        detail = f"{timed:g} s timed in {trial.record.wall_s:g} s"
        yield trial.finding("duration", "the raw samples take longer than the whole trial", detail)


def _stopped(trial: Trial, samples: Mapping[str, Sequence[float]]) -> Iterator[Finding]:
    """Sampling ended as it says it did, and not before the rule allows."""
    rule, record = trial.record.cell.sampling, trial.record
    for action in actions(record):
        if (summary := record.metrics.get(action.time)) is None:
            continue
        total = summary.n + (summary.warmup or 0)
        expected = ("steps",) if action.samples == "step" else ("interval", "cap")
        if summary.stopped not in expected:
            detail = f"{summary.stopped}, expected {' or '.join(expected)}"
            yield trial.finding("samples", f"{action.time} does not say why sampling stopped", detail)
        elif summary.stopped == "steps" and total != record.cell.steps:
            detail = f"{total}, the cell has {record.cell.steps} steps"
            yield trial.finding("samples", f"{action.time} is not of every training step", detail)
        elif summary.stopped == "interval" and total < rule.min_samples:
            detail = f"{total}, at least {rule.min_samples}"
            yield trial.finding("samples", f"{action.time} has fewer samples than the rule asks for", detail)
        elif summary.stopped == "cap" and total <= KEPT_SAMPLES and not _reached(rule.max_seconds, samples):
            detail = f"the cap is {rule.max_seconds:g} s"
            yield trial.finding("samples", f"{action.time} stopped at a time cap that was not reached", detail)
        elif summary.stopped == "cap" and action.rate and summary.n < rule.min_samples:
            detail = f"{summary.n}, the rule asks for {rule.min_samples}"
            yield trial.finding("few-samples", f"{action.time} has few samples, for the time cap stopped it", detail)


def _reached(cap: float, samples: Mapping[str, Sequence[float]]) -> bool:
    return max(sum(samples.get(name, ())) for name in ("prefill", "decode")) >= cap * (1 - _ROUNDING)


def _loss(trial: Trial, curve: Sequence[float]) -> Iterator[Finding]:
    """The last loss, and the mean of the last tenth."""
    record = trial.record
    if record.phases.get("train") != "ok" or len(curve) != record.cell.steps:
        return  # thinned beyond KEPT_SAMPLES, where neither is known
    final = record.metrics.get("train.final_loss")
    tenth = curve[-max(1, len(curve) // 10) :]
    checked = [("the last loss", record.final_loss, curve[-1])]
    checked += [("train.final_loss", final.median, fmean(tenth))] if final else []
    for name, have, expected in checked:
        if not _same(have, expected, scale=max(map(abs, tenth))):
            yield trial.finding("loss", f"{name} is not that of the raw curve", f"{_shown(have)}, expected {expected:g}")


def _quality(trial: Trial, sidecar: Sidecar) -> Iterator[Finding]:
    """Each score is the weighted mean of the documents' own."""
    quality, raw = trial.record.quality, sidecar.quality
    if quality is None:
        return
    if raw is None:
        yield trial.finding("quality", "there are no scores by document")
        return
    counts = {len(raw.names), len(raw.weights), *map(len, raw.per_sample.values()), *map(len, raw.chance.values())}
    if counts != {quality.n} or not quality.n or sum(raw.weights) <= 0 or min(raw.weights) < 0:
        yield trial.finding("quality", "the scores by document are not those of the record", f"expected {quality.n} documents")
        return
    yield from _scores(trial, "", quality.scores, raw.per_sample, raw)
    yield from _scores(trial, "chance of ", quality.chance, raw.chance, raw)


def _scores(
    trial: Trial, prefix: str, scores: Mapping[str, float], by_document: Mapping[str, Sequence[float]], raw: PerSample
) -> Iterator[Finding]:
    for name, have in scores.items():
        values = by_document.get(name)
        expected = weighted_mean(values, raw.weights) if values else None
        if not _same(have, expected, scale=max(map(abs, values)) if values else 1.0, rounding=_SCORE_ROUNDING):
            what = f"{prefix}{name} is not the weighted mean of the documents' scores"
            yield trial.finding("quality", what, f"{have:g}, expected {_shown(expected)}")


def _same(have: float | None, expected: float | None, *, scale: float | None = None, rounding: float = _ROUNDING) -> bool:
    """Equal but for rounding, relative to the scale (the expected value where none is given); nothing equals only nothing."""
    if have is None or expected is None:
        return have is expected
    return abs(have - expected) <= rounding * abs(expected if scale is None else scale)  # NaN never is


def _shown(value: float | None) -> str:
    return "absent" if value is None else f"{value:g}"
