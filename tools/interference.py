"""Step time inside effbench over a hand-written loop on the same model, alternating: `python tools/interference.py`.

Prints each pair and the ratio of medians, which should be within 0.98–1.02, and what a trial costs beyond its measured work.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

HAND_WRITTEN = """
import json, sys, time, torch
torch.set_num_threads(int(sys.argv[1]))
steps, batch, length = (int(a) for a in sys.argv[2:5])
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[5], dtype=torch.float32, attn_implementation="sdpa")
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
torch.manual_seed(0)
model.train()
durations = []
for _ in range(steps):
    ids = torch.randint(1, 256, (batch, length))
    start = time.perf_counter()
    model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=ids).loss.backward()
    optimizer.step()
    schedule.step()
    optimizer.zero_grad()
    durations.append(time.perf_counter() - start)
print(json.dumps(sorted(durations[3:])[len(durations[3:]) // 2]))
"""


def inside(folder: Path, threads: int, steps: int, batch: int, length: int, number: int) -> tuple[float, float]:
    """Median step of one trial, and its wall time less what the board is made of (seconds)."""
    results = folder / f"{threads}-{number}"
    settings = {
        "axes.seq_len": f"[{length}]",
        "axes.batch_size": f"[{batch}]",
        "training.steps": steps,
        "threads": threads,
        "phases": '["train"]',
    }
    command = [sys.executable, "-m", "effbench", "run", "quick", "--stack", "full", "--rounds", "1", "--results", str(results)]
    command += [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    subprocess.run(command, check=True, capture_output=True)
    record = next(json.loads(f.read_text()) for f in results.rglob("quick-*.json"))
    step = record["metrics"]["train.step_s"]["median"]
    return step, record["wall_s"] - steps * step


def main() -> None:
    """Alternate, and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    arguments = parser.parse_args()
    import effbench.reference

    model = Path(effbench.reference.__file__).parent / "tiny-llama"
    batch, length = 4, 128
    with tempfile.TemporaryDirectory() as folder:
        for threads in arguments.threads:
            ratios, rest = [], []
            for number in range(arguments.pairs):
                step, fixed = inside(Path(folder), threads, arguments.steps, batch, length, number)
                command = [sys.executable, "-c", HAND_WRITTEN, *map(str, (threads, arguments.steps, batch, length, model))]
                environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
                done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
                ratios.append(step / float(done.stdout.strip().splitlines()[-1]))
                rest.append(fixed)
            shown = ", ".join(f"{ratio:.3f}" for ratio in ratios)
            print(f"{threads} threads: inside / by hand = {median(ratios):.3f} ({shown}); rest of a trial {median(rest):.2f} s")


if __name__ == "__main__":
    main()
