"""What loading and boards cost with many trials: time and peak memory, from JSON files, with the index, and packed.

    python tools/many_trials.py 25000 50000 100000

Makes results folders of so many trials each, by varying the repository's own records, in a temporary folder, and runs each
step in a process of its own with a cache folder of its own. Figures are medians of `--repeat` runs.
"""

import argparse
import collections
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from effbench.store.pack import unpack

ROOT = Path(__file__).parents[1]
ROUNDS = 10
"""How many times as many rounds as the repository's records have, before another machine begins."""
_STEP = """
import resource, sys, time, warnings
from effbench.board.frame import load
from effbench.board.leaderboard import build
from effbench.store.pack import pack
path, step = sys.argv[1:]
import pandas, pyarrow.parquet  # their import is none of what trials cost
begin = time.perf_counter(), time.process_time()
if step == "pack":
    count = sum(done.trials for done in pack(__import__("pathlib").Path(path)))
elif step == "boards":
    count = sum(len(board.rows) for board in build(path))
else:
    count = load(path)["file"].nunique()
end = time.perf_counter(), time.process_time()
print(count, end[0] - begin[0], end[1] - begin[1], resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10)
"""


def generate(count: int, folder: Path) -> None:
    """`count` trials below a folder: the repository's own, in ever further rounds on ever further machines."""
    rng = random.Random(count)
    own = folder.with_name("own")
    shutil.copytree(ROOT / "results", own)
    collections.deque(unpack(own), maxlen=0)
    sources = [(file, json.loads(file.read_text())) for file in sorted(own.glob("*/*/*.r*.json"))]
    for number in range(count):
        copy, place = divmod(number, len(sources))
        source, record = sources[place]
        machine = f"{record['machine']}-{copy // ROUNDS}"
        target = folder / machine / source.parts[-2]
        if not target.exists():
            target.mkdir(parents=True)
            shutil.copy(source.with_name("suite.json"), target)
            shutil.copy(source.parents[1] / "machine.json", target.parent)
        changed = {"machine": machine, "round": record["round"] + 3 * (copy % ROUNDS), "session": f"session{copy}"}
        stem = source.stem.replace(f".r{record['round']}", f".r{changed['round']}")
        if sidecar := record.get("samples"):
            shutil.copy(source.with_name(sidecar), target / f"{stem}.samples.zst")
            changed["samples"] = f"{stem}.samples.zst"
        (target / f"{stem}.json").write_text(varied(record | changed, rng))


def varied(record: dict, rng: random.Random) -> str:
    """The same record with other timings."""
    factor = rng.lognormvariate(0, 0.02)
    metrics = {
        name: summary | {key: float(f"{summary[key] * factor:.9g}") for key in ("median", "low", "high") if key in summary}
        for name, summary in record["metrics"].items()
        if summary["unit"] in ("s", "tokens/s")
    }
    return json.dumps(record | {"metrics": record["metrics"] | metrics}, separators=(",", ":")) + "\n"


def measure(folder: Path, step: str, cache: Path) -> tuple[float, float, float]:
    """Seconds by the clock, seconds of CPU, and peak MiB of one step in a process of its own."""
    environment = os.environ | {"XDG_CACHE_HOME": str(cache)}
    command = [sys.executable, "-W", "ignore", "-c", _STEP, str(folder), step]
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    _, *figures = map(float, done.stdout.split())
    return figures[0], figures[1], figures[2]


def main() -> None:
    """One table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("counts", type=int, nargs="+")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--boards", action="store_true", help="build all boards, too")
    options = parser.parse_args()
    print("| trials | step | s | CPU s | peak MiB |\n|---|---|---|---|---|")
    for count in options.counts:
        with tempfile.TemporaryDirectory() as temporary:
            folder, cache = Path(temporary) / "results", Path(temporary) / "cache"
            generate(count, folder)
            steps = [("JSON files", "load"), ("index", "load"), *([("boards", "boards")] * options.boards)]
            for name, step in [*steps, ("pack", "pack"), ("packed", "load")]:
                repeat = 1 if step in ("pack", "boards") else options.repeat
                runs = []
                for _ in range(repeat):
                    if name == "JSON files":
                        shutil.rmtree(cache, ignore_errors=True)
                    runs.append(measure(folder, step, cache))
                seconds, cpu, peak = map(statistics.median, zip(*runs, strict=True))
                print(f"| {count:,} | {name} | {seconds:.2f} | {cpu:.2f} | {peak:.0f} |", flush=True)


if __name__ == "__main__":
    main()
