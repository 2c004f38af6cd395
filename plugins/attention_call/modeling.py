"""A transformers model that is one attention call, made as its layers make it. This module needs torch."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, EuroBertConfig, LlamaConfig, PreTrainedModel
from transformers.masking_utils import create_bidirectional_mask, create_causal_mask
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import eager_attention_forward

from effbench.plugin import LoadRequest, ModelFacts


class BareAttention(nn.Module):
    """A layer's attention without its projections; its attributes are those that attention functions look for."""

    def __init__(self, config: Any, *, causal: bool) -> None:
        super().__init__()
        self.config, self.layer_idx, self.is_causal = config, 0, causal
        self.head_dim = config.head_dim
        self.num_key_value_groups = 1
        self.scaling = self.head_dim**-0.5

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Any, past: Any) -> Tensor:
        """(B, n, H, d) each → (B, n, H, d)."""
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # token-major in memory, as projections leave them
        if past is not None:
            k, v = past.update(k, v, self.layer_idx)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        attended: Tensor = attend(self, q, k, v, mask, dropout=0.0, scaling=self.scaling)[0]
        return attended


class AttentionCall(PreTrainedModel):  # type: ignore[misc]  # transformers is not typed
    """Attends from and to random numbers, as many as there are tokens; gives what is attended in the place of logits."""

    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = _supports_attention_backend = True

    def __init__(self, config: Any, *, causal: bool) -> None:
        super().__init__(config)
        self.attention = BareAttention(config, causal=causal)
        self.make_mask = create_causal_mask if causal else create_bidirectional_mask
        self.gain = nn.Parameter(torch.ones(()))  # for the optimizer to have something, and nothing to do
        self.post_init()

    def forward(  # noqa: PLR0913, PLR0917 - transformers' arguments
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool = False,
        labels: Tensor | None = None,
        logits_to_keep: int = 0,
    ) -> Any:
        """Of the ids only the shape matters; labels ask for a loss, whatever they are."""
        drawn = self._inputs(*input_ids.shape)
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        mask = self.make_mask(self.config, drawn[0].flatten(2), attention_mask, past_key_values=past_key_values)
        # New leaves at each call: a step computes their gradients and adds them to nothing.
        q, k, v = (x.detach().requires_grad_(torch.is_grad_enabled()) for x in drawn)
        attended = self.attention(q, k, v, mask, past_key_values).reshape(*input_ids.shape, -1)
        loss = None
        if labels is not None:
            # A gradient must come from somewhere: the queries are random numbers as good as others, and are there already.
            loss = self.gain * torch.dot(attended.flatten(), drawn[0].flatten())
        return CausalLMOutputWithPast(loss=loss, logits=attended[:, -logits_to_keep:], past_key_values=past_key_values)

    def _inputs(self, batch: int, length: int) -> tuple[Tensor, ...]:
        """Queries, keys and values (B, n, H, d), the same whenever there are as many tokens.

        They are drawn when they are first asked for, and not for the whole context, so that memory grows with the tokens alone.
        As buffers they count as a part of the model in every phase, not in the phase that happens to draw them.
        """
        name = f"inputs_{batch}x{length}"
        if name not in self._buffers:
            shape = (3, batch, length, self.config.num_attention_heads, self.config.head_dim)
            device, dtype = self.gain.device, self.gain.dtype
            with torch.inference_mode(False):  # or training could not use what inference drew
                generator = torch.Generator(device).manual_seed(0)
                self.register_buffer(
                    name, torch.randn(shape, generator=generator, device=device, dtype=dtype), persistent=False
                )
        return tuple(self.get_buffer(name))


def build(facts: ModelFacts, request: LoadRequest) -> nn.Module:
    """The call with this shape."""
    config_class = LlamaConfig if facts.causal else EuroBertConfig
    config = config_class(
        hidden_size=facts.hidden,
        num_hidden_layers=facts.layers,
        num_attention_heads=facts.heads,
        num_key_value_heads=facts.kv_heads,
        head_dim=facts.hidden // facts.heads,
        max_position_embeddings=facts.context,
        attn_implementation=request.attention,
        **request.options,
    )
    model: nn.Module = AttentionCall(config, causal=facts.causal)
    return model.to(getattr(torch, request.dtype)).eval()
