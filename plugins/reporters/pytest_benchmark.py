"""What was timed, in the JSON that `pytest-benchmark compare` and dashboards of continuous integration read."""

import json
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from effbench.plugin import TextReporter
from effbench.plugin.errors import InputError
from effbench.plugin.text import clean

if TYPE_CHECKING:
    import pandas as pd

    from effbench.board.leaderboard import Leaderboard

FORMAT = "5.3.1"
"""The version of pytest-benchmark whose files these are like."""
_TIMED = {
    "train.step_s": ("step", "train step"),
    "infer.prefill_s": ("prefill", "prefill"),
    "infer.decode_token_s": ("decode", "decoded token"),
}
"""Metric: its list of raw durations in a sidecar, and words for it."""
_DECODE = "infer.decode_token_s"


class PytestBenchmarkReporter(TextReporter):
    """Train step, prefill and decoded token of every cell as pytest-benchmark's JSON."""

    name: ClassVar = "pytest-benchmark"
    file: ClassVar = "pytest-benchmark.json"

    def render(self, boards: "list[Leaderboard]") -> str:
        """One benchmark per cell and timed metric; InputError where the boards are of several machines.

        The format has room for one machine and one commit. A benchmark's `rounds` are samples, not effbench's rounds: all raw
        durations after warm-up, pooled over the undisturbed trials, where every sidecar has them all, and otherwise one median
        per trial; `extra_info` says which. Its `iterations` are the tokens of a decode loop, which is timed as one. No record
        says when it was measured, so `datetime` is when the newest one's file was written; null where there is no file.
        """
        machines = sorted({board.machine for board in boards})
        if len(machines) > 1:
            raise InputError(f"pytest-benchmark's format holds one machine, here are {', '.join(machines)}: name one's folder")
        trials = [board.trials for board in boards]
        content = {
            "machine_info": _machine_info(trials),
            "commit_info": _commit_info(trials),
            "benchmarks": [benchmark for frame in trials for benchmark in _benchmarks(frame)],
            "datetime": _newest(trials),
            "version": FORMAT,
        }
        return json.dumps(content, indent=1, ensure_ascii=True, allow_nan=False)

    def files(self, boards: "list[Leaderboard]") -> dict[str, bytes]:
        """None for several machines: all other formats of theirs can still be published."""
        return super().files(boards) if len({board.machine for board in boards}) < 2 else {}


class _Samples(NamedTuple):
    """Durations in seconds; of decoding, of one token."""

    seconds: list[float]
    iterations: int
    kind: str


def _benchmarks(trials: "pd.DataFrame") -> Iterator[dict[str, Any]]:
    good = trials[(trials["status"] == "ok") & trials["dirty"].isna() & trials["metric"].isin([*_TIMED])]
    if "reference" in good:  # shown beside larger world sizes, and on a board of its own
        good = good[good["reference"] != True]  # noqa: E712 - a column of objects, in which missing is not a reference
    for (_, metric), own in good.groupby(["cell_id", "metric"], sort=True, observed=True):
        found = _raw(own, str(metric)) or _medians(own)
        if found.seconds:
            yield _benchmark(own, str(metric), found)


def _benchmark(own: "pd.DataFrame", metric: str, samples: _Samples) -> dict[str, Any]:
    trial = own.iloc[0]
    words = _TIMED[metric][1]
    options = json.loads(trial["options"])
    label = " ".join([trial["stack"], *(f"{key.rpartition('.')[2]}={value}" for key, value in sorted(options.items()))])
    ranks = f" w{trial['world_size']}" if trial["world_size"] > 1 else ""
    shape = f"s{trial['seq_len']} b{trial['batch_size']}{ranks} {trial['dtype']}"
    known = {name: _plain(trial[name]) for name in ("stack", "seq_len", "batch_size", "world_size", "dtype")}
    return {
        "group": clean(f"{trial['suite']}: {trial['model']} on {trial['workload']}, {words}"),
        "name": clean(f"{label} {shape}, {words}"),
        "fullname": clean(f"{trial['suite']}/{trial['cell_id']}::{metric}"),
        "params": known | {clean(str(key)): _plain(value) for key, value in options.items()},
        "param": clean(f"{label} {shape}"),
        "extra_info": {
            "cell": clean(trial["cell_id"]),
            "metric": metric,
            "samples": samples.kind,
            "effbench_rounds": int(own["round"].nunique()),
            "sessions": int(own["session"].nunique()),
            "threads": int(trial["threads"]),
        },
        "options": {"timer": "CUDA events" if trial["device"] == "cuda" else "time.perf_counter", "warmup": True},
        "stats": statistics_of(samples.seconds) | {"iterations": samples.iterations},
    }


