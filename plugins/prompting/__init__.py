"""Virtual tokens: prompt tuning, P-tuning, prefix tuning. This card needs no torch; the module lies beside it."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from effbench.plugin import Cell, Context, Inference, Technique, hookimpl

if TYPE_CHECKING:
    from torch import nn

_ENCODER_DECODERS = frozenset(("bart", "blenderbot", "longt5", "m2m_100", "marian", "mbart", "mt5", "pegasus", "t5", "umt5"))


class _VirtualTokens(Technique):
    """What the three have in common: the base is frozen, and after training the tokens are computed once and for all."""

    family: ClassVar = "peft"
    requires: ClassVar = ("peft",)
    imports: ClassVar = ("peft",)
    sets: ClassVar[tuple[str, ...]] = ("trainable parameters", "virtual tokens")

    tokens: int = Field(default=16, ge=1, description="virtual tokens; they count in the context's length")

    def unsupported(self, cell: Cell) -> str | None:
        """The context must hold the virtual tokens too."""
        if cell.facts.model_type in _ENCODER_DECODERS:
            return f"virtual tokens are for a model of one stack; {cell.facts.model_type} has an encoder and a decoder"
        if self.tokens + cell.seq_len > cell.facts.context:
            return f"{self.tokens} virtual tokens and seq_len {cell.seq_len} pass the model's context of {cell.facts.context}"
        return None

    def unsupported_phase(self, cell: Cell, phase: str) -> str | None:
        """Decoded tokens come on top."""
        if phase == "infer" and self.tokens + cell.seq_len + cell.new_tokens > cell.facts.context:
            return f"virtual tokens, prompt and new tokens pass the model's context of {cell.facts.context}"
        return None

    def infer(self, inference: Inference, ctx: Context) -> Inference:
        """What computed the virtual tokens is dropped, as the papers do: their values are all that inference needs."""
        from .virtual_tokens import VirtualTokens

        for module in inference.model.modules():
            if isinstance(module, VirtualTokens):
                module.fold()
        return inference


class PromptTuning(_VirtualTokens):
    """Train virtual tokens' embeddings before the input of a frozen model (Lester et al. 2021, arXiv 2104.08691).

    tokens·hidden parameters, nothing else. They lengthen every sequence, so training, prefill and the KV cache cost more than
    the base's, noticeably where prompts are short. It comes near full fine-tuning only in models of billions of parameters; in
    small ones it learns slowly, and wants a learning rate 10 to 100 times that of LoRA. Needs peft.
    """

    name: ClassVar = "prompt_tuning"

    init: Literal["vocabulary", "random"] = Field(
        default="vocabulary", description="start from embeddings of tokens drawn at random, or from a normal distribution"
    )

    def apply(self, model: "nn.Module", ctx: Context) -> "nn.Module":
        """Freeze the model and put the trained embeddings in front."""
        from .virtual_tokens import VirtualEmbeddings, prompt_embedding

        return VirtualEmbeddings(model, prompt_embedding(model, self.tokens, self.init), self.tokens)


class PTuning(_VirtualTokens):
    """Prompt tuning whose embeddings come out of a small trained network (Liu et al. 2021, arXiv 2103.10385).

    The network ties the virtual tokens together, which makes them easier to train than free ones; it is evaluated in every
    training step and dropped after training. At inference it costs what prompt tuning costs, and shares its limits: longer
    sequences, and little to gain in small models. Needs peft.
    """

    name: ClassVar = "p_tuning"

    encoder: Literal["mlp", "lstm"] = Field(default="mlp", description="network: three linear layers, or two-way LSTMs and two")
    encoder_hidden: int = Field(default=128, ge=1, description="features inside the network")

    def apply(self, model: "nn.Module", ctx: Context) -> "nn.Module":
        """Freeze the model and put the network's embeddings in front."""
        from .virtual_tokens import VirtualEmbeddings, prompt_encoder

        return VirtualEmbeddings(model, prompt_encoder(model, self.tokens, self.encoder, self.encoder_hidden), self.tokens)


class PrefixTuning(_VirtualTokens):
    """Train virtual tokens' keys and values in every layer of a frozen model (Li & Liang 2021, arXiv 2101.00190).

    2·layers·kv_width parameters a token: more than prompt tuning and stronger in small models, and only attention sees the
    virtual tokens, so their cost is that of a longer cache. They start as the keys and values of tokens drawn at random. With
    `projection` a network computes them, as in the paper: more stable, far more to train, and dropped after training. It does
    not help where what is missing is knowledge: a prefix steers what the model can do already. Needs peft.
    """

    name: ClassVar = "prefix_tuning"
    sets: ClassVar = (*_VirtualTokens.sets, "training cache")

    projection: bool = Field(default=False, description="compute keys and values by a trained network of two layers")
    projection_hidden: int = Field(default=128, ge=1, description="features inside that network")

    def unsupported_after(self, earlier: Sequence[Technique]) -> str | None:
        """Every layer gets as many heads of keys and values."""
        for technique in earlier:
            if technique.family == "pruning" and "attention heads" in technique.sets:
                return f"{technique.name} leaves each layer a number of heads of its own, and {self.name} gives all as many"
        return None

    def apply(self, model: "nn.Module", ctx: Context) -> "nn.Module":
        """Freeze the model and put the trained keys and values into its cache."""
        from .virtual_tokens import VirtualKeysAndValues, prefix_encoder

        hidden = self.projection_hidden if self.projection else None
        encoder = prefix_encoder(model, self.tokens, hidden)
        return VirtualKeysAndValues(model, encoder, self.tokens, causal=ctx.cell.facts.causal)


@hookimpl
def register_techniques(register: "Callable[[type[Technique]], None]") -> None:
    """Register the three kinds of virtual tokens."""
    for technique in (PromptTuning, PTuning, PrefixTuning):
        register(technique)
