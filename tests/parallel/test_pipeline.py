"""The pipeline beside one process: curves, logits, checkpoints; stages of each family; what is refused when planned."""

from dataclasses import replace
from functools import cache

import pytest
import torch
import transformers
from effbench_plugins.pipeline import Pipeline
from effbench_plugins.pipeline.layouts import LAYOUTS

from effbench.plan.plan import _spread
from effbench.plan.reasons import _conflict, why_no_cell, why_no_phases
from effbench.worker.checkpoint import own, reload, save, stored
from tests.ranks import Seeded, run_ranks, source_of
from tests.records import FACTS, make_cell
from tests.techniques.conftest import CATALOG, llama

SCHEDULES = ("gpipe", "1f1b", "interleaved")
SMALL = {
    "vocab_size": 256,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
}


class Padded(Seeded):
    """Sequences of unequal length, so that microbatches predict unequal numbers of tokens."""

    name = "padded"

    def training_batches(self, tokenizer, cell, count, seed):
        batches = super().training_batches(tokenizer, cell, count, seed)
        lengths = torch.arange(cell.batch_size)[:, None] * 3 + 4
        kept = torch.arange(cell.seq_len) < lengths
        return [
            {"input_ids": b["input_ids"], "attention_mask": kept.long(), "labels": b["labels"].where(kept, -100)}
            for b in batches
        ]


def llama4():
    return llama(layers=4)


def untied():
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**SMALL, tie_word_embeddings=False))


def gpt2():
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=256, n_embd=32, n_layer=4, n_head=4, n_positions=128)
    return transformers.GPT2LMHeadModel(config)


def of_family(model_type):
    torch.manual_seed(0)
    sizes = {**SMALL, "head_dim": 8} if model_type == "qwen3" else SMALL
    config = transformers.AutoConfig.for_model(model_type, **sizes)
    return transformers.AutoModelForCausalLM.from_config(config)


def gpt_neox():
    return of_family("gpt_neox")


def mistral():
    return of_family("mistral")


def olmo2():
    return of_family("olmo2")


def phi():
    return of_family("phi")


def phi3():
    return of_family("phi3")


def qwen2():
    return of_family("qwen2")


def qwen3():
    return of_family("qwen3")


def smollm3():
    return of_family("smollm3")


FAMILIES = {"gpt2": gpt2, "gpt_neox": gpt_neox, "llama": untied, "mistral": mistral, "olmo2": olmo2, "phi": phi}
FAMILIES |= {"phi3": phi3, "qwen2": qwen2, "qwen3": qwen3, "smollm3": smollm3}


def in_stages(schedule="1f1b", **options):
    return ("pipeline", {"schedule": schedule, "microbatches": 2, **options})


def curves(here, cases):
    """The losses of several trials, each a stack, a model, whether padded."""
    written([base for _, base, *_ in cases])
    return [losses(here, *case) for case in cases]


def written(bases):
    """Once ranks have met, transformers saves on the first alone."""
    for base in bases:
        source_of(base)


def losses(here, stack, base=llama4, padded=False):
    trial = here.trial(stack, base)
    if padded:
        trial.request = replace(trial.request, workload=Padded())
    return trial.trained().losses


@cache
def alone(*stack, base=llama4, padded=False):
    return run_ranks(1, losses, stack, base, padded)[0]


def on_ranks(world_size, cases):
    """Of the last rank, which every rank must agree with."""
    found = run_ranks(world_size, curves, cases)
    assert all(of_rank == found[0] for of_rank in found)
    return found[0]


def test_every_schedule_gives_the_curve_of_one_process():
    cases = [([in_stages(schedule)], base) for schedule in SCHEDULES for base in (llama4, untied, gpt2)]
    for (_, base), curve in zip(cases, on_ranks(2, cases), strict=True):
        assert curve == pytest.approx(alone(base=base), rel=1e-4)


def test_four_stages():
    cases = [([in_stages("gpipe")], gpt2), ([in_stages("1f1b", microbatches=4)], llama4)]
    for (_, base), curve in zip(cases, on_ranks(4, cases), strict=True):
        assert curve == pytest.approx(alone(base=base), rel=1e-4)


def test_microbatches_weigh_by_their_tokens_and_every_stage_masks_padding():
    cases = [([in_stages(schedule, microbatches=4)], llama4, True) for schedule in SCHEDULES]
    for curve in on_ranks(2, cases):
        assert curve == pytest.approx(alone(padded=True), rel=1e-4)
    assert alone(padded=True) != pytest.approx(alone(), rel=1e-2)


