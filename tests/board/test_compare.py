import json
import math
from pathlib import Path

import numpy as np
import pytest
import zstandard

from effbench.board import changes
from effbench.board.changes import PAIRED, ROUNDS, SESSIONS, Same, contrast_of
from effbench.board.compare import Margins, compare_frames
from effbench.board.contrast import holm_contrasts, paired, unpaired
from effbench.board.frame import tidy
from effbench.board.sides import pairs, side_of
from effbench.board.stats import VERDICT_LEVEL, t_test_p
from effbench.board.verdict import verdict
from effbench.plugin import Summary
from effbench.store.record import Fingerprint, QualityScores
from tests.records import make_cell, make_record

SPEED = "train.tokens_per_s"
BITS = "quality.bits_per_byte"
OTHER = Fingerprint(techniques={}, weights="w", data="d", versions={"torch": "2.14.0"})


def side(speeds, rounds=5, noise=0.01, seed=0, **changes):
    """Trials of stacks at these speeds."""
    rng = np.random.default_rng(seed)
    for number in range(1, rounds + 1):
        for stack, speed in speeds.items():
            techniques = () if stack == "full" else ((stack, {}),)
            cell = changes.get("cell") or make_cell(stack, techniques=techniques)
            yield make_record(
                **{"cell": cell, "round_number": number, "tokens_per_s": speed * np.exp(rng.normal(0, noise))} | changes
            )


def later(speeds, **changes):
    return side(speeds, **{"seed": 1, "session": "later"} | changes)


def frame_of(records, folder="r"):
    return tidy((Path(folder) / f"{r.cell_id}.r{r.round}.{r.session}.json", r) for r in records)


def compared(old, new, margins=None, **options):
    return compare_frames(frame_of(old, "old"), frame_of(new, "new"), margins, **options)


def verdicts(found, metric=SPEED):
    rows = found.rows[found.rows["metric"] == metric]
    return dict(zip(rows["stack"], rows["verdict"], strict=True))


def row_of(found, stack="full", metric=SPEED):
    [row] = found.rows[(found.rows["stack"] == stack) & (found.rows["metric"] == metric)].to_dict("records")
    return row


def reasons(found):
    return list(found.rows.loc[found.rows["metric"].isna(), "reason"])


def test_what_became_slower_and_what_did_not():
    found = compared(side({"full": 1000, "lora": 2000}), later({"full": 1000, "lora": 1600}))
    assert verdicts(found) == {"full": "SAME", "lora": "SLOWER"}
    row = row_of(found, "lora")
    assert row["low"] < 0.8 < row["high"]
    assert row["old"] == pytest.approx(2000, rel=0.02)
    assert (row["over"], row["old_rounds"], row["new_rounds"]) == (ROUNDS, 5, 5)
    assert found.compared == 2
    assert verdicts(compared(later({"lora": 1600}), side({"lora": 2000}))) == {"lora": "FASTER"}


def test_the_margin_is_what_slower_means():
    old, new = [*side({"lora": 1000}, noise=0.001)], [*later({"lora": 960}, noise=0.001)]
    assert verdicts(compared(old, new, Margins(speed=0.03))) == {"lora": "SLOWER"}
    assert verdicts(compared(old, new, Margins(speed=0.05))) == {"lora": "SAME"}


def test_two_rounds_give_no_verdict():
    row = row_of(compared(side({"full": 1000}, rounds=2), later({"full": 500})))
    assert row["verdict"] == "UNCLEAR"
    assert "3 rounds" in row["reason"]
    assert row["ratio"] == pytest.approx(0.5, rel=0.05)


def test_rounds_of_one_session_are_paired():
    """Two checkouts measured in one run: what a round adds to both is no noise."""

    def drifting(speed, version):
        for record in side({"full": speed}, noise=0.002, seed=int(speed), fingerprint=version):
            drift = math.exp(0.3 * record.round)
            metrics = {name: s.model_copy(update={"median": s.median * drift}) for name, s in record.metrics.items()}
            yield record.model_copy(update={"metrics": metrics})

    row = row_of(compared(drifting(1000, Fingerprint(**OTHER.model_dump() | {"weights": "w"})), drifting(900, OTHER)))
    assert (row["over"], row["verdict"]) == (PAIRED, "SLOWER")
    unpaired_ = compared(drifting(1000, OTHER), (r.model_copy(update={"session": "x"}) for r in drifting(900, OTHER)))
    assert row_of(unpaired_)["verdict"] == "UNCLEAR"


