"""A tiny Llama of known shape, in every attention implementation, and what a meter is given."""

import copy

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from effbench.plugin import Observation
from effbench.worker import defaults
from tests.records import make_cell

SHAPE = {"hidden": 64, "intermediate": 96, "layers": 2, "heads": 4, "kv_heads": 2, "vocab": 128, "batch": 3, "length": 20}


@pytest.fixture(scope="session")
def _llama():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=SHAPE["vocab"],
        hidden_size=SHAPE["hidden"],
        intermediate_size=SHAPE["intermediate"],
        num_hidden_layers=SHAPE["layers"],
        num_attention_heads=SHAPE["heads"],
        num_key_value_heads=SHAPE["kv_heads"],
        max_position_embeddings=256,
        attention_dropout=0.1,
    )
    return LlamaForCausalLM(config)


@pytest.fixture
def llama(_llama):
    def make(attention="sdpa"):
        model = copy.deepcopy(_llama)
        model.set_attn_implementation(attention)
        return model.eval()

    return make


@pytest.fixture
def seen():
    """What the harness shows a meter in a phase of this model."""

    def make(phase, model, **changes):
        cell = make_cell(batch_size=SHAPE["batch"], seq_len=SHAPE["length"], **changes)
        ids = torch.randint(0, SHAPE["vocab"], (SHAPE["batch"], SHAPE["length"]))
        if phase == "train":
            batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
            step = defaults.train_step(model, [p for p in model.parameters() if p.requires_grad], cell)
            return Observation(cell, phase, model=model, step=step, batch=batch)
        return Observation(cell, phase, model=model, inference=defaults.inference(model), prompt=ids)

    return make
