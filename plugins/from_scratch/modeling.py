"""Llama and EuroBERT with a token shift, otherwise as transformers has them: attention goes through its AttentionInterface."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import EuroBertConfig, EuroBertForMaskedLM, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from effbench.plugin import InputError, LoadRequest, ModelFacts

# Of new weights, times √hidden. transformers' 0.02 is this for some 600 channels; in a model of 64 it makes all attention
# scores so nearly equal that thousands of steps pass before a head looks anywhere.
_DEVIATION = 0.5


class _TokenShift(PreTrainedModel):  # type: ignore[misc]  # transformers is not typed
    """Adds an embedding of the token before to each token's own (as RWKV mixes the two, Peng et al. 2023, arXiv 2305.13048).

    While decoding, the token before a step's first one is kept beside the keys and values, in the cache.
    """

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.previous = nn.Embedding(config.vocab_size, config.hidden_size)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        **keywords: Any,
    ) -> Any:
        if input_ids is None and inputs_embeds is not None:
            raise InputError("a model with a token shift takes tokens, not embeddings: use a prefix, not virtual embeddings")
        if input_ids is not None:
            before = getattr(past_key_values, "last_token", torch.zeros_like(input_ids[:, :1]))
            shifted = torch.cat([before, input_ids[:, :-1]], dim=1)
            inputs_embeds = self.get_input_embeddings()(input_ids) + self.previous(shifted)
        if past_key_values is not None:
            keywords["past_key_values"] = past_key_values
        output = super().forward(attention_mask=attention_mask, inputs_embeds=inputs_embeds, **keywords)
        if input_ids is not None and (cache := getattr(output, "past_key_values", None)) is not None:
            cache.last_token = input_ids[:, -1:]
        return output


# transformers finds a model's loss by its class's name: the endings decide whether labels are shifted by one place.
class ShiftedLlamaForCausalLM(_TokenShift, LlamaForCausalLM):  # type: ignore[misc]  # as above
    """Predicts the next token."""


class ShiftedEuroBertForMaskedLM(_TokenShift, EuroBertForMaskedLM):  # type: ignore[misc]  # as above
    """Predicts masked tokens from both sides."""


def build(facts: ModelFacts, request: LoadRequest) -> nn.Module:
    """A model of this shape with weights from torch's generator."""
    family = (LlamaConfig, ShiftedLlamaForCausalLM) if facts.causal else (EuroBertConfig, ShiftedEuroBertForMaskedLM)
    config_class, model_class = family
    config = config_class(
        vocab_size=facts.vocab,
        hidden_size=facts.hidden,
        intermediate_size=facts.intermediate,
        num_hidden_layers=facts.layers,
        num_attention_heads=facts.heads,
        num_key_value_heads=facts.kv_heads,
        max_position_embeddings=facts.context,
        initializer_range=_DEVIATION / facts.hidden**0.5,
        tie_word_embeddings=True,  # what is recalled is a token that was read
        attn_implementation=request.attention,
        pad_token_id=0,
        bos_token_id=0,
        eos_token_id=0,
        **request.options,
    )
    model: nn.Module = model_class(config)
    return model.to(getattr(torch, request.dtype)).eval()
