"""A folder of records without fault, as `effbench run` would write it, and ways to spoil it."""

import json
from pathlib import Path
from statistics import fmean

import numpy as np
import zstandard

from effbench.plan.suite import Suite
from effbench.plugin import Summary
from effbench.plugin.sampling import summarize, warmup_length
from effbench.plugin.workload import weighted_mean
from effbench.store.machine import Machine
from effbench.store.record import Conditions, Fingerprint, QualityScores
from effbench.store.store import Store
from tests.records import make_cell, make_record

MACHINE = Machine(cpu="Any CPU", flags="0", cores=4, memory_gib=8, gpus=(), system="Linux x86_64")
SUITE = Suite.model_validate(
    {
        "name": "s",
        "baseline": "full",
        "models": ["tiny-llama"],
        "workloads": ["docs"],
        "rounds": 3,
        "axes": {"seq_len": [64], "batch_size": [2]},
        "training": {"steps": 20, "lr": 1e-3},
        "inference": {"new_tokens": 8},
        "quality": {"documents": 4},
        "sampling": {"min_samples": 8, "min_seconds": 0.1, "interval": 0.05, "max_seconds": 2.0},
        "stacks": {"full": [], "fast": ["speedy"]},
    }
)
WEIGHTS = [10.0, 20.0, 30.0, 40.0]


def cell_of(stack, **changes):
    techniques = (("speedy", {}),) if stack == "fast" else ()
    fields = {"steps": 20, "sampling": SUITE.sampling, "techniques": techniques} | changes
    return make_cell(stack, **fields)


def samples_of(rng, cell):
    """Raw samples of one trial."""
    timed = ((0.05, cell.steps), (0.02, 20), (0.1, 20))
    step, prefill, decode = (list(scale * np.exp(rng.normal(0, 0.01, count))) for scale, count in timed)
    scores = list(rng.uniform(2, 3, 4))
    quality = {"names": list("abcd"), "weights": WEIGHTS, "per_sample": {"bits_per_byte": scores}, "chance": {}}
    timed = {
        "step": step,
        "prefill": prefill,
        "decode": decode,
        "end_to_end": [p + d for p, d in zip(prefill, decode, strict=True)],
    }
    return {"samples": timed | {"loss": list(np.linspace(3, 2, cell.steps))}, "quality": quality}


def metrics_of(samples, cell):
    """What the standard meters make of them."""
    timed, found = samples["samples"], {}
    for name, metric, scale in (
        ("step", "train.step_s", 1),
        ("prefill", "infer.prefill_s", 1),
        ("decode", "infer.decode_token_s", cell.decode_steps),
        ("end_to_end", "infer.end_to_end_s", 1),
    ):
        found[metric] = summarize(timed[name], "s", scale=scale, stopped="steps" if name == "step" else "interval")
    for name, metric, tokens in (
        ("step", "train.tokens_per_s", cell.seq_len),
        ("prefill", "infer.prefill_tokens_per_s", cell.seq_len),
        ("decode", "infer.decode_tokens_per_s", cell.decode_steps),
    ):
        kept = timed[name][warmup_length(timed[name]) :]
        found[metric] = Summary(median=cell.batch_size * tokens / fmean(kept), n=len(kept), unit="tokens/s")
    found |= {name: Summary(median=1000, unit="") for name in ("parameters.total", "parameters.trainable")}
    found |= {name: Summary(median=4000, unit="B") for name in ("checkpoint.bytes", *MEMORY)}
    found["train.final_loss"] = Summary(median=fmean(timed["loss"][-2:]), n=2, unit="")
    return found


MEMORY = ("train.peak_memory_bytes", "infer.peak_memory_bytes")


def good_trial(cell, number, session="one", suite_seed=0):
    """A record and its raw samples."""
    samples = samples_of(np.random.default_rng([number, *f"{cell.id}{session}".encode()]), cell)
    scores = samples["quality"]["per_sample"]["bits_per_byte"]
    names = {name for name, _ in cell.techniques}
    record = make_record(
        cell=cell,
        round_number=number,
        session=session,
        seed=suite_seed + 1000 * number,
        phases={"load": "ok", "apply": "ok", "train": "ok", "convert": "ok", "infer": "ok"},
        metrics=metrics_of(samples, cell),
        quality=QualityScores(scores={"bits_per_byte": weighted_mean(scores, WEIGHTS)}, n=4),
        conditions=Conditions(seconds=5.1 + 0.1 * cell.steps, cores=4, wanted=1, other_cpu=0.1),
        final_loss=2.0,
        wall_s=5.0 + 0.1 * cell.steps,
        fingerprint=Fingerprint(
            techniques=dict.fromkeys(names, "c0de"),
            weights="w",
            data="d",
            versions={"torch": "2.13.0", "transformers": "5.23.0"},
        ),
        plugins=dict.fromkeys(names, "speedy 1.0"),
        machine=MACHINE.slug,
        git="0123456789ab",
    )
    return record, samples


def write(root, suite=SUITE, rounds=3):
    """A results folder without fault; returns the suite's folder."""
    store = Store(root, MACHINE, suite.name)
    store.open(suite)
    for number in range(1, rounds + 1):
        for stack in suite.stacks:
            store.write(*good_trial(cell_of(stack), number, suite_seed=suite.seed))
    return store.folder


def record_file(folder: Path, stack="fast", number=1) -> Path:
    return folder / f"{cell_of(stack).id}.r{number}.json"


def edit(file: Path, change) -> None:
    """Change a JSON file in place: `change` is given its content."""
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def edit_samples(file: Path, change) -> None:
    """Change the sidecar of a record's file in place."""
    sidecar = file.with_name(file.name.removesuffix(".json") + ".samples.zst")
    content = json.loads(zstandard.decompress(sidecar.read_bytes(), max_output_size=2**24))
    change(content)
    sidecar.write_bytes(zstandard.compress(json.dumps(content).encode()))


def move(file: Path, target: Path) -> None:
    """Move a record with its raw samples, and let it say so."""
    old, new = (path.with_name(path.name.removesuffix(".json") + ".samples.zst") for path in (file, target))
    file.rename(target)
    old.rename(new)
    edit(target, lambda content: content.update(samples=new.name))
