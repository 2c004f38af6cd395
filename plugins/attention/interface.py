"""Put an attention form into a transformers model. This module needs torch."""

from collections.abc import Callable
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import prepare_padding_mask

from effbench.plugin import InputError

from .cache import PastLayer, attention_modules, past_of, provide_cache
from .form import Form, Heads
from .window import Window

_numbers = count()
_UNKNOWN_TO_FORMS = ("position_bias", "softcap", "s_aux")  # what some models add to the scores


_PACKED = (
    "attention forms take one sequence a row: sequences packed into one (positions that start again, cu_seq_lens) and other "
    "masks of a model's own would be ignored; pad them instead"
)


def install(model: nn.Module, name: str, form: Form) -> None:
    """Make every attention layer of the model use this form. The names it is registered under are this model's alone.

    A layer that has a sliding window of its own (Mistral, Gemma) keeps it: there, the form is a window, the narrower of the two
    where the form is a window itself.
    """
    inner = transformers_model(model)
    if reason := _refusal(inner):
        raise InputError(f"{name}: {reason}")
    key = f"effbench-{name}-{next(_numbers)}"
    AttentionInterface.register(key, _attention(name, form))
    AttentionMaskInterface.register(key, _padding)
    inner.set_attn_implementation(key)
    for number, module in enumerate(attention_modules(inner)):
        if getattr(module, "layer_idx", None) is None:  # DistilBERT's do not know, and a pattern may be each layer's own
            module.layer_idx = number


def install_cache(model: nn.Module, form: Form) -> None:
    """Let decoding use the cache layers of the form's own."""
    provide_cache(model, lambda own_window: _acting(form, own_window).past_layer())


def transformers_model(model: nn.Module) -> PreTrainedModel:
    """The model inside whatever wraps it (peft, DDP)."""
    for module in model.modules():
        if isinstance(module, PreTrainedModel):
            return module
    raise InputError("an attention form needs a transformers model")


def _refusal(model: PreTrainedModel) -> str | None:
    """Why its attention cannot be replaced, or None. What the plan can know of it, the cards say."""
    config: Any = model.config
    if not model._can_set_attn_implementation():
        return f"{config.model_type} does not use transformers' attention interface"
    if config.is_encoder_decoder or getattr(config, "add_cross_attention", False):
        return f"{config.model_type} has cross-attention, and forms are for self-attention"
    if others := set(getattr(config, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}:
        return f"{config.model_type} has layers of another kind: {', '.join(sorted(others))}"
    return None


def _acting(form: Form, own_window: int | None) -> Form:
    """The form in a layer which the model restricts to a window, or not."""
    if own_window is None or (isinstance(form, Window) and form.window <= own_window):
        return form
    return Window(own_window)


def _attention(name: str, form: Form) -> Callable[..., tuple[Tensor, None]]:
    """The form as transformers calls it."""

    def attention(  # noqa: PLR0913 - transformers' signature
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        *,
        scaling: float | None = None,
        dropout: float = 0.0,
        is_causal: bool | None = None,
        sliding_window: int | None = None,
        **others: Any,
    ) -> tuple[Tensor, None]:
        if others.get("cu_seq_lens_q") is not None:
            raise InputError(_PACKED)
        for unknown in _UNKNOWN_TO_FORMS:
            if others.get(unknown) is not None:
                raise InputError(f"{name}: this model adds a {unknown} to its attention scores, which the form would leave out")
        if attention_mask is not None:
            attention_mask = _of_tokens(attention_mask, name)
        causal = bool(module.is_causal if is_causal is None else is_causal)
        if sliding_window is not None and not causal:
            raise InputError(f"{name}: this model's own two-sided windows cannot be combined with another form")
        past: PastLayer | None = past_of(module)
        if past is not None and attention_mask is not None:
            attention_mask = past.returned(attention_mask)
        scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
        heads = Heads(query, key, value, attention_mask, scaling, dropout, causal)
        return _acting(form, sliding_window)(module, heads), None

    return attention


def _of_tokens(mask: Tensor, name: str) -> Tensor:
    """(B, m), True where a token is; also from a mask of pairs that is the same for all heads and queries, (B, 1, 1, m)."""
    if mask.ndim == 4 and mask.shape[1:3] == (1, 1):
        mask = mask[:, 0, 0]
        return mask == 0 if mask.is_floating_point() else mask
    if mask.ndim != 2:
        raise InputError(f"{name}: a form takes a mask of tokens (batch, length), not of pairs of them")
    return mask


def _padding(
    *,
    kv_length: int,
    kv_offset: int,
    attention_mask: Tensor | None,
    use_vmap: bool = False,
    allow_is_causal_skip: bool = True,
    **others: Any,
) -> Tensor | None:
    """In place of an n × m mask: which of the keys are tokens (B, m), or None where all are.

    Whatever else transformers would put into its mask, it tells by forbidding to leave the mask out.
    """
    plain = others.get("allow_is_bidirectional_skip", allow_is_causal_skip)
    if use_vmap or not plain:
        raise InputError(_PACKED)
    padding = prepare_padding_mask(attention_mask, kv_length, kv_offset)
    if padding is None:
        return None
    padding = padding[:, kv_offset : kv_offset + kv_length].bool()
    return padding if torch.compiler.is_compiling() or not padding.all() else None
