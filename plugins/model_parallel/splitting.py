"""Split a transformers model over the ranks of a mesh by its plan. This module needs torch."""

from collections import defaultdict
from collections.abc import Callable
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

from peft.tuners.lora import LoraLayer
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Shard
from torch.distributed.tensor.parallel import ParallelStyle, parallelize_module
from torch.distributed.tensor.placement_types import Placement, _StridedShard
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from effbench.plugin import InputError

from . import styles
from .plans import WIDTHS, Plan
from .styles import Move, Part, Split, SplitVocabulary, sharded

Parts = Callable[[str], Part]
_PACKED = 3  # queries, keys and values


def split_model(model: nn.Module, mesh: DeviceMesh, plan: Plan, *, sequence: bool) -> None:
    """Make every parameter a DTensor, and every layer of the plan compute on this rank's part of its own."""
    splitting = _Splitting(model, mesh.size(), sequence=sequence)
    splitting.layers(plan)
    if sequence:
        splitting.norms()
    else:
        splitting.gather_entries()
    splitting.vocabulary()
    parallelize_module(model, mesh, splitting.by_name())
    splitting.known.clear()  # or the whole weights would live on in it


class _Splitting:
    """Finds the style of every module."""

    def __init__(self, model: nn.Module, ranks: int, *, sequence: bool) -> None:
        self.model, self.ranks, self.sequence = model, ranks, sequence
        found = next((module for module in model.modules() if isinstance(module, PreTrainedModel)), None)
        if found is None:
            raise InputError("tensor_parallel needs a transformers model")
        self.inner: Any = found
        self.known: dict[nn.Parameter, nn.Parameter] = {}
        self.style = partial(Split, self.known)
        self.styles: dict[nn.Module, Split] = {}
        self.columns: dict[nn.Module, list[nn.Module]] = defaultdict(list)
        """Layers that are split by columns, by the module they are in."""

    def layers(self, plan: Plan) -> None:
        """The layers that the plan names."""
        modules = dict(self.inner.base_model.named_modules())
        for name, module in modules.items():
            style = next((style for pattern, style in plan.items() if _matches(name, pattern)), None)
            if style is not None:
                self._layer(module, style, around=modules[name.rpartition(".")[0]])

    def _layer(self, layer: Any, style: str, around: nn.Module) -> None:
        if style == "replicated_with_grad_allreduce":
            self.styles[layer] = self.style(_shared)
        elif style in ("rowwise", "rowwise_split_input"):
            self._row(layer, entry=styles.SPLIT_COLUMNS if style == "rowwise_split_input" else None)
        else:
            joined = styles.JOIN_COLUMNS if style == "colwise_gather_output" else None
            self._column(layer, joined, _PACKED if style == "packed_colwise" else 1)
            self._narrow(around)
            self.columns[around].append(layer)

    def _column(self, layer: Any, exit_: Move | None, packed: int) -> None:
        """Each rank has some of the outputs. Of an update A·B it has all of A and the same outputs of B."""
        self.styles[layer] = self.style()
        linear, a, b = _with_update(layer)
        self.styles |= {part: self.style(_outputs(part, packed), exit=exit_) for part in (linear, *b)}
        self.styles |= {part: self.style(_shared) for part in a}
        self.styles[layer].entry = None if self.sequence else styles.INTO_COLUMNS
        if isinstance(linear, Conv1D):
            linear.nf //= self.ranks  # its forward pass makes the output's shape of it

    def _row(self, layer: Any, entry: Move | None) -> None:
        """Each rank has some of the inputs. Of an update A·B it has the same inputs of A and all of B, which reads A's sum."""
        linear, a, b = _with_update(layer)
        leaving: dict[str, Any] = {"exit": styles.OUT_OF_ROWS}
        if self.sequence:
            leaving = {"exit": styles.OUT_OF_ROWS_SPLIT, "otherwise": styles.OUT_OF_ROWS, "training": True}
        self.styles |= {part: self.style(_inputs(part), entry=entry, **leaving) for part in (linear, *a)}
        self.styles |= {part: self.style(_shared) for part in b if self.sequence}

    def _narrow(self, attention: nn.Module) -> None:
        """Correct what a module notes of its whole width, where it does not read it off its tensors; once."""
        if attention not in self.columns:
            for name in WIDTHS.get(self.inner.config.model_type, ()):
                if hasattr(attention, name):
                    setattr(attention, name, getattr(attention, name) // self.ranks)

    def gather_entries(self) -> None:
        """One sum of gradients where several column-split layers read the same: q, k and v, or gate and up.

        It is where the module around them is entered, if nothing else in there has parameters.
        """
        for around, layers in self.columns.items():
            owners = [module for module in around.modules() if module._parameters]
            if len(layers) > 1 and all(owner in self.styles for owner in owners):
                self.styles[around] = self.style(entry=styles.INTO_COLUMNS)
                for layer in layers:
                    self.styles[layer].entry = None

    def norms(self) -> None:
        """Sequence parallelism: from the first layer to the last norm, what is between split layers is split by position."""
        base = self.inner.base_model
        norms = [norm for layer in base.layers for norm in (layer.input_layernorm, layer.post_attention_layernorm)]
        for norm in (*norms, base.norm):
            self.styles[norm] = self.style(_shared, exit=styles.JOIN_SEQUENCE, training=True)
        self.styles[base.layers[0]] = self.style(entry=styles.SPLIT_SEQUENCE, training=True)

    def vocabulary(self) -> None:
        """Embedding and head, of which each rank has the same tokens, so that they may be tied."""
        embedding, head = self.inner.get_input_embeddings(), self.inner.get_output_embeddings()
        plain = isinstance(embedding, nn.Embedding) and isinstance(head, nn.Linear)
        split = plain and embedding.num_embeddings % self.ranks == head.out_features % self.ranks == 0
        if split:
            self.styles[embedding] = SplitVocabulary(self.known, _rows)
            entry = None if self.sequence else styles.INTO_COLUMNS
            self.styles[head] = self.style(_rows, entry=entry, exit=styles.JOIN_COLUMNS)
        elif self.sequence:
            self.styles[self.inner.base_model.norm].exit = styles.JOIN_SEQUENCE._replace(gradient=styles.WHOLE.gradient)

    def by_name(self) -> dict[str, ParallelStyle]:
        """Every module with a style or with parameters; where nothing was said of these, they are whole on every rank."""
        for owner in (module for module in self.model.modules() if module._parameters):
            self.styles.setdefault(owner, self.style())
        return {name: self.styles[module] for name, module in self.model.named_modules() if module in self.styles}


def _with_update(layer: Any) -> tuple[Any, list[nn.Module], list[nn.Module]]:
    """The plain layer, and the A's and B's that peft's LoRA put beside it; other wrappers see what the plain layer gives."""
    updates: tuple[list[nn.Module], list[nn.Module]] = ([], [])
    if isinstance(layer, LoraLayer):
        updates = (list(layer.lora_A.values()), list(layer.lora_B.values()))
    layer = getattr(layer, "base_layer", layer)
    if not isinstance(layer, nn.Linear | Conv1D):
        raise InputError(f"tensor_parallel splits linear layers, not a {type(layer).__name__}")
    return layer, *updates


def _matches(name: str, pattern: str) -> bool:
    return name.count(".") == pattern.count(".") and fnmatchcase(name, pattern)


def _shared(_: str) -> Part:
    return styles.SHARED


def _rows(_: str) -> Part:
    return sharded(Shard(0))


def _outputs(layer: Any, packed: int = 1) -> Parts:
    """A linear layer's outputs, or each of several that are packed into one, split over the ranks."""

    def parts(name: str) -> Part:
        dimension = 1 if isinstance(layer, Conv1D) and name == "weight" else 0
        placement: Placement = Shard(dimension) if packed == 1 else _StridedShard(dimension, split_factor=packed)
        return sharded(placement)

    return parts


def _inputs(layer: Any) -> Parts:
    """A linear layer's inputs split over the ranks; the bias is added to a sum over them."""
    dimension = 0 if isinstance(layer, Conv1D) else 1
    return lambda name: sharded(Shard(dimension)) if name == "weight" else styles.SUMMED
