"""Bytes of tensors: of models, optimizers and caches."""

import warnings
from types import SimpleNamespace

import pytest
import torch
from effbench_plugins.meters.state import State
from effbench_plugins.meters.tensors import model_bytes, stored_bytes
from torch import nn

from tests.meters.conftest import SHAPE


def values(found):
    return {name: summary.median for name, summary in found.items()}


def test_shared_memory_counts_once_wherever_it_hangs():
    weight = torch.zeros(10, 10)
    assert stored_bytes([weight, weight.view(100), {"again": weight.t()}]) == 400
    assert stored_bytes([weight[:5], weight[5:]]) == 400
    assert stored_bytes([weight[:7], weight[3:]]) == 400
    assert stored_bytes(torch.zeros(1).expand(1000)) == 4
    assert stored_bytes(weight[:1]) == 40  # a view into a large file is not the file


def test_objects_and_cycles_are_walked():
    layer = SimpleNamespace(keys=torch.zeros(4), values=(torch.zeros(4), None, "text", 3))
    layer.myself = layer
    assert stored_bytes({"layers": [layer]}) == 32
    assert stored_bytes(None) == stored_bytes(nn.Linear(2, 2)) == 0  # a model is not a cache's


def test_sparse_tensors_weigh_what_they_store():
    sparse = torch.eye(10).to_sparse()
    assert stored_bytes(sparse) == 10 * 4 + 2 * 10 * 8


def test_tied_weights_and_buffers_of_a_model(llama):
    model = llama()
    parameters = sum(p.numel() for p in model.parameters())
    buffers = sum(b.numel() for b in {b.data_ptr(): b for b in model.buffers()}.values())
    assert model_bytes(model) == 4 * (parameters + buffers)
    head = model.lm_head.weight.numel()
    model.lm_head.weight = model.model.embed_tokens.weight
    assert model_bytes(model) == 4 * (parameters + buffers - head)


def test_quantized_layers_count_packed():
    from torch.ao.quantization import quantize_dynamic

    model = nn.Sequential(nn.Linear(256, 128, bias=False))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated in favour of torchao
        converted = quantize_dynamic(model, dtype=torch.qint8)
    assert 256 * 128 <= model_bytes(converted) <= 1.1 * 256 * 128


def test_tensors_that_wrap_others_count_as_those():
    quantization = pytest.importorskip("torchao.quantization")
    model = nn.Sequential(nn.Linear(256, 128, bias=False))
    quantization.quantize_(model, quantization.Int8WeightOnlyConfig())
    assert 256 * 128 < model_bytes(model) < 1.1 * 256 * 128


def test_adam_keeps_two_moments_and_a_count_for_what_it_trains(llama, seen):
    model = llama().train()
    model.model.embed_tokens.requires_grad_(False)
    observation = seen("train", model)
    assert "train.optimizer_state_bytes" not in State().end(observation)  # nothing there before the first step
    observation.step.run(observation.batch)
    trained = [p for p in model.parameters() if p.requires_grad]
    found = values(State().end(observation))
    assert found["train.optimizer_state_bytes"] == sum(2 * 4 * p.numel() for p in trained) + 4 * len(trained)
    assert found["train.model_bytes"] == model_bytes(model)


def test_eight_bit_optimizers_count_their_codes_and_scales(llama, seen):
    low_bit = pytest.importorskip("torchao.optim")
    from dataclasses import replace

    model = llama().train()
    observation = seen("train", model)
    observation.step = replace(observation.step, optimizer=low_bit.AdamW8bit(model.parameters()), schedule=None)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer = observation.step.optimizer
    for group in optimizer.param_groups:  # its step compiles, which takes a minute: the state is what it would make
        for parameter in group["params"]:
            state = optimizer.state[parameter]
            state["step"] = torch.tensor(0.0)
            state["exp_avg"] = optimizer._new_buffer(parameter, True)
            state["exp_avg_sq"] = optimizer._new_buffer(parameter, False)
    elements = sum(p.numel() for p in model.parameters())
    assert 2 * elements < values(State().end(observation))["train.optimizer_state_bytes"] < 3 * elements


def test_the_cache_holds_keys_and_values_of_every_token_but_the_last(llama, seen):
    observation = seen("infer", llama())
    inference, prompt = observation.inference, observation.prompt
    with torch.inference_mode():
        logits, cache = inference.prefill(inference, prompt, torch.ones_like(prompt))
        for _ in range(4):
            logits, cache = inference.decode(inference, logits.argmax(-1, keepdim=True), cache)
    observation.cache = cache
    tokens, width = SHAPE["length"] + 4, SHAPE["hidden"] * SHAPE["kv_heads"] // SHAPE["heads"]
    found = values(State().end(observation))
    assert found["infer.kv_cache_bytes"] == 2 * 4 * SHAPE["layers"] * SHAPE["batch"] * tokens * width
    assert found["infer.model_bytes"] == model_bytes(observation.model)


def test_no_cache_is_absent_and_not_zero(llama, seen):
    assert "infer.kv_cache_bytes" not in State().end(seen("infer", llama()))
