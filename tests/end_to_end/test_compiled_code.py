"""What a trial compiles is not there in the next one."""

import json
from pathlib import Path

from tests.end_to_end.conftest import effbench

LEAVING = '''
import json
import os
from pathlib import Path
from typing import ClassVar
from effbench.plugin import Technique, hookimpl


class Leaving(Technique):
    """Notes what lies in Inductor's cache, and leaves something there."""

    name: ClassVar = "leaving"
    family: ClassVar = "other"
    notes: str

    def apply(self, model, ctx):
        folder = Path(os.environ["TORCHINDUCTOR_CACHE_DIR"])
        with open(self.notes, "a") as notes:
            notes.write(json.dumps([str(folder), [file.name for file in folder.iterdir()]]) + "\\n")
        (folder / "kernel").write_text("x")
        return model


@hookimpl
def register_techniques(register):
    register(Leaving)
'''


def test_each_trial_has_an_empty_cache_that_is_gone_afterwards(suite, tmp_path):
    (tmp_path / "leaving.py").write_text(LEAVING)
    notes = tmp_path / "notes"
    file = suite(f'leaving = [{{ technique = "leaving", notes = "{notes}" }}]\n', rounds="2")
    effbench("run", file, "--plugin", "leaving.py", "--results", "out", cwd=tmp_path, check=0)
    seen = [json.loads(line) for line in notes.read_text().splitlines()]
    assert [held for _, held in seen] == [[], []]
    assert seen[0][0] != seen[1][0]
    assert not any(Path(folder).exists() for folder, _ in seen)