def test_with_lora_on_two_and_four_ranks():
    lora = ("lora", {"rank": 4})
    expected = run_ranks(1, losses, [lora])[0]
    for world_size in (2, 4):
        assert on_ranks(world_size, [([lora, in_stages("gpipe")], llama4)])[0] == pytest.approx(expected, rel=1e-4)
    assert on_ranks(2, [([lora, in_stages("interleaved")], llama4)])[0] == pytest.approx(expected, rel=1e-4)


def cast_products(here, stack):
    """The losses, and the number types that this rank's layers multiplied in."""
    trial, dtypes = here.trial(stack, llama4).made(), set()
    for module in trial.model.modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_hook(lambda *call: dtypes.add(call[2].dtype) if torch.is_grad_enabled() else None)
    trial._train(trial.model)
    return trial.outcome.samples["samples"]["loss"], dtypes


@pytest.mark.parametrize("first", [True, False])
def test_autocast_holds_on_every_stage_whichever_comes_first(first):
    cast = ("mixed_precision", {"dtype": "bfloat16"})
    expected, _ = run_ranks(1, cast_products, [cast])[0]
    for curve, dtypes in run_ranks(2, cast_products, [cast, in_stages()] if first else [in_stages(), cast]):
        assert dtypes == {torch.bfloat16}
        assert curve == pytest.approx(expected, rel=2e-2)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_two_dimensions(schedule):
    stack = [in_stages(schedule, ranks=2), "ddp"]
    assert on_ranks(4, [(stack, llama4)])[0] == pytest.approx(alone(), rel=1e-4)


def in_use(here, bases, schedule):
    """Logits, a prefill's last logits, and the names of parameters, of each model."""
    found = []
    written(bases)
    for base in bases:
        stack = [in_stages(schedule)] if here.world_size > 1 else []
        trial = here.trial(stack, base, steps=3).trained()
        inference = trial.inference()
        prompt = torch.arange(1, 9).view(2, 4)
        with torch.inference_mode():
            last, _ = inference.prefill(inference, prompt, torch.ones_like(prompt))
        names = {name for name, _ in trial.model.named_parameters()}
        found.append((trial.losses, trial.logits(inference), last, names, trial.outcome.metrics))
    return found


@pytest.mark.parametrize("schedule", ["gpipe", "interleaved"])
def test_every_family_is_the_whole_model_again(schedule):
    assert set(FAMILIES) == set(LAYOUTS)
    bases = tuple(FAMILIES.values())
    (expected,), ranks = run_ranks(1, in_use, bases, schedule), run_ranks(2, in_use, bases, schedule)
    for whole, *parts in zip(expected, *ranks, strict=True):
        for losses, logits, last, *_ in parts:
            assert losses == pytest.approx(whole[0], rel=1e-4)
            torch.testing.assert_close(logits, whole[1], rtol=1e-3, atol=1e-4)
            torch.testing.assert_close(last, whole[2], rtol=1e-3, atol=1e-4)
        assert parts[0][3] | parts[1][3] == whole[3]
        assert parts[0][3] != whole[3] != parts[1][3]


def saved(here, stack, folder, base):
    trial = here.trial(stack, base, steps=3).trained()
    inference = trial.inference()
    save(own(stored(inference.model, trial.request.techniques, trial.context)), folder / f"{here.rank}.safetensors")
    return trial.logits(inference)


def loaded(here, stack, file, base):
    trial = here.trial(stack, base).made()
    inference = trial.inference()
    reload(file, inference.model, trial.request.techniques, trial.context)
    return trial.logits(inference)


@pytest.mark.parametrize("others", [(), (("lora", {"rank": 4}),)], ids=["alone", "lora"])
def test_a_checkpoint_moves_between_world_sizes(tmp_path, others):
    from safetensors.torch import load_file, save_file

    folders = {world_size: tmp_path / str(world_size) for world_size in (1, 2)}
    logits, files = {}, {}
    for world_size, folder in folders.items():
        folder.mkdir()
        stack = [*others, in_stages("gpipe")] if world_size > 1 else others
        logits[world_size] = run_ranks(world_size, saved, stack, folder, llama4)[0]
        parts = [load_file(file) for file in sorted(folder.glob("*.safetensors"))]
        assert sum(map(len, parts)) == len({name for part in parts for name in part})
        files[world_size] = folder / "whole"
        save_file({name: tensor for part in parts for name, tensor in part.items()}, files[world_size])
    again = run_ranks(1, loaded, others, files[2], llama4)[0]
    torch.testing.assert_close(again, logits[2], rtol=1e-4, atol=1e-5)
    for schedule in ("gpipe", "interleaved"):
        for of_rank in run_ranks(2, loaded, [*others, in_stages(schedule)], files[1], llama4):
            torch.testing.assert_close(of_rank, logits[1], rtol=1e-4, atol=1e-5)


