"""What a plugin can do wrong beyond raising, and what is not its mistake."""

import sys

import pytest

from effbench.plugin.discovery import discover
from tests.plugin.test_discovery import HEAD, MINE, REGISTER, plugin, problem_of


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("class Odd(BaseException): ...\nraise Odd('no')", "Odd: no (mine.py:2)"),
        ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module' (mine.py:1)"),
        ("\ndef broken(:", "(mine.py:2)"),
        (HEAD + MINE + REGISTER.replace("(register)", "(reg)"), "Argument(s) {'reg'} are declared"),
        (HEAD + MINE + REGISTER.replace("techniques", "models").replace("@hookimpl\n", ""), "not marked with @hookimpl"),
        (HEAD + MINE.replace('"other"', '"peftt"') + REGISTER, "Mine: unknown family 'peftt': did you mean 'peft'"),
        (
            "from effbench.plugin import Workload, hookimpl\nclass W(Workload):\n    'W.'\n    name = 'w'\n"
            "@hookimpl\ndef register_workloads(register):\n    register(W)\n",
            "W lacks data_hash, prompts, quality, training_batches",
        ),
    ],
)
def test_a_broken_plugin_says_why(tmp_path, text, words):
    catalog = discover([plugin(tmp_path, text)])
    assert words in problem_of(catalog)
    assert "\n" not in problem_of(catalog)
    assert "lora" in catalog.techniques.names()
    assert "mine" not in catalog.techniques.names()


def test_an_interrupt_is_the_users(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        discover([plugin(tmp_path, "raise KeyboardInterrupt")])


def test_a_broken_file_leaves_no_module_behind(tmp_path):
    discover([plugin(tmp_path, "raise RuntimeError", "half_loaded.py")])
    assert not [name for name in sys.modules if "half_loaded" in name]


def test_what_a_hook_prints_stays_off_standard_output(tmp_path, capfd):
    discover([plugin(tmp_path, HEAD + MINE + REGISTER + "    print('hello')\n")])
    assert capfd.readouterr().out == ""


def test_an_imported_function_is_no_mistyped_hook(tmp_path, monkeypatch):
    (tmp_path / "borrowed.py").write_text("def register_fake(): ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert problem_of(discover([plugin(tmp_path, "from borrowed import register_fake\n" + HEAD + MINE + REGISTER)])) is None


def test_a_file_that_also_lies_in_the_folder_is_one_plugin(tmp_path):
    file = plugin(tmp_path, HEAD + MINE + REGISTER)
    catalog = discover([file, file], [tmp_path])
    assert [info.source for info in catalog.plugins if info.name == "mine"] == ["file"]


def test_what_a_plugin_provides_is_listed(tmp_path):
    catalog = discover([plugin(tmp_path, HEAD + MINE + REGISTER)])
    assert next(info.provides for info in catalog.plugins if info.name == "mine") == {"techniques": ["mine"]}
