import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

TINY = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 256,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "tie_word_embeddings": True,
}

SUITE = """
name = "small"
baseline = "full"
models = ["path:{model}"]
workloads = ["docs"]
rounds = 1
[axes]
seq_len = [32]
batch_size = [2]
[training]
steps = 4
[inference]
new_tokens = 4
[quality]
documents = 2
[limits]
timeout_s = 60
dirty_repeats = 0
[sampling]
min_samples = 6
min_seconds = 0.0
interval = 10.0
max_seconds = 1.0
[stacks]
full = []
"""


def effbench(*arguments, cwd, check=None, **environment):
    """Run the real command line; `check` is the exit status it must have."""
    command = [sys.executable, "-m", "effbench", *map(str, arguments)]
    env = os.environ | {"COLUMNS": "200", "OMP_NUM_THREADS": "1"} | environment
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=280, check=False)
    if check is not None:
        assert done.returncode == check, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


def records(folder, pattern="*.json"):
    """All records below a folder by stack and round."""
    found = [json.loads(f.read_text()) for f in Path(folder).rglob(pattern) if f.name not in ("machine.json", "suite.json")]
    return {(r["cell"]["stack"], r["round"]): r for r in found}


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory):
    """A folder with a random tiny Llama: a real checkpoint for the `path:` source."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("model") / "tiny"
    torch.manual_seed(0)
    LlamaForCausalLM(
        LlamaConfig(**{k: v for k, v in TINY.items() if k not in ("model_type", "architectures")})
    ).save_pretrained(folder)
    return folder


@pytest.fixture
def suite(tmp_path, tiny_model):
    """Write a small suite with the given stacks (TOML lines) and return its file."""

    def write(stacks="", **replaced):
        text = SUITE.format(model=tiny_model) + stacks
        for old, new in replaced.items():
            text = text.replace(f"{old} = ", f"{old} = {new} # ", 1)
        file = tmp_path / "small.toml"
        file.write_text(text)
        return file

    return write
