"""Other attention than softmax over all keys. Importing it needs no torch."""

from collections.abc import Callable

from effbench.plugin import Technique, hookimpl

from .bigbird import BigBird
from .exact_attention import ExactAttention
from .grouped_query import GroupedQuery
from .head_pruning import HeadPruning
from .linformer import Linformer
from .longformer import Longformer
from .performer import Performer
from .reformer import Reformer
from .sliding_window import SlidingWindow
from .topk_attention import TopKAttention

_TECHNIQUES = (
    BigBird,
    ExactAttention,
    GroupedQuery,
    HeadPruning,
    Linformer,
    Longformer,
    Performer,
    Reformer,
    SlidingWindow,
    TopKAttention,
)


@hookimpl
def register_techniques(register: Callable[[type[Technique]], None]) -> None:
    """Register the attention family."""
    for technique in _TECHNIQUES:
        register(technique)
