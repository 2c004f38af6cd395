"""Which layers of a model techniques convert, prune, factor or share out. This module needs torch."""

from collections.abc import Collection
from typing import Any

from torch import nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from transformers.pytorch_utils import Conv1D

LINEAR: Collection[type[nn.Module]] = (nn.Linear, Conv1D)
"""GPT-2's Conv1D is a linear layer that keeps its weight as (in, out)."""


def linear_layers(model: nn.Module, kinds: Collection[type[nn.Module]] = LINEAR) -> dict[str, Any]:
    """The float linear layers of the model itself by name: without its head, and without what a technique put beside them.

    What a technique adds is told by `base_layer`, as peft's wrappers name the module they wrap: everything else in the wrapper
    was added. Of `kinds`, only exact types count: a subclass is some technique's own layer.
    """
    getter: Any = getattr(model, "get_output_embeddings", lambda: None)
    head, added = getter(), _added(model)
    return {
        name: module
        for name, module in model.named_modules()
        if type(module) in kinds and module is not head and id(module) not in added and _is_plain(module)
    }


def layer_stacks(model: nn.Module) -> list[nn.ModuleList]:
    """Lists of transformer layers: two at least, of one class, and in no other such list."""
    found: list[nn.ModuleList] = []
    inside: set[int] = set()
    for module in model.modules():
        alike = isinstance(module, nn.ModuleList) and len(module) > 1 and len({type(layer) for layer in module}) == 1
        if alike and id(module) not in inside:
            found.append(module)  # type: ignore[arg-type]  # `alike` says that it is a ModuleList
            inside |= {id(part) for part in module.modules()}
    return found


def _added(model: nn.Module) -> set[int]:
    added: set[int] = set()
    for wrapper in model.modules():
        base = getattr(wrapper, "base_layer", None)
        if isinstance(base, nn.Module):
            added |= {id(part) for part in wrapper.modules()} - {id(part) for part in base.modules()}
    return added


def _is_plain(layer: Any) -> bool:
    return layer.weight.is_floating_point() and not is_traceable_wrapper_subclass(layer.weight)
