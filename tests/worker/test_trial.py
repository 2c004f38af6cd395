"""A trial in this process, with a clock that only the test moves: what is timed, and what is not."""

import json
from dataclasses import replace

import pytest
import torch

from effbench.plugin import Quality, Workload
from effbench.plugin.discovery import discover
from effbench.worker import trial
from tests.end_to_end.conftest import TINY
from tests.records import FACTS, make_cell
from tests.techniques.conftest import BASES

CATALOG = discover()


class Clock:
    """Moves only when told."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


class Counted(Workload):
    """Evaluation and data take a very long time on the fake clock, which no metric may show."""

    name = "counted"

    def __init__(self, clock):
        super().__init__()
        self.clock = clock

    def data_hash(self):
        return "x"

    def training_batches(self, tokenizer, cell, count, seed):
        self.clock.now += 1000
        ids = torch.randint(1, 256, (cell.batch_size, cell.seq_len))
        return [{"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}] * count

    def prompts(self, tokenizer, cell):
        self.clock.now += 1000
        return torch.randint(1, 256, (cell.batch_size, cell.seq_len))

    def quality(self, logits, tokenizer, cell, split="test"):
        self.clock.now += 1000
        return Quality({"bits_per_byte": 8.0}, {"bits_per_byte": [8.0]}, [1.0], ["a"])


def ticking(clock, forward_s=1.0):
    """A plugin-made technique that moves the clock: 1 s per training step, 4 s per prefill, 0.5 s per decoded token."""
    from effbench.plugin import Technique

    class Ticking(Technique):
        name = "ticking"
        family = "other"

        def train(self, step, ctx):
            update = step.update

            def slow(current):
                clock.now += forward_s
                update(current)

            return replace(step, update=slow)

        def infer(self, inference, ctx):
            clock.now += 7.0
            prefill, decode = inference.prefill, inference.decode

            def slow_prefill(*arguments):
                clock.now += 4.0
                return prefill(*arguments)

            def slow_decode(*arguments):
                clock.now += 0.5
                return decode(*arguments)

            return replace(inference, prefill=slow_prefill, decode=slow_decode)

    return Ticking()


@pytest.fixture
def run(tmp_path):
    file = tmp_path / "tiny.json"
    file.write_text(json.dumps(TINY))
    catalog, clock = discover(), Clock()

    def go(*techniques, trained=True, **changes):
        source = catalog.model(f"config:{file}")
        source.trained = trained
        cell = make_cell(facts=FACTS, **({"batch_size": 3, "seq_len": 20, "steps": 8, "new_tokens": 5} | changes))
        meters = [catalog.meters.get(name)() for name in catalog.meters.names()]
        request = trial.TrialRequest(cell, 1, [ticking(clock), *techniques], source, Counted(clock), meters, {})
        return trial.run(request, lambda phase: None, clock)

    return go


@pytest.fixture
def run_of(tmp_path):
    """A trial of whole meters, of a model named by its source; the workload's quality is real where one is given."""

    def go(model, stack=(), workload=None, **changes):
        catalog, source = discover(), CATALOG.model(model)
        techniques = [catalog.technique(name, {}) for name in stack]
        fields = {"batch_size": 3, "seq_len": 20, "steps": 3, "new_tokens": 5, "sampling": {"max_seconds": 0.01}} | changes
        cell = make_cell(facts=source.facts(), **fields)
        meters = [catalog.meters.get(name)() for name in catalog.meters.names()]
        skips = {p: r for p in ("train", "infer") for t in techniques if (r := t.unsupported_phase(cell, p))}
        workload = CATALOG.workload(workload) if workload else Counted(Clock())
        request = trial.TrialRequest(cell, 1, techniques, source, workload, meters, skips)
        return trial.run(request, lambda phase: None)

    return go


def value(outcome, name):
    return outcome.metrics[name]["median"]


