"""The suite's allocator reaches the trial's process, and no trial that follows."""

from tests.end_to_end.conftest import effbench, records

PLUGIN = '''
import resource
from typing import ClassVar
from effbench.plugin import Technique, hookimpl


def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    b"x" * 2**26
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


class Faultless(Technique):
    """Fails where memory that was freed is faulted in again."""

    name: ClassVar = "faultless"
    family: ClassVar = "other"

    def apply(self, model, ctx):
        faults()
        if (again := faults()) > 1000:
            raise RuntimeError(f"{again} page faults")
        return model


@hookimpl
def register_techniques(register):
    register(Faultless)
'''


def test_freed_memory_is_kept_where_the_suite_says_so(suite, tmp_path):
    (tmp_path / "faultless.py").write_text(PLUGIN)
    arguments = ["run", suite('faultless = ["faultless"]\n'), "--plugin", "faultless.py", "--results", "out"]
    effbench(*arguments, "--set", "allocator=keep", cwd=tmp_path, check=0)
    record = records(tmp_path / "out")["faultless", 1]
    assert (record["status"], record["cell"]["allocator"]) == ("ok", "keep"), record["error"]
    effbench(*arguments, "--results", "plain", cwd=tmp_path)
    record = records(tmp_path / "plain")["faultless", 1]
    assert record["status"] == "failed"
    assert "page faults" in record["error"]
    assert "allocator" not in record["cell"]
