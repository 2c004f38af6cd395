"""Tensor parallelism: the losses, logits, tokens and checkpoints of one process, on two and four ranks."""

import pytest
import torch
from safetensors.torch import load_file
from torch.distributed.tensor import DTensor, Replicate

from effbench.plan.reasons import why_no_cell
from effbench.worker.checkpoint import own, reload, save, stored
from tests.ranks import run_ranks, train_losses
from tests.techniques.conftest import BASES, CATALOG, cell_of

TENSOR = "tensor_parallel"
SEQUENCE = (TENSOR, {"sequence_parallel": True})


def four_heads():
    """Grouped heads that four ranks can share, a head that is not tied, and a vocabulary that two ranks cannot split."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 8}
    config = LlamaConfig(vocab_size=257, num_key_value_heads=4, max_position_embeddings=128, attention_bias=True, **sizes)
    return LlamaForCausalLM(config).eval()


def qwen3():
    """Norms of queries and keys, which each rank uses for its own heads."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 8}
    return Qwen3ForCausalLM(Qwen3Config(vocab_size=256, num_key_value_heads=2, max_position_embeddings=128, **sizes)).eval()


def opt():
    """A plan of ours, with biases and heads that the code counts itself."""
    from transformers import OPTConfig, OPTForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "word_embed_proj_dim": 32, "ffn_dim": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    return OPTForCausalLM(OPTConfig(vocab_size=256, max_position_embeddings=128, **sizes)).eval()


def trained(here, stack, base):
    """Losses, and what the trained model says: logits, and tokens decoded with its cache."""
    trial = here.trial(stack, base).trained()
    inference = trial.inference()
    logits, said = trial.logits(inference), []
    assert not isinstance(logits, DTensor)
    if trial.cell.facts.causal:
        ids = torch.arange(1, 9).view(2, 4)
        with torch.inference_mode():
            scores, cache = inference.prefill(inference, ids, torch.ones_like(ids))
            for _ in range(4):
                said.append(scores.argmax(-1))
                scores, cache = inference.decode(inference, said[-1][:, None], cache)
    return trial.losses, logits, [token.tolist() for token in said]


def same(stack, base, world_size, alone=()):
    [(losses, logits, said)] = run_ranks(1, trained, alone, base)
    for rank_losses, rank_logits, rank_said in run_ranks(world_size, trained, stack, base):
        assert rank_losses == pytest.approx(losses, rel=1e-4)
        torch.testing.assert_close(rank_logits, logits, rtol=1e-3, atol=1e-3)
        assert rank_said == said


@pytest.mark.parametrize(
    ("base", "world_size"), [("llama", 2), (four_heads, 4), ("gpt2", 2), ("bert", 2), (qwen3, 2), (opt, 2)]
)
def test_it_trains_and_decodes_as_one_process(base, world_size):
    same([TENSOR], base, world_size)


@pytest.mark.parametrize(("stack", "base"), [([SEQUENCE], "llama"), (["lora", SEQUENCE], four_heads)])
def test_sequences_can_be_split_between_the_layers(stack, base):
    same(stack, base, 2, stack[:-1])


@pytest.mark.parametrize(("base", "world_size"), [("llama", 2), ("gpt2", 4)])
def test_lora_is_split_with_its_layers_and_merged(base, world_size):
    same(["lora", TENSOR], base, world_size, ["lora"])


@pytest.mark.parametrize("first", ["sliding_window", "adapters"])
def test_what_may_stand_before_it(first):
    same([first, TENSOR], "llama", 2, [first])


def test_mixed_precision():
    one, two = (train_losses(["mixed_precision", *more], n) for n, more in ((1, []), (2, [TENSOR])))
    assert two == pytest.approx(one, rel=2e-2)
    assert two[-1] < two[0]


def parts(here):
    """Each parameter's share on this rank, and whether whole ones are the same on all after training."""
    model = here.trial([SEQUENCE], "llama").trained().model
    shares = {name: p.to_local().numel() / p.numel() for name, p in model.named_parameters()}
    whole = {name: p.to_local() for name, p in model.named_parameters() if p.placements == (Replicate(),)}
    return (
        shares,
        {name: tensor.detach().clone() for name, tensor in whole.items()},
        model.lm_head.weight is model.model.embed_tokens.weight,
    )


