"""Where each family of models has its parts, by the names of transformers; without torch."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Layout:
    """Names of modules: the embeddings that only the first stage runs, the layers, what only the last one runs."""

    layers: str = "layers"
    embedding: str = "embed_tokens"
    positions: str | None = None
    """Embeddings of positions that are added to those of tokens."""
    dropout: str | None = None
    norm: str = "norm"
    head: str = "lm_head"


_LLAMA = Layout()

LAYOUTS = {
    "gpt2": Layout("h", "wte", "wpe", "drop", "ln_f"),
    "gpt_neox": Layout(embedding="embed_in", dropout="emb_dropout", norm="final_layer_norm"),
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "olmo2": _LLAMA,
    "phi": Layout(dropout="embed_dropout", norm="final_layernorm"),
    "phi3": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "smollm3": _LLAMA,
}
"""By model_type. Models that scale their embeddings, or that hand more than hidden states from layer to layer, are not here."""
