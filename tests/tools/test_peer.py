import json
from pathlib import Path

import peer
import pytest
from runs import Trial

from effbench.plan.suite import read_suite
from effbench.plugin import Summary
from effbench.plugin.transformers_source import read_facts
from tests.records import make_cell, make_record

ANSWERS = json.loads(Path(__file__).with_name("peer_answers.json").read_text())  # of a real run on a busy machine, shortened
INFER, TRAIN = peer.Cell("infer", 256, 1), peer.Cell("train", 256, 1)


def make_trial(seq_len=128, batch_size=1, wall_s=10.0):
    seconds = {"train.step_s": 0.5, "infer.prefill_s": 0.1, "infer.decode_token_s": 0.02}
    metrics = {name: Summary(median=value, n=5, unit="s") for name, value in seconds.items()}
    record = make_record(cell=make_cell(seq_len=seq_len, batch_size=batch_size), wall_s=wall_s, metrics=metrics)
    return Trial(record, {"step": [0.5] * 10, "prefill": [0.1] * 6, "decode": [0.4] * 6, "end_to_end": [0.5] * 6}, 0.0)


def test_a_trial_is_measuring_and_rest():
    trial = make_trial()
    assert trial.measuring_s == pytest.approx(5 + 3)  # prefill and decode are the two parts of end_to_end, and count once
    assert trial.rest_s == pytest.approx(2)


def test_both_cells_of_a_trial_share_its_rest():
    costs = peer.effbench_costs([make_trial()])
    train, infer = costs[peer.Cell("train", 128, 1)], costs[peer.Cell("infer", 128, 1)]
    assert (train.measuring_s, infer.measuring_s) == pytest.approx((5, 3))
    assert train.rest_s == pytest.approx(infer.rest_s) == pytest.approx(1)
    assert train.wall_s + infer.wall_s == pytest.approx(10)
    assert (train.step_s, infer.step_s, infer.token_s) == (0.5, 0.1, 0.02)


def test_the_peers_training_counts_every_step_and_shows_its_throughput():
    cost = peer.peer_cost(TRAIN, ANSWERS["train"])
    durations = ANSWERS["train"]["report"]["overall"]["latency"]["values"]
    assert cost.measuring_s == pytest.approx(sum(durations), rel=1e-5)
    assert cost.step_s == pytest.approx(sorted(durations[peer.WARMUP :])[2], rel=1e-5)
    assert cost.wall_s == pytest.approx(cost.measuring_s + cost.rest_s)
    assert cost.rest_s > 0
    true_rate = 1 / (sum(durations[peer.WARMUP :]) / peer.SAMPLES)
    assert cost.reported["samples_per_s"] / true_rate == pytest.approx(peer.SAMPLES, rel=1e-4)


def test_the_peers_inference_counts_unreported_warmup_and_divides_decode_by_its_tokens():
    answer = ANSWERS["infer"]
    cost = peer.peer_cost(INFER, answer)
    assert cost.measuring_s == answer["generate_s"] > answer["report"]["generate"]["latency"]["total"]
    assert cost.token_s == pytest.approx(answer["report"]["decode"]["latency"]["p50"] / 15)
    # The peer keeps each iteration's events and counts them again with the next: 15 + 31 + 47 + 63 + 79.
    assert cost.reported["tokens"] == 235
    assert cost.reported["token_s"] > 1.3 * cost.token_s


def all_costs():
    ours = peer.effbench_costs([make_trial(length, batch) for length in peer.SEQ_LENS for batch in peer.BATCH_SIZES])
    theirs = {cell: peer.peer_cost(cell, ANSWERS[cell.phase]) for cell in peer.CELLS}
    return ours, theirs


def test_totals_count_the_peers_start_once_and_the_whole_command_here():
    ours, theirs = all_costs()
    total = peer.totals(70.0, ours, theirs)
    assert total.effbench_s == 70
    assert total.effbench_measuring_s == pytest.approx(6 * 8)
    launches = 6 * (ANSWERS["infer"]["launch_s"] + ANSWERS["train"]["launch_s"])
    starts = [answer["process_s"] - answer["launch_s"] for answer in ANSWERS.values()]
    assert total.peer_s == pytest.approx(launches + sum(starts) / 2)
    assert total.peer_processes_s == pytest.approx(launches + 6 * sum(starts))


@pytest.mark.parametrize(("command_s", "met"), [(50.0, 3), (60.0, 2), (200.0, 1), (400.0, 0)])
def test_findings_say_which_targets_are_met(command_s, met):
    ours, theirs = all_costs()
    text = peer.findings(peer.totals(command_s, ours, theirs), theirs)
    assert text.count("(met") == met
    assert text.count("(MISSED") == 3 - met
    assert "has [235] values; 5 samples make 75" in text
    assert "throughput is 1.25 to 5.00 times" in text  # 5 samples too many; the batch-4 cells have the answer of batch 1


def test_the_table_has_every_cell_and_ratios_where_the_loop_was_written_by_hand():
    ours, theirs = all_costs()
    hand = {"effbench": dict.fromkeys(peer.BY_HAND_CELLS, 0.25), "peer": dict.fromkeys(peer.BY_HAND_CELLS, 1.0)}
    lines = peer.table({"effbench": ours, "peer": theirs}, hand).splitlines()[2:]
    assert [line.split(" | ")[0].strip("| ") for line in lines] == [cell.name for cell in peer.CELLS]
    assert "| train-s128-b1 | 6.00 = 5.00 + 1.00 |" in lines[6]
    assert "500.0 (2.00)" in lines[6]
    assert "500.0 |" in lines[7]  # batch 4 has no loop to compare with


def test_the_model_has_20_million_parameters_and_the_suite_its_12_cells(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(peer.CONFIG))
    facts = read_facts(tmp_path / "config.json", "config")
    untied_head = facts.vocab * facts.hidden
    assert facts.approximate_parameters + untied_head == pytest.approx(20e6, rel=0.02)
    (tmp_path / "suite.toml").write_text(peer.SUITE.replace("CONFIG", str(tmp_path / "config.json")))
    suite = read_suite(tmp_path / "suite.toml")
    assert len(suite.axes["seq_len"]) * len(suite.axes["batch_size"]) * len(suite.phases) == len(peer.CELLS) == 12
    assert suite.training.steps == peer.SAMPLES + peer.WARMUP
