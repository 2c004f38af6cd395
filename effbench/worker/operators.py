"""Operators of a trace, sorted into a few kinds by their names and by what they run within."""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from effbench.store.profile import Kind, Operator

if TYPE_CHECKING:
    from torch.autograd.profiler_util import FunctionEvent

_WITHIN: tuple[tuple[Kind, str], ...] = (
    ("optimizer", r"^Optimizer\."),
    ("communication", r"c10d|nccl|gloo:|record_param_comms"),
    ("attention", r"scaled_dot_product|flash_att|efficient_attention|flex_attention|cudnn_attention"),
)
"""An operator within one of these, or one of these itself, is of this kind; the first that fits."""
_OWN: tuple[tuple[Kind, str], ...] = (
    ("normalisation", r"\w*(layer|rms|batch|group|instance|weight)_?norm\w*"),
    ("matmul", r"\w*mm(_activation)?|matmul|linear\w*|\w*conv(olution|\d?d)\w*|einsum|(add)?mv|v?dot|\w*gemm\w*"),
    (
        "memory/copy",
        r"to|copy|clone|contiguous|detach|alias|resolve_\w+|lift_fresh|empty\w*|new_\w+|zeros?(_like)?|ones(_like)?|full\w*"
        r"|fill|resize|set|cat|stack|split\w*|chunk|unbind|slice\w*|select\w*|narrow|index\w*|gather|scatter\w*|embedding\w*"
        r"|view\w*|unsafe_view|reshape\w*|flatten|unflatten|expand\w*|transpose|permute|t|(un)?squeeze|as_strided\w*|repeat\w*"
        r"|pad|constant_pad_nd|tri[lu]|roll|flip|item|local_scalar_dense|to_copy|pin_memory|memcpy\w*|memset\w*",
    ),
    (
        "elementwise",
        r"r?(add|sub)|mul|div|neg|abs|pow|square|r?sqrt|exp2?|expm1|log(2|1p)?|sin|cos|tanh|sigmoid|silu|r?elu|gelu|swiglu|erf"
        r"|softplus|hardswish|leaky_relu|clamp\w*|where|masked_fill|addcmul|addcdiv|lerp|round|floor|ceil|sign|reciprocal"
        r"|eq|ne|lt|le|gt|ge|bitwise_\w+|logical_\w+|isfinite|isnan|isinf|maximum|minimum|sum|mean|var|std|prod|cumsum"
        r"|arg(max|min|sort)|a?(max|min)|sort|topk|any|all|(log_)?softmax|nll_loss\w*|cross_entropy\w*|kl_div|mse_loss"
        r"|logsumexp|\w*dropout|bernoulli|normal|uniform|random|arange|(de|fake_)?quantize\w*|\w*fused\w*",
    ),
)
"""The first that fits an operator's own name: what it is called without its library, `_backward` and the like."""
_BACKWARD_ENGINE = r"^(torch::)?autograd::|Backward\d*$"


def kind_of(names: Sequence[str], *, annotation: bool = False) -> Kind:
    """The kind of an operator, given its name and then the names of what it runs within, from the inside out.

    Only names decide, so a normalisation that a model writes out in Python counts as elementwise, attention that it writes
    out as matmul and elementwise, and the engine that runs backward passes as other. An `annotation` marks a stretch of the
    program: what no operator within it took is the program itself, Python most of all.
    """
    for kind, pattern in _WITHIN:
        if any(re.search(pattern, name) for name in names):
            return kind
    if annotation:
        return "outside operators"
    if re.search(_BACKWARD_ENGINE, names[0]):
        return "other"
    base = re.sub(r"^_?(foreach_)?|_?(backward(_data)?|forward)?_?$", "", names[0].rpartition("::")[2].lower())
    return next((kind for kind, pattern in _OWN if re.fullmatch(pattern, base)), "other")


def by_operator(events: Iterable["FunctionEvent"], device: str, steps: int) -> list[Operator]:
    """Own time and calls per step, by operator and kind, longest first."""
    totals: dict[tuple[str, Kind], list[float]] = defaultdict(lambda: [0.0, 0.0])
    for event in events:
        if event.device_type.name != "CPU":
            continue  # a kernel's time is found with the operator that launched it
        microseconds = event.self_cpu_time_total if device == "cpu" else event.self_device_time_total
        key = event.name, kind_of(list(_names(event)), annotation=bool(event.is_user_annotation))
        totals[key][0] += 1
        totals[key][1] += microseconds / 1e6
    found = [Operator(name=n, kind=k, calls=calls / steps, seconds=s / steps) for (n, k), (calls, s) in totals.items()]
    return sorted(found, key=lambda operator: -operator.seconds)


def _names(event: "FunctionEvent | None") -> Iterator[str]:
    while event is not None:
        yield event.name
        event = event.cpu_parent
