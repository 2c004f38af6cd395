"""Operators of a trace, sorted into a few kinds by their names and by what they run within."""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from effbench.store.profile import Kind, Operator

if TYPE_CHECKING:
    from torch.autograd.profiler_util import FunctionEvent

WAITING = "waiting for other ranks"
Range = tuple[float, float]
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
    """Own time and calls per step, by operator and kind, longest first.

    gloo communicates on threads of its own, beside the operators. Of a CPU's time, what the program spends in no operator while
    it does is counted as waiting for it; what operators hide costs nothing, and is not counted.
    """
    on_cpu = [event for event in events if event.device_type.name == "CPU"]  # a kernel's time lies with what launched it
    totals: dict[tuple[str, Kind], list[float]] = defaultdict(lambda: [0.0, 0.0])
    communication = _union(_range(e) for e in on_cpu if e.is_async and kind_of([e.name]) == "communication")
    for event in on_cpu:
        names = list(_names(event))
        kind = kind_of(names, annotation=bool(event.is_user_annotation))
        microseconds = event.self_cpu_time_total if device == "cpu" else event.self_device_time_total
        if kind == "outside operators" and device == "cpu":
            waiting = _overlap([_range(event)], communication)
            waiting -= _overlap(_union(_range(child) for child in event.cpu_children), communication)
            microseconds -= waiting
            totals[WAITING, "communication"][1] += waiting
        totals[event.name, kind][0] += 1
        totals[event.name, kind][1] += microseconds
    found = [
        Operator(name=name, kind=kind, calls=calls / steps, seconds=microseconds / 1e6 / steps)
        for (name, kind), (calls, microseconds) in totals.items()
        if calls or microseconds
    ]
    return sorted(found, key=lambda operator: -operator.seconds)


def _names(event: "FunctionEvent | None") -> Iterator[str]:
    while event is not None:
        yield event.name
        event = event.cpu_parent


def _range(event: "FunctionEvent") -> Range:
    return event.time_range.start, event.time_range.end


def _union(ranges: Iterable[Range]) -> list[Range]:
    """The same stretch of time as ranges that do not meet, in order."""
    merged: list[Range] = []
    for start, end in sorted(ranges):
        if merged and start <= merged[-1][1]:
            merged[-1] = merged[-1][0], max(end, merged[-1][1])
        else:
            merged.append((start, end))
    return merged


def _overlap(some: Sequence[Range], others: Sequence[Range]) -> float:
    """How long both go on; neither may overlap itself."""
    return sum(max(0.0, min(a[1], b[1]) - max(a[0], b[0])) for a in some for b in others)
