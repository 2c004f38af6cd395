"""The loop one would write by hand, with nothing of effbench in it: what the tools' step times are held against.

`python by_hand.py FILE` reads its settings as JSON: model (a folder), threads, and `cells`, each with phase (train or infer),
`ids` (the batches, one per step) and `optimizer` (keywords of AdamW). It prints the duration of every step, or of every
prefill, as a JSON list per cell; the first ones are warm-up. Needs torch and transformers (4.56 or newer) alone.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM


def train(model: torch.nn.Module, batches: list[torch.Tensor], optimizer: dict[str, Any]) -> list[float]:
    """Seconds of each optimisation step: forward, backward, update."""
    adamw = torch.optim.AdamW(model.parameters(), **optimizer)
    schedule = torch.optim.lr_scheduler.LambdaLR(adamw, lambda step: 1.0)
    model.train()
    durations = []
    for ids in batches:
        mask = torch.ones_like(ids)
        start = time.perf_counter()
        model(input_ids=ids, attention_mask=mask, labels=ids).loss.backward()
        adamw.step()
        schedule.step()
        adamw.zero_grad()
        durations.append(time.perf_counter() - start)
    return durations


@torch.inference_mode()
def prefill(model: torch.nn.Module, batches: list[torch.Tensor]) -> list[float]:
    """Seconds of each forward pass over the prompts that keeps the cache."""
    model.eval()
    durations = []
    for ids in batches:
        mask = torch.ones_like(ids)
        start = time.perf_counter()
        model(input_ids=ids, attention_mask=mask, use_cache=True, logits_to_keep=1)
        durations.append(time.perf_counter() - start)
    return durations


def main() -> None:
    """Run the cells one after another, each on a fresh model."""
    settings = json.loads(Path(sys.argv[1]).read_text())
    torch.set_num_threads(settings["threads"])
    found = []
    for cell in settings["cells"]:
        model = AutoModelForCausalLM.from_pretrained(settings["model"], dtype=torch.float32, attn_implementation="sdpa")
        batches = [torch.tensor(ids) for ids in cell["ids"]]
        found.append(train(model, batches, cell["optimizer"]) if cell["phase"] == "train" else prefill(model, batches))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
