"""Distillation: the loss against hand-computed values, the student's size, the teacher's life, and stacks."""

import gc
import math
import weakref
from types import SimpleNamespace

import pytest
import torch
from effbench_plugins.distillation.loss import attention_distance, distilled, divergence, hidden_distance
from effbench_plugins.distillation.student import config_of, spaced, student_of

from effbench.plugin import InputError
from effbench.worker import defaults
from tests.techniques.conftest import BASES, CATALOG, Harness, bert, calibration, cell_of, gpt2, llama, logits_of, random_batch

IDS = torch.randint(1, 256, (2, 12), generator=torch.Generator().manual_seed(5))
TEACHER, STUDENT = torch.tensor([[math.log(0.7), math.log(0.2), math.log(0.1)]]), torch.tensor([[math.log(0.5), 0.0, 0.0]])
P, Q = (0.7, 0.2, 0.1), (0.2, 0.4, 0.4)  # the distributions of these logits


def distillation(**options):
    return CATALOG.technique("distillation", options)


def kl(p, q):
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def softened(probabilities, temperature):
    powers = [p ** (1 / temperature) for p in probabilities]
    return [power / sum(powers) for power in powers]


@pytest.mark.parametrize("temperature", [1.0, 2.0, 5.0])
def test_each_divergence_is_the_one_computed_by_hand(temperature):
    p, q = softened(P, temperature), softened(Q, temperature)
    mixture = [0.3 * a + 0.7 * b for a, b in zip(p, q, strict=True)]
    expected = {
        "forward": kl(p, q),
        "reverse": kl(q, p),
        "jensen_shannon": 0.3 * kl(p, mixture) + 0.7 * kl(q, mixture),
    }
    for kind, value in expected.items():
        options = distillation(divergence=kind, temperature=temperature, beta=0.3)
        assert float(divergence(STUDENT, TEACHER, options)) == pytest.approx(value, rel=1e-4)


def test_the_generalised_divergence_leads_from_forward_to_reverse():
    near = {beta: float(divergence(STUDENT, TEACHER, distillation(divergence="jensen_shannon", beta=beta, temperature=1.0)))
            for beta in (1e-4, 1 - 1e-4)}  # fmt: skip
    assert near[1e-4] / 1e-4 == pytest.approx(kl(P, Q), rel=1e-2)
    assert near[1 - 1e-4] / 1e-4 == pytest.approx(kl(Q, P), rel=1e-2)


def test_temperature_squared_keeps_the_gradient_of_soft_labels_as_large_as_that_of_hard_ones():
    def gradient(temperature):
        logits = (STUDENT / 100).requires_grad_()  # near uniform: where Hinton's approximation holds
        options = distillation(temperature=temperature)
        (temperature**2 * divergence(logits, TEACHER / 100, options)).sum().backward()
        return logits.grad

    torch.testing.assert_close(gradient(10.0), gradient(2.0), rtol=0.02, atol=1e-5)


def constant(logits):
    """A model that always says the same, and takes its loss from its labels as transformers do."""

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.logits = torch.nn.Parameter(logits.clone())

        def forward(self, labels=None, **_):
            loss = None
            if labels is not None:
                loss = torch.nn.functional.cross_entropy(self.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
            return SimpleNamespace(logits=self.logits, loss=loss)

    return Model()


def test_the_loss_is_the_weighted_sum_and_soft_labels_count_where_hard_ones_do():
    teacher, student = constant(TEACHER.expand(1, 4, 3)), constant(STUDENT.expand(1, 4, 3))
    with torch.no_grad():
        teacher.logits[0, 0] += torch.tensor([9.0, 0.0, 0.0])  # the position before a given token: no label, no soft label
    labels = torch.tensor([[-100, -100, 1, 2]])
    batch = {"input_ids": labels, "attention_mask": torch.ones_like(labels), "labels": labels}
    options = distillation(soft=0.25, hard=2.0, temperature=3.0)
    loss = distilled(lambda model, given: model(**given).loss, options, teacher, causal=True)(student, batch)
    soft = kl(softened(P, 3), softened(Q, 3))
    assert float(loss) == pytest.approx(2.0 * -math.log(0.4) + 0.25 * 9 * soft, rel=1e-5)


def test_hidden_states_and_attention_are_compared_at_the_same_relative_depth():
    def states(*directions):
        return tuple(torch.tensor(direction).expand(1, 2, 2) for direction in directions)

    right, up = (1.0, 0.0), (0.0, 1.0)
    present = torch.ones(1, 2)
    # after student layer 1 of 2 comes what the teacher has after layer 2 of 4; embeddings are left out
    assert float(hidden_distance(states(up, right, up), states(right, up, right, right, up), present)) == pytest.approx(0)
    assert float(hidden_distance(states(up, up, up), states(right, up, right, right, up), present)) == pytest.approx(0.5)
    ours, theirs = torch.full((1, 1, 2, 2), 0.5), torch.tensor([[[[1.0, 0.0], [0.5, 0.5]]]])
    assert float(attention_distance((ours,), (ours, theirs), present)) == pytest.approx((0.25 + 0.25) / 2)
    assert float(attention_distance((ours,), (ours, theirs), torch.tensor([[0.0, 1.0]]))) == pytest.approx(0)


@pytest.mark.parametrize("base", BASES.values(), ids=BASES)
@pytest.mark.parametrize("options", [{}, {"hidden": 1.0, "attention": 1.0}, {"divergence": "reverse"}, {"width": 0.5}], ids=str)
def test_a_smaller_student_learns_with_every_part_of_the_loss(base, options):
    harness = Harness(base, [distillation(**options)])
    assert count(harness.model) < 0.85 * count(base())
    losses = harness.train(6)
    assert all(map(math.isfinite, losses))
    assert torch.isfinite(logits_of(harness.infer(), IDS)).all()


def count(model):
    return sum(p.numel() for p in model.parameters())


def test_a_student_of_all_layers_agrees_with_its_teacher_at_once():
    options = {"layers": 1.0, "soft": 1.0, "hard": 0.0, "hidden": 1.0, "attention": 1.0}
    for base in BASES.values():
        model = Harness(base, [distillation(**options)])
        step = model.techniques[0].train(
            defaults.train_step(model.model, list(model.model.parameters()), model.cell), model.context
        )
        assert float(step.loss(model.model, random_batch())) == pytest.approx(0, abs=1e-5)


def test_kept_layers_are_spaced_as_distilbert_spaces_them():
    assert spaced(6, 12) == [0, 2, 4, 7, 9, 11]
    assert spaced(1, 12) == [0]
    assert spaced(5, 5) == [0, 1, 2, 3, 4]


def test_a_student_has_the_weights_of_the_layers_it_keeps():
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "num_key_value_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=32, num_hidden_layers=6, **sizes))
    student = student_of(model, 0.5, 1.0)
    assert [layer.self_attn.layer_idx for layer in student.model.layers] == [0, 1, 2]  # the cache goes by it
    for ours, theirs in zip(student.model.layers, (model.model.layers[i] for i in (0, 2, 5)), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))
    assert torch.equal(student.get_input_embeddings().weight, model.get_input_embeddings().weight)


