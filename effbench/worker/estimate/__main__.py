"""`python -m effbench.worker.estimate`: cells as JSON on stdin, a footprint per line on stdout."""

import json
import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: children of busy threads hang

import torch
import transformers

from effbench.plugin.cell import Cell
from effbench.plugin.discovery import discover
from effbench.worker.estimate.cell import footprint


def main() -> None:
    """Read the request, answer cell by cell."""
    request = json.load(sys.stdin)
    torch.set_num_threads(1)
    catalog = discover([Path(f) for f in request["files"]], [Path(f) for f in request["folders"]])
    for asked in request["cells"]:
        cell = Cell.model_validate(asked["cell"])
        techniques = [catalog.technique(name, options) for name, options in cell.techniques]
        source = catalog.model(request["models"][cell.model], trust_remote_code=request["trust_remote_code"])
        sys.stdout.write(footprint(cell, techniques, source, asked["phase_skips"]).model_dump_json() + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    main()
