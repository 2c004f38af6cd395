"""Exact attention, by the kernel that computes it."""

from dataclasses import replace
from importlib.util import find_spec
from typing import ClassVar, Literal

from pydantic import Field

from effbench.plugin import Cell, LoadRequest, Technique

_IMPLEMENTATIONS = {"eager": "eager", "sdpa": "sdpa", "flex": "flex_attention", "flash": "flash_attention_2"}
# How many float32 matrices of (batch, heads, n, n) eager attention holds beyond sdpa. Measured on a CPU, as the peak resident
# size of a small Llama in a process of its own at n = 512, 1024 and 1536, of 4 and 8 layers, and rounded down.
_KEPT = {"float32": 1.0, "bfloat16": 1.5, "float16": 1.5}
"""By each layer for the backward pass: the softmax, and its copy in 16 bits (measured in float32: 1.1)."""
_PASSING = 2.0
"""In the layer that runs: scores, scaled and masked, or the gradients of softmax and scores (measured: 2.1 to 2.6)."""


class ExactAttention(Technique):
    """Softmax over all keys, without storing the weights (FlashAttention: Dao et al. 2022, arXiv 2205.14135).

    All kernels give the same result up to rounding. `eager` multiplies, takes softmax and multiplies again, with memory in n²;
    `sdpa`, PyTorch's own and what every stack uses that names none, goes through tiles with memory in n, on CPUs as well;
    `flash` is the flash-attn package, for CUDA and 16-bit floats; `flex` is PyTorch's compiled FlexAttention, which on CPUs has
    no backward pass. Time stays in n² for all of them. `eager` is there to compare with; it does not help anywhere, and on
    short sequences neither do the others.
    """

    name: ClassVar = "exact_attention"
    family: ClassVar = "attention"
    sets: ClassVar = ("attention",)

    kernel: Literal["eager", "sdpa", "flex", "flash"] = Field(default="sdpa", description="what computes it")

    def unsupported(self, cell: Cell) -> str | None:
        """The flash-attn package has its conditions."""
        if self.kernel != "flash":
            return None
        if cell.device != "cuda" or cell.dtype == "float32":
            return f"flash-attn runs on CUDA in bfloat16 or float16, not on {cell.device} in {cell.dtype}"
        return None if find_spec("flash_attn") else "flash-attn is not installed: pip install flash-attn"

    def unsupported_phase(self, cell: Cell, phase: str) -> str | None:
        """FlexAttention on CPUs is forward only."""
        if self.kernel == "flex" and cell.device == "cpu" and phase == "train":
            return "FlexAttention has no backward pass on CPUs"
        return None

    def memory(self, cell: Cell, phase: Literal["train", "infer"]) -> float:
        """Eager attention holds the matrix of queries by keys that the others never have; see `_KEPT` and `_PASSING`."""
        if self.kernel != "eager":
            return 0.0
        matrix = cell.batch_size / cell.data_ranks * cell.facts.heads * cell.seq_len**2 * 4
        return matrix * (_PASSING + (_KEPT[cell.dtype] * cell.facts.layers if phase == "train" else 0))

    def load(self, request: LoadRequest) -> LoadRequest:
        """Ask transformers for it."""
        return replace(request, attention=_IMPLEMENTATIONS[self.kernel])
