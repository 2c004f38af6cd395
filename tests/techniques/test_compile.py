"""Compilation: by Dynamo alone, which takes seconds; generated code takes a minute and is marked long."""

import os
from types import SimpleNamespace

import pytest
import torch
from effbench_plugins import compile as compile_plugin
from torch._dynamo.exc import FailOnRecompileLimitHit
from torch._dynamo.utils import counters
from torch.utils._python_dispatch import TorchDispatchMode

from effbench.worker.trial import TrialRequest, run
from tests.techniques.conftest import BASES, CATALOG, Harness, cell_of, llama, logits_of, random_batch, source_of

LONG = pytest.mark.long
IDS = torch.randint(1, 256, (2, 12), generator=torch.Generator().manual_seed(5))


def technique(name, **options):
    return CATALOG.technique(name, options)


def graphs():
    return counters["stats"]["unique_graphs"]


@pytest.fixture(autouse=True)
def dynamo_alone(request):
    torch._dynamo.reset()
    backend = "inductor" if request.node.get_closest_marker("slow") else "eager"
    with torch.compiler.set_stance(force_backend=backend):
        counters.clear()
        yield


def decoded(inference, tokens):
    found = []
    with torch.inference_mode():
        last, cache = inference.prefill(inference, IDS, torch.ones_like(IDS))
        for _ in range(tokens):
            last, cache = inference.decode(inference, last.argmax(-1, keepdim=True), cache)
            found.append(last)
    return torch.stack(found)


@pytest.mark.parametrize(
    "base", ["llama", pytest.param("gpt2", marks=LONG), pytest.param("bert", marks=LONG), pytest.param("t5", marks=LONG)]
)
def test_compiled_it_trains_and_answers_as_before(base):
    ours, reference = (Harness(BASES[base], stack) for stack in ([technique("compile")], []))
    torch.testing.assert_close(ours.train(3), reference.train(3), atol=1e-5, rtol=1e-5)
    trained = graphs()
    assert trained > 0
    inference = ours.infer()
    torch.testing.assert_close(logits_of(inference, IDS), logits_of(reference.infer(), IDS), atol=1e-5, rtol=1e-5)
    assert graphs() > trained
    assert inference.model.state_dict().keys() == reference.model.state_dict().keys()


def test_graphs_and_their_breaks_are_counted():
    one = technique("compile")
    harness = Harness(llama, [one])
    harness.train(1)
    assert one.counted(harness.context) == {"compile.graphs": 1, "compile.graph_breaks": 0}
    torch._dynamo.reset()
    loss = harness.step().loss
    harness.model.model.norm.register_forward_hook(lambda *_: torch._dynamo.graph_break())
    assert torch.isfinite(loss(harness.model, random_batch()))
    harness.train(1)
    counted = one.counted(harness.context)
    assert counted["compile.graph_breaks"] >= 1
    assert {metric.name for metric in one.metrics} == set(counted)


def test_one_graph_serves_every_step():
    harness = Harness(llama, [technique("compile")])
    harness.train(1)
    first = graphs()
    harness.train(3)
    assert first > 0
    assert graphs() == first


def test_graphs_do_not_grow_with_the_tokens_nor_with_lengths_and_batches():
    inference = Harness(llama, [technique("compile")]).infer()
    decoded(inference, 3)
    after_three = graphs()
    assert 0 < after_three <= 5
    decoded(inference, 20)
    assert graphs() == after_three
    for rows, length in ((2, 12), (3, 20), (4, 33), (5, 50)):
        logits_of(inference, torch.ones(rows, length, dtype=torch.long))
    assert graphs() <= after_three + 1


def test_where_shapes_would_pass_dynamos_limit_the_trial_fails(monkeypatch):
    """And does not go on uncompiled: a graph for each length is asked for, and more lengths come than are allowed."""
    monkeypatch.setattr(compile_plugin, "_GRAPHS_OF_A_FUNCTION", 2)
    inference = Harness(llama, [technique("compile", dynamic=False)]).infer()
    for length in (3, 4):
        logits_of(inference, torch.ones(2, length, dtype=torch.long))
    with pytest.raises(FailOnRecompileLimitHit):
        logits_of(inference, torch.ones(2, 5, dtype=torch.long))


