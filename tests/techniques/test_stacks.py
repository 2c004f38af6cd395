"""Stacks: every ordered pair of techniques either is refused when it is planned, or really runs; and some longer ones."""

import os
from dataclasses import dataclass
from functools import cache

import pytest
import torch
from torch import nn

from effbench.plan.plan import plan
from effbench.plan.suite import Suite
from effbench.worker import checkpoint
from tests.techniques.conftest import CATALOG, Harness, llama, logits_of

pytestmark = pytest.mark.usefixtures("uncompiled")
NAMES = CATALOG.techniques.names()
ALL_PAIRS = bool(os.environ.get("EFFBENCH_ALL_PAIRS"))
IDS = torch.randint(1, 256, (2, 12), generator=torch.Generator().manual_seed(5))


def uses(*stack):
    """Names, or (name, options), as a suite has them."""
    pairs = [(part, {}) if isinstance(part, str) else part for part in stack]
    return [{"technique": name, **options} for name, options in pairs]


def techniques(*stack):
    return [CATALOG.technique(use.pop("technique"), use) for use in uses(*stack)]


def planned(stacks):
    content = {"name": "s", "baseline": "full", "models": ["tiny-llama"], "workloads": ["docs"], "device": "cpu"}
    return plan(Suite.model_validate(content | {"stacks": {"full": [], **stacks}}), CATALOG)


def refusal(*stack):
    return next((skip.reason for skip in planned({"x": uses(*stack)}).skips), None)


def representatives():
    """One technique of each kind, as the plan tells kinds apart; all of them take many minutes (EFFBENCH_ALL_PAIRS=1)."""
    kinds = {}
    for name in NAMES:
        technique = CATALOG.technique(name, {})
        options = [getattr(technique, option, None) for option in ("at", "merged")]
        kinds.setdefault((technique.family, technique.sets, technique.dimension, *options), name)
    return NAMES if ALL_PAIRS else list(kinds.values())


@cache
def all_pairs():
    names = representatives()
    found = planned({f"{first} {second}": [first, second] for first in names for second in names})
    stacks = {cell.id: cell.stack for cell in found.cells}
    untrained = {stacks[cell]: reasons["train"] for cell, reasons in found.phase_skips.items() if "train" in reasons}
    return {skip.cell.stack: skip.reason for skip in found.skips}, untrained


@dataclass
class Ran:
    """What came of a stack that was trained, if it can be, converted, used, stored and read again."""

    trained: bool
    logits: torch.Tensor
    model: nn.Module


def ran(stack, tmp_path, *, train=True):
    harness = Harness(llama, stack)
    before = {name: p.detach().clone() for name, p in harness.model.named_parameters() if p.requires_grad}
    trained = train and bool(before)
    if trained:
        assert torch.isfinite(torch.tensor(harness.train())).all()
        now = dict(harness.model.named_parameters())
        assert [name for name, old in before.items() if torch.equal(now[name], old)] == [], "asked for gradients and got none"
    inference = harness.infer()
    logits = logits_of(inference, IDS)
    assert torch.isfinite(logits).all()
    with torch.no_grad():
        last, cache = inference.prefill(inference, IDS, torch.ones_like(IDS))
        assert torch.isfinite(inference.decode(inference, last.argmax(-1, keepdim=True), cache)[0]).all()
    checkpoint.save(checkpoint.stored(inference.model, stack, harness.context), tmp_path / "x.safetensors")
    again = Harness(llama, stack)
    fresh = again.infer()
    logits_of(fresh, IDS)
    checkpoint.reload(tmp_path / "x.safetensors", fresh.model, stack, again.context)
    torch.testing.assert_close(logits_of(fresh, IDS), logits, atol=1e-6, rtol=1e-6)
    return Ran(trained, logits, inference.model)


@cache
def logits_alone(*name):
    """Of the technique by itself, or of the untouched model."""
    harness = Harness(llama, techniques(*name))
    if any(p.requires_grad for p in harness.model.parameters()):
        harness.train()
    return logits_of(harness.infer(), IDS)


def without_effect(pair, logits):
    """Those of a pair that changed nothing, the other one alone giving the same, although alone they change something."""
    first, second = pair
    lost = [name for name, other in ((first, second), (second, first)) if torch.equal(logits, logits_alone(other))]
    return [name for name in lost if not torch.allclose(logits_alone(name), logits_alone(), atol=1e-4)]


@pytest.mark.parametrize("first", representatives())
def test_every_pair_is_refused_when_planned_or_runs_and_both_have_an_effect(first, tmp_path):
    refused, untrained = all_pairs()
    for second in representatives():
        name = f"{first} {second}"
        if name in refused:
            assert "\n" not in refused[name]
            continue
        pair = techniques(first, second)
        result = ran(pair, tmp_path, train=name not in untrained)
        on_one_rank = any(technique.dimension for technique in pair)
        if result.trained and first != second and not on_one_rank:
            assert without_effect((first, second), result.logits) == [], name


