"""Records for tests: real schema, made-up figures."""

from effbench.plugin import Cell, ModelFacts, Summary
from effbench.store.record import Fingerprint, QualityScores, Record

FACTS = ModelFacts(
    model_type="llama", causal=True, layers=2, hidden=32, heads=4, kv_heads=2, intermediate=64, vocab=256, context=1024
)


def make_cell(stack="full", **changes):
    fields = {
        "suite": "s",
        "stack": stack,
        "techniques": (),
        "model": "tiny-llama",
        "facts": FACTS,
        "workload": "docs",
        "seq_len": 64,
        "batch_size": 2,
        "phases": ("train", "infer"),
        "steps": 4,
        "lr": 1e-3,
        "new_tokens": 8,
        "quality_documents": 4,
    }
    return Cell(**(fields | changes))


def make_record(stack="full", round_number=1, *, tokens_per_s=1000.0, bits=2.5, cell=None, **changes):
    cell = cell or make_cell(stack)
    fields = {
        "cell_id": cell.id,
        "cell": cell,
        "round": round_number,
        "session": "session",
        "seed": 1000 * round_number,
        "status": "ok",
        "phases": {"load": "ok", "apply": "ok", "train": "ok", "infer": "ok"},
        "metrics": {
            "train.tokens_per_s": Summary(median=tokens_per_s, n=10, unit="tokens/s"),
            "infer.prefill_tokens_per_s": Summary(median=5 * tokens_per_s, n=10, unit="tokens/s"),
            "infer.decode_tokens_per_s": Summary(median=tokens_per_s / 10, n=10, unit="tokens/s"),
            "parameters.trainable": Summary(median=2_000_000, unit=""),
        },
        "quality": QualityScores(scores={"bits_per_byte": bits}, n=4),
        "wall_s": 1.0,
        "fingerprint": Fingerprint(techniques={}, weights="w", data="d", versions={"torch": "2.13.0"}),
        "machine": "machine",
    }
    return Record(**(fields | changes))
