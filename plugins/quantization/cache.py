"""A quantized cache layer for transformers, and how a model gets it. This module needs torch."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicLayer


class QuantizedTokens:
    """Keys or values (B, heads, tokens, channels) as integers; tokens are added, and never rounded twice."""

    def __init__(self, bits: int, group_size: int) -> None:
        self._bits, self._group_size = bits, group_size
        self.parts: list[Tensor] = []
        """Packed values, and scale and lowest value of each group: all with tokens as their third dimension."""

    def add(self, states: Tensor) -> Tensor:
        """Round and keep these tokens; all that are kept so far, as floats."""
        new = self._packed(states)
        self.parts = [torch.cat([old, more], dim=-2) for old, more in zip(self.parts, new, strict=True)] if self.parts else new
        return self._floats(states.shape[-1])

    def _packed(self, states: Tensor) -> list[Tensor]:
        groups = states.unflatten(-1, (-1, self._groups_of(states.shape[-1])))
        low, high = groups.amin(-1), groups.amax(-1)
        scale = (high - low).clamp(min=1e-5) / (2**self._bits - 1)
        values = ((groups - low.unsqueeze(-1)) / scale.unsqueeze(-1)).round().clamp(0, 2**self._bits - 1)
        integers = values.to(torch.uint8).flatten(-2)
        if self._bits == 4:
            integers = integers[..., ::2] | (integers[..., 1::2] << 4)
        return [integers, scale, low]

    def _floats(self, channels: int) -> Tensor:
        integers, scale, low = self.parts
        if self._bits == 4:
            integers = torch.stack([integers & 15, integers >> 4], dim=-1).flatten(-2)
        groups = integers.unflatten(-1, (-1, self._groups_of(channels))).to(scale.dtype)
        return torch.addcmul(low.unsqueeze(-1), groups, scale.unsqueeze(-1)).flatten(-2)

    def _groups_of(self, channels: int) -> int:
        return self._group_size if channels % self._group_size == 0 else channels


class QuantizedCacheLayer(DynamicLayer):  # type: ignore[misc]  # transformers is untyped here
    """One layer's keys and values."""

    def __init__(self, bits: int, group_size: int) -> None:
        super().__init__()
        self._key_tokens, self._value_tokens = QuantizedTokens(bits, group_size), QuantizedTokens(bits, group_size)

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Add tokens; all keys and values so far, as the cache holds them."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        return self._key_tokens.add(key_states), self._value_tokens.add(value_states)

    def get_seq_length(self) -> int:
        """Tokens so far."""
        return self._key_tokens.parts[0].shape[-2] if self._key_tokens.parts else 0


def provide_cache(model: nn.Module, bits: int, group_size: int) -> None:
    """Whenever the innermost decoder is called without such a cache it gets one, filled with what the given one held."""

    def before_forward(_: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        given = kwargs.get("past_key_values")
        layers = getattr(given, "layers", ())
        if any(isinstance(layer, QuantizedCacheLayer) for layer in layers):
            return args, kwargs
        fresh = [QuantizedCacheLayer(bits, group_size) for _ in range(decoder.config.num_hidden_layers)]
        for new, old in zip(fresh, layers, strict=False):  # prefix tuning begins with a cache of its own
            if old.get_seq_length():
                new.update(old.keys, old.values)
        return args, kwargs | {"past_key_values": Cache(layers=list(fresh))}

    decoder: Any = [module for module in model.modules() if isinstance(module, PreTrainedModel)][-1]
    decoder.register_forward_pre_hook(before_forward, with_kwargs=True)