@pytest.mark.parametrize(
    "stack",
    [
        ("nf4", "lora"),
        ("nf4", ("lora", {"dora": True, "merged": False})),
        ("nf4", ("ia3", {"merged": False})),
        ("nf4", "adapters", ("bf16", {"at": "load"})),
        ("bf16", "nf4", "lora"),
        ("nf4", "lora", "mixed_precision"),
        ("distillation", "nf4", "lora"),
        ("distillation", "mixed_precision", "int8_dynamic"),
        ("magnitude_pruning", "lora", ("magnitude_pruning", {"at": "infer"}), "int8_weight_only"),
        (("int8_weight_only", {"at": "apply"}), "adapters"),
        (("int8_weight_only", {"at": "apply"}), "p_tuning"),
        (("lora", {"dora": True}), "mixed_precision", "int4"),
        (("lora", {"merged": False}), "mixed_precision", "int8_dynamic"),
        ("prefix_tuning", ("bf16", {"at": "infer"}), "int8_dynamic", "kv_quant"),
        ("low_rank", ("nf4", {"at": "infer"})),
        (("ternary", {"at": "train"}), "mixed_precision", "kv_quant"),
        (("ternary", {"at": "train"}), ("lora", {"merged": False})),
        ("bitfit", ("ternary", {"at": "train"})),
        ("distillation", "prefix_tuning", "int8_weight_only"),
        (("lora", {"adalora": True}), "int8_weight_only"),
    ],
    ids=str,
)
def test_longer_stacks_train_and_give_the_same_logits_when_read_again(stack, tmp_path):
    assert refusal(*stack) is None
    assert ran(techniques(*stack), tmp_path).trained


@pytest.mark.parametrize(
    ("stack", "reason"),
    [
        (
            (("lora", {"dora": True, "merged": False}), "int8_dynamic"),
            "unmerged dora reads float weights in every call, which int8",
        ),
        (("int4", ("lora", {"dora": True, "merged": False})), "unmerged dora reads float weights in every call, which int4"),
        ((("lora", {"dora": True}), ("binary", {"at": "train"})), "which binary changes"),
        (("nf4", ("lora", {"pissa": True})), "pissa starts from the float weights' SVD, and nf4 converts them first"),
        (("nf4", ("lora", {"adalora": True})), "adalora cannot be merged into what nf4 converts: set merged = false"),
        (("nf4", "ia3"), "ia3 cannot be merged into what nf4 converts: set merged = false"),
        (("int4", "ia3"), "int4 converts the weights before ia3 is merged: list it behind ia3"),
        ((("int8_dynamic", {"at": "apply"}), "adapters"), "no gradient passes the activations that int8_dynamic rounds"),
        (("nf4", "low_rank"), "low_rank factors float weights, which nf4 changes first: list it behind"),
        (("nf4", "magnitude_pruning"), "nf4 converts the weights before magnitude_pruning looks at them"),
        (("int8_dynamic", ("magnitude_pruning", {"at": "infer"})), "int8_dynamic converts the weights before"),
        ((("magnitude_pruning", {"at": "infer"}), "nf4"), "nf4 converts the weights before magnitude_pruning looks at them"),
        ((("distillation", {"hidden": 1.0}), "p_tuning"), "p_tuning adds positions that the teacher lacks"),
        (("nf4", "distillation"), "distillation makes its student of a plain model: list nf4 behind it"),
        ((("ternary", {"at": "train"}), "distillation"), "list ternary behind it"),
        ((("ternary", {"at": "train"}), "wanda"), "list it behind wanda"),
        (("bitfit", "distillation"), "list bitfit behind it"),
        (("bf16", "mixed_precision"), "autocast needs float32 weights"),
    ],
    ids=lambda value: "" if isinstance(value, str) else str(value),
)
def test_what_cannot_run_is_refused_when_planned(stack, reason):
    assert reason in refusal(*stack)


@pytest.mark.parametrize("name", ["int4", "int8_dynamic"])
@pytest.mark.parametrize("other", [("bf16", {}), ("fp16", {}), ("mixed_precision", {})], ids=lambda use: use[0])
def test_integer_kernels_of_float32_work_in_16_bits_too(name, other):
    """And give what they give in float32, but for the rounding of everything else."""
    stacked, plain = Harness(llama, techniques(other, name)).infer(), Harness(llama, techniques(name)).infer()
    ours, reference = logits_of(stacked, IDS), logits_of(plain, IDS)
    assert 0 < (ours - reference).abs().mean() / reference.abs().mean() < 0.05


def test_pruning_leaves_what_adapters_add_alone():
    """An adapter starts with zeros, which are no pruned weights, and is too small to be ranked with the model's own."""
    for stack in (techniques("adapters", "magnitude_pruning"), techniques("magnitude_pruning", "adapters")):
        harness = Harness(llama, stack)
        harness.train()
        model = harness.infer().model
        adapters = [p for name, p in model.named_parameters() if ".adapter." in name]
        assert all((p != 0).float().mean() > 0.9 for p in adapters)
        pruned = [p for name, p in model.named_parameters() if "_proj" in name and "adapter" not in name]
        zeros = sum(int((p == 0).sum()) for p in pruned) / sum(p.numel() for p in pruned)
        assert zeros == pytest.approx(0.5, abs=0.002)


@pytest.mark.parametrize("name", ["int8_dynamic", "int4", "binary"])
def test_what_computes_virtual_tokens_is_not_converted(name):
    """It is folded after them where they stand first, and would come out rounded."""
    folded = [Harness(llama, stack).infer().model.folded for stack in (techniques(name, "p_tuning"), techniques("p_tuning"))]
    assert torch.equal(*folded)


def test_a_prefix_has_the_type_that_the_model_was_cast_to():
    model = Harness(llama, techniques("prefix_tuning", ("bf16", {"at": "infer"}))).infer().model
    assert model.folded.dtype is torch.float32  # what was trained
    assert model._values().dtype is torch.bfloat16
