"""The attention call alone: what it computes, what it makes besides, and that every attention technique plugs in."""

import pytest
import torch
from effbench_plugins.attention import _TECHNIQUES
from effbench_plugins.attention.cache import PastLayer
from effbench_plugins.attention.card import AttentionForm
from effbench_plugins.meters.tensors import model_bytes
from torch.nn.functional import scaled_dot_product_attention
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import DynamicCache

from effbench.plugin import Context, InputError, LoadRequest
from effbench.plugin.discovery import discover
from effbench.worker import defaults, trial
from tests.records import make_cell

CATALOG = discover()
BOTH = pytest.mark.parametrize("name", ["causal-attention", "two-sided-attention"])
LENGTH, BATCH = 160, 2


def source_of(name):
    return CATALOG.model(f"{name}:2x8")


def model_of(name):
    return source_of(name).load(LoadRequest(dtype="float32"), 0)


def batch_of(length=LENGTH):
    ids = torch.randint(0, 256, (BATCH, length))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}


class Made(TorchDispatchMode):
    """Storages that operators make, by their operator."""

    def __init__(self):
        super().__init__()
        self.by, self._known = {}, set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        self._known |= {x.untyped_storage().data_ptr() for x in [*args, *kwargs.values()] if isinstance(x, torch.Tensor)}
        result = function(*args, **kwargs)
        for tensor in result if isinstance(result, tuple | list) else [result]:
            large = (
                isinstance(tensor, torch.Tensor) and tensor.dtype.is_floating_point and tensor.numel() >= BATCH * LENGTH * 16
            )
            if large and tensor.untyped_storage().data_ptr() not in self._known:
                self.by[function.overloadpacket._qualified_op_name.partition("::")[2]] = tensor.numel()
        return result


@BOTH
def test_it_is_pytorchs_attention_of_its_inputs_and_so_are_the_gradients(name):
    model, batch = model_of(name), batch_of()
    drawn = model._inputs(BATCH, LENGTH)
    q, k, v = (x.transpose(1, 2).detach().requires_grad_() for x in drawn)
    expected = scaled_dot_product_attention(q, k, v, is_causal=name.startswith("causal")).transpose(1, 2)
    leaves = []
    model.attention.register_forward_pre_hook(lambda _, given: leaves.extend(given[:3]))
    output = model(**batch)
    torch.testing.assert_close(output.logits, expected.flatten(2))

    output.loss.backward()
    (expected * drawn[0]).sum().backward()
    for leaf, plain in zip(leaves, (q, k, v), strict=True):
        torch.testing.assert_close(leaf.grad, plain.grad.transpose(1, 2))
    torch.testing.assert_close(model.gain.grad, output.loss.detach())


@BOTH
def test_a_second_step_adds_to_no_gradient_but_the_gains(name):
    model, batch, leaves = model_of(name), batch_of(), []
    model.attention.register_forward_pre_hook(lambda _, given: leaves.append(given[0]))
    for _ in range(2):
        model(**batch).loss.backward()
    assert leaves[0] is not leaves[1]
    torch.testing.assert_close(leaves[0].grad, leaves[1].grad)
    assert [parameter.shape for parameter in model.parameters()] == [()]


@BOTH
def test_no_tensor_is_made_but_attentions_own_and_the_one_that_its_backward_pass_is_given(name):
    model, batch = model_of(name), batch_of()
    model(**batch)  # draws
    with Made() as made, torch.no_grad():
        model(**batch | {"labels": None})
    assert set(made.by) == {"_scaled_dot_product_flash_attention_for_cpu"}
    with Made() as made:
        model(**batch).loss.backward()
    forward, backward = "_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_flash_attention_for_cpu_backward"
    assert {forward, backward} <= set(made.by) <= {forward, backward, "mul"}


@BOTH
def test_its_inputs_are_its_memory_and_are_drawn_for_the_tokens_there_are(name):
    model = model_of(name)
    gain = model_bytes(model)
    ids = batch_of()["input_ids"]
    with torch.inference_mode():
        first = model(input_ids=ids).logits
    assert model_bytes(model) - gain == 3 * BATCH * LENGTH * 16 * 4
    assert set(model.state_dict()) == {"gain"}, "inputs are not weights: no checkpoint has them"
    again = model(input_ids=ids + 1, labels=ids)  # in training, what inference drew
    torch.testing.assert_close(again.logits, first)
    again.loss.backward()