def test_relative_to_the_baseline_the_machines_mood_is_gone():
    old, new = [*side({"full": 1000, "lora": 2000, "ia3": 2000})], [*later({"full": 800, "lora": 1600, "ia3": 1200})]
    assert verdicts(compared(old, new)) == {"full": "SLOWER", "lora": "SLOWER", "ia3": "SLOWER"}
    found = compared(old, new, relative=True)
    assert verdicts(found) == {"lora": "SAME", "ia3": "SLOWER"}
    assert row_of(found, "lora")["old"] == pytest.approx(2, rel=0.02)
    assert row_of(found, "ia3")["ratio"] == pytest.approx(0.75, rel=0.02)
    assert verdicts(found, "parameters.trainable").keys() == {"full", "lora", "ia3"}
    assert any("median ratio of 3 cells is 0.8" in note for note in compared(old, new).notes)


def test_relative_needs_the_baseline_beside_it():
    found = compared(side({"lora": 2000}), later({"lora": 1000}), relative=True)
    assert "no baseline" in row_of(found, "lora")["reason"]


def test_three_sessions_on_each_side_are_the_unit():
    old = [r for s in "abc" for r in side({"full": 1000}, rounds=3, session=s, seed=ord(s))]
    new = [r for s in "def" for r in side({"full": 1000}, rounds=3, session=s, seed=ord(s))]
    found = compared(old, new)
    assert row_of(found)["over"] == SESSIONS
    assert not any("do not cover" in note for note in found.notes)
    assert any("do not cover" in note for note in compared(old[:3], new).notes)


def drawn(rng, *, rounds, noise, sessions=1, between=0.0, shift=0.0):
    """Logs of one cell: sessions that differ, and rounds that scatter within."""
    label = rng.integers(1 << 60)
    moods = rng.normal(0, between, sessions)
    return {
        (f"{label}-{s}", number): shift + mood + rng.normal(0, noise)
        for s, mood in enumerate(moods)
        for number in range(rounds)
    }


def wrong_share(runs, cells, margin, **how):
    """How often any of many equal cells is called SLOWER."""
    rng = np.random.default_rng(3)
    wrong = 0
    for _ in range(runs):
        contrasts = [contrast_of(drawn(rng, **how), drawn(rng, **how))[0] for _ in range(cells)]
        intervals = holm_contrasts(contrasts, math.log1p(margin))
        wrong += any(verdict(adjusted, margin) == "SLOWER" for _, adjusted in intervals)
    return wrong / runs


@pytest.mark.parametrize("rounds", [3, 5])
def test_equal_code_fails_no_more_often_than_it_may(rounds):
    """Without a margin, the hardest case: at most 1.25 % / 2 of runs, of which 1.75 % is three standard errors away."""
    assert wrong_share(400, 6, 0.0, rounds=rounds, noise=0.05) <= 0.0175
    assert wrong_share(200, 6, 0.03, rounds=rounds, noise=0.02) == 0


def test_sessions_of_their_own_mood_do_not_fail_where_there_are_three():
    assert wrong_share(400, 1, 0.0, sessions=3, rounds=3, noise=0.005, between=0.05) <= 0.0175


def test_a_true_slowdown_is_found():
    """15 % at 2 % of noise over 5 rounds, one of ten cells, with a margin of 5 %."""
    rng = np.random.default_rng(4)
    caught = 0
    for _ in range(200):
        contrasts = [
            contrast_of(
                drawn(rng, rounds=5, noise=0.02), drawn(rng, rounds=5, noise=0.02, shift=-math.log(1.15) if not index else 0)
            )[0]
            for index in range(10)
        ]
        words = [verdict(adjusted, 0.05) for _, adjusted in holm_contrasts(contrasts, math.log1p(0.05))]
        caught += words[0] == "SLOWER"
    assert caught / 200 > 0.85


def test_welch_as_scipy_has_it():
    from scipy.stats import ttest_ind  # the reference implementation

    rng = np.random.default_rng(0)
    old, new = rng.normal(0, 0.01, 4), rng.normal(0.02, 0.05, 7)
    reference = ttest_ind(new, old, equal_var=False)
    found = unpaired(old, new)
    assert found.p(0.0) == pytest.approx(reference.pvalue)
    interval, expected = found.interval(0.9), reference.confidence_interval(0.9)
    assert (math.log(interval.low), math.log(interval.high)) == pytest.approx((expected.low, expected.high))
    assert paired(old, new[:4]).p(0.01) == pytest.approx(t_test_p(new[:4] - old, 0.01))
    assert unpaired(np.zeros(3), np.zeros(3)).p(0.01) == 0
    assert unpaired(np.zeros(1), np.zeros(5)).interval().low is None


def lost(stack, status, rounds=3, **changes):
    cell = make_cell(stack, techniques=((stack, {}),))
    fields = {"metrics": {}, "quality": None, "error": "CUDA out of memory", "session": "later"}
    return [make_record(cell=cell, round_number=n, status=status, **fields | changes) for n in range(1, rounds + 1)]


