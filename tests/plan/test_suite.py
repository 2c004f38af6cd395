import pytest

from effbench.plan.suite import find_suite, read_suite, standard_suites
from effbench.plugin import InputError

GOOD = """name = "s"
baseline = "full"
models = ["tiny-llama"]
workloads = ["docs"]
[axes]
seq_len = [64]
"lora.rank" = [4, 16]
[training]
steps = 10
[stacks]
full = []
lora = { use = [{ technique = "lora", rank = 8 }], lr = 3e-3 }
both = ["magnitude_pruning", "lora"]
"""


def read(tmp_path, text=GOOD, **overrides):
    file = tmp_path / "s.toml"
    file.write_text(text)
    return read_suite(file, {key.replace("__", "."): value for key, value in overrides.items()})


def test_all_forms_of_a_stack(tmp_path):
    suite = read(tmp_path)
    assert suite.stacks["full"].use == []
    assert suite.stacks["lora"].lr == 3e-3
    assert suite.stacks["lora"].use[0].options == {"rank": 8}
    assert [use.technique for use in suite.stacks["both"].use] == ["magnitude_pruning", "lora"]


def test_overrides_are_toml_values_or_strings(tmp_path):
    suite = read(tmp_path, training__steps="3", axes__seq_len="[8, 16]", dtype="bfloat16")
    assert (suite.training.steps, suite.axes["seq_len"], suite.dtype) == (3, [8, 16], "bfloat16")
    file = tmp_path / "s.toml"
    assert read_suite(file, {'axes."lora.rank"': "[2]"}).axes["lora.rank"] == [2]
    assert read_suite(file, {"axes.lora.rank": "[2]"}).axes["lora.rank"] == [2]


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("steps = 10", "stepz = 10", ["s.toml:9", "training.stepz", "training.steps"]),
        ("steps = 10", "steps = 0", ["s.toml:9", "training.steps", "= 0", "greater than or equal to 1"]),
        ("steps = 10", 'steps = "many"', ["s.toml:9", "'many'", "integer"]),
        ('baseline = "full"', 'baseline = "ful"', ["unknown stack 'ful'", "did you mean 'full'"]),
        ("seq_len = [64]", "seq_length = [64]", ["s.toml:6", "unknown axis 'seq_length'", "did you mean 'seq_len'"]),
        ("seq_len = [64]", "seq_len = [0]", ["seq_len", "whole numbers from 1"]),
        ('models = ["tiny-llama"]', "", ["models is missing"]),
        ("[training]", "[training", ["not TOML", "line 8"]),
        ("lr = 3e-3", "lrr = 3e-3", ["lrr", "lr"]),
        ("[stacks]", "[for_workload.dosc]\nrounds = 1\n[stacks]", ["s.toml:10", "did you mean 'docs'"]),
        ("[stacks]", '[for_workload.docs]\nmodels = ["x"]\n[stacks]', ["s.toml:11", "model of this suite", "tiny-llama"]),
        (
            'models = ["tiny-llama"]',
            'models = ["tiny-llama", "x"]\nfor_workload.docs = { models = ["x"] }',
            ["s.toml:3", "'tiny-llama' has no workload"],
        ),
        ("[stacks]", "[for_workload.docs]\nbatch_size = [0]\n[stacks]", ["s.toml:11", "batch_size", "whole numbers from 1"]),
    ],
)
def test_a_mistake_is_one_line_with_file_place_and_what_is_allowed(tmp_path, old, new, words):
    assert old in GOOD
    with pytest.raises(InputError) as caught:
        read(tmp_path, GOOD.replace(old, new))
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_standard_suites_are_found_by_name_and_valid():
    assert "quick" in [file.stem for file in standard_suites()]
    for file in standard_suites():
        assert read_suite(file).name == file.stem
    quick = read_suite(find_suite("quick"))
    assert len(quick.axes["seq_len"]) == 2
    assert len(quick.axes["batch_size"]) == 2
    assert len(quick.stacks) >= 6
    assert set(quick.phases) == {"train", "infer"}


def test_an_unknown_suite_says_which_are_known():
    with pytest.raises(InputError, match="did you mean 'quick'"):
        find_suite("quik")
    with pytest.raises(InputError, match="no such file"):
        find_suite("absent.toml")


def test_where_fits_of_growth_begin_is_a_length(tmp_path):
    assert read(tmp_path).fit_from is None
    assert read(tmp_path, fit_from="2048").fit_from == 2048
    with pytest.raises(InputError, match="fit_from"):
        read(tmp_path, fit_from="0")


def test_a_front_takes_two_metrics(tmp_path):
    assert read(tmp_path).front is None
    assert read(tmp_path, front='["train_speed", "checkpoint"]').front == ["train_speed", "checkpoint"]
    with pytest.raises(InputError, match="front"):
        read(tmp_path, front='["train_speed"]')