def test_the_last_logits_are_those_of_the_last_token_and_a_cache_is_given_on():
    model, ids = model_of("causal-attention"), batch_of()["input_ids"]
    with torch.no_grad():
        whole = model(input_ids=ids).logits
        last = model(input_ids=ids, use_cache=True, logits_to_keep=1)
        step = model(input_ids=ids[:, :1], past_key_values=last.past_key_values, use_cache=True)
    torch.testing.assert_close(last.logits, whole[:, -1:])
    assert isinstance(step.past_key_values, DynamicCache)
    assert step.past_key_values.get_seq_length() == LENGTH + 1
    (_, k, v), (new_q, new_k, new_v) = model._inputs(BATCH, LENGTH), model._inputs(BATCH, 1)
    keys, values = (torch.cat(pair, 1).transpose(1, 2) for pair in ((k, new_k), (v, new_v)))
    expected = scaled_dot_product_attention(new_q.transpose(1, 2), keys, values)
    torch.testing.assert_close(step.logits, expected.transpose(1, 2).flatten(2))


STACKS = [(technique.name, {}) for technique in _TECHNIQUES if issubclass(technique, AttentionForm)]
STACKS += [("exact_attention", {"kernel": kernel}) for kernel in ("eager", "sdpa")]
STACKS += [("reformer", {"hashes": 4})]


@BOTH
@pytest.mark.parametrize(("technique", "options"), STACKS, ids=str)
def test_every_attention_technique_trains_prefills_and_decodes_in_a_trial(name, technique, options):
    source = source_of(name)
    cell = make_cell(
        model=source.label,
        facts=source.facts(),
        techniques=((technique, options),),
        seq_len=LENGTH,
        new_tokens=3,
        steps=2,
        sampling={"min_samples": 2, "min_seconds": 0, "max_seconds": 0.01},
    )
    one = CATALOG.technique(technique, options)
    if reason := one.unsupported(cell):
        assert (technique, name) == ("linformer", "causal-attention"), reason
        return
    seen = []
    probe = type("Probe", (CATALOG.meters.get("state"),), {"end": lambda _, observation: seen.append(observation) or {}})
    request = trial.TrialRequest(
        cell=cell,
        seed=1,
        techniques=[one],
        source=source,
        workload=CATALOG.workload("docs"),
        meters=[probe()],
        phase_skips={},
    )
    outcome = trial.run(request, announce=lambda _: None)
    assert outcome.status == "ok", outcome.error
    assert outcome.quality is None
    assert "random" in outcome.quality_absent
    if name == "causal-attention":
        form = isinstance(one, AttentionForm)
        layers = next(o for o in seen if o.phase == "infer").cache.layers
        assert [isinstance(layer, PastLayer) for layer in layers] == [form], "a form decodes with its own cache"
        assert layers[0].get_seq_length() == LENGTH + 2


def test_the_parameters_of_a_form_are_trained():
    source = source_of("two-sided-attention")
    cell = make_cell(facts=source.facts(), seq_len=LENGTH)
    linformer = CATALOG.technique("linformer", {"k": 16})
    context = Context(cell, torch.device("cpu"), 0, 1, 0, base_model=lambda: model_of("two-sided-attention"), calibration=list)
    model = linformer.apply(model_of("two-sided-attention"), context)
    trainable = dict(model.named_parameters())
    before = {name: parameter.detach().clone() for name, parameter in trainable.items()}
    step = defaults.train_step(model, list(trainable.values()), cell)
    step.run(batch_of())
    assert [name for name in before if not torch.equal(before[name], trainable[name])] == list(before)
    assert len(before) == 3


@pytest.mark.parametrize("argument", ["", "4", "4x", "x64", "4x64x2", "0x64", "4x-1", "fourx64"])
def test_a_size_that_is_none_is_one_clear_line(argument):
    with pytest.raises(
        InputError, match=r"write causal-attention:HEADSxSIZE with whole numbers from 1, as causal-attention:4x64$"
    ):
        CATALOG.model(f"causal-attention:{argument}").facts()


def test_the_size_is_four_heads_of_64_unless_it_is_given():
    plain, sized = (CATALOG.model(f"two-sided-attention{size}").facts() for size in ("", ":4x64"))
    assert plain == sized
    assert (plain.heads, plain.hidden, plain.causal, plain.layers) == (4, 256, False, 1)
