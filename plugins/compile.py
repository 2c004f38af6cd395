"""Compiling the model."""

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from shutil import which
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from effbench.plugin import Cell, Context, Inference, Metric, Technique, TrainStep, hookimpl

if TYPE_CHECKING:
    from torch import Tensor, nn

    from effbench.plugin.technique import Batch

_GRAPHS_OF_A_FUNCTION = 32  # of one forward method in a trial: training, evaluation, prefill, decoding, each in a few kinds
_WITHOUT_CUDA_GRAPHS = {"reduce-overhead": "default", "max-autotune": "max-autotune-no-cudagraphs"}


class Compile(Technique):
    """Trace the model into graphs and generate fused kernels for them (Ansel et al. 2024, doi 10.1145/3620665.3640366).

    On torch.compile with its Inductor backend; graphs are torch.fx's (Reed et al. 2021, arXiv 2112.08429). Wherever it stands
    in the stack, the model is compiled when it is first called, after others have changed it. Saves the time between operators
    and the memory traffic of element-wise ones. Costs tens of seconds before the first step and the first token, which
    `train.compile_s` and `infer.compile_s` tell apart: no sample contains them in training of four steps or more, nor in
    inference. It does not help where large matrix products take the time, nor where a run is shorter than compiling. The
    optimizer's update is not compiled.

    Training is compiled for its one shape, inference for any length and batch. A trial in which Dynamo would go on uncompiled
    because shapes keep changing fails and says so; where it breaks a graph in two, that is counted. Needs a C++ compiler.
    """

    name: ClassVar = "compile"
    family: ClassVar = "other"
    compiles: ClassVar = True
    metrics: ClassVar = (
        Metric("compile.graphs", "", "lower", "Graphs that Dynamo made of the model in training.", "max"),
        Metric("compile.graph_breaks", "", "lower", "Where it ended one and went on uncompiled, in training.", "max"),
    )

    mode: Literal["default", "reduce-overhead", "max-autotune"] = Field(
        default="default",
        description="reduce-overhead: CUDA graphs, in training alone, for a cache that grows cannot be replayed; "
        "max-autotune: these, and kernels chosen by trying",
    )
    dynamic: bool = Field(
        default=True, description="inference in graphs for any length and batch; false: one for each, while Dynamo allows"
    )
    cache: Literal["cold", "warm"] = Field(
        default="cold",
        description="warm: what other trials compiled is there already, in the user's cache folder; the first to need a kernel "
        "leaves it there",
    )

    def unsupported(self, cell: Cell) -> str | None:
        """Generated code has to be built, with the compiler that Inductor or Triton will look for."""
        if cell.device == "cuda":
            found = os.environ.get("CC") or which("gcc") or which("clang")
            return None if found else "compiling for CUDA needs a C compiler (Triton's launcher): install gcc, or set CC"
        compiler = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
        return None if which(compiler) else f"compiling needs a C++ compiler and {compiler} is not there: install it or set CXX"

    def unsupported_after(self, earlier: Sequence[Technique]) -> str | None:
        """What is compiled is the model as it is called."""
        staged = next((technique for technique in earlier if technique.dimension == "pp"), None)
        return f"{self.name} compiles the whole model, of which {staged.name} calls parts" if staged else None

    def unsupported_before(self, later: Sequence[Technique]) -> str | None:
        """The same in the other order."""
        return self.unsupported_after(later)

    def train(self, step: TrainStep, ctx: Context) -> TrainStep:
        """Call the compiled model in its place; the model itself, and so its names, stay what they were."""
        inner, compiled = step.forward_backward, _Compiled(self.mode, dynamic=None)
        self._choose_cache()

        def forward_backward(current: TrainStep, batch: "Batch") -> "Tensor":
            with compiled.instead_of(current.model) as model:
                return inner(replace(current, model=model), batch)

        return replace(step, forward_backward=forward_backward)

    def counted(self, ctx: Context) -> Mapping[str, float]:
        """As Dynamo counts them for the whole process, which is the trial's."""
        from torch._dynamo.utils import counters

        breaks = sum(counters["graph_break"].values())
        return {"compile.graphs": counters["stats"]["unique_graphs"], "compile.graph_breaks": breaks}

    def infer(self, inference: Inference, ctx: Context) -> Inference:
        """Likewise in every way the model is used."""
        mode = _WITHOUT_CUDA_GRAPHS.get(self.mode, self.mode)
        compiled = _Compiled(mode, dynamic=self.dynamic)
        self._choose_cache()

        def through(part: Callable[..., Any]) -> Callable[..., Any]:
            def run(current: Inference, *arguments: Any) -> Any:
                with compiled.instead_of(current.model) as model:
                    return part(replace(current, model=model), *arguments)

            return run

        return replace(
            inference,
            logits=through(inference.logits),
            prefill=through(inference.prefill),
            decode=through(inference.decode),
        )

    def _choose_cache(self) -> None:
        """The harness gives each trial an empty cache; a warm one is the user's."""
        if self.cache == "warm":
            from effbench.store.cache import folder

            os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder() / "compiled")


class _Compiled:
    """A model's compiled form, made when it is first asked for, and again only for another model."""

    def __init__(self, mode: str, *, dynamic: bool | None) -> None:
        self._options: Any = {"mode": mode, "dynamic": dynamic}
        self._source: nn.Module | None = None
        self._compiled: Any = None

    @contextmanager
    def instead_of(self, model: "nn.Module") -> "Iterator[nn.Module]":
        """The compiled form, and Dynamo's limit on graphs as an error; while operations are counted, the model itself."""
        import torch
        from torch._dynamo import config
        from torch.utils._python_dispatch import is_in_torch_dispatch_mode

        if is_in_torch_dispatch_mode():
            yield model
            return
        if self._source is not model:
            self._source, self._compiled = model, torch.compile(model, **self._options)
        with config.patch(recompile_limit=_GRAPHS_OF_A_FUNCTION, fail_on_recompile_limit_hit=True):
            yield self._compiled


@hookimpl
def register_techniques(register: "Callable[[type[Technique]], None]") -> None:
    """Register compilation."""
    register(Compile)
