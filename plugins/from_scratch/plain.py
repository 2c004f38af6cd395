"""A Llama as transformers has it."""

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from effbench.plugin import LoadRequest, ModelFacts

_DEVIATION = 0.5  # of new weights, times √hidden


def build(facts: ModelFacts, request: LoadRequest) -> nn.Module:
    """A model of this shape with weights from torch's generator."""
    config = LlamaConfig(
        vocab_size=facts.vocab,
        hidden_size=facts.hidden,
        intermediate_size=facts.intermediate,
        num_hidden_layers=facts.layers,
        num_attention_heads=facts.heads,
        num_key_value_heads=facts.kv_heads,
        max_position_embeddings=facts.context,
        initializer_range=_DEVIATION / facts.hidden**0.5,
        tie_word_embeddings=True,
        attn_implementation=request.attention,
        pad_token_id=0,
        bos_token_id=0,
        eos_token_id=0,
        **request.options,
    )
    model: nn.Module = LlamaForCausalLM(config)
    return model.to(getattr(torch, request.dtype)).eval()
