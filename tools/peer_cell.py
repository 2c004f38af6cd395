"""One cell in optimum-benchmark 0.6, run by `peer.py` in a virtual environment of its own: `python peer_cell.py FILE`.

FILE holds the cell's settings as JSON. The last line of standard output is what the peer reported, how long its launch took
(`launch_s`), and for inference `generate_s`, the sum of all its generate calls: half of its warm-up is in no report.
"""

import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from optimum_benchmark import Benchmark, BenchmarkConfig, InferenceConfig, ProcessConfig, PyTorchConfig, TrainingConfig
from optimum_benchmark.backends.pytorch.backend import PyTorchBackend
from optimum_benchmark.launchers.process.launcher import ProcessLauncher

_SUM_FILE = "generate_s"


def scenario(cell: dict[str, Any]) -> InferenceConfig | TrainingConfig:
    """The peer's settings for this cell; everything that is not said here is its default."""
    if cell["phase"] == "infer":
        return InferenceConfig(
            iterations=cell["samples"],
            duration=0,
            warmup_runs=cell["warmup"],
            input_shapes={"batch_size": cell["batch_size"], "sequence_length": cell["seq_len"]},
            generate_kwargs={"max_new_tokens": cell["new_tokens"], "min_new_tokens": cell["new_tokens"]},
        )
    steps = cell["samples"] + cell["warmup"]
    return TrainingConfig(
        max_steps=steps,
        warmup_steps=cell["warmup"],
        dataset_shapes={"dataset_size": steps * cell["batch_size"], "sequence_length": cell["seq_len"]},
        # AdamW as torch.optim has it, and no clipping: the step that effbench takes.
        training_arguments={
            "per_device_train_batch_size": cell["batch_size"],
            "optim": "adamw_torch",
            "max_grad_norm": 0.0,
            "disable_tqdm": True,
        },
    )


def timed(config: BenchmarkConfig) -> Any:
    """`Benchmark.run` in the peer's isolated process, with every generate call added up."""
    spent, original = 0.0, PyTorchBackend.generate

    def generate(self: PyTorchBackend, *arguments: Any) -> Any:
        nonlocal spent
        start = time.perf_counter()
        try:
            return original(self, *arguments)
        finally:
            spent += time.perf_counter() - start

    PyTorchBackend.generate = generate
    report = Benchmark.run(config)
    Path(_SUM_FILE).write_text(str(spent))
    return report


def main() -> None:
    """Launch as `Benchmark.launch` does, with its default launcher."""
    cell = json.loads(Path(sys.argv[1]).read_text())
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)  # the peer writes its log and trainer_output where it stands
        start = time.perf_counter()
        config = BenchmarkConfig(
            name="cell",
            # The peer sets torch's intra-op threads from `inter_op_num_threads` and the other way round: both are given.
            backend=PyTorchConfig(
                model=cell["model"], device="cpu", torch_dtype="float32", inter_op_num_threads=1, intra_op_num_threads=1
            ),
            scenario=scenario(cell),
            launcher=ProcessConfig(),
        )
        report = ProcessLauncher(config.launcher).launch(worker=timed, worker_args=[config])
        launch_s = time.perf_counter() - start
        generate_s = float(Path(_SUM_FILE).read_text())
        os.chdir("/")
    print()
    print(json.dumps({"report": report.to_dict(), "launch_s": launch_s, "generate_s": generate_s}))


if __name__ == "__main__":
    main()
