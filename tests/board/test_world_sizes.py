"""Parallel stacks across world sizes, on records whose truth is known."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from effbench.board.frame import tidy
from effbench.board.leaderboard import build
from effbench.board.world_sizes import columns
from effbench.plugin import Summary
from tests.records import make_cell, make_record

SETTINGS = {"baseline": "full"}
DDP = {1: 990, 2: 1500, 4: 1600}
"""Tokens per second by world size, beside 1000 of a single rank without it."""


def cell_of(stack, world_size=1, parallel=(), serial=(), **changes):
    """`parallel`: names, the first of which takes what the others, two each, leave of the ranks."""
    degrees = dict.fromkeys(parallel, min(2, world_size))
    if degrees:
        degrees[parallel[0]] = max(1, world_size // 2 ** (len(parallel) - 1))
    techniques = (*serial, *((name, {}) for name in parallel))
    return make_cell(stack, world_size=world_size, techniques=techniques, parallel=degrees, **changes)


def trials(cells, *, rounds=3, noise=0.001, drift=0.3):
    """Cell and tokens per second; a round's drift is shared by its trials, so pairing must take it out."""
    rng = np.random.default_rng(0)
    for number in range(1, rounds + 1):
        for cell, speed in cells:
            yield make_record(
                cell=cell, round_number=number, tokens_per_s=speed * np.exp(drift * number + rng.normal(0, noise))
            )


def ddp_cells(speeds=None, **changes):
    cells = [(cell_of("full", **changes), 1000)]
    return cells + [(cell_of("ddp", size, ["ddp"], **changes), speed) for size, speed in (speeds or DDP).items()]


def board_of(records, folder=Path("machine/s"), cores=None, **settings):
    """The board of the largest world size, which shows them all; `cores` writes the machine's facts where records say."""
    if cores is not None:
        facts = {"cpu": "x", "flags": "y", "cores": cores, "memory_gib": 8, "gpus": [], "system": "Linux"}
        (folder.parent / "machine.json").write_text(json.dumps(facts))
    *others, last = build(tidy((folder / "x.json", record) for record in records), SETTINGS | settings)
    assert all(other.world_sizes is None for other in others)
    return last


def rows_of(board):
    return board.world_sizes.set_index(["stack", "world_size"])


def of_rank(record, **metrics):
    """The record with further metrics: `unit` by name."""
    found = {
        name.replace("__", "."): Summary(median=value, unit="B" if "bytes" in name else "") for name, value in metrics.items()
    }
    return record.model_copy(update={"metrics": record.metrics | found})


def test_speedup_and_efficiency_against_the_serial_stack_on_a_single_rank():
    board = board_of(trials(ddp_cells()))
    rows = rows_of(board)
    assert list(rows.index) == [("full", 1), ("ddp", 1), ("ddp", 2), ("ddp", 4)]
    assert rows["train_speed_ratio"].tolist() == pytest.approx([1, 0.99, 1.5, 1.6], rel=0.005)
    assert rows["train_speed_efficiency"].tolist() == pytest.approx([1, 0.99, 0.75, 0.4], rel=0.005)
    assert rows["decode_speed_efficiency"].tolist() == pytest.approx([1, 0.99, 0.75, 0.4], rel=0.005)
    assert rows["train_speed_verdict"].tolist() == ["baseline", "SAME", "FASTER", "FASTER"]
    assert set(rows["serial"]) == {"full"}
    assert rows.loc[("ddp", 2), "train_speed_low"] < 1.5 < rows.loc[("ddp", 2), "train_speed_high"] < 1.52
    assert board.world_size == 4


def test_throughput_per_device_stands_beside_the_global_one():
    rows = rows_of(board_of(trials(ddp_cells(), noise=0, drift=0)))
    assert rows["train_speed"].tolist() == pytest.approx([1000, 990, 1500, 1600])
    assert rows["train_speed_per_device"].tolist() == pytest.approx([1000, 990, 750, 400])
    assert rows["prefill_speed_per_device"].tolist() == pytest.approx([5000, 4950, 3750, 2000])


def test_fewer_rounds_than_three_are_unclear():
    rows = rows_of(board_of(trials(ddp_cells(), rounds=2)))
    assert set(rows["train_speed_verdict"]) == {"baseline", "UNCLEAR"}


def test_a_single_rank_alone_has_none_of_it():
    boards = build(tidy((Path("x.json"), r) for r in trials(ddp_cells({1: 990}))), SETTINGS)
    assert [board.world_sizes for board in boards] == [None]


