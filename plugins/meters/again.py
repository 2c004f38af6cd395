"""Running a model once more without leaving a trace in it."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn


@contextmanager
def unchanged(model: nn.Module, *, updated: bool = False) -> Iterator[None]:
    """Put back buffers (running statistics, observers' ranges) and random states; drop the gradients that came about.

    Where what runs updates the parameters, these too: they are kept in the host's memory.
    """
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    parameters = [(p, p.detach().to("cpu", copy=True)) for p in model.parameters() if p.requires_grad and updated]
    python, arrays = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[torch.cuda.current_device()] if torch.cuda.is_initialized() else []):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(arrays)
        model.zero_grad(set_to_none=True)
        with torch.no_grad():
            for tensor, before in [*buffers, *parameters]:
                tensor.copy_(before)