@pytest.mark.parametrize("order", [["compile", "lora"], ["lora", "compile"]])
def test_it_acts_on_what_others_made_of_the_model_wherever_it_stands(order):
    harness = Harness(llama, [technique(name) for name in order])
    assert harness.train(2) == pytest.approx(Harness(llama, [technique("lora")]).train(2), rel=1e-5)
    inference = harness.infer()
    assert not any("lora" in name for name in inference.model.state_dict())
    before = graphs()
    logits_of(inference, IDS)
    assert graphs() > before


@pytest.mark.parametrize(
    "others",
    [
        ["mixed_precision"],
        pytest.param(["activation_checkpointing"], marks=LONG),
        ["gradient_accumulation"],
        pytest.param(["distillation"], marks=LONG),
        pytest.param(["nf4", "lora"], marks=LONG),
    ],
    ids="-".join,
)
def test_compiled_stacks_follow_the_same_losses_and_logits(others):
    plain = [technique(name) for name in others]
    ours, reference = Harness(llama, [technique("compile"), *plain]), Harness(llama, plain)
    assert ours.train(2) == pytest.approx(reference.train(2), rel=1e-3)
    assert graphs() > 0
    ours, reference = ours.infer(), reference.infer()
    torch.testing.assert_close(logits_of(ours, IDS), logits_of(reference, IDS), atol=5e-2, rtol=5e-2)
    assert torch.isfinite(decoded(ours, 3)).all()


def test_what_is_counted_is_run_uncompiled():
    harness, seen = Harness(llama, [technique("compile")]), []

    class Counting(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
            seen.append(function)
            return function(*arguments, **(keywords or {}))

    with Counting():
        logits_of(harness.infer(), IDS)
    assert graphs() == 0
    assert torch.ops.aten.mm.default in seen


def test_without_a_compiler_the_plan_says_so(monkeypatch, tmp_path):
    cell = Harness(llama, []).cell
    one = technique("compile")
    assert one.unsupported(cell) is None
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert "no-such-compiler is not there" in one.unsupported(cell)
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "needs a C++ compiler" in one.unsupported(cell)
    cuda = cell.model_copy(update={"device": "cuda"})
    monkeypatch.delenv("CC", raising=False)
    assert "Triton" in one.unsupported(cuda)
    monkeypatch.setenv("CC", "cc")
    assert one.unsupported(cuda) is None


def test_only_a_warm_cache_outlives_a_trial(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "the trial's own")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    Harness(llama, [technique("compile")]).infer()
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == "the trial's own"
    Harness(llama, [technique("compile", cache="warm")]).infer()
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / "effbench" / "compiled")


def test_a_pipeline_is_refused():
    stages = SimpleNamespace(dimension="pp", name="stages")
    for reason in (technique("compile").unsupported_after([stages]), technique("compile").unsupported_before([stages])):
        assert reason == "compile compiles the whole model, of which stages calls parts"
    assert technique("compile").unsupported_after([technique("ddp")]) is None


def test_cuda_graphs_are_for_training_alone(monkeypatch):
    asked = []
    monkeypatch.setattr(torch, "compile", lambda model, **options: asked.append(options["mode"]) or model)
    for mode in ("default", "reduce-overhead", "max-autotune"):
        harness = Harness(llama, [technique("compile", mode=mode)])
        harness.train(1)
        logits_of(harness.infer(), IDS)
    assert asked == ["default", "default", "reduce-overhead", "default", "max-autotune", "max-autotune-no-cudagraphs"]


@pytest.mark.long
@pytest.mark.timeout(900)
def test_generated_code_gives_the_same_losses_and_no_sample_contains_its_making(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    sampling = {"min_samples": 3, "min_seconds": 0.0, "interval": 10.0, "max_seconds": 1.0}
    found = []
    for stack in ([technique("compile")], []):
        cell = cell_of(llama, steps=6, new_tokens=4, sampling=sampling)
        meters = [CATALOG.meters.get(name)() for name in ("latency", "compile", "loss")]
        request = TrialRequest(cell, 1, stack, source_of(llama), CATALOG.workload("docs"), meters, {})
        outcome = run(request, announce=lambda phase: None)
        assert outcome.status == "ok", outcome.error
        found.append({name: summary["median"] for name, summary in outcome.metrics.items()})
    compiled, plain = found
    assert compiled["train.final_loss"] == pytest.approx(plain["train.final_loss"], rel=1e-4)
    assert compiled["train.compile_s"] > 20 * compiled["train.step_s"]
    assert compiled["infer.compile_s"] > 20 * compiled["infer.end_to_end_s"]
    assert "train.compile_s" not in plain
