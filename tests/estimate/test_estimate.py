"""What an estimate counts, against arithmetic."""

import os
import signal
from typing import ClassVar

import pytest
import torch

from effbench.plugin import Technique
from effbench.worker.estimate.cell import footprint
from tests.estimate.measured import CATALOG, cell_of, estimate

MODEL = "tiny-decoder:2x64x2"
PARAMETERS = (
    2 * 256 * 64 + 2 * (4 * 64 * 64 + 3 * 64 * 128 + 2 * 64) + 64
)  # two embeddings; layers with two norms; the last norm
TENSORS = 2 + 2 * 9 + 1


class Sharded(Technique):
    """Every layer in parts, as plainly as PyTorch has it."""

    name: ClassVar = "sharded"
    family: ClassVar = "parallelism"
    dimension: ClassVar = "dp"

    def apply(self, model, ctx):
        from torch.distributed.fsdp import fully_shard

        for layer in (*model.model.layers, model):
            fully_shard(layer, mesh=ctx.mesh["dp"])
        return model


class Looks(Technique):
    """Asks for a value."""

    name: ClassVar = "looks"
    family: ClassVar = "other"

    def apply(self, model, ctx):
        assert float(next(model.parameters()).sum()) < torch.inf
        return model


class Dies(Looks):
    """Takes its process along."""

    name: ClassVar = "dies"

    def apply(self, model, ctx):
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_step_of_the_untouched_model():
    found = estimate(cell_of(MODEL)).ranks[0]
    assert found.parameters == found.trainable == PARAMETERS
    train = found.train
    assert train.gradients == 4 * PARAMETERS
    assert train.weights == pytest.approx(4 * PARAMETERS, rel=0.01)  # with the frequencies of rotary positions
    assert train.optimizer_state == 8 * PARAMETERS + 4 * TENSORS  # two moments, and a count of steps for each tensor
    assert train.work.collectives == []
    resident = train.weights + train.optimizer_state + train.other
    assert max(resident + train.gradients, resident + train.activations) <= train.peak
    assert train.step_peak <= resident + train.gradients + train.activations


def test_activations_grow_with_the_batch_and_nothing_else_does():
    once, twice = (estimate(cell_of(MODEL, batch_size=size)).ranks[0].train for size in (4, 8))
    assert twice.activations == pytest.approx(2 * once.activations, rel=0.05)
    assert (twice.weights, twice.gradients, twice.optimizer_state) == (once.weights, once.gradients, once.optimizer_state)
    assert twice.work.flops == 2 * once.work.flops


def test_the_cache_holds_keys_and_values_of_the_prompt_and_the_new_tokens():
    found = estimate(cell_of(MODEL, seq_len=32, batch_size=2, new_tokens=8)).ranks[0].infer
    keys = 2 * 2 * (32 + 7) * 64 * 4  # layers, sequences, tokens of which the last is not read any more, channels, bytes
    assert found.kv_cache == pytest.approx(2 * keys, rel=0.02)  # and the token shift's last token
    assert found.prefill.flops > 31 * found.decode_token.flops / 2


def test_ddp_sends_its_gradients_in_rings():
    found = estimate(cell_of(MODEL, ["ddp"], world_size=4, data_ranks=4, batch_size=4)).ranks[0].train
    one = estimate(cell_of(MODEL, batch_size=4)).ranks[0].train
    [reduced] = found.work.collectives
    assert (reduced.kind, reduced.bytes) == ("all-reduce", 4 * PARAMETERS)
    assert reduced.sent_bytes == 2 * 3 / 4 * 4 * PARAMETERS
    assert (found.weights, found.gradients, found.optimizer_state) == (one.weights, one.gradients, one.optimizer_state)
    assert found.work.flops == one.work.flops / 4


def test_a_sharded_model_keeps_its_part_and_gathers_the_rest():
    cell = cell_of(MODEL, world_size=4, data_ranks=4, batch_size=4)
    [found] = footprint(cell, [Sharded()], CATALOG.model(MODEL), {}).ranks
    assert found.parameters == PARAMETERS
    train = found.train
    assert train.gradients == PARAMETERS
    assert train.optimizer_state == 2 * PARAMETERS + 4 * TENSORS
    sent = {collective.kind: collective.sent_bytes for collective in train.work.collectives}
    assert sent["reduce-scatter"] == 3 / 4 * 4 * PARAMETERS
    # All weights forward; backward again those of the layers: the rest, which comes first there, stays.
    assert sent["reduce-scatter"] < sent["all-gather"] < 2 * sent["reduce-scatter"]


def test_each_stage_of_a_pipeline_has_its_own_layers_and_sends_hidden_states():
    model, batch, tied = "plain-decoder:4x64x4", 8 * 32 * 64 * 4, 256 * 64 * 4
    shape = {"seq_len": 32, "batch_size": 8, "world_size": 2, "parallel": {"pipeline": 2}}
    first, last = estimate(cell_of(model, ["pipeline"], **shape), decode="it has none").ranks
    [whole] = estimate(cell_of(model, seq_len=32, batch_size=8)).ranks
    assert first.parameters + last.parameters == whole.parameters + tied // 4
    for stage in (first, last):
        sent = {collective.kind: collective.sent_bytes for collective in stage.train.work.collectives}
        assert sent == {"send": batch + tied}  # hidden states or their gradients, and the gradient of what both ends have
        assert 0.5 < stage.train.weights / whole.train.weights < 0.6
    assert first.train.work.flops + last.train.work.flops == whole.train.work.flops
    assert first.train.activations > last.train.activations  # 1F1B: it waits for the first gradient to come back


def test_who_needs_values_is_named_with_the_reason():
    found = footprint(cell_of(MODEL), [Looks()], CATALOG.model(MODEL), {})
    assert found.ranks == []
    assert found.absent.startswith("looks: needs the content of tensors, and fake ones have only shapes")


def test_who_dies_leaves_the_others_alone():
    assert footprint(cell_of(MODEL), [Dies()], CATALOG.model(MODEL), {}).absent.endswith("died of SIGKILL")
    assert estimate(cell_of(MODEL), infer="not asked for").ranks[0].absent == {"infer": "not asked for"}


def test_a_frozen_model_has_no_step():
    found = estimate(cell_of(MODEL, ["constant"]), infer="not asked for")
    assert "train" in (found.ranks[0].absent if found.ranks else {"train": found.absent})
