"""Every technique, parametrised from discovery, none named: the law that each must keep."""

import pytest
import torch

from effbench.worker import checkpoint, defaults
from tests.techniques.conftest import BASES, CATALOG, Harness, cell_of, logits_of

pytestmark = pytest.mark.usefixtures("uncompiled")
NAMES = CATALOG.techniques.names()
IDS = torch.randint(1, 256, (2, 12), generator=torch.Generator().manual_seed(5))


@pytest.fixture(params=[(name, base) for name in NAMES for base in BASES], ids="-".join)
def case(request):
    name, base = request.param
    technique = CATALOG.technique(name, {})
    if reason := technique.unsupported(cell_of(BASES[base])):
        pytest.skip(reason)
    return technique, BASES[base], Harness(BASES[base], [technique])


def trained(technique, harness):
    """After two steps, where the technique lets training happen: an untrained adapter would change nothing."""
    if technique.unsupported_phase(harness.cell, "train") is None:
        harness.train()
    return harness.infer()


def test_trains_and_moves_only_what_it_means_to(case):
    technique, _, harness = case
    if reason := technique.unsupported_phase(harness.cell, "train"):
        pytest.skip(reason)
    before = {name: p.detach().clone() for name, p in harness.model.named_parameters()}
    losses = harness.train()
    assert all(torch.isfinite(torch.tensor(losses)))
    moved = {name for name, p in harness.model.named_parameters() if not torch.equal(p, before[name])}
    assert moved
    assert moved == {name for name, p in harness.model.named_parameters() if p.requires_grad}


def test_gives_finite_logits_for_every_position(case):
    technique, _, harness = case
    logits = logits_of(trained(technique, harness), IDS)
    assert logits.shape == (2, 12, 256)
    assert torch.isfinite(logits).all()


def test_decoding_step_by_step_equals_the_full_forward(case):
    technique, _, harness = case
    if not harness.cell.facts.causal:
        pytest.skip("does not decode")
    inference = trained(technique, harness)
    full = logits_of(inference, IDS)
    with torch.no_grad():
        last, cache = inference.prefill(inference, IDS[:, :8], torch.ones_like(IDS[:, :8]))
        stepped = [last]
        for position in range(8, 12):
            last, cache = inference.decode(inference, IDS[:, position : position + 1], cache)
            stepped.append(last)
    # 8-bit activations and 16-bit products are rounded by the range of the whole call, so the tolerance is not float32's
    tolerance = 0.05 if technique.family in {"quantization", "precision"} else 1e-3
    torch.testing.assert_close(torch.stack(stepped, 1).float(), full[:, 7:], atol=tolerance, rtol=tolerance)


def test_a_causal_model_still_cannot_see_the_future(case):
    technique, _, harness = case
    if not harness.cell.facts.causal:
        pytest.skip("sees the future by design")
    inference = trained(technique, harness)
    changed = IDS.clone()
    changed[:, 8:] = changed[:, 8:].flip(1)
    # scales of activations may be taken over the whole call: what leaks through them is rounding, not content
    tolerance = 0.05 if technique.family == "quantization" else 1e-5
    torch.testing.assert_close(logits_of(inference, changed)[:, :8], logits_of(inference, IDS)[:, :8], atol=tolerance, rtol=0)


def test_leaves_no_state_behind(case):
    technique, base, harness = case
    reference = logits_of(defaults.inference(base()), IDS)
    trained(technique, harness)
    assert torch.equal(logits_of(defaults.inference(base()), IDS), reference)
    assert torch.get_default_dtype() == torch.float32


def test_the_same_seed_gives_the_same_result(case):
    technique, base, harness = case
    trains = technique.unsupported_phase(harness.cell, "train") is None
    again = Harness(base, [technique])
    losses = [h.train() if trains else [] for h in (harness, again)]
    assert losses[0] == losses[1]
    assert torch.equal(logits_of(harness.infer(), IDS), logits_of(again.infer(), IDS))


def test_what_is_stored_gives_the_same_logits_when_it_is_read_again(case, tmp_path):
    technique, base, harness = case
    inference = trained(technique, harness)
    expected = logits_of(inference, IDS)
    checkpoint.save(checkpoint.stored(inference.model, [technique], harness.context), tmp_path / "x.safetensors")

    again = Harness(base, [technique])
    fresh = again.infer()
    if technique.unsupported_phase(harness.cell, "train") is None:
        assert not torch.equal(logits_of(fresh, IDS), expected), "nothing was trained, so nothing is proved"
    checkpoint.reload(tmp_path / "x.safetensors", fresh.model, [technique], again.context)
    torch.testing.assert_close(logits_of(fresh, IDS), expected, atol=1e-6, rtol=1e-6)


def test_is_documented_with_its_source(case):
    technique, _, _ = case
    documentation = type(technique).__doc__
    assert "arXiv" in documentation
    assert len(documentation.splitlines()) > 2
    assert all(field.description for field in type(technique).model_fields.values())