def test_times_are_of_steps_alone(run):
    outcome = run()
    assert outcome.status == "ok", outcome.error
    assert value(outcome, "train.step_s") == 1.0
    assert outcome.samples["samples"]["step"] == [1.0] * 8
    assert value(outcome, "infer.convert_s") == 7.0


def test_a_teacher_is_timed_by_itself_evaluated_and_kept_for_its_technique(run):
    from effbench.plugin import Technique

    seen = []

    class Taught(Technique):
        name = "taught"
        family = "distillation"

        def teacher(self, ctx):
            ctx.calibration(1)  # 1000 s on this clock
            return ctx.base_model()

        def train(self, step, ctx):
            seen.append(ctx.kept["taught"])
            return step

    outcome = run(Taught())
    assert outcome.status == "ok", outcome.error
    assert len(seen) == 1
    assert value(outcome, "train.teacher_s") == 1000.0
    assert value(outcome, "train.step_s") == 1.0
    assert [outcome.quality[kind] for kind in ("scores", "before", "teacher")] == [{"bits_per_byte": 8.0}] * 3
    plain = run()
    assert "train.teacher_s" not in plain.metrics
    assert plain.quality["teacher"] == {}


def test_throughput_times_mean_time_is_the_volume(run):
    outcome = run()
    assert value(outcome, "train.tokens_per_s") * 1.0 == 3 * 20
    assert value(outcome, "infer.prefill_tokens_per_s") * 4.0 == 3 * 20
    assert value(outcome, "infer.decode_tokens_per_s") * 2.0 == 3 * 4


def test_decode_excludes_prefill_and_counts_tokens_less_one(run):
    outcome = run()
    assert value(outcome, "infer.prefill_s") == 4.0
    assert value(outcome, "infer.decode_token_s") == 0.5
    assert value(outcome, "infer.end_to_end_s") == 6.0


@pytest.mark.parametrize("known", [True, False])
def test_what_compiles_at_its_first_call_is_no_sample_where_its_technique_says_so(run, known):
    """Otherwise the time cap ends sampling at the first, and that is all there is."""
    from effbench.plugin import Technique

    class FirstCallsAreSlow(Technique):
        name = "first_calls_are_slow"
        family = "other"
        compiles = known

        def infer(self, inference, ctx):
            clock, waits = ctx.calibration.__self__.request.workload.clock, {"prefill": 100.0, "decode": 200.0}

            def slow(part, name):
                def call(*arguments):
                    clock.now += waits.pop(name, 0.0)
                    return part(*arguments)

                return call

            return replace(inference, prefill=slow(inference.prefill, "prefill"), decode=slow(inference.decode, "decode"))

    outcome = run(FirstCallsAreSlow(), sampling={"max_seconds": 50.0, "min_samples": 3, "interval": 1.0})
    assert outcome.status == "ok", outcome.error
    samples = outcome.samples["samples"]
    assert samples["prefill"] == ([4.0] * len(samples["prefill"]) if known else [104.0])
    assert (len(samples["prefill"]) >= 3) == known
    assert value(outcome, "infer.decode_token_s") == (0.5 if known else 50.5)


def test_a_phase_without_work_is_skipped_with_its_reason(run):
    from effbench.plugin import Technique

    class Frozen(Technique):
        name = "frozen"
        family = "other"

        def apply(self, model, ctx):
            return model.requires_grad_(False)

    outcome = run(Frozen(), sampling={"max_seconds": 1e-9})
    assert outcome.phases["train"] == "skipped: the stack leaves nothing to train"
    assert "train.step_s" not in outcome.metrics


def test_random_weights_have_no_quality_and_say_so(run):
    outcome = run(trained=False)
    assert outcome.quality is None
    assert "random" in outcome.quality_absent