@pytest.mark.parametrize(
    ("cores", "threads", "bounds", "words"),
    [
        (2, 1, [1, 1, 2, 2], "2 cores: 4 ranks of 1 thread share them, which allows a speedup of 2 at most"),
        (4, 2, [1, 1, 2, 2], "4 cores: 4 ranks of 2 threads share them, which allows a speedup of 2 at most"),
        (1, 4, [1, 1, 1, 1], "1 core: 2 or 4 ranks of 4 threads share them, which allows a speedup of 1 at most"),
        (8, 2, [1, 1, 2, 4], None),
    ],
)
def test_cores_that_ranks_share_bound_the_speedup(tmp_path, cores, threads, bounds, words):
    (tmp_path / "s").mkdir()
    board = board_of(trials(ddp_cells(threads=threads)), tmp_path / "s", cores)
    rows = rows_of(board)
    assert rows["core_bound"].tolist() == bounds
    expected = [ratio / bound for ratio, bound in zip([1, 0.99, 1.5, 1.6], bounds, strict=True)]
    assert rows["train_speed_per_core"].tolist() == pytest.approx(expected, rel=0.005)
    notes = [note for note in board.notes if "share them" in note]
    assert notes[0].startswith(words) if words else not notes


def test_devices_are_not_shared(tmp_path):
    (tmp_path / "s").mkdir()
    board = board_of(trials(ddp_cells(device="cuda")), tmp_path / "s", cores=2)
    assert rows_of(board)[["core_bound", "train_speed_per_core"]].isna().all(axis=None)
    assert not any("core" in note for note in board.notes)


@pytest.mark.parametrize("text", [None, "{", '{"cores": 2}'])
def test_without_the_machines_facts_the_board_says_that_it_does_not_know(tmp_path, text):
    (tmp_path / "s").mkdir()
    if text:
        (tmp_path / "machine.json").write_text(text)
    board = board_of(trials(ddp_cells()), tmp_path / "s")
    assert rows_of(board)["train_speed_per_core"].isna().all()
    assert any("whether ranks share cores is not known" in note for note in board.notes)


def test_the_serial_stack_has_the_same_other_techniques_with_the_same_options():
    cells = ddp_cells({2: 1500})
    for rank, speed in ((4, 2000), (16, 1800)):
        serial = (("lora", {"rank": rank}),)
        axes = {"option_axes": {"lora.rank": rank}}
        cells += [
            (cell_of("lora", serial=serial, **axes), speed),
            (cell_of("lora_ddp", 2, ["ddp"], serial, **axes), 1.25 * speed),
        ]
    rows = rows_of(board_of(trials(cells)))
    assert rows["serial"].to_dict() == {
        ("full", 1): "full",
        ("ddp", 2): "full",
        ("lora rank=4", 1): "lora rank=4",
        ("lora_ddp rank=4", 2): "lora rank=4",
        ("lora rank=16", 1): "lora rank=16",
        ("lora_ddp rank=16", 2): "lora rank=16",
    }
    assert rows.loc[[("lora_ddp rank=4", 2), ("lora_ddp rank=16", 2)], "train_speed_ratio"].tolist() == pytest.approx(
        [1.25, 1.25], rel=0.005
    )


def test_of_stacks_on_one_rank_only_those_that_are_compared_with_are_shown():
    cells = [*ddp_cells({2: 1500}), (cell_of("other", serial=(("other", {}),)), 5000)]
    assert {stack for stack, _ in rows_of(board_of(trials(cells))).index} == {"full", "ddp"}


def test_without_a_serial_stack_it_is_itself_on_a_single_rank():
    cells = [*ddp_cells({2: 1500}), *((cell_of("mine", n, ["tp"], (("x", {}),)), 500 * n) for n in (1, 2))]
    board = board_of(trials(cells))
    rows = rows_of(board)
    assert rows.loc["mine", "serial"].tolist() == ["mine", "mine"]
    assert rows.loc[("mine", 2), "train_speed_ratio"] == pytest.approx(2, rel=0.005)
    assert rows.loc[("mine", 1), "train_speed_verdict"] == "baseline"
    [note] = [note for note in board.notes if "itself on a single rank" in note]
    assert note.startswith("`mine`: the same without its parallel techniques was not measured")


def test_with_nothing_on_a_single_rank_there_is_no_speedup():
    board = board_of(trials([(cell_of("mine", 2, ["tp"], (("x", {}),)), 900), *ddp_cells({2: 1500})]))
    row = rows_of(board).loc[("mine", 2)]
    assert row[["serial", "train_speed_ratio", "train_speed_efficiency"]].isna().all()
    assert row["train_speed"] > 0
    assert any(note.startswith("`mine`: neither it") for note in board.notes)


def test_under_weak_scaling_efficiency_is_that_of_throughput_too():
    cells = [(cell_of("full", scaling="weak", batch_size=2), 1000)]
    for size, speed in ((2, 1900), (4, 3600)):
        cells.append((cell_of("ddp", size, ["ddp"], scaling="weak", batch_size=2 * size, data_ranks=size), speed))
    rows = rows_of(board_of(trials(cells)))
    assert rows["train_speed_efficiency"].tolist() == pytest.approx([1, 0.95, 0.9], rel=0.005)
    assert set(rows["scaling"]) == {"weak"}


def test_strong_and_weak_scaling_of_one_suite_are_never_mixed():
    weak = [(cell_of("full", scaling="weak"), 9000)]
    boards = build(tidy((Path("x.json"), r) for r in trials([*ddp_cells(), *weak])), SETTINGS)
    assert sum("weak scaling" in board.title for board in boards) == 1
    [shown] = [board for board in boards if board.world_sizes is not None]
    assert rows_of(shown).loc[("ddp", 2), "train_speed_ratio"] == pytest.approx(1.5, rel=0.005)


