"""Counted operations against the closed formula of a Llama."""

import warnings
from dataclasses import replace

import pytest
import torch
from effbench_plugins.meters import flops
from effbench_plugins.meters.flops import Flops
from torch import nn

from effbench.worker.counting import FlopCounter, counting
from tests.meters.conftest import SHAPE


def forward_flops(queries, keys, *, head_positions=None, head=True):
    """2 × multiply-adds: linear layers, then scores and values of dense attention, for the whole batch."""
    hidden, heads, layers = SHAPE["hidden"], SHAPE["heads"], SHAPE["layers"]
    wide = hidden * SHAPE["kv_heads"] // heads
    linear = layers * (2 * hidden * hidden + 2 * hidden * wide + 3 * hidden * SHAPE["intermediate"])
    attention = layers * 2 * keys * hidden
    total = queries * (linear + attention)
    if head:
        total += (head_positions or queries) * hidden * SHAPE["vocab"]
    return 2 * SHAPE["batch"] * total


def values(found):
    return {name: summary.median for name, summary in found.items()}


def lora(model):
    from peft import LoraConfig, get_peft_model

    return get_peft_model(model, LoraConfig(r=4, target_modules="all-linear"))


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_a_step_is_three_forward_passes(llama, seen, attention):
    model = llama(attention)
    model.config.attention_dropout = 0.0
    model.train()
    found = values(Flops().probe(seen("train", model)))
    length = SHAPE["length"]
    # Nothing asks for the gradient of the embedded tokens' ids, but that of the embeddings themselves is asked for.
    assert found == {"train.step_flops": 3 * forward_flops(length, length)}


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_prefill_and_decode_agree_with_the_formula(llama, seen, attention):
    length = SHAPE["length"]
    found = values(Flops().probe(seen("infer", llama(attention))))
    assert found == {
        "infer.prefill_flops": forward_flops(length, length, head_positions=1),
        "infer.decode_token_flops": forward_flops(1, length + 1),
    }


def test_autocast_counts_the_same_and_says_in_which_type(llama, seen):
    observation = seen("train", llama())
    step = observation.step

    def autocast(model, batch):
        with torch.autocast("cpu", torch.bfloat16):
            return model(**batch).loss

    plain = values(Flops().probe(observation))
    assert values(Flops().probe(replace(observation, step=replace(step, loss=autocast)))) == plain
    with counting() as counter:
        autocast(observation.model, observation.batch)
    assert counter.by_dtype["bfloat16"] > 0.9 * counter.total


def test_lora_saves_the_weight_gradients_of_what_is_frozen(llama, seen):
    full = values(Flops().probe(seen("train", llama())))["train.step_flops"]
    adapted = values(Flops().probe(seen("train", lora(llama()))))["train.step_flops"]
    length, adapters = SHAPE["length"], 0
    hidden, wide, inner = SHAPE["hidden"], SHAPE["hidden"] // 2, SHAPE["intermediate"]
    for n_in, n_out in ((hidden, hidden), (hidden, wide), (hidden, wide), (hidden, hidden), (hidden, inner), (hidden, inner)):
        adapters += 2 * SHAPE["batch"] * length * 4 * (n_in + n_out) * SHAPE["layers"]
    adapters += 2 * SHAPE["batch"] * length * 4 * (inner + hidden) * SHAPE["layers"]
    forward = forward_flops(length, length)
    assert 2 * forward < adapted < full + 3 * adapters
    attention = forward - forward_flops(length, 0)
    # forward once; backward once through frozen weights, twice through attention and adapters; the first layer's inputs need
    # no gradient, so its q, k, v lose theirs, and their adapters' down projections too
    first = 2 * SHAPE["batch"] * length * hidden * (hidden + 2 * wide + 3 * 4)
    assert adapted == 2 * forward + attention + 3 * adapters - first


def test_int8_layers_count_as_the_float_layers_they_replace(llama, seen):
    from torch.ao.quantization import quantize_dynamic

    before = values(Flops().probe(seen("infer", llama())))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated in favour of torchao
        converted = quantize_dynamic(llama(), {nn.Linear}, dtype=torch.qint8)
    assert values(Flops().probe(seen("infer", converted))) == before


