import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from effbench.board.claims import CLAIM_COLUMNS, LEVEL, claims_frame, counts, judge, judge_all, verdict_of
from effbench.board.evidence import COUNTS, Evidence
from effbench.board.frame import tidy
from effbench.board.leaderboard import build
from effbench.board.lengths import COSTS
from effbench.board.measures import better_of
from effbench.board.rows import Row
from effbench.board.stats import VERDICT_LEVEL, Interval, ratio_interval
from effbench.plan.claim import Claim
from effbench.plan.suite import read_suite, standard_suites
from effbench.plugin import Summary
from effbench.plugin.discovery import discover
from effbench.store.record import Fingerprint, QualityScores
from tests.board import test_scaling as grown
from tests.board import test_world_sizes as spread
from tests.board.test_leaderboard import SETTINGS, board_of, trials, write
from tests.board.test_view import boards_of, two_places
from tests.records import make_cell, make_record

SPEED = "train.tokens_per_s"


def claim(stack="fast", relation="ratio to baseline above", value=None, metric=SPEED, **changes):
    return Claim(source="A 2020", says="it is so", stack=stack, metric=metric, relation=relation, value=value, **changes)


def judged(board, *args, **kwargs):
    board = replace(board, settings=board.settings.model_copy(update={"claims": [claim(*args, **kwargs)]}))
    [judgement] = judge(board)
    return judgement


@pytest.fixture(scope="module")
def board():
    """`fast` is twice as fast as `full` and `same` as fast, to 0.2 %."""
    return board_of(list(trials()))


@pytest.mark.parametrize(
    ("relation", "value", "verdict"),
    [
        ("ratio to baseline above", 1.9, "SUPPORTED"),
        ("ratio to baseline above", 2.1, "REFUTED"),
        ("ratio to baseline above", 2.0, "UNCLEAR"),
        ("ratio to baseline below", 2.1, "SUPPORTED"),
        ("ratio to baseline below", 1.9, "REFUTED"),
        ("ratio to baseline equals", 2.0, "SUPPORTED"),
        ("ratio to baseline equals", 1.0, "REFUTED"),
        ("ratio to baseline equals", 2.04, "UNCLEAR"),
        ("ratio to same above", 1.9, "SUPPORTED"),
        ("ratio to same below", 1.9, "REFUTED"),
        ("better than same", None, "SUPPORTED"),
        ("value above", 100, "SUPPORTED"),
        ("value below", 100, "REFUTED"),
    ],
)
def test_a_claim_is_judged_by_which_side_the_interval_is_on(board, relation, value, verdict):
    assert judged(board, relation=relation, value=value).verdict == verdict


def test_within_says_what_counts_as_equal(board):
    assert judged(board, relation="ratio to baseline equals", value=1.8).verdict == "REFUTED"
    assert judged(board, relation="ratio to baseline equals", value=1.8, within=0.2).verdict == "SUPPORTED"


def test_the_evidence_is_the_interval_at_the_level_of_verdicts_and_where_it_is_from(board):
    found = judged(board, value=1.5)
    [row] = [row for row in board.table.rows if row.stack == "fast"]
    base = board.table.base["fast"]
    logs = [np.log(v / base.values[SPEED][t]) for t, v in row.values[SPEED].items()]
    expected = ratio_interval(np.array(logs), 1 - VERDICT_LEVEL)
    assert (found.estimate, found.low, found.high) == pytest.approx((expected.estimate, expected.low, expected.high))
    assert (found.rounds, found.cells) == (3, tuple(row.cells))
    assert re.fullmatch(r"[\d.]+× \[[\d.]+, [\d.]+\], 3 rounds, 1 cell; claimed above 1\.5", found.evidence)
    assert (found.machine, found.suite, found.model, found.workload) == ("machine", "s", "tiny-llama", "docs")