def test_what_fails_now_and_did_not_is_told_first():
    speeds = {"full": 1000, "lora": 2000, "ia3": 900, "dora": 10}
    failing = [*lost("lora", "oom"), *lost("ia3", "skipped", error="needs peft"), *lost("dora", "crashed")[:1]]
    new = [*later({"full": 500}), *failing, *(r for r in later({"dora": 10}) if r.round > 1)]
    found = compared(side(speeds), new)
    regressions = found.with_verdict("FAILS", "SLOWER")
    first = regressions.iloc[0]
    assert (first["stack"], first["verdict"], first["reason"]) == ("lora", "FAILS", "oom: CUDA out of memory")
    assert list(regressions["verdict"]) == ["FAILS", "SLOWER", "SLOWER", "SLOWER"]  # of training, prefill and decoding
    assert reasons(found).count("NEW: skipped: needs peft") == 1
    assert any("1 of 5 trials" in note and "crashed" in note for note in found.notes)
    assert list(compared(lost("lora", "oom"), later({"lora": 1})).rows["verdict"]) == ["RUNS"]
    assert reasons(compared(lost("lora", "oom"), lost("lora", "failed"))) == [
        "no finished trial on either side: oom, then failed"
    ]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"fingerprint": Fingerprint(**OTHER.model_dump() | {"methodology": "1"})}, "other methodology: 2, then 1"),
        ({"fingerprint": Fingerprint(**OTHER.model_dump() | {"weights": "v"})}, "other weights: w, then v"),
        ({"cell": make_cell(steps=8)}, "other settings: threads 1"),
        ({"cell": make_cell(techniques=(("lora", {"r": 2}),))}, "other techniques, options or learning rate"),
        ({"cell": make_cell(lr=1)}, "other techniques, options or learning rate"),
        ({"cell": make_cell(phases=("infer",))}, "its phases or its model's shape changed"),
        ({"cell": make_cell(device="cuda")}, "other device: cpu, then cuda"),
        ({"machine": "m2"}, "measured on other machines: machine, then m2"),
    ],
)
def test_what_must_agree_and_does_not_is_never_compared(change, reason):
    found = compared(side({"full": 1000}), later({"full": 10}, **change))
    [said] = reasons(found)
    assert said.startswith(reason) or reason in said
    assert found.compared == 0
    assert not found.verdicts


@pytest.mark.parametrize("change", [{"suite": "other"}, {"stack": "renamed"}, {"seq_len": 128}])
def test_a_cell_of_one_side_alone_is_named(change):
    found = compared(side({"full": 1000}), later({"full": 1000}, cell=make_cell(**{"stack": "full"} | change)))
    assert reasons(found) == ["only in OLD", "only in NEW"]


def test_other_versions_are_what_is_compared():
    assert verdicts(compared(side({"full": 1000}), later({"full": 500}, fingerprint=OTHER))) == {"full": "SLOWER"}
    assert not any("same code" in note for note in compared(side({"full": 1}), later({"full": 1}, fingerprint=OTHER)).notes)
    assert any("1 of 1 cells are of the same code" in n for n in compared(side({"full": 1}), later({"full": 1})).notes)


def test_records_that_stand_on_both_sides_are_told():
    old = [*side({"full": 1000, "lora": 2000})]
    found = compared(old, [*(r for r in old if r.cell.stack == "full"), *later({"lora": 2000})])
    assert any("1 of 2 cells have trials that are the very same" in note for note in found.notes)


def test_only_the_newest_code_of_a_side_counts():
    """A run writes rounds from 1 upwards over what is there, so what is left of older code are later rounds."""
    mixed = [r for r in side({"full": 1000}, rounds=8) if r.round > 4]
    mixed += [r for r in later({"full": 500}, rounds=4, fingerprint=OTHER)]
    row = row_of(compared(side({"full": 500}, rounds=4, session="first"), mixed))
    assert row["ratio"] == pytest.approx(1, rel=0.05)
    assert row["new_rounds"] == 4


def test_disturbed_trials_are_left_out():
    new = [
        r if r.round > 2 else make_record(round_number=r.round, tokens_per_s=1, session="later", dirty="others")
        for r in later({"full": 1000}, noise=0.001)
    ]
    row = row_of(compared(side({"full": 1000}, noise=0.001), new))
    assert (row["new_rounds"], row["verdict"]) == (3, "SAME")
    found = compared(side({"full": 1000}), later({"full": 10}, dirty="others"))
    assert row_of(found)["verdict"] == "UNCLEAR"
    assert "disturbed" in row_of(found)["reason"]
    assert row_of(found, metric="parameters.trainable")["verdict"] == "SAME"