def test_what_fits_on_two_ranks_alone_has_its_figures_and_no_speedup():
    lost = {"status": "oom", "error": "no memory", "metrics": {}, "quality": None}
    records = [
        make_record(cell=cell_of("full"), **lost),
        make_record(cell=cell_of("fsdp", 1, ["fsdp"]), **lost),
        of_rank(make_record(cell=cell_of("fsdp", 2, ["fsdp"])), train__peak_memory_bytes=2**20),
    ]
    rows = rows_of(board_of(records))
    assert rows["status"].to_dict() == {("full", 1): "1 oom", ("fsdp", 1): "1 oom", ("fsdp", 2): "ok"}
    fitting = rows.loc[("fsdp", 2)]
    assert fitting[["train_speed", "train_speed_per_device", "train_memory"]].tolist() == [1000, 500, 2**20]
    assert fitting[["train_speed_ratio", "train_speed_efficiency", "train_memory_ratio"]].isna().all()
    assert fitting["serial"] == "full"
    assert rows.loc[[("full", 1)], ["train_speed", "train_speed_ratio"]].isna().all(axis=None)


def test_memory_is_that_of_a_rank():
    memory = {("full", 1): 8e6, ("fsdp", 1): 8e6, ("fsdp", 2): 5e6}
    cells = [(cell_of("full"), 1000), *((cell_of("fsdp", n, ["fsdp"]), 900) for n in (1, 2))]
    records = [of_rank(r, train__peak_memory_bytes=memory[r.cell.stack, r.cell.world_size] + r.round) for r in trials(cells)]
    rows = rows_of(board_of(records))
    assert rows.loc[("fsdp", 2), "train_memory_ratio"] == pytest.approx(0.625, rel=1e-4)
    assert rows["train_memory_verdict"].tolist() == ["baseline", "SAME", "SMALLER"]


def test_several_dimensions_say_how_they_share_the_ranks():
    cells = [*ddp_cells({4: 1600}), (cell_of("both", 4, ["ddp", "pipeline"]), 2000)]
    rows = rows_of(board_of(trials(cells)))
    assert rows["parallel"].to_dict() == {("full", 1): "", ("ddp", 4): "ddp 4", ("both", 4): "ddp 2 × pipeline 2"}
    assert rows.loc[("both", 4), "serial"] == "full"
    assert rows.loc[("both", 4), "train_speed_efficiency"] == pytest.approx(0.5, rel=0.005)


def test_what_parallel_techniques_count_is_shown_and_zero_is_a_figure():
    cells = [(cell_of("full"), 1000), *((cell_of("pipe", n, ["pipeline"]), 900) for n in (1, 2))]
    records = []
    for record in trials(cells):
        own = {"pipeline__bubble": 0.25, "train__communication_bytes": 4096, "train__exposed_communication_share": 0.0}
        records.append(of_rank(record, other__figure=1, **(own if record.cell.world_size > 1 else {})))
    board = board_of(records)
    rows = rows_of(board)
    assert rows.loc[("pipe", 2), "pipeline.bubble"] == 0.25
    assert rows.loc[("pipe", 2), "train.exposed_communication_share"] == 0
    assert rows.loc[("pipe", 2), "train.communication_bytes"] == 4096
    assert rows.loc[("full", 1), ["pipeline.bubble", "train.communication_bytes"]].isna().all()
    assert list(board.world_sizes) == columns(["pipeline.bubble"])


def test_only_cells_completed_at_every_world_size_are_compared():
    cells = [(cell_of("full", seq_len=n), 1000) for n in (64, 128)]
    cells += [(cell_of("ddp", 2, ["ddp"]), 1500)]
    lost = make_record(cell=cell_of("ddp", 2, ["ddp"], seq_len=128), status="oom", error="no", metrics={}, quality=None)
    board = board_of([*trials(cells), lost])
    assert rows_of(board).loc[("ddp", 2), ["train_speed_verdict", "status"]].tolist() == ["FASTER", "1 oom"]
    assert any(note.startswith("across world sizes: train: compared on 1 of 2 cells") for note in board.notes)


def test_sessions_are_never_paired():
    records = [r.model_copy(update={"session": r.cell.stack}) for r in trials(ddp_cells({2: 1500}))]
    board = board_of(records)
    assert pd.isna(rows_of(board).loc[("ddp", 2), "train_speed_ratio"])
    assert rows_of(board).loc[("ddp", 2), "train_speed_verdict"] == "UNCLEAR"
    assert any("across world sizes: `ddp` and `full` share no complete round" in note for note in board.notes)


def test_a_metric_that_claims_to_be_a_techniques_own_takes_no_column():
    cell = cell_of("odd", 2, ["train"])
    record = of_rank(make_record(cell=cell), train__communication_bytes=1)
    assert list(board_of([make_record(), record]).world_sizes)[: len(columns()) - 2] == columns()[:-2]