def test_two_rounds_are_unclear_and_a_count_needs_one():
    two = board_of(list(trials(rounds=2)))
    assert judged(two, value=1.1).verdict == "UNCLEAR"
    records = [make_record(), make_record("fast", metrics={"parameters.trainable": Summary(median=20_000, unit="")})]
    found = judged(board_of(records), relation="ratio to baseline below", value=0.02, metric="parameters.trainable")
    assert (found.verdict, found.evidence) == ("SUPPORTED", "0.01× (counted), 1 round, 1 cell; claimed below 0.02")
    assert (found.low, found.high) == (None, None)
    equal = judged(board_of(records), relation="ratio to baseline below", value=0.01, metric="parameters.trainable")
    assert equal.verdict == "REFUTED"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"stack": "gone"}, "no record of `gone` here"),
        ({"relation": "ratio to gone above", "value": 1}, "no record of `gone`"),
        ({"metric": "train.step_energy_j", "value": 1}, "no train.step_energy_j of `fast` in these records"),
        ({"value": 1, "where": {"seq_len": 512}}, "no record of `fast` at seq_len = 512"),
        ({"value": 1, "where": {"model": "other"}}, "no board of model = other here"),
        ({"value": 1, "where": {"world_size": 2}}, "no board of world_size = 2 here"),
        ({"relation": "exponent below", "value": 1}, "exponents are fitted of train.step_s"),
        ({"relation": "rises along seq_len"}, "train.tokens_per_s was measured at 1 values of seq_len"),
    ],
)
def test_what_was_not_measured_is_not_applicable_and_says_why(board, changes, words):
    found = judged(board, **({"value": 1} if "relation" not in changes else {}) | changes)
    assert found.verdict == "NOT-APPLICABLE"
    assert found.evidence.startswith(words)
    assert (found.estimate, found.rounds, found.cells) == (None, 0, ())


def test_a_skipped_cell_says_why():
    lost = make_record("fast", status="skipped", error="needs a CUDA device", metrics={}, quality=None)
    found = judged(board_of([make_record(), lost]), value=1)
    assert (found.verdict, found.evidence) == ("NOT-APPLICABLE", "`fast`: skipped (needs a CUDA device)")


def test_records_of_older_code_are_not_judged_and_are_told_of():
    old = Fingerprint(techniques={"fast": "0"}, weights="w", data="d", versions={"torch": "2.13.0"})
    # A cell's lowest round says which code is current, so what is old is every later round of other code.
    records = [make_record(round_number=1), make_record(round_number=2, fingerprint=old)]
    found = judged(board_of(records), "gone", value=1)
    assert found.evidence == "no record of `gone` here; 1 trials of older code not shown"


def test_only_cells_that_both_completed_and_that_it_is_about_count():
    records = [r for r in trials(shapes=(64, 128)) if not (r.cell.stack == "same" and r.cell.seq_len == 128)]
    board = board_of(records)
    assert len(judged(board, value=1).cells) == 2
    assert len(judged(board, value=1, where={"seq_len": 128}).cells) == 1
    [cell] = judged(board, relation="ratio to same above", value=1).cells
    assert "-s64-" in cell


def test_options_of_an_axis_name_the_row():
    board = board_of(list(pruned()))
    at = {"prune.sparsity": 0.9}
    assert judged(board, "prune", value=2.5, where=at).verdict == "SUPPORTED"
    assert judged(board, "prune", value=2.5, where={"prune.sparsity": 0.5}).verdict == "REFUTED"
    assert judged(board, "prune", value=2.5).evidence.startswith("2 rows of `prune` on this board")
    assert judged(board, "prune", value=1, where={"prune.sparsity": 0.7}).evidence == (
        "no record of `prune` at prune.sparsity = 0.7"
    )


def pruned(speeds=((0.5, 2000), (0.9, 3000))):
    yield from trials({"full": 1000})
    for number, (sparsity, speed) in enumerate(speeds):
        others = dict.fromkeys(map(str, range(number)), 1000)  # so that each value has noise of its own
        for record in (record for record in trials(others | {"prune": speed}) if record.cell.stack == "prune"):
            cell = make_cell("prune", techniques=(("prune", {"sparsity": sparsity}),), option_axes={"prune.sparsity": sparsity})
            yield record.model_copy(update={"cell": cell, "cell_id": cell.id})


