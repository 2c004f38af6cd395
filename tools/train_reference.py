"""Train the reference model that the package ships: `python tools/train_reference.py OUT_DIR [--steps 1800]`.

A byte-level Llama on the text every Python carries (`effbench.reference.texts.reference_corpus`). Two stages: most of the
time at a context of 256 bytes, the last fifth at 1024, so that long contexts work. Hidden matrices are trained by Muon
(Jordan et al. 2024), embeddings and norms by AdamW; the learning rate warms up, holds, and falls linearly to zero.
Reproducible for one seed, Python version, torch version and number of steps; the card beside the weights states them.
"""

import argparse
import json
import math
import platform
import random
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM

from effbench.reference import texts

CONFIG = LlamaConfig(
    vocab_size=256,
    hidden_size=192,
    intermediate_size=512,
    num_hidden_layers=5,
    num_attention_heads=6,
    num_key_value_heads=2,
    max_position_embeddings=1024,
    rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
    tie_word_embeddings=True,
    bos_token_id=0,
    eos_token_id=0,
    pad_token_id=0,
)
STAGES = ((256, 16, 0.8), (1024, 4, 0.2))  # context, sequences per step, share of the steps
ENGLISH_SHARE = 0.25  # of the sequences come from the topics, the rest from source code; more of them is learnt by heart
PEAK_LR = {"muon": 0.02, "adamw": 3e-3}
SEED = 7


def token_stream(documents: list[texts.Document]) -> torch.Tensor:
    """All documents as bytes, each opened by the byte 0, which no text contains: int64, shape (bytes,)."""
    rng = random.Random(SEED)
    shuffled = rng.sample(documents, len(documents))
    return torch.frombuffer(bytearray(b"".join(b"\0" + d.text.encode() for d in shuffled)), dtype=torch.uint8).long()


def batches(streams: list[torch.Tensor], context: int, count: int, rng: torch.Generator) -> Iterator[torch.Tensor]:
    """Random windows, shape (count, context + 1): the first stream with probability ENGLISH_SHARE, else the second."""
    while True:
        rows = []
        for _ in range(count):
            stream = streams[0] if torch.rand((), generator=rng) < ENGLISH_SHARE else streams[1]
            start = int(torch.randint(len(stream) - context - 1, (), generator=rng))
            rows.append(stream[start : start + context + 1])
        yield torch.stack(rows)


def schedule(step: int, steps: int) -> float:
    """Share of the peak learning rate: 2 % warm-up, then flat, then the last 40 % straight down to zero."""
    return min(1.0, (step + 1) / (0.02 * steps), (steps - step) / (0.4 * steps))


@torch.no_grad()
def bits_per_byte(model: LlamaForCausalLM, documents: list[texts.Document], context: int) -> float:
    """Mean over all bytes of the documents, in non-overlapping windows of `context`, each opened by the byte 0."""
    bits, count = 0.0, 0
    for document in documents:
        data = torch.tensor(list(document.text.encode()))
        for window in data.split(context):
            ids = torch.cat([torch.zeros(1, dtype=torch.long), window])
            logits = model(input_ids=ids[None, :-1]).logits[0].float()
            bits += cross_entropy(logits, window, reduction="sum").item() / math.log(2)
            count += len(window)
    return bits / count


def main() -> None:
    """Train, evaluate on held-out topics, and write safetensors, config.json and the model card's figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=1800)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(SEED)
    rng = torch.Generator().manual_seed(SEED)

    corpus = texts.reference_corpus()
    held_out = texts.split(texts.topics())
    english = {d.name for d in held_out.train}
    streams = [token_stream([d for d in corpus if (d.name in english) is wanted]) for wanted in (True, False)]
    model = LlamaForCausalLM(CONFIG)
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    optimizers = {
        "muon": torch.optim.Muon(matrices, lr=PEAK_LR["muon"], weight_decay=0.1, momentum=0.95),
        "adamw": torch.optim.AdamW(others, lr=PEAK_LR["adamw"], weight_decay=0.0, betas=(0.9, 0.95)),
    }
    started, step = time.perf_counter(), 0
    for context, count, share in STAGES:
        source = batches(streams, context, count, rng)
        for _ in range(round(arguments.steps * share)):
            for name, optimizer in optimizers.items():
                optimizer.param_groups[0]["lr"] = PEAK_LR[name] * schedule(step, arguments.steps)
            batch = next(source)
            with torch.autocast("cpu", torch.bfloat16):
                logits = model(input_ids=batch[:, :-1]).logits
            loss = cross_entropy(logits.float().flatten(0, 1), batch[:, 1:].flatten())
            loss.backward()
            for optimizer in optimizers.values():
                optimizer.step()
                optimizer.zero_grad()
            if step % 250 == 0:
                bpb = bits_per_byte(model, held_out.validation[2:5], 256)
                seconds, train = time.perf_counter() - started, loss.item() / math.log(2)
                print(f"step {step} {seconds:.0f} s train {train:.3f} validation {bpb:.3f}", flush=True)
            step += 1

    model.to(torch.bfloat16)
    model.save_pretrained(arguments.out)
    model.float()
    figures = {
        "steps": step,
        "seed": SEED,
        "bytes_seen": sum(round(arguments.steps * share) * context * count for context, count, share in STAGES),
        "minutes": round((time.perf_counter() - started) / 60, 1),
        "threads": arguments.threads,
        "parameters": model.num_parameters(),
        "data_hash": texts.data_hash(corpus),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "test_bits_per_byte": {str(c): round(bits_per_byte(model, held_out.test, c), 4) for c in (256, 512, 1024)},
    }
    (arguments.out / "training.json").write_text(json.dumps(figures, indent=2) + "\n")
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