def test_counts_need_one_round_and_no_interval():
    [old] = side({"full": 1000}, rounds=1)
    metrics = old.metrics | {"parameters.trainable": Summary(median=3_000_000, unit="")}
    found = compared([old], [old.model_copy(update={"metrics": metrics, "session": "later"})])
    row = row_of(found, metric="parameters.trainable")
    assert (row["old"], row["new"], row["ratio"], row["verdict"]) == (2_000_000, 3_000_000, 1.5, "LARGER")


def test_what_is_not_measured_any_more_is_named():
    new = [
        r.model_copy(update={"metrics": {"infer.decode_tokens_per_s": Summary(median=100, unit="")}})
        for r in later({"full": 1})
    ]
    assert row_of(compared(side({"full": 1000}), new))["reason"] == "not measured in NEW"


def test_zero_on_both_sides_is_no_news_and_on_one_has_no_ratio():
    def with_cache(records, size):
        for r in records:
            yield r.model_copy(update={"metrics": r.metrics | {"infer.kv_cache_bytes": Summary(median=size, unit="B")}})

    metric = "infer.kv_cache_bytes"
    nothing = compared(with_cache(side({"full": 1}), 0), with_cache(later({"full": 1}), 0))
    assert metric not in set(nothing.rows["metric"])
    row = row_of(compared(with_cache(side({"full": 1}), 0), with_cache(later({"full": 1}), 8)), metric=metric)
    assert "no ratio" in row["reason"]


def scored(folder, worse, stacks=("full",), *, data="d", documents=60, noise=0.02):
    """Records with sidecars: documents differ much more from each other than from one version to the next."""
    rng = np.random.default_rng(7)
    level = rng.uniform(1, 4, documents)
    own = np.random.default_rng(round(worse * 1e6))
    records = []
    folder.mkdir()
    for stack in stacks:
        for number in (1, 2, 3):
            scores = level * (1 + worse) + (own.normal(0, noise, documents) if worse else 0)
            quality = {"names": [f"d{i}" for i in range(documents)], "weights": [1.0] * documents}
            quality["per_sample"] = {"bits_per_byte": scores.tolist()}
            quality_scores = QualityScores(scores={"bits_per_byte": scores.mean()}, n=documents)
            record = make_record(stack, number, quality=quality_scores, metrics={SPEED: Summary(median=1, unit="tokens/s")})
            fingerprint = Fingerprint(**record.fingerprint.model_dump() | {"data": data})
            name = f"{record.cell_id}.r{number}.samples.zst"
            (folder / name).write_bytes(zstandard.compress(json.dumps({"samples": {}, "quality": quality}).encode()))
            records.append(record.model_copy(update={"samples": name, "session": folder.name, "fingerprint": fingerprint}))
    return frame_of(records, folder)


def test_quality_is_paired_by_document(tmp_path):
    old = scored(tmp_path / "old", 0.0)
    worse = compare_frames(old, scored(tmp_path / "worse", 0.02), Margins(quality=0.01))
    row = row_of(worse, metric=BITS)
    assert row["verdict"] == "WORSE"
    assert row["low"] < 1.02 < row["high"]
    little = compare_frames(old, scored(tmp_path / "little", 0.002), Margins(quality=0.01))
    assert row_of(little, metric=BITS)["verdict"] == "SAME"
    same = compare_frames(old, old, Margins(quality=0.01))
    assert row_of(same, metric=BITS)["verdict"] == "SAME"


def test_quality_on_other_text_is_not_compared_while_speed_is(tmp_path):
    found = compare_frames(scored(tmp_path / "old", 0.0), scored(tmp_path / "new", 0.5, data="e"))
    assert row_of(found, metric=BITS)["reason"] == "scores are of other text"
    assert row_of(found)["ratio"] == 1


def test_enough_draws_for_many_cells(tmp_path):
    """At 10,000 draws no p-value is below 0.02 %, and with 70 cells Holm's first level is 0.018 %."""
    stacks = [f"stack{i}" for i in range(70)]
    old, new = (
        scored(tmp_path / name, worse, stacks, documents=6, noise=0.002) for name, worse in (("old", 0.0), ("new", 0.2))
    )
    found = compare_frames(old, new, Margins(quality=0.01))
    assert set(verdicts(found, BITS).values()) == {"WORSE"}


def test_draws_for_very_many_cells_stay_within_memory(monkeypatch):
    """Two million draws of a hundred documents would take 400 MB."""
    asked = []
    monkeypatch.setattr(changes, "quality_difference", lambda *args: asked.append(args[-1]))
    old, new = (side_of(frame_of(records)) for records in (side({"full": 1}), later({"full": 1}, bits=2.6)))
    [same] = [Same(pair.old, pair.new, {}) for pair in pairs(old, new)]
    [*changes.scored([same] * 6000, BITS, 0.01)]
    assert max(asked) == changes.MOST_DRAWS < 4 * 6000 / VERDICT_LEVEL