@pytest.mark.parametrize(
    ("speeds", "rises", "falls", "monotone"),
    [
        (((0.1, 1000), (0.5, 2000), (0.9, 3000)), "SUPPORTED", "REFUTED", "SUPPORTED"),
        (((0.1, 1000), (0.5, 3000), (0.9, 2000)), "REFUTED", "REFUTED", "REFUTED"),
        (((0.1, 1000), (0.5, 2000), (0.9, 2000)), "UNCLEAR", "REFUTED", "UNCLEAR"),
    ],
)
def test_along_an_axis_every_step_counts(speeds, rises, falls, monotone):
    board = board_of(list(pruned(speeds)))
    words = [judged(board, "prune", f"{way} along prune.sparsity").verdict for way in ("rises", "falls", "monotone")]
    assert words == [rises, falls, monotone]
    assert judged(board, "prune", "rises along prune.sparsity").evidence.startswith("steps of ")


def test_along_the_length_rounds_are_paired():
    board = board_of(list(trials(shapes=(64, 128))))
    # Both lengths are as fast but for the noise of a round, which is far smaller than the drift that a round shares.
    found = judged(board, "fast", "rises along seq_len")
    assert found.verdict == "UNCLEAR"
    assert float(re.search(r"steps of ([\d.]+)×", found.evidence)[1]) == pytest.approx(1, abs=0.01)
    assert len(found.cells) == 2


def test_an_exponent_is_the_boards_own_at_the_level_of_verdicts():
    board = grown.board_of(grown.trials({"full": grown.quadratic, "lean": grown.linear}))
    assert judged(board, "lean", "exponent below", 1.15, "infer.prefill_s").verdict == "SUPPORTED"
    assert judged(board, "full", "exponent below", 1.15, "infer.prefill_s").verdict == "REFUTED"
    found = judged(board, "full", "exponent equals", 2, "infer.prefill_s", within=0.1)
    assert found.verdict == "SUPPORTED"
    shown = board.scaling.set_index(["stack", "metric"]).loc[("full", "infer.prefill_s")]
    assert found.estimate == pytest.approx(shown["exponent"])
    assert found.low < shown["low"]


def test_a_larger_world_size_is_compared_with_the_reference_at_one():
    boards = build(tidy((Path("machine/s/x.json"), r) for r in spread.trials(spread.ddp_cells())), spread.SETTINGS)
    claims = [claim("ddp", value=0.01, where={"world_size": 2}), claim("ddp", value=0.01, where={"world_size": 8})]
    boards = [replace(b, settings=b.settings.model_copy(update={"claims": claims})) for b in boards]
    at_two, at_eight = judge_all(boards)
    assert (at_two.verdict, at_two.title.endswith("world_size 2")) == ("SUPPORTED", True)
    assert (at_eight.verdict, at_eight.evidence) == ("NOT-APPLICABLE", "no board of world_size = 8 here")
    assert {j.verdict for b in boards for j in judge(b)} == {"SUPPORTED", "NOT-APPLICABLE"}
    about_full = [claim("full", "value above", 0)]
    boards = [replace(b, settings=b.settings.model_copy(update={"claims": about_full})) for b in boards]
    assert [j.title.endswith("world_size 1") for j in judge_all(boards)] == [True]  # elsewhere it only stands to compare with


@pytest.fixture
def scored(tmp_path):
    """A board of `full`, `good`, which scores the same, and `bad`, 3.5 bits instead of 2.5, with scores by document."""
    rng = np.random.default_rng(0)
    for record in trials({"full": 1000, "good": 1000, "bad": 1000}):
        mean = 3.5 if record.cell.stack == "bad" else 2.5
        scores = (np.linspace(-0.5, 0.5, 40) + mean + rng.normal(0, 0.005, 40)).tolist()
        quality = QualityScores(scores={"bits_per_byte": float(np.mean(scores))}, n=40)
        write(tmp_path, record.model_copy(update={"quality": quality}), scores)
    [board] = build(tmp_path, SETTINGS)
    return board


