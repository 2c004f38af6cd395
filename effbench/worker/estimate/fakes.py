"""Fake tensors and fake ranks: everything runs as in a trial, but nothing is allocated, computed or sent."""

import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

PLAIN = (Tensor, FakeTensor)


class RealTokens(TorchDispatchMode):
    """Lets the batch be real beside a model that is fake: what is made of it alone is computed, for code that looks at it.

    transformers builds a mask of n × n unless it sees that a batch has no padding, which a fake mask cannot tell.
    """

    def __init__(self, mode: FakeTensorMode) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch annotates only a part of its functions
        self._mode = mode

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run on real tensors where all are; make them fake beside fake ones."""
        if not all(kind in PLAIN for kind in types):
            return NotImplemented  # a tensor that wraps others: what it does with them comes here by itself
        given = (args, kwargs or {})
        tensors = [leaf for leaf in tree_leaves(given) if isinstance(leaf, Tensor)]
        fake = [isinstance(tensor, FakeTensor) for tensor in tensors]
        if tensors and not any(fake):
            with unset_fake_temporarily():
                return func(*args, **given[1])
        args, kwargs = given if all(fake) else tree_map(self._fake, given)
        return func(*args, **kwargs)

    def _fake(self, leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or isinstance(leaf, FakeTensor):
            return leaf
        with unset_fake_temporarily():
            return FakeTensor(self._mode, leaf.detach().to("meta"), leaf.device)


class _Forgetful(weakref.WeakValueDictionary[Any, Any]):
    """Remembers nothing."""

    def __setitem__(self, key: Any, value: Any) -> None: ...


@contextmanager
def fake_tensors() -> Iterator[None]:
    """Tensors made inside are fake, as if on the CPU."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    # The memo keeps a weak reference to every parameter, and Module.to refuses to replace what is referred to so.
    mode.fake_tensor_converter.meta_converter.tensor_memo = _Forgetful()
    with ExitStack() as stack:
        stack.enter_context(mode)
        stack.enter_context(RealTokens(mode))
        yield


@contextmanager
def fake_ranks(rank: int, world_size: int) -> Iterator[None]:
    """A process group of which this process is one rank; the others are not there, and nothing waits for them."""
    if world_size == 1:
        yield
        return
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=world_size)
    try:
        # The check reads the other ranks' shapes from memory that is not there.
        with (
            patch("torch.nn.parallel.distributed._verify_param_shape_across_processes"),
            patch("torch.nn.parallel.DistributedDataParallel", _FakelyExchanged),
            # Stages vote on whether all of them said their shapes, and wait for each other's votes; older versions do not.
            patch("torch.distributed.pipelining.PipelineStage._warmup_backward_result", _agreed, create=True),
        ):
            yield
    finally:
        dist.destroy_process_group()


def _agreed(stage: object, received_result: object = None) -> Tensor:
    with unset_fake_temporarily():
        return torch.ones((), dtype=torch.int64)


class _FakelyExchanged(DistributedDataParallel):
    """DDP whose buckets are exchanged from Python: its own code waits for a result that fake work does not have."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.register_comm_hook(self.process_group, _all_reduce)
        self.reducer: Any = _SettledReducer(self.reducer)


class _SettledReducer:
    """A reducer that leaves its buckets as they are: all ranks would read from memory how the first one orders them."""

    def __init__(self, reducer: Any) -> None:
        self._reducer = reducer

    def _rebuild_buckets(self) -> bool:
        return False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reducer, name)


def _all_reduce(group: dist.ProcessGroup, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:  # type: ignore[name-defined]  # DDP asks for this annotation
    tensor = bucket.buffer()
    dist.all_reduce(tensor, group=group)
    done: torch.futures.Future[Tensor] = torch.futures.Future()
    done.set_result(tensor)
    return done
