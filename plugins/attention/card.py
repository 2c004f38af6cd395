"""What all attention forms have in common, without torch."""

from abc import abstractmethod
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from effbench.plugin import Cell, Context, Inference, Technique

if TYPE_CHECKING:
    from torch import nn

    from .form import Form


class AttentionForm(Technique):
    """A technique that puts another attention into every layer; it gives the form, and this class does the rest."""

    family: ClassVar = "attention"
    sets: ClassVar[tuple[str, ...]] = ("attention",)
    imports: ClassVar[tuple[str, ...]] = (f"{__package__}.interface",)

    @abstractmethod
    def build(self, ctx: Context) -> "Form":
        """The form for this trial's model."""

    def unsupported(self, cell: Cell) -> str | None:
        """Forms are for self-attention through transformers' interface, with scores that are products and nothing else."""
        return no_form_for(cell.facts.model_type) or _two_sided_windows(cell)

    def unsupported_before(self, later: Sequence[Technique]) -> str | None:
        """A model that is made anew would lack what the form put on its layers."""
        student = next((technique for technique in later if technique.family == "distillation"), None)
        return f"{student.name} makes its student of a plain model: list {self.name} behind it" if student else None

    def memory(self, cell: Cell, phase: Literal["train", "infer"]) -> float | None:
        """In training a form keeps queries, keys and values as exact attention does; in inference its cache may be smaller."""
        return 0.0 if phase == "train" else None

    def apply(self, model: "nn.Module", ctx: Context) -> "nn.Module":
        """Put the form in place of the model's attention."""
        from .interface import install

        install(model, self.name, self.build(ctx))
        return model

    def infer(self, inference: Inference, ctx: Context) -> Inference:
        """Decode with the form's own cache, where it has one."""
        from .interface import install_cache

        form = self.build(ctx)
        if ctx.cell.facts.causal and form.past_layer() is not None:
            install_cache(inference.model, form)
        return inference


class FewerHeads(Technique):
    """A technique that makes the linear layers around attention heads smaller, before training."""

    sets: ClassVar[tuple[str, ...]] = ("attention heads",)

    def unsupported(self, cell: Cell) -> str | None:
        """Heads are found in models of one stack."""
        return no_form_for(cell.facts.model_type)

    def unsupported_after(self, earlier: Sequence[Technique]) -> str | None:
        """The layers must still be plain ones, and what is put beside them must know their size."""
        for technique in earlier:
            converted = "linear weights" in technique.sets and getattr(technique, "at", "infer") != "infer"
            if converted or technique.family == "peft":
                return f"{technique.name} changes the layers that {self.name} makes smaller: list it behind {self.name}"
        return None


@cache
def no_form_for(model_type: str) -> str | None:
    """Why models of this type cannot take a form, or None, read in the source of the installed transformers.

    Some types use the attention interface from one release on, so a list here would be wrong in another. A type whose source
    is elsewhere (remote code) is looked at when its model is there.
    """
    source = _modeling_source(model_type)
    if source is None:
        return None
    if "Seq2SeqLMOutput" in source:
        return f"{model_type} has an encoder and a decoder; attention forms are for models of one stack"
    if "ALL_ATTENTION_FUNCTIONS.get_interface(" not in source:
        return f"{model_type} does not use transformers' attention interface, so its attention cannot be replaced"
    return None


def _two_sided_windows(cell: Cell) -> str | None:
    """Why a model that looks both ways cannot take a form where some of its layers have windows of their own."""
    source = _modeling_source(cell.facts.model_type) or ""
    if cell.facts.causal or "create_bidirectional_sliding_window_mask(" not in source:
        return None
    return f"{cell.facts.model_type} has two-sided windows of its own, which cannot be combined with another form"


def _modeling_source(model_type: str) -> str | None:
    spec = find_spec("transformers")  # finds the package without importing it
    if spec is None or not spec.submodule_search_locations:
        return None
    folder = Path(spec.submodule_search_locations[0]) / "models" / model_type.replace("-", "_")
    files = sorted(folder.glob("modeling_*.py"))
    return "\n".join(file.read_text(encoding="utf-8") for file in files) or None
