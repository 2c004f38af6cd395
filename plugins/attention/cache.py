"""A cache of a form's own: constant memory, whatever the context. This module needs torch."""

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicCache, DynamicLayer

from effbench.plugin import InputError


class PastLayer(CacheLayerMixin):  # type: ignore[misc]  # transformers is untyped here
    """What one layer keeps of the tokens it has seen. Positions count all of these, kept or not."""

    seen = 0
    is_sliding = False

    @abstractmethod
    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Take in new tokens (B, KV, n, d) and add n to `seen`; the keys and values that the form is then called with."""

    def returned(self, padding: Tensor) -> Tensor:
        """Of the padding of all tokens seen (B, seen), that of the keys which `update` returned last."""
        return padding

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing is allocated before the first tokens come."""
        self.dtype, self.device, self.is_initialized = key_states.dtype, key_states.device, True

    def reset(self) -> None:
        """As new."""
        self.seen, self.is_initialized = 0, False

    def get_seq_length(self) -> int:
        """Tokens seen: the next one's position."""
        return self.seen

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Padding is asked for as if nothing was ever dropped; `returned` picks from it."""
        return self.seen + query_length, 0

    def get_max_length(self) -> int:
        """There is no end."""
        return -1


class Growing(PastLayer):
    """All keys and values, in time's order, with room for more: a token costs no copy of the past."""

    _room = 128  # tokens

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """All keys and values so far."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.keys, self.values = (x.new_empty(*x.shape[:2], 0, x.shape[3]) for x in (key_states, value_states))
        start, self.seen = self.seen, self.seen + key_states.shape[2]
        if self.seen > self.keys.shape[2]:
            self.keys, self.values = (self._larger(x, start) for x in (self.keys, self.values))
        self.keys[:, :, start : self.seen], self.values[:, :, start : self.seen] = key_states.detach(), value_states.detach()
        return self.keys[:, :, : self.seen], self.values[:, :, : self.seen]

    def _larger(self, held: Tensor, count: int) -> Tensor:
        larger = held.new_zeros(*held.shape[:2], self.seen + self._room, held.shape[3])
        larger[:, :, :count] = held[:, :, :count]
        return larger


def provide_cache(model: nn.Module, layer_for: Callable[[int | None], PastLayer | None]) -> None:
    """Whenever the innermost decoder is to use a cache and brings none, it gets one of these layers.

    `layer_for` is given the window that the model itself restricts a layer to, or None. A cache that the caller brings (prefix
    tuning begins with one) is taken over, with what it held. A hook and not a wrapped prefill, so that it holds for `generate`
    and for whatever other techniques make of prefill.
    """
    decoder: Any = [module for module in model.modules() if isinstance(module, PreTrainedModel)][-1]
    attentions = [module for module in attention_modules(decoder) if getattr(module, "layer_idx", None) is not None]

    def before_forward(_: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        cache: Any = kwargs.get("past_key_values")
        if not any(isinstance(layer, PastLayer) for layer in getattr(cache, "layers", ())):
            if not kwargs.get("use_cache"):
                return args, kwargs
            cache = _cache_of(decoder.config, cache, layer_for)
        for attention in attentions:
            layer = cache.layers[attention.layer_idx]
            attention.past = layer if isinstance(layer, PastLayer) else None
        return args, kwargs | {"past_key_values": cache}

    def after_forward(*_: Any) -> None:
        for attention in attentions:
            attention.past = None

    decoder.register_forward_pre_hook(before_forward, with_kwargs=True)
    decoder.register_forward_hook(after_forward, always_call=True)


def past_of(module: nn.Module) -> PastLayer | None:
    """The attention module's own cache layer, while its decoder runs with one."""
    return getattr(module, "past", None)


def attention_modules(model: nn.Module) -> list[Any]:
    """The modules that call the attention interface, in the order of their layers."""
    return [module for module in model.modules() if hasattr(module, "is_causal")]


def _cache_of(config: Any, given: Any, layer_for: Callable[[int | None], PastLayer | None]) -> Cache:
    layers = []
    held = getattr(given, "layers", ())
    for number, usual in enumerate(DynamicCache(config=config).layers):
        layer = layer_for(getattr(usual, "sliding_window", None)) or usual
        layer.is_sliding = usual.is_sliding  # by it transformers finds the layers that a mask is for
        if number < len(held) and held[number].get_seq_length():
            layer.update(*_all_of(held[number]))
        layers.append(layer)
    return Cache(layers=layers)


def _all_of(held: Any) -> tuple[Tensor, Tensor]:
    """The keys and values of a caller's cache layer, where it still has those of every token it has seen, and nothing else."""
    if not isinstance(held, DynamicLayer) or held.keys.shape[2] != held.get_seq_length():
        raise InputError(f"an attention form cannot go on from a {type(held).__name__}: give a cache that grows, or none")
    return held.keys, held.values
