"""Other attention than softmax over all keys. Importing it needs no torch."""

from collections.abc import Callable

from effbench.plugin import Technique, hookimpl

from .bigbird import BigBird
from .exact_attention import ExactAttention
from .grouped_query import GroupedQuery
from .head_pruning import HeadPruning
from .longformer import Longformer
from .sliding_window import SlidingWindow
from .topk_attention import TopKAttention


@hookimpl
def register_techniques(register: Callable[[type[Technique]], None]) -> None:
    """Register the attention family."""
    for technique in (BigBird, ExactAttention, GroupedQuery, HeadPruning, Longformer, SlidingWindow, TopKAttention):
        register(technique)
