import pytest
import torch

from tests.techniques.conftest import BASES, CATALOG, Harness, calibration, logits_of

CONSTANT = CATALOG.technique("constant", {"batches": 5})


@pytest.mark.parametrize("base", BASES)
def test_it_predicts_how_often_each_answer_occurs_in_training_whatever_the_input(base):
    inference = Harness(BASES[base], [CONSTANT]).infer()
    labels = torch.cat([batch["labels"].flatten() for batch in calibration(5)])
    expected = (torch.bincount(labels, minlength=256) + 1.0) / (len(labels) + 256)
    ids = torch.randint(0, 256, (2, 7))
    probabilities = logits_of(inference, ids).softmax(-1)
    torch.testing.assert_close(probabilities, expected.expand(2, 7, -1))
    last, _ = inference.prefill(inference, ids, torch.ones_like(ids))
    assert torch.equal(last, logits_of(inference, ids)[:, -1])


def test_places_without_a_label_are_not_counted():
    from dataclasses import replace

    harness = Harness(BASES["llama"], [])
    ids = torch.full((1, 4), 9)
    labels = torch.tensor([[-100, -100, -100, 7]])
    context = replace(harness.context, calibration=lambda n: [{"input_ids": ids, "labels": labels}] * n)
    logits = CONSTANT.apply(harness.model, context).get_buffer("logits")
    assert logits.argmax() == 7
    assert logits[9] == logits[8]


def test_nothing_may_stand_before_it():
    assert "nothing may stand before it" in CONSTANT.unsupported_after([CATALOG.technique("lora", {})])
    assert CONSTANT.unsupported_after([]) is None