def test_matrices_are_split_and_norms_stay_the_same_on_all_ranks():
    (shares, whole, tied), (_, others, _) = run_ranks(2, parts)
    assert tied
    assert {name for name, share in shares.items() if share == 1} == whole.keys()
    assert all("norm" in name for name in whole)
    assert {share for share in shares.values()} == {0.5, 1.0}
    for name, tensor in whole.items():
        assert torch.equal(tensor, others[name])


def written(here, stack, base, folder):
    trial = here.trial(stack, base).trained()
    inference = trial.inference()
    tensors = own(stored(inference.model, trial.request.techniques, trial.context))
    if tensors:
        save(tensors, folder / "checkpoint.safetensors")
    return len(tensors), trial.logits(inference)


def read(here, stack, base, folder):
    trial = here.trial(stack, base).made()
    inference = trial.inference()
    reload(folder / "checkpoint.safetensors", inference.model, trial.request.techniques, trial.context)
    return trial.logits(inference)


@pytest.mark.parametrize(("base", "sizes"), [("gpt2", (2, 4)), ("llama", (2, 1)), ("llama", (1, 2))])
def test_a_checkpoint_is_read_at_another_world_size(base, sizes, tmp_path):
    (count, logits), *others = run_ranks(sizes[0], written, [TENSOR], base, tmp_path)
    assert count
    assert [of_rank for of_rank, _ in others] == [0] * (sizes[0] - 1)  # one file, of rank 0
    whole = load_file(tmp_path / "checkpoint.safetensors")
    assert {tuple(tensor.shape) for name, tensor in whole.items() if "embed_tokens" in name or "wte" in name} == {(256, 32)}
    for again in run_ranks(sizes[1], read, [TENSOR], base, tmp_path):
        torch.testing.assert_close(again, logits, rtol=1e-3, atol=1e-3)


def reason(stack, base="llama", **fields):
    techniques = [CATALOG.technique(name, options) for name, options in stack]
    cell = cell_of(BASES[base], world_size=2, batch_size=4, seq_len=16).model_copy(update={"parallel": {TENSOR: 2}, **fields})
    return why_no_cell(cell, techniques)


ALONE = (TENSOR, {})


@pytest.mark.parametrize(
    ("stack", "base", "fields", "words"),
    [
        ([ALONE], "t5", {}, "tensor_parallel knows no plan for t5"),
        ([ALONE], "llama", {"parallel": {TENSOR: 4}, "world_size": 4}, "2 key and value heads cannot be shared out to 4"),
        ([(TENSOR, {"sequence_parallel": True})], "gpt2", {}, "sequence_parallel is for llama, mistral, qwen2, qwen3"),
        ([(TENSOR, {"sequence_parallel": True})], "llama", {"seq_len": 15}, "seq_len 15 cannot be split over 2"),
        ([ALONE, ("lora", {})], "llama", {}, "list it before tensor_parallel"),
        (
            [("lora", {"dora": True}), ALONE],
            "llama",
            {},
            "dora cannot be merged into the parts of weights that tensor_parallel",
        ),
        ([("lora", {"dora": True, "merged": False}), ALONE], "llama", {}, "does not know how to split what lora makes"),
        ([("ia3", {"merged": False}), ALONE], "llama", {}, "does not know how to split what ia3 makes"),
        ([("prefix_tuning", {}), ALONE], "llama", {}, "does not know how to split what prefix_tuning makes"),
        ([("linformer", {}), ALONE], "bert", {}, "does not know how to split what linformer makes"),
        ([ALONE, ("int8_dynamic", {})], "llama", {}, "int8_dynamic needs whole matrices"),
        ([("wanda", {}), ALONE], "llama", {}, "wanda needs whole matrices"),
        ([ALONE, ("ddp", {})], "llama", {"parallel": {TENSOR: 2, "ddp": 1}}, "use fsdp"),
    ],
)
def test_what_cannot_be_is_refused_when_planned(stack, base, fields, words):
    assert words in (reason(stack, base, **fields) or "")


def test_on_one_rank_it_changes_nothing():
    assert train_losses([TENSOR], 1) == train_losses([], 1)


def test_memory_is_less_with_more_ranks():
    technique, sequence = CATALOG.technique(TENSOR, {}), CATALOG.technique(TENSOR, {"sequence_parallel": True})
    cells = [cell_of(BASES["llama"], world_size=n).model_copy(update={"parallel": {TENSOR: n}}) for n in (1, 2, 4)]
    for phase in ("train", "infer"):
        saved = [-technique.memory(cell, phase) for cell in cells]
        assert saved[0] == 0 < saved[1] < saved[2]
    assert sequence.memory(cells[1], "train") < technique.memory(cells[1], "train")