def test_a_loss_that_is_not_finite_is_diverged_and_keeps_what_came_before(run):
    from effbench.plugin import Technique

    class Broken(Technique):
        name = "broken"
        family = "other"

        def train(self, step, ctx):
            from dataclasses import replace

            return replace(step, loss=lambda model, batch: model(**batch).loss * float("inf"))

    outcome = run(Broken())
    assert outcome.status == "diverged"
    assert "step 1 of 8" in outcome.error
    assert "load.duration_s" in outcome.metrics


def test_running_out_of_memory_is_its_own_status(run):
    from effbench.plugin import Technique

    class Hungry(Technique):
        name = "hungry"
        family = "other"

        def apply(self, model, ctx):
            torch.empty(2**50)

    assert run(Hungry()).status == "oom"


def test_memory_of_inference_does_not_contain_the_optimizer(run):
    outcome = run(sampling={"max_seconds": 0.001})
    assert value(outcome, "infer.peak_memory_bytes") > 0
    assert value(outcome, "train.peak_memory_bytes") > 0


@pytest.mark.parametrize("base", ["bert", "t5"])
def test_a_model_that_is_not_causal_is_timed_in_one_forward_pass_and_does_not_decode(base, run_of, tmp_path):
    BASES[base]().save_pretrained(tmp_path)
    outcome = run_of(f"path:{tmp_path}")
    assert outcome.status == "ok", outcome.error
    assert outcome.phases["train"] == outcome.phases["infer"] == "ok"
    assert outcome.phases["decode"] == f"skipped: {base} does not predict the next token"
    measured = {name for name in outcome.metrics if name.startswith("infer.")}
    assert {"infer.prefill_s", "infer.prefill_tokens_per_s", "infer.prefill_flops", "infer.kl_to_base_nats"} <= measured
    assert not [name for name in measured if "decode" in name or "end_to_end" in name or "kv_cache" in name]
    assert outcome.quality["scores"] == {"bits_per_byte": 8.0}


def test_a_causal_model_says_nothing_of_skipped_decoding(run_of, tmp_path):
    BASES["llama"]().save_pretrained(tmp_path)
    outcome = run_of(f"path:{tmp_path}")
    assert "decode" not in outcome.phases
    assert {"infer.decode_token_s", "infer.end_to_end_s", "infer.kv_cache_bytes"} <= outcome.metrics.keys()


@pytest.mark.parametrize("model", ["tiny-decoder", "tiny-encoder"])
def test_a_model_trained_from_scratch_has_quality_after_training_alone(model, run_of):
    outcome = run_of(model, workload="recall:2@8", seq_len=16, quality_documents=20)
    assert outcome.status == "ok", outcome.error
    assert outcome.quality_absent is None
    assert outcome.quality["before"] == {}
    assert 0 <= outcome.quality["scores"]["accuracy"] < 0.5
    assert len(outcome.samples["quality"]["chance"]["accuracy"]) == 20


@pytest.mark.parametrize("model", ["tiny-decoder", "tiny-encoder"])
def test_training_on_recall_leaves_chance_behind(model, run_of):
    """Two pairs and no filler: labels, masks and scoring are about the same places."""
    outcome = run_of(model, workload="recall:2@0", seq_len=8, batch_size=64, steps=120, lr=3e-3, quality_documents=100)
    assert outcome.status == "ok", outcome.error
    assert outcome.quality["scores"]["accuracy"] > 5 * outcome.quality["chance"]["accuracy"]


def test_the_constant_stack_has_the_score_of_chance_and_trains_nothing(run_of):
    outcome = run_of("tiny-decoder", ["constant"], workload="recall:2@8", seq_len=16, quality_documents=50)
    assert outcome.status == "ok", outcome.error
    assert outcome.phases["train"] == "skipped: constant predicts frequencies, which are counted"
    answers = [s.tokens[place] for s in CATALOG.workload("recall:2@8").samples.test[:50] for place in s.answers]
    assert outcome.quality["scores"]["accuracy"] in {answers.count(value) / 100 for value in range(128, 192)}
    assert outcome.quality["chance"].keys() == {"accuracy"}
    assert "infer.prefill_s" in outcome.metrics