def test_quality_is_judged_by_draws_over_documents_and_seeds(scored):
    good, bad = (judged(scored, stack, "ratio to baseline below", 1.03, "bits_per_byte") for stack in ("good", "bad"))
    assert (good.verdict, bad.verdict) == ("SUPPORTED", "REFUTED")
    assert bad.estimate == pytest.approx(3.5 / 2.5, rel=0.01)
    assert judged(scored, "bad", "better than good", metric="quality.bits_per_byte").verdict == "REFUTED"
    found = judged(scored, "bad", "value above", 3, "bits_per_byte")
    # Documents from -0.5 to 0.5 have a standard deviation of 0.3, and 98.75 % of a normal mean lie within 2.5 of its errors.
    assert found.verdict == "SUPPORTED"
    assert found.high - found.low == pytest.approx(2 * 2.5 * 0.3 / np.sqrt(40), rel=0.1)


def test_quality_without_scores_by_document_is_unclear(board):
    found = judged(board, relation="ratio to baseline below", value=9, metric="bits_per_byte")
    assert (found.verdict, found.evidence) == ("UNCLEAR", "1× (no interval), 3 rounds, 1 cell; claimed below 9")


def test_to_a_score_below_zero_there_is_no_ratio():
    quality = QualityScores(scores={"log_likelihood": -2.0}, n=4)
    board = board_of([record.model_copy(update={"quality": quality}) for record in trials()])
    found = judged(board, "fast", value=1.0, metric="quality.log_likelihood")
    assert (found.verdict, found.evidence) == (
        "NOT-APPLICABLE",
        "the score of `full` is zero or less, to which there is no ratio",
    )


def test_quality_of_what_sees_later_tokens_says_nothing():
    records = [r.model_copy(update={"leaks": "it sees"}) if r.cell.stack == "fast" else r for r in trials()]
    found = judged(board_of(records), relation="ratio to baseline below", value=2, metric="bits_per_byte")
    assert (found.verdict, found.evidence) == ("NOT-APPLICABLE", "`fast` sees later tokens, so its quality says nothing")


def test_of_zero_there_is_no_ratio_but_a_value():
    records = [
        make_record(stack, number, metrics={"compile.graph_breaks": Summary(median=0, unit="")})
        for stack in ("full", "fast")
        for number in (1, 2, 3)
    ]
    board = board_of(records)
    assert judged(board, relation="value equals", value=0, metric="compile.graph_breaks").verdict == "SUPPORTED"
    found = judged(board, relation="ratio to baseline above", value=1, metric="compile.graph_breaks")
    assert found.evidence == "compile.graph_breaks of `fast` is 0, of which there is no ratio"


@pytest.mark.parametrize("rounds", [3, 10])
def test_a_claim_that_is_true_is_refuted_in_no_more_than_its_share(rounds):
    """At the claimed value itself, where errors are most frequent: one side of the level for `below`, none for `equals`."""
    rng = np.random.default_rng(7)
    row, draws = Row("x", {}, "x", ""), 4000
    found = [Evidence(ratio_interval(logs, LEVEL), frozenset(), row) for logs in rng.normal(0, 0.1, (draws, rounds))]
    most = draws * VERDICT_LEVEL / 2
    slack = 3 * np.sqrt(most)
    for side in ("below", "above"):
        words = [verdict_of(one, side, 1.0) for one in found]
        assert words.count("REFUTED") <= most + slack
        assert words.count("SUPPORTED") <= most + slack
        assert words.count("REFUTED") > 0  # or nothing was tested
    assert [verdict_of(one, "equals", 1.0, 0.03) for one in found].count("REFUTED") <= most + slack


