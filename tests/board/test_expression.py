import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from effbench.board.expression import DEEPEST, LONGEST, parse
from effbench.plugin.errors import InputError

FRAME = pd.DataFrame(
    {
        "stack": ["full", "lora", "it's"],
        "seq_len": [64, 128, 512],
        "lora.rank": [np.nan, 4, 16],
        "train_speed_ratio": [1.0, 1.5, np.nan],
        "verdict": ["baseline", "FASTER", None],
        "mixed": [4, "nf4", True],
        "flag": [True, False, None],
    }
)


def chosen(text):
    return FRAME.index[parse(text).mask(FRAME)].tolist()


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("seq_len == 64", [0]),
        ("seq_len != 64", [1, 2]),
        ("64 < seq_len <= 512", [1, 2]),
        ("64 <= seq_len < 128 < 200", [0]),
        ("seq_len in [64, 512]", [0, 2]),
        ("seq_len in (64, 512)", [0, 2]),
        ("seq_len not in [64, 512]", [1]),
        ("lora.rank >= 4", [1, 2]),
        ('stack == "it\'s"', [2]),
        ("stack < 'g'", [0]),
        ("verdict == 'FASTER' or seq_len > 500", [1, 2]),
        ("not (verdict == 'FASTER' or seq_len > 500)", [0]),
        ("seq_len == 64 or seq_len == 128 and stack == 'x'", [0]),
        ("train_speed_ratio > -1e3", [0, 1]),
        ("-train_speed_ratio > 1", None),
        ("seq_len == train_speed_ratio", []),
        ("flag == True", [0]),
        ("mixed == 4", [0]),
        ("mixed != 4", [1, 2]),
        ("mixed in ['nf4', 5]", [1]),
        (" seq_len == 64 ", [0]),
        ("1 < 2", [0, 1, 2]),
        ("nowhere == 1", []),
    ],
)
def test_what_it_chooses(text, rows):
    if rows is None:
        with pytest.raises(InputError, match="arithmetic"):
            parse(text)
    else:
        assert chosen(text) == rows


@pytest.mark.parametrize("op", ["==", "!=", "<", "<=", ">", ">="])
def test_a_comparison_with_what_is_missing_is_false(op):
    assert 2 not in chosen(f"train_speed_ratio {op} 1")
    assert 0 not in chosen(f"lora.rank {op} 4")


def test_not_of_a_comparison_with_what_is_missing_is_true():
    assert 2 in chosen("not train_speed_ratio > 0")
    assert 2 not in chosen("verdict not in ['FASTER']")


def test_names_are_whole_with_their_dots():
    assert parse("lora.rank == 4 and not (a.b.c in [1] or stack == 'x')").names == {"lora.rank", "a.b.c", "stack"}


def test_it_is_split_at_the_top_level_and_alone():
    parts = parse("a == 1 and (b == 2 and (c == 3 or d == 4)) and not (e == 5 and f == 6)").parts()
    assert [part.names for part in parts] == [{"a"}, {"b"}, {"c", "d"}, {"e", "f"}]
    assert [part.names for part in parse("a == 1 or b == 2").parts()] == [{"a", "b"}]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "empty"),
        ("seq_len = 64", "=="),
        ("seq_len", "a comparison is missing, at character 1"),
        ("a == 1 and stack", "a comparison is missing, at character 12"),
        ("ä == 'ü' and stack", "at character 14"),
        ("__import__('os').system('true') == 0", "a call"),
        ("f(1) == 1", "a call is not allowed, at character 1"),
        ("print(1)", "a call"),
        ("a[0] == 1", "an index"),
        ("a.b[0].c == 1", "is not allowed"),
        ("(1).real == 1", "is not allowed"),
        ("'x'.__class__ == 1", "is not allowed"),
        ("a + 1 == 2", "arithmetic"),
        ("10 ** 10 ** 10 == a", "arithmetic"),
        ("a in b", "`in` takes a list"),
        ("a in [b]", "numbers and quoted text alone"),
        ("a in 'abc'", "`in` takes a list"),
        ("a is 1", "`is`"),
        ("[1, 2] == a", "a list outside"),
        ("(a == 1) == 1", "a comparison as a value"),
        ("a == None", "this value"),
        ("a == 1j", "this value"),
        ("a == b'x'", "this value"),
        ("a == f'{b}'", "is not allowed"),
        ("lambda: 1", "is not allowed"),
        ("[x for x in a]", "is not allowed"),
        ("(x := 1) == 1", "is not allowed"),
        ("a == 1 if b == 1 else c == 1", "is not allowed"),
        ("a == 1; b == 2", "cannot be read"),
        ("a == 'x", "cannot be read"),
        ("a == 1\x00", "cannot be read"),
        ("not " * (DEEPEST + 1) + "a == 1", "levels"),
        ("(" * 400 + "a == 1" + ")" * 400, "cannot be read"),
        ("-" * 900 + "1 == a", ""),
    ],
)
def test_all_else_is_refused_in_one_line(text, words):
    with pytest.raises(InputError) as caught:
        parse(text)
    message = str(caught.value)
    assert words in message
    assert "\n" not in message
    assert "allowed: comparisons" in message


def test_its_length_is_bounded():
    with pytest.raises(InputError, match="at most"):
        parse("a == '" + "x" * LONGEST + "'")


@pytest.mark.parametrize("text", ["seq_len == '64'", "seq_len in ['64']", "stack < 4", "'a' < seq_len", "flag == 1"])
def test_numbers_and_text_are_not_compared(text):
    with pytest.raises(InputError, match="compared with"):
        chosen(text)


def test_a_number_beyond_all_bounds_is_only_large():
    assert chosen(f"seq_len < {'9' * 400}") == [0, 1, 2]


def test_the_examples_of_the_documentation_are_expressions():
    text = (Path(__file__).parents[2] / "docs" / "leaderboards.md").read_text()
    examples = re.findall(r'--filter "(.+?)"', text)
    assert len(examples) > 1
    for example in examples:
        assert parse(example).names
