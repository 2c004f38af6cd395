import json
import os
import subprocess
import sys
from pathlib import Path

import effbench_plugins
import pytest

from effbench.plugin import InputError
from effbench.plugin.discovery import discover

HEAD = "from typing import ClassVar\nfrom effbench.plugin import Technique, hookimpl\n"
MINE = '''
class Mine(Technique):
    """Mine."""

    name: ClassVar = "mine"
    family: ClassVar = "other"
'''
REGISTER = "\n@hookimpl\ndef register_techniques(register):\n    register(Mine)\n"


def plugin(tmp_path, text, name="mine.py"):
    file = tmp_path / name
    file.write_text(text)
    return file


def problem_of(catalog, name="mine"):
    return next(info.problem for info in catalog.plugins if info.name == name)


def test_a_file_is_a_plugin(tmp_path):
    catalog = discover([plugin(tmp_path, HEAD + MINE + REGISTER)])
    assert catalog.techniques.get("mine").name == "mine"
    assert problem_of(catalog) is None
    assert catalog.techniques.plugin_of("mine") == "mine (mine.py)"


def test_a_folder_beside_the_suite_holds_plugins(tmp_path):
    plugin(tmp_path, HEAD + MINE + REGISTER)
    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").write_text((HEAD + MINE + REGISTER).replace('"mine"', '"packaged"'))
    catalog = discover(folders=[tmp_path])
    assert {"mine", "packaged"} <= set(catalog.techniques.names())


def test_the_bundled_folder_beside_a_suite_is_loaded_once():
    bundled = Path(effbench_plugins.__path__[0])
    assert discover(folders=[bundled]).techniques.names() == discover().techniques.names()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("raise RuntimeError('no luck')", "RuntimeError: no luck (mine.py:1)"),
        ("import sys\nsys.exit(4)", "SystemExit: 4"),
        ("def broken(:", "SyntaxError"),
        (HEAD + MINE + REGISTER.replace("techniques", "technique"), "unknown hook 'register_technique': did you mean"),
        (HEAD + MINE + REGISTER.replace("@hookimpl\n", ""), "not marked with @hookimpl"),
        (HEAD + MINE + REGISTER.replace("register(Mine)", "register(42)"), "was given 42"),
        (HEAD + MINE.replace('    family: ClassVar = "other"\n', "") + REGISTER, "Mine has no family"),
        (HEAD + MINE.replace('"""Mine."""', "") + REGISTER, "Mine has no docstring"),
    ],
)
def test_a_broken_plugin_is_reported_and_the_rest_work(tmp_path, text, words):
    catalog = discover([plugin(tmp_path, text)])
    assert words in problem_of(catalog)
    assert "lora" in catalog.techniques.names()


def test_a_name_taken_twice_is_refused_naming_both(tmp_path):
    with pytest.raises(InputError, match=r"'lora' is registered by both lora \(effbench .*\) and mine \(mine.py\)"):
        discover([plugin(tmp_path, HEAD + MINE.replace('"mine"', '"lora"') + REGISTER)])


def test_what_a_plugin_prints_stays_off_standard_output(tmp_path, capfd):
    discover([plugin(tmp_path, "print('hello')\n" + HEAD + MINE + REGISTER)])
    assert capfd.readouterr().out == ""


def test_the_hash_of_a_technique_follows_its_source(tmp_path):
    hashes = {discover([plugin(tmp_path, HEAD + MINE + REGISTER + tail)]).technique_hash("mine") for tail in ("", "# more\n")}
    assert len(hashes) == 2


def test_listing_the_bundled_plugins_does_not_import_torch():
    code = "import sys; from effbench.plugin.discovery import discover; discover(); print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "False"


def test_a_plugin_that_imports_torch_works_and_is_said_to_be_slow(tmp_path):
    file = plugin(tmp_path, "import torch\n" + HEAD + MINE + REGISTER)
    command = [sys.executable, "-m", "effbench", "list", "plugins", "--json", "--plugin", str(file)]
    rows = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert "slow" in next(row["note"] for row in rows if row["name"] == "mine")


def test_an_installed_distribution_is_found(tmp_path):
    source = Path(__file__).parents[1] / "example_plugin"
    install = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--target",
        tmp_path,
        source,
    ]
    subprocess.run(install, check=True, capture_output=True)
    command = [sys.executable, "-m", "effbench", "list", "techniques", "--json"]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, check=True)
    row = next(row for row in json.loads(done.stdout) if row["name"] == "freeze_embeddings")
    assert row["plugin"] == "freeze_embeddings (effbench-example 1.0)"
