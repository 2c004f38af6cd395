"""Bottleneck adapters. This card needs no torch; the modules and the search for their places lie beside it."""

from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from effbench.plugin import Context, Technique, hookimpl

if TYPE_CHECKING:
    from torch import nn


class Adapters(Technique):
    """Train small bottleneck layers between frozen ones (Houlsby et al. 2019, arXiv 1902.00751).

    An adapter projects a sublayer's output down to `bottleneck` features, applies a nonlinearity, projects up again and adds
    the result, before the residual connection: 2·hidden·bottleneck + bottleneck + hidden parameters each. Houlsby's placement
    has one behind attention and one behind the feed-forward sublayer, Pfeiffer's (arXiv 2005.00247) the latter alone, at half
    the parameters and less time. Up-projections start at zero, so training starts from the base itself. Unlike LoRA an adapter
    cannot be merged: it runs in every forward pass for ever, which is felt most in small models and in decoding. Needs a
    transformers model whose layers hold one attention and one dense feed-forward sublayer; not mixtures of experts.
    """

    name: ClassVar = "adapters"
    family: ClassVar = "peft"
    sets: ClassVar = ("trainable parameters",)

    bottleneck: int = Field(default=16, ge=1, description="features that an adapter projects down to")
    placement: Literal["houlsby", "pfeiffer"] = Field(
        default="houlsby", description="behind attention and feed-forward, or behind feed-forward alone"
    )
    layers: tuple[int, ...] | None = Field(
        default=None, description="layers that get adapters, negative ones counted from the end; all if left out"
    )
    activation: Literal["gelu", "relu"] = Field(default="gelu", description="nonlinearity in the bottleneck")

    def apply(self, model: "nn.Module", ctx: Context) -> "nn.Module":
        """Freeze the model and put adapters behind its sublayers' output projections."""
        from .bottleneck import AdaptedLayer, output_projections

        model.requires_grad_(False)
        for name in output_projections(model, self.layers, attention=self.placement == "houlsby"):
            model.set_submodule(name, AdaptedLayer(model.get_submodule(name), self.bottleneck, self.activation))
        return model


@hookimpl
def register_techniques(register: "Callable[[type[Technique]], None]") -> None:
    """Register adapters."""
    register(Adapters)
