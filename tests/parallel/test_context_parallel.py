"""Context parallelism: the losses of one process where each rank sees its part of every sequence."""

import pytest
import torch

from effbench.plan.reasons import why_no_cell
from tests.ranks import run_ranks, train_losses
from tests.techniques.conftest import BASES, CATALOG, cell_of

CONTEXT = "context_parallel"


def windowed():
    """Its second layer sees a window that reaches from one rank's chunk into another's."""
    from transformers import MistralConfig, MistralForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = MistralConfig(vocab_size=256, num_key_value_heads=2, max_position_embeddings=128, sliding_window=5, **sizes)
    return MistralForCausalLM(config).eval()


@pytest.mark.parametrize(
    ("base", "stack", "world_size"),
    [
        ("llama", [CONTEXT], 2),
        ("gpt2", [CONTEXT], 4),
        (windowed, [CONTEXT], 2),
        ("llama", ["lora", CONTEXT], 4),
        ("llama", [CONTEXT, "ddp"], 4),
        ("llama", [CONTEXT, "tensor_parallel"], 4),
    ],
)
def test_it_trains_as_one_process(base, stack, world_size):
    alone = [technique for technique in stack if technique == "lora"]
    assert train_losses(stack, world_size, base=base) == pytest.approx(train_losses(alone, 1, base=base), rel=1e-4)


def test_mixed_precision():
    one, two = (train_losses(["mixed_precision", *more], n) for n, more in ((1, []), (2, [CONTEXT])))
    assert two == pytest.approx(one, rel=2e-2)
    assert two[-1] < two[0]


def gradients(here):
    """Of one pass over sequences of which one is padded and has its only two answers in one rank's part; and earlier ones."""
    trial = here.trial([CONTEXT], "llama").made()
    model, step = trial.model, _step(trial)
    ids = torch.arange(1, 33).view(2, 16)
    mask, labels = torch.ones_like(ids), torch.full_like(ids, -100)
    mask[1, 11:] = 0
    labels[0, 7:9] = ids[0, 7:9]
    batch = {"input_ids": ids, "attention_mask": mask, "labels": labels}
    model.model.norm.weight.grad = torch.ones(32)
    loss = step.forward_backward(step, batch)
    return float(loss), {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def _step(trial):
    from effbench.worker import defaults

    step = defaults.train_step(trial.model, list(trial.model.parameters()), trial.cell)
    for technique in trial.request.techniques:
        step = technique.train(step, trial.context)
    return step


def test_padding_few_answers_and_earlier_gradients():
    [(loss, expected)] = run_ranks(1, gradients)
    for rank_loss, found in run_ranks(2, gradients):
        assert rank_loss == pytest.approx(loss, rel=1e-5)
        for name, gradient in expected.items():
            torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6, msg=name)


def blocks(here):
    """The loss where a mask serves only three queries."""
    from effbench_plugins.model_parallel import gathered_attention

    gathered_attention._BLOCK = 3
    return here.trial([CONTEXT], "llama").trained().losses


def test_queries_are_masked_block_by_block():
    assert run_ranks(2, blocks)[0] == pytest.approx(train_losses([], 1), rel=1e-4)


def evaluated(here):
    trial = here.trial([CONTEXT], "llama").trained()
    return trial.logits(trial.inference())


def test_in_inference_each_rank_works_as_if_alone():
    [alone] = run_ranks(1, evaluated)
    for logits in run_ranks(2, evaluated):
        torch.testing.assert_close(logits, alone, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("stack", "base", "seq_len", "words"),
    [
        ([], "bert", 16, "is for causal models, not for bert"),
        ([], "t5", 16, "t5"),
        ([], "llama", 18, "seq_len 18 cannot be cut into 2 × 2 equal chunks"),
        (["sliding_window"], "llama", 16, "both set attention"),
        (["prompt_tuning"], "llama", 16, "prompt_tuning makes sequences longer"),
        (["distillation"], "llama", 16, "distillation has a teacher"),
    ],
)
def test_what_cannot_be_is_refused_when_planned(stack, base, seq_len, words):
    techniques = [CATALOG.technique(name, {}) for name in [*stack, CONTEXT]]
    cell = cell_of(BASES[base], world_size=2, batch_size=4).model_copy(update={"parallel": {CONTEXT: 2}, "seq_len": seq_len})
    assert words in (why_no_cell(cell, techniques) or "")


def test_memory_of_activations_is_shared_out():
    cells = [cell_of(BASES["llama"], world_size=n).model_copy(update={"parallel": {CONTEXT: n}}) for n in (1, 2, 4)]
    saved = [-CATALOG.technique(CONTEXT, {}).memory(cell, "train") for cell in cells]
    assert saved[0] == 0 < saved[1] < saved[2]