@pytest.mark.parametrize("config", ["Int8WeightOnlyConfig", "Int8DynamicActivationInt8WeightConfig"])
def test_torchao_layers_count_as_the_float_layers_they_replace(llama, seen, config):
    quantization = pytest.importorskip("torchao.quantization")
    before, model = values(Flops().probe(seen("infer", llama()))), llama()
    quantization.quantize_(model, getattr(quantization, config)())
    assert values(Flops().probe(seen("infer", model))) == before


def test_compiled_models_are_counted_as_they_were_written(llama, seen):
    model = llama()
    before = values(Flops().probe(seen("infer", model)))
    model.forward = torch.compile(model.forward, backend="eager")
    observation = seen("infer", model)
    with torch.inference_mode():
        observation.inference.prefill(observation.inference, observation.prompt, torch.ones_like(observation.prompt))
    assert values(Flops().probe(observation)) == before


def test_an_operator_that_nobody_knows_leaves_the_metric_out(llama, seen):
    library = torch.library.Library("effbench_test", "DEF")
    library.define("fused(Tensor x) -> Tensor")
    library.impl("fused", lambda x: x.clone(), "CPU")
    model = llama()
    norm = model.model.norm.forward
    model.model.norm.forward = lambda hidden: torch.ops.effbench_test.fused(norm(hidden))
    assert Flops().probe(seen("infer", model)) == {}


def test_products_of_sparse_matrices_are_not_guessed():
    dense = torch.eye(8)
    with FlopCounter() as counter:
        torch.mm(dense.to_sparse_csr(), dense)
    assert counter.unknown
    assert counter.total == 0


def test_probing_changes_nothing_that_is_evaluated_afterwards(llama, seen):
    class Observer(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("largest", torch.zeros(()))

        def forward(self, x):
            self.largest.copy_(torch.maximum(self.largest, x.detach().abs().max()))
            return x

    model = llama("eager").train()
    model.model.norm = nn.Sequential(model.model.norm, Observer(), nn.Dropout(0.5))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    random_state = torch.get_rng_state()
    observation = seen("train", model)
    torch.set_rng_state(random_state)
    assert Flops().probe(observation)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not observation.step.optimizer.state


class TestMfu:
    @pytest.fixture(autouse=True)
    def calibrate(self, monkeypatch):
        def write(**peaks):
            monkeypatch.setattr(flops, "_measured_peaks", lambda: {f"cpu {name} 1": peak for name, peak in peaks.items()})

        write()
        return write

    def test_is_the_time_at_the_peak_over_the_mean_time(self, llama, seen, calibrate):
        calibrate(float32=1e9)
        model = llama().train()
        model.config.attention_dropout = 0.0
        observation = seen("train", model)
        observation.samples["step"] = [9.0, 0.5, 0.5, 0.5, 0.5, 0.6]
        found = values(Flops().probe(observation))
        mean = (4 * 0.5 + 0.6) / 5
        assert found["train.mfu"] == pytest.approx(found["train.step_flops"] / 1e9 / mean)

    def test_each_of_several_ranks_adds_its_part_of_the_mean(self, llama, seen, calibrate):
        calibrate(float32=1e9)
        alone, of_two = (seen("infer", llama(), world_size=size) for size in (1, 2))
        alone.samples["prefill"] = of_two.samples["prefill"] = [1.0] * 6
        of_two.prompt = alone.prompt
        parts = [values(Flops().probe(o))["infer.prefill_mfu"] for o in (alone, of_two)]
        assert parts[0] == pytest.approx(2 * parts[1])

    def test_is_absent_without_a_calibration_of_the_type_it_ran_in(self, llama, seen, calibrate):
        observation = seen("infer", llama())
        observation.samples["prefill"] = [1.0] * 6
        assert "infer.prefill_mfu" not in Flops().probe(observation)
        calibrate(bfloat16=1e9)
        assert "infer.prefill_mfu" not in Flops().probe(observation)
