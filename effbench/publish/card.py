"""The card of a published dataset: what it is, how to read it, where it comes from."""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from effbench.board.leaderboard import Leaderboard

LICENSE = "apache-2.0"
_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"), (10_000_000, "1M<n<10M"))
_TEXT = """\
# {title}

Which techniques make language models cheaper to train and to run, on which machine, and at what cost in quality: leaderboards
and the trials behind them, put together by effbench {version}. Every ratio is to the baseline of its suite and has a 95 %
interval over rounds; a leaderboard orders nothing that its data cannot order.

## Boards

| suite | model | workload | machine | baseline | stacks | rounds |
| --- | --- | --- | --- | --- | --- | --- |
{boards}

A machine's name says its processor, cores, memory and GPUs, and ends in a hash of these. No host, user or path is recorded.
{shown}
## Files

- `leaderboard.parquet` (configuration `leaderboard`): one row per board and stack. `train_speed_ratio` is the speed relative
  to the baseline, `train_speed_low` and `train_speed_high` its interval, `train_speed_verdict` what it says; so do the others.
- `trials.parquet` (configuration `trials`): one row per trial and metric, with the unit. A missing value was not measured.

```python
import pandas as pd

leaderboard = pd.read_parquet("hf://datasets/{repo}/leaderboard.parquet")
trials = pd.read_parquet("hf://datasets/{repo}/trials.parquet")
```

```python
from datasets import load_dataset

leaderboard = load_dataset("{repo}", "leaderboard", split="train")
trials = load_dataset("{repo}", "trials", split="train")
```

## Method

A trial is one process that measures one stack once; rounds repeat all stacks in shuffled order, and ratios are paired within a
round and a session. Intervals are t intervals of log ratios. A verdict (FASTER, SLOWER, SAME, …) needs three rounds and an
interval, adjusted for the number of stacks (Holm) and for looking repeatedly, that lies wholly beyond or wholly within the
margin δ; otherwise it is UNCLEAR. Quality is measured on the very object that was timed, and compared by document. Different
machines, weights or versions of the method never share a table.

Figures hold for these machines, shapes and models; small models on small machines tell little about large ones.

## Licence

Apache License 2.0, as effbench itself.
"""


def card(boards: "Sequence[Leaderboard]", repo: str, trials: int, files: Sequence[str]) -> str:
    """A dataset card. What comes from records stands in code spans and JSON strings alone, so it can be no markup."""
    from effbench import __version__

    title = f"effbench results: {repo.partition('/')[2]}"
    shown = "".join(f"\n[`{name}`]({name}) shows them.\n" for name in ("LEADERBOARD.md", "index.html") if name in files)
    text = _TEXT.format(title=title, version=__version__, repo=repo, boards="\n".join(map(_row, boards)), shown=shown or "\n")
    return f"---\n{_header(title, trials)}\n---\n\n{text}"


def _header(title: str, trials: int) -> str:
    """YAML, of which JSON is a part."""
    fields: dict[str, Any] = {
        "license": LICENSE,
        "pretty_name": title,
        "tags": ["effbench", "benchmark", "efficiency", "language-models", "leaderboard"],
        "size_categories": [next((name for most, name in _SIZES if trials < most), "10M<n<100M")],
        "configs": [
            {"config_name": "leaderboard", "data_files": "leaderboard.parquet", "default": True},
            {"config_name": "trials", "data_files": "trials.parquet"},
        ],
    }
    return "\n".join(f"{key}: {json.dumps(value)}" for key, value in fields.items())


def _row(board: "Leaderboard") -> str:
    first, last = board.rounds
    cells = [board.suite, board.model, board.workload, board.machine, board.baseline or "–"]
    rounds = str(last) if first == last else f"{first} to {last}"
    return "| " + " | ".join([*map(_code, cells), str(len(board.rows)), rounds]) + " |"


def _code(text: str) -> str:
    """A code span of one line, in which nothing but a backtick and a table's bar would mean anything."""
    line = " ".join(text.split()).replace("`", "'").replace("|", "/")
    return "`" + "".join(character for character in line if character.isprintable()) + "`"