def test_an_interval_that_ends_at_the_bound_is_not_below_it():
    row = Row("x", {}, "x", "")
    at = Evidence(Interval(1.0, 1.0, 1.0, 3), frozenset(), row)
    assert [verdict_of(at, side, 1.0) for side in ("below", "above", "equals")] == ["REFUTED", "REFUTED", "SUPPORTED"]
    assert verdict_of(Evidence(Interval(1.0, 1.0, 1.0, 2), frozenset(), row), "equals", 1.0) == "UNCLEAR"
    negative = Evidence(Interval(-0.5, -0.5, -0.5, 3), frozenset(), row)
    assert verdict_of(negative, "equals", -0.5, 0.1) == "SUPPORTED"


def test_claims_as_a_frame(board):
    claims = [claim(value=1.5), claim("gone", value=1)]
    frame = claims_frame([replace(board, settings=board.settings.model_copy(update={"claims": claims}))])
    assert tuple(frame.columns) == CLAIM_COLUMNS
    assert list(frame["verdict"]) == ["SUPPORTED", "NOT-APPLICABLE"]
    assert list(frame["value"]) == [1.5, 1.0]
    assert json.loads(frame["where"][0]) == {}
    assert frame["estimate"].isna().tolist() == [False, True]
    assert list(claims_frame([board]).columns) == [*CLAIM_COLUMNS]


def test_claims_that_stand_beside_the_records_are_read(tmp_path):
    content = SETTINGS | {"claims": [claim(value=1.5).model_dump(mode="json")]}
    (tmp_path / "suite.json").write_text(json.dumps(content))
    for record in trials():
        (tmp_path / f"{record.cell_id}.r{record.round}.json").write_text(record.model_dump_json())
    [board] = build(tmp_path)
    assert counts(judge_all([board])) == {"SUPPORTED": 1, "REFUTED": 0, "UNCLEAR": 0, "NOT-APPLICABLE": 0}


def test_a_metrics_name_says_which_way_is_better():
    known = {name: metric.direction for name, metric in discover().metrics().items()}
    assert {name: better_of(name) for name in known} == known
    assert known.keys() >= COUNTS
    assert better_of("quality.accuracy") == "higher"
    assert better_of("quality.bits_per_byte") == "lower"


def test_the_standard_suites_claim_what_can_be_judged():
    metrics = discover().metrics()
    suites = [(file, read_suite(file)) for file in standard_suites()]
    claims = [(suite, one) for _, suite in suites for one in suite.claims]
    assert len(claims) >= 30
    assert {suite.name for suite, _ in claims} >= {
        "peft", "distillation", "pruning", "quantization", "stacks", "attention-scaling", "long-range", "precision", "compile",
        "scaling", "scaling-weak", "scaling-memory",
    }  # fmt: skip
    assert all(file.stem == suite.name for file, suite in suites)  # by which `effbench claims` finds them
    for suite, one in claims:
        assert re.search(r"\b(19|20)\d\d\b", one.source), one.source
        score = one.metric.removeprefix("quality.")
        assert one.metric in metrics or score in ("bits_per_byte", "top1_accuracy", "accuracy"), one.metric
        assert one.parts.kind != "exponent" or one.metric in COSTS
        assert one.where.get("model", suite.models[0]) in suite.models
        assert one.where.get("workload", suite.workloads[0]) in suite.workloads
        assert one.where.get("world_size", 1) in (1, *suite.axes.get("world_size", ()))
        for axis, value in one.options.items():
            assert value in suite.axes[axis]
        assert not _unnamed(suite, one), f"{one.says}: `where` names no value of {_unnamed(suite, one)}"


def _unnamed(suite, one):
    """Axes of its techniques' options that stand at several values, of which it names none."""
    techniques = {use.technique for stack in (one.stack, one.parts.stack) if stack for use in suite.stacks[stack].use}
    several = {axis for axis, values in suite.axes.items() if "." in axis and len(values) > 1}
    return {axis for axis in several if axis.partition(".")[0] in techniques} - one.option_axes


def test_a_claim_on_an_aggregate_names_the_cells_of_all_its_boards():
    [board] = boards_of(two_places(), aggregate=True)
    found = judged(board, value=3.0)
    assert (found.verdict, found.estimate) == ("SUPPORTED", pytest.approx(4, rel=0.02))
    assert len(found.cells) == 2