def statistics_of(seconds: Sequence[float]) -> dict[str, Any]:
    """The fields of a benchmark's `stats`, defined as pytest-benchmark defines them; Tukey's fences at 1.5 IQR."""
    ordered = sorted(seconds)
    mean, total = statistics.mean(ordered), sum(ordered)
    spread = statistics.stdev(ordered) if len(ordered) > 1 else 0.0
    q1, q3 = _quartile(ordered), -_quartile([-value for value in reversed(ordered)])
    iqr = q3 - q1
    within = [value for value in ordered if q1 - 1.5 * iqr <= value <= q3 + 1.5 * iqr]
    beyond = sum(not mean - spread <= value <= mean + spread for value in ordered)
    return {
        "min": ordered[0],
        "max": ordered[-1],
        "mean": mean,
        "stddev": spread,
        "rounds": len(ordered),
        "median": statistics.median(ordered),
        "iqr": iqr,
        "q1": q1,
        "q3": q3,
        "iqr_outliers": len(ordered) - len(within),
        "stddev_outliers": beyond,
        "outliers": f"{beyond};{len(ordered) - len(within)}",
        "ld15iqr": within[0],
        "hd15iqr": within[-1],
        "ops": len(ordered) / total,
        "total": total,
    }


def _quartile(ordered: Sequence[float]) -> float:
    """The lower one: of an odd number the mean of both ways to count the median, weighted by place."""
    n, k = len(ordered), len(ordered) // 4
    if n == 1:
        return ordered[0]
    if n % 2 == 0:
        return statistics.median(ordered[: n // 2])
    return 0.25 * ordered[k - 1] + 0.75 * ordered[k] if n % 4 == 1 else 0.75 * ordered[k] + 0.25 * ordered[k + 1]


def _raw(own: "pd.DataFrame", metric: str) -> _Samples | None:
    """All samples of all trials; None where a sidecar is missing, thinned, or not of this form."""
    pooled: list[float] = []
    iterations = 1
    for trial in own.to_dict("records"):
        samples = _sidecar(trial["samples"], _TIMED[metric][0])
        steady = samples[len(samples) - int(trial["n"]) :] if trial["n"] and len(samples) >= trial["n"] else []
        if not steady:
            return None
        if metric == _DECODE:
            if not 0 < trial["value"] < math.inf:
                return None
            iterations = max(1, round(statistics.median(steady) / trial["value"]))
        pooled += [value / iterations for value in steady]
    return _Samples(pooled, iterations, "raw durations after warm-up")


def _medians(own: "pd.DataFrame") -> _Samples:
    found = [float(value) for value in own["value"] if 0 < value < math.inf]
    return _Samples(found, 1, "one median per trial")


def _sidecar(file: Any, name: str) -> list[float]:
    """A list of raw durations; empty where there is none, or something else, for anyone may have written the file."""
    from effbench.store.store import read_samples

    if not isinstance(file, str):
        return []
    try:
        found = [float(value) for value in read_samples(Path(file))["samples"][name]]
    except Exception:  # noqa: BLE001 - zstd, JSON and every shape of wrong content, from files that anyone may have written
        return []
    return found if all(0 < value < math.inf for value in found) else []


def _machine_info(frames: "Sequence[pd.DataFrame]") -> dict[str, Any]:
    """Facts without a host's name: `node` is the slug that effbench gives machines of this kind."""
    from effbench.store.machine import Machine

    if not frames:
        return {}
    trial = frames[0].iloc[0]
    info: dict[str, Any] = {"node": clean(trial["machine"])}
    try:
        machine = Machine.model_validate_json((Path(trial["file"]).parent.parent / "machine.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return info
    system, _, architecture = machine.system.partition(" ")
    cpu = {"brand_raw": clean(machine.cpu), "count": machine.cores, "arch": clean(architecture)}
    about = {"system": clean(system), "machine": clean(architecture), "processor": clean(machine.cpu), "cpu": cpu}
    return info | about | {"memory_gib": machine.memory_gib, "gpus": [clean(gpu) for gpu in machine.gpus]}


def _commit_info(frames: "Sequence[pd.DataFrame]") -> Mapping[str, Any]:
    """The commit that all records were made from; of several none is the one."""
    commits = sorted({str(value) for frame in frames for value in frame["git"].dropna().unique()})
    alone = clean(commits[0]) if len(commits) == 1 else "unversioned" if not commits else "several"
    info = {"id": alone.removesuffix("+dirty"), "dirty": any(c.endswith("+dirty") for c in commits), "time": None}
    several = {"ids": [clean(commit) for commit in commits]} if len(commits) > 1 else {}
    return info | {"author_time": None, "project": "effbench", "branch": "(unknown)"} | several


def _newest(frames: "Sequence[pd.DataFrame]") -> str | None:
    times = []
    for file in {Path(file) for frame in frames for file in frame["file"]}:
        try:
            times.append(file.stat().st_mtime)
        except OSError:  # no longer there, or within a packed file
            continue
    return datetime.fromtimestamp(max(times), UTC).isoformat() if times else None


def _plain(value: Any) -> str | int | float | bool:
    """As JSON has it; numpy's numbers are not of it."""
    plain = value.item() if hasattr(value, "item") else value
    return plain if isinstance(plain, bool | int | float) else clean(str(plain))
