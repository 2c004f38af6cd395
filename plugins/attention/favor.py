"""FAVOR+ in a model: each layer's random features, and the sums it decodes with. This module needs torch."""

from typing import Any

import torch
from torch import Tensor, nn

from .cache import PastLayer, attention_modules, past_of
from .form import Form, Heads, head_width
from .random_features import Sums, bidirectional, causal, orthogonal_gaussian

_BUFFER = "random_features"


class Favor(Form):
    """Attention by random features, which are a buffer of the layer."""

    def __call__(self, module: nn.Module, heads: Heads) -> Tensor:
        """Linear in the number of tokens; in float32 at least, for the sums grow long."""
        kind, heads = heads.q.dtype, heads.precise()
        projection = module.get_buffer(_BUFFER).to(heads.q.dtype)
        past: Any = past_of(module)
        with torch.autocast(heads.q.device.type, enabled=False):
            if heads.causal:
                output, sums = causal(heads, projection, past and past.sums)
            else:
                output = bidirectional(heads, projection)
        if past is not None:
            past.keep(sums)
        return output.to(kind).transpose(1, 2)

    def past_layer(self) -> PastLayer:
        """Sums over all tokens, and none of the tokens."""
        return PastSums()


class PastSums(PastLayer):
    """`keys` and `values` are those that came since the last query; the form takes them into `sums`."""

    keys: Tensor | None = None
    values: Tensor | None = None
    sums: Sums | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """What the form has not yet seen."""
        self.lazy_initialization(key_states, value_states)
        self.seen += key_states.shape[2]
        if self.keys is not None and self.values is not None:
            key_states = torch.cat([self.keys, key_states], dim=2)
            value_states = torch.cat([self.values, value_states], dim=2)
        self.keys, self.values = key_states, value_states
        return key_states, value_states

    def returned(self, padding: Tensor) -> Tensor:
        """The last of the tokens."""
        return padding if self.keys is None else padding[:, -self.keys.shape[2] :]

    def keep(self, sums: Sums) -> None:
        """The tokens are in the sums now, and are forgotten."""
        self.sums = Sums(*(x.detach() for x in sums))
        self.keys = self.values = None

    def reset(self) -> None:
        """As new."""
        super().reset()
        self.sums = self.keys = self.values = None

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Beam search: rows move."""
        if self.sums is not None:
            self.sums = Sums(*(x.index_select(0, beam_idx) for x in self.sums))


def draw(model: nn.Module, features: int, generator: torch.Generator | None = None) -> None:
    """Give each layer random features of its own, in place of those it may have."""
    device = next(model.parameters()).device
    for module in attention_modules(model):
        projection = orthogonal_gaussian(features, head_width(module), generator)
        module.register_buffer(_BUFFER, projection.to(device))
