"""Divergence from the untouched model."""

from dataclasses import replace

import pytest
import torch
from effbench_plugins.meters.fidelity import Fidelity

from tests.meters.conftest import SHAPE


def values(observation):
    return {name: summary.median for name, summary in Fidelity().probe(observation).items()}


def test_the_base_agrees_with_itself(llama, seen):
    found = values(replace(seen("infer", llama()), base_model=llama))
    assert found == {"infer.kl_to_base_nats": pytest.approx(0, abs=1e-9), "infer.top1_agreement": 1.0}


def test_divergence_is_the_mean_over_positions_of_the_base_against_the_stack(llama, seen):
    model = llama()
    with torch.no_grad():
        model.lm_head.weight.add_(0.3 * torch.randn_like(model.lm_head.weight))
    observation = replace(seen("infer", model), base_model=llama)
    with torch.no_grad():
        p, q = (m(observation.prompt).logits.double().softmax(-1) for m in (llama(), model))
    expected = float((p * (p / q).log()).sum(-1).mean())
    found = values(observation)
    assert found["infer.kl_to_base_nats"] == pytest.approx(expected, rel=1e-4)
    assert found["infer.top1_agreement"] == pytest.approx(float((p.argmax(-1) == q.argmax(-1)).double().mean()))


def test_it_is_absent_without_a_base_that_fits(llama, seen):
    observation = seen("infer", llama())

    def too_large():
        raise torch.OutOfMemoryError

    def other_vocabulary():
        model = llama()
        model.resize_token_embeddings(SHAPE["vocab"] + 8)
        return model

    assert values(observation) == {}
    assert values(replace(observation, base_model=too_large)) == {}
    assert values(replace(observation, base_model=other_vocabulary)) == {}
    assert values(replace(seen("train", llama()), base_model=llama)) == {}
