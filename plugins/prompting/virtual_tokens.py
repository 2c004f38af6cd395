"""A frozen model with trained tokens before its input. The encoders are peft's.

peft's own wrapper gives logits of the virtual positions too, and puts the virtual tokens in again at every decoded token. Here
what comes out is aligned with what went in, so training, quality, prefill and decode need not know of them.
"""

import inspect
from typing import Any

import torch
from peft import PrefixTuningConfig, PromptEncoderConfig, PromptTuningConfig
from peft.tuners import PrefixEncoder, PromptEmbedding, PromptEncoder
from torch import Tensor, nn
from transformers import DynamicCache


class VirtualTokens(nn.Module):
    """The base model behind virtual tokens; they are computed by `encoder` until `fold` keeps its result instead."""

    def __init__(self, model: nn.Module, encoder: nn.Module, count: int) -> None:
        super().__init__()
        self.model: Any = model.requires_grad_(False)
        self.encoder: Any = encoder.to(next(model.parameters()).device)
        self.count = count
        self.register_buffer("folded", None)
        self._keeps = "logits_to_keep" in inspect.signature(self.model.forward).parameters

    def __getattr__(self, name: str) -> Any:
        """What is asked of the model and not found here, such as `config`, is the base's."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("model"), name)

    @property
    def base_layer(self) -> nn.Module:
        """What is wrapped, as peft's wrappers call it too: the encoder is not a part of it."""
        model: nn.Module = self.model
        return model

    def fold(self) -> None:
        """Compute the virtual tokens for the last time."""
        if self.encoder is not None:
            with torch.no_grad():
                self.folded = self._values().clone()
            self.encoder = None

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        past_key_values: Any = None,
        **keywords: Any,
    ) -> Any:
        """The base model's output, its logits and loss those of the real positions."""
        if attention_mask is not None:
            virtual = attention_mask.new_ones(len(input_ids), self.count)
            attention_mask = torch.cat([virtual, attention_mask], dim=1)
        if past_key_values is not None:  # they are in the cache already
            return self.model(input_ids=input_ids, attention_mask=attention_mask, past_key_values=past_key_values, **keywords)
        length = input_ids.shape[1]
        if self._keeps:  # the head need not run on virtual positions
            keywords["logits_to_keep"] = keywords.get("logits_to_keep") or length
        output = self.model(**self._inputs(input_ids, attention_mask), **keywords)
        output.logits = output.logits[:, -length:].contiguous()
        if labels is not None:
            output.loss = self.model.loss_function(logits=output.logits, labels=labels, vocab_size=self.model.config.vocab_size)
        return output

    def _values(self) -> Tensor:
        values: Tensor = self.folded
        if self.encoder is not None:
            values = self.encoder(torch.arange(self.count, device=self.model.device)[None])[0]
        return values.to(self.model.dtype)  # which may be another since they were folded

    def _inputs(self, input_ids: Tensor, attention_mask: Tensor | None) -> dict[str, Any]:
        raise NotImplementedError


class VirtualEmbeddings(VirtualTokens):
    """Prompt tuning and P-tuning: rows before the input's embeddings."""

    def _inputs(self, input_ids: Tensor, attention_mask: Tensor | None) -> dict[str, Any]:
        embeddings = self.model.get_input_embeddings()(input_ids)
        virtual = self._values().to(embeddings.dtype).expand(len(input_ids), -1, -1)
        return {"inputs_embeds": torch.cat([virtual, embeddings], dim=1), "attention_mask": attention_mask}


class VirtualKeysAndValues(VirtualTokens):
    """Prefix tuning: a cache that is not empty when the input comes."""

    def __init__(self, model: nn.Module, encoder: nn.Module, count: int, *, causal: bool) -> None:
        super().__init__(model, encoder, count)
        self._causal, self._shape = causal, _key_value_shape(model)

    def _inputs(self, input_ids: Tensor, attention_mask: Tensor | None) -> dict[str, Any]:
        config = self.model.config
        values = self._values().view(self.count, config.num_hidden_layers, 2, *self._shape).permute(1, 2, 3, 0, 4)
        cache = DynamicCache(config=config)
        for layer, (keys, states) in enumerate(values):
            cache.update(keys.expand(len(input_ids), -1, -1, -1), states.expand(len(input_ids), -1, -1, -1), layer)
        if not self._causal and attention_mask is not None:  # an encoder would cut it to the input's length
            hidden = attention_mask[:, None, None] == 0  # the same for all heads and queries
            minimum = torch.finfo(self.model.dtype).min
            attention_mask = torch.zeros_like(hidden, dtype=self.model.dtype).masked_fill(hidden, minimum)
        return {"input_ids": input_ids, "attention_mask": attention_mask, "past_key_values": cache}


def prompt_embedding(model: Any, count: int, init: str) -> nn.Module:
    """Free embeddings."""
    start = "SAMPLE_VOCAB" if init == "vocabulary" else "RANDOM"
    config = PromptTuningConfig(
        num_virtual_tokens=count, token_dim=_width(model), num_transformer_submodules=1, prompt_tuning_init=start
    )
    encoder: nn.Module = PromptEmbedding(config, model.get_input_embeddings())
    return encoder


def prompt_encoder(model: Any, count: int, kind: str, hidden: int) -> nn.Module:
    """Embeddings through a network."""
    config = PromptEncoderConfig(
        num_virtual_tokens=count,
        token_dim=_width(model),
        num_transformer_submodules=1,
        encoder_reparameterization_type=kind.upper(),
        encoder_hidden_size=hidden,
    )
    encoder: nn.Module = PromptEncoder(config)
    return encoder


def prefix_encoder(model: Any, count: int, hidden: int | None) -> nn.Module:
    """Keys and values of every layer: free ones that start as those of random tokens, or through a network."""
    heads, width = _key_value_shape(model)
    config = PrefixTuningConfig(
        num_virtual_tokens=count,
        token_dim=heads * width,
        num_layers=model.config.num_hidden_layers,
        prefix_projection=hidden is not None,
        encoder_hidden_size=hidden,
    )
    encoder: Any = PrefixEncoder(config)
    if hidden is None:
        # Li & Liang, section 7.4: activations of any real tokens are a far better start than noise, which drowns the input.
        ids = torch.randint(model.config.vocab_size, (1, count)).to(model.device)
        cache = DynamicCache(config=model.config)
        with torch.no_grad():
            model(input_ids=ids, past_key_values=cache, use_cache=True)
        start = torch.stack([torch.stack([layer.keys[0], layer.values[0]]) for layer in cache.layers])
        encoder.embedding.weight = nn.Parameter(start.permute(3, 0, 1, 2, 4).reshape(count, -1).float())
    result: nn.Module = encoder
    return result


def _width(model: Any) -> int:
    return int(model.get_input_embeddings().weight.shape[1])


def _key_value_shape(model: Any) -> tuple[int, int]:
    """Heads of keys and values, and the features of each; the model tells, for its config may count heads that are gone."""
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model(input_ids=torch.zeros(1, 1, dtype=torch.long, device=model.device), past_key_values=cache, use_cache=True)
    _, heads, _, width = cache.layers[0].keys.shape
    return heads, width