def test_half_of_bert_base_is_distilbert():
    from transformers import BertConfig, BertForMaskedLM, DistilBertConfig, DistilBertModel

    with torch.device("meta"):
        base = BertForMaskedLM(BertConfig())
        student = BertForMaskedLM(config_of(base.config, 0.5, 1.0))
        published = DistilBertModel(DistilBertConfig())
    token_types = 2 * 768  # DistilBERT has none
    assert count(base) == pytest.approx(110e6, rel=0.01)
    assert count(student.bert) - token_types == count(published) == pytest.approx(66e6, rel=0.01)


def test_the_teacher_is_tuned_for_its_steps_and_the_base_stays_as_it_was():
    untuned, tuned = (Harness(llama, [distillation(teacher_steps=steps)]) for steps in (0, 20))
    batch = calibration(1)[0]

    def loss_of_teacher(harness):
        with torch.no_grad():
            return float(harness.context.kept["distillation"](**batch).loss)

    base = float(llama()(**batch).loss)
    assert loss_of_teacher(untuned) == pytest.approx(base, rel=1e-5)
    assert loss_of_teacher(tuned) < 0.98 * base
    assert float(tuned.context.base_model()(**batch).loss) == pytest.approx(base, rel=1e-5)
    assert not any(p.requires_grad for p in tuned.context.kept["distillation"].parameters())


def test_the_teacher_does_not_outlive_training():
    harness = Harness(llama, [distillation()])
    teacher = weakref.ref(harness.context.kept["distillation"])
    harness.train()
    assert teacher() is not None
    harness.infer()
    gc.collect()
    assert teacher() is None


def test_without_soft_hidden_and_attention_there_is_no_teacher_and_the_plain_loss():
    harness = Harness(llama, [distillation(soft=0.0)])
    assert not harness.context.kept
    step = defaults.train_step(harness.model, list(harness.model.parameters()), harness.cell)
    assert harness.techniques[0].train(step, harness.context) is step
    assert count(harness.model) == count(Harness(llama, [distillation()]).model)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"soft": 0.0, "hard": 0.0}, "nothing is left to learn from"),
        ({"soft": 0.0, "teacher_steps": 3}, "teacher_steps tune a teacher"),
        ({"width": 0.5, "hidden": 1.0}, "narrower student has nothing to match"),
    ],
)
def test_options_that_contradict_each_other_say_so(options, reason):
    with pytest.raises(InputError, match=reason):
        distillation(**options)


def test_a_width_that_cuts_a_head_in_two_is_skipped_with_the_reason():
    assert "4 heads is not a whole number" in distillation(width=0.3).unsupported(cell_of(gpt2))
    assert "2 key-value heads" in distillation(width=0.75).unsupported(cell_of(llama))
    assert distillation(width=0.75).unsupported(cell_of(bert)) is None


@pytest.mark.parametrize("order", [1, -1])
def test_mixed_precision_reaches_the_student_in_either_order(order):
    def losses(*others):
        return Harness(llama, [distillation(), *others][::order]).train(3)

    plain, mixed = losses(), losses(CATALOG.technique("mixed_precision", {}))
    assert mixed == pytest.approx(plain, rel=2e-2)
    assert mixed != plain


def test_a_distilled_student_is_converted_to_int8():
    harness = Harness(llama, [distillation(), CATALOG.technique("int8_dynamic", {})])
    harness.train()
    inference = harness.infer()
    assert sum(isinstance(m, torch.ao.nn.quantized.dynamic.Linear) for m in inference.model.modules()) == 7
    assert torch.isfinite(logits_of(inference, IDS)).all()


def test_lora_behind_it_trains_a_frozen_student_and_before_it_is_refused():
    lora = CATALOG.technique("lora", {"rank": 2})
    harness = Harness(llama, [distillation(), lora])
    assert 0 < sum(p.numel() for p in harness.model.parameters() if p.requires_grad) < 0.5 * count(llama())
    harness.train()
    with pytest.raises(InputError, match="list it before"):
        Harness(llama, [lora, distillation()])
