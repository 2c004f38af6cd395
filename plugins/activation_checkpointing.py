"""Activation checkpointing: memory for computation."""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from effbench.plan.memory import kept_bytes
from effbench.plugin import Cell, Context, InputError, Technique, TrainStep, hookimpl

if TYPE_CHECKING:
    from torch import nn


class ActivationCheckpointing(Technique):
    """Keep a layer's input alone and compute the layer again in the backward pass (Chen et al. 2016, arXiv 1604.06174).

    Saves what the layers keep for the backward pass, nearly all of it at `every = 1`: the longer the sequences and the larger
    the batch, the more. Costs one more forward pass of these layers: a third of a step's operations. Weights, gradients and
    the optimizer's state stay as they are, and so do the gradients' values and what dropout draws. It does not help where
    weights or logits fill the memory rather than activations, nor where all of it fits: then it only costs time. Inference is
    untouched. The model's layers must be transformers' checkpointable ones, as those of nearly all its models are.
    """

    name: ClassVar = "activation_checkpointing"
    family: ClassVar = "other"
    sets: ClassVar = ("training cache",)  # a cache of keys and values would be filled again by the second forward pass

    every: int = Field(default=1, ge=1, description="checkpoint each n-th layer, beginning with the first")

    def unsupported(self, cell: Cell) -> str | None:
        """An attention call alone has no layers."""
        return (
            None if cell.facts.intermediate else f"{cell.facts.model_type} without feed-forward layers has nothing to recompute"
        )

    def memory(self, cell: Cell, phase: Literal["train", "infer"]) -> float:
        """Of a checkpointed layer its input remains; the one that is being computed again is there for a moment: left out."""
        if phase == "infer":
            return 0.0
        facts = cell.facts
        inputs = cell.batch_size / cell.data_ranks * cell.seq_len * facts.hidden * cell.value_bytes
        return -len(range(0, facts.layers, self.every)) * (kept_bytes(cell) / facts.layers - inputs)

    def train(self, step: TrainStep, ctx: Context) -> TrainStep:
        """Switch it on in the layers, which use it in training mode alone and keep their names."""
        from torch.utils.checkpoint import checkpoint
        from transformers import PreTrainedModel

        layers = _layers(step.model)
        if not layers:
            raise InputError(f"activation_checkpointing: {type(step.model).__name__} has no layers of transformers' kind")
        for layer in layers[:: self.every]:
            layer._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)  # type: ignore[assignment]  # its own
            layer.gradient_checkpointing = True  # type: ignore[assignment]  # a plain attribute, no tensor
        for module in step.model.modules():
            if isinstance(module, PreTrainedModel):
                module.config.use_cache = False  # unless a caller asks for a cache, as inference does
        return step


def _layers(model: "nn.Module") -> "list[nn.Module]":
    from transformers.modeling_layers import GradientCheckpointingLayer

    return [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]


@hookimpl
def register_techniques(register: "Callable[[type[Technique]], None]") -> None:
    """Register activation checkpointing."""
    register(ActivationCheckpointing)
