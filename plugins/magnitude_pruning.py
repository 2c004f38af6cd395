"""Magnitude pruning of linear layers."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from effbench.plugin import Context, Inference, Technique, TrainStep, hookimpl

if TYPE_CHECKING:
    from torch import nn


class MagnitudePruning(Technique):
    """Set the smallest weights of linear layers to zero (Han et al. 2015, arXiv 1506.02626).

    Before training (`at = "apply"`) the rest is trained on and recovers; after it (`at = "infer"`) nothing recovers. Embeddings
    and the head stay whole. Zeros in a dense matrix save neither time nor memory: the board shows it. LoRA behind it leaves the
    zeros of the frozen weights alone, but merging fills them again: `infer` runs in the suite's order, so keep the zeros with
    LoRA's `merged = false`, or list this last with `at = "infer"`.
    """

    name: ClassVar = "magnitude_pruning"
    family: ClassVar = "pruning"

    sparsity: float = Field(default=0.5, ge=0, lt=1, description="share of the weights that become zero")
    scope: Literal["global", "layer"] = Field(default="global", description="rank weights over all layers, or within each")
    at: Literal["apply", "infer"] = Field(default="apply", description="before training, or after it")

    def unsupported_after(self, earlier: Sequence[Technique]) -> str | None:
        """Only float weights can be ranked by size and set to zero."""
        for technique in earlier:
            if "linear weights" in technique.sets and (self.at == "infer" or getattr(technique, "at", "infer") == "apply"):
                return f"{technique.name} converts the weights before {self.name} ranks them: list it behind {self.name}"
        return None

    def unsupported_before(self, later: Sequence[Technique]) -> str | None:
        """After training it comes too late for what is converted before."""
        first = next((t for t in later if "linear weights" in t.sets and getattr(t, "at", "infer") == "apply"), None)
        if self.at == "infer" and first:
            return f'{first.name} converts the weights before {self.name} ranks them: use at = "apply"'
        return None

    def apply(self, model: "nn.Module", ctx: Context) -> "nn.Module":
        """Prune before training."""
        return self._prune(model) if self.at == "apply" else model

    def train(self, step: TrainStep, ctx: Context) -> TrainStep:
        """Put the zeros back after every update."""
        if self.at == "infer":
            return step
        weights = [layer.weight for _, layer in _layers(step.model)]
        trained = [(weight, weight == 0) for weight in weights if weight.requires_grad]
        update = step.update

        def update_and_mask(current: TrainStep) -> None:
            import torch

            update(current)
            with torch.no_grad():
                for weight, zeros in trained:
                    weight.masked_fill_(zeros, 0.0)

        return replace(step, update=update_and_mask) if trained else step

    def infer(self, inference: Inference, ctx: Context) -> Inference:
        """Prune after training, without recovery."""
        if self.at == "infer":
            return replace(inference, model=self._prune(inference.model))
        return inference

    def _prune(self, model: "nn.Module") -> "nn.Module":
        from torch.nn.utils import prune

        layers = [(layer, "weight") for _, layer in _layers(model)]
        if self.scope == "global":
            prune.global_unstructured(layers, pruning_method=prune.L1Unstructured, amount=self.sparsity)
        else:
            for layer, name in layers:
                prune.l1_unstructured(layer, name, amount=self.sparsity)
        for layer, name in layers:
            trainable = layer.weight_orig.requires_grad
            prune.remove(layer, name)  # the mask has done its work; a hook in every forward would be timed
            layer.weight.requires_grad_(trainable)
        return model


def _layers(model: "nn.Module") -> "Iterator[tuple[str, Any]]":
    """Linear layers (and GPT-2's Conv1D) of the model itself by name: not the head, nor what adapters add."""
    from torch import nn
    from transformers import PreTrainedModel
    from transformers.pytorch_utils import Conv1D

    inner = next(module for module in model.modules() if isinstance(module, PreTrainedModel))
    modules = dict(inner.named_modules())
    wrappers = [module for module in modules.values() if isinstance(getattr(module, "base_layer", None), nn.Module)]
    added = {id(part) for wrapper in wrappers for part in wrapper.modules()} - {id(wrapper.base_layer) for wrapper in wrappers}
    head = inner.get_output_embeddings()
    for name, module in modules.items():
        if isinstance(module, nn.Linear | Conv1D) and id(module) not in added and module is not head:
            yield name, module


@hookimpl
def register_techniques(register: "Callable[[type[Technique]], None]") -> None:
    """Register magnitude pruning."""
    register(MagnitudePruning)