def whole(here, stack):
    return here.outcome(stack, llama4)


def test_the_record_is_that_of_the_whole_model():
    one, two = run_ranks(1, whole, [])[0], run_ranks(2, whole, [in_stages("1f1b", microbatches=4)])
    for name in ("parameters.total", "parameters.trainable", "checkpoint.bytes"):
        assert two[0].metrics[name]["median"] == pytest.approx(one.metrics[name]["median"], rel=2e-2), name
    flops = [outcome.metrics["train.step_flops"]["median"] for outcome in two]
    assert sum(flops) == one.metrics["train.step_flops"]["median"]
    assert all(outcome.metrics["pipeline.bubble_formula"]["median"] == pytest.approx(1 / 5) for outcome in two)
    assert two[0].quality["before"] == pytest.approx(one.quality["before"], rel=1e-4)
    assert two[0].quality["scores"] == pytest.approx(one.quality["scores"], rel=1e-3)


def reason(cell, *techniques):
    return why_no_cell(_spread(cell, techniques), techniques)


@pytest.mark.parametrize(
    ("options", "changes", "expected"),
    [
        ({"microbatches": 3}, {}, "cannot be cut into 3 microbatches"),
        ({"schedule": "gpipe"}, {"world_size": 4}, "4 stages need as many layers, and the model has 2"),
        ({"schedule": "interleaved"}, {}, "4 stages need as many layers"),
        ({"microbatches": 1}, {}, "1f1b needs a microbatch for each of 2 ranks"),
        ({"ranks": 3}, {}, "multiply to 3, not to the world size 2"),
        ({}, {"facts": FACTS.model_copy(update={"model_type": "gemma2"})}, "not of gemma2"),
    ],
)
def test_refused_when_planned(options, changes, expected):
    cell = make_cell(**({"world_size": 2, "batch_size": 4} | changes))
    assert expected in reason(cell, Pipeline(**options))


def test_what_can_be_planned():
    cell = make_cell(world_size=2, batch_size=4)
    assert reason(cell, Pipeline()) is None
    assert reason(make_cell(world_size=1, batch_size=3), Pipeline()) is None
    split = _spread(cell, [Pipeline()])
    assert "pass all stages" in why_no_phases(split, [Pipeline()], ("train", "infer"))["decode"]
    assert "decode" not in why_no_phases(make_cell(parallel={"pipeline": 1}), [Pipeline()], ("train", "infer"))


@pytest.mark.parametrize(
    ("stack", "expected"),
    [
        (["pipeline", "lora"], "list lora before pipeline"),
        (["pipeline", "int8_dynamic"], "list int8_dynamic before pipeline"),
        (["prompt_tuning", "pipeline"], "puts tokens before the first layer"),
        (["distillation", "pipeline"], "a stage has only a part"),
        (["pipeline", "distillation"], "a stage has only a part"),
        ([("magnitude_pruning", {"at": "infer"}), "pipeline"], 'use at = "apply"'),
        ([("lora", {"adalora": True}), "pipeline"], "adalora"),
        (["lora", "pipeline"], None),
        (["pipeline", "ddp"], None),
        (["ddp", "pipeline"], None),
        (["pipeline", "mixed_precision"], None),
        (["magnitude_pruning", "pipeline"], None),
    ],
)
def test_stacks(stack, expected):
    uses = [(use, {}) if isinstance(use, str) else use for use in stack]
    found = _conflict([CATALOG.technique(*use) for use in uses])
    assert found is None if expected is None else expected in found


def test_memory_is_what_a_rank_has_of_the_layers():
    cell = _spread(make_cell(world_size=2, batch_size=4), [Pipeline()])
    assert Pipeline().memory(make_cell(parallel={"pipeline": 1}), "train") == 0
    gpipe, alternating = Pipeline(schedule="gpipe"), Pipeline(schedule="1f1b", microbatches=4)
    assert alternating.memory(cell, "train") < gpipe.memory(cell, "train") < 0
