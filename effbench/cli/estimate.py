"""`effbench estimate`: what a stack takes on a model that need not fit here."""

import json
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from effbench.cli.options import PluginOption, SetOption, find_plugins, overrides
from effbench.plugin.errors import InputError

if TYPE_CHECKING:
    from effbench.launch.requests import Sources
    from effbench.plan.plan import Plan
    from effbench.plugin.catalog import Catalog
    from effbench.plugin.cell import Cell
    from effbench.store.footprint import Footprint

_ELSEWHERE = {"device": "cpu", "limits.memory_gb": "1e15"}
"""What this machine has does not matter: nothing is skipped for the memory that it would need."""
_UNTOUCHED = "untouched"


def estimate(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL", help="A shape's name (llama-2-70b), or a model as in suites: hf:ORG/NAME, config:FILE."
        ),
    ] = None,
    stack: Annotated[
        list[str] | None,
        typer.Option(
            "--stack",
            metavar="STACK",
            help="Techniques joined by +, or a TOML list as in a suite; may be repeated: a column each. "
            "The untouched model when left out. With --suite: a name of its stacks.",
        ),
    ] = None,
    suite: Annotated[
        str | None, typer.Option("--suite", metavar="SUITE", help="Estimate this suite's cells, MODEL in place of its models.")
    ] = None,
    world_size: Annotated[int, typer.Option(min=1, help="Ranks: GPUs, or processes on CPUs.")] = 1,
    seq_len: Annotated[int, typer.Option(min=2, help="Tokens per sequence.")] = 2048,
    batch_size: Annotated[int, typer.Option(min=1, help="Sequences per step over all ranks.")] = 1,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "bfloat16",
    new_tokens: Annotated[int, typer.Option(min=2, help="Tokens generated behind a prompt: the KV cache holds them.")] = 32,
    set_: SetOption = None,
    plugin: PluginOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="One object per stack and point, in bytes and FLOPs.")] = False,
) -> None:
    """Estimate parameters, memory, FLOPs and communication of each rank, without weights, data or GPUs.

    The stack really runs a training step and a prefill, on tensors that have shapes and no content, beside ranks that are made
    up. So the techniques' own code is what is estimated; where it cannot run like this, the reason is given instead.
    docs/estimate.md says what is counted, and how near it comes to measurements.

    Examples: effbench estimate llama-2-7b; effbench estimate gpt3-175b --stack lora --stack '[]';
    effbench estimate llama-2-70b --stack fsdp --stack lora+fsdp --world-size 8 --seq-len 4096 --batch-size 8;
    effbench estimate llama-3.1-8b --stack '[{technique="lora", rank=64}, "ddp"]' --world-size 8 --batch-size 8 --json;
    effbench estimate qwen2.5-7b --suite quantization --set axes.seq_len=[4096]

    Exit status: 0 everything was estimated, 1 something could not be, 2 bad input.
    """
    from rich.console import Console

    from effbench.cli.footprint_table import footprint_table
    from effbench.launch.estimate import footprints
    from effbench.launch.worker import WorkerError

    if suite is None and model is None:
        raise InputError("nothing to estimate: name a model, as in effbench estimate llama-2-7b, or a suite with --suite")
    settings = {
        "axes": {"seq_len": [seq_len], "batch_size": [batch_size], "world_size": [world_size]},
        "dtype": dtype,
        "inference": {"new_tokens": new_tokens},
    }
    if suite is None:
        planned, sources = _plan_typed(str(model), stack, settings, overrides(set_), plugin)
    else:
        planned, sources = _plan_suite(suite, model, stack, overrides(set_), plugin)
    columns = []
    absent = [f"{skip.cell.stack}: {skip.reason}" for skip in planned.skips]
    try:
        for cell, found in zip(planned.cells, footprints(planned, sources, planned.cells), strict=True):
            if as_json:
                typer.echo(json.dumps(_as_object(cell, found)))
            columns += [(cell, rank) for rank in found.ranks]
            absent += _reasons(cell, found, planned.phase_skips.get(cell.id, {}))
    except WorkerError as error:
        raise InputError(str(error)) from error
    if columns and not as_json:
        Console().print(footprint_table(columns))
    skipped = (f"no {phase}: {reason}" for skips in planned.phase_skips.values() for phase, reason in skips.items())
    for note in dict.fromkeys((*planned.notes, *skipped)):
        typer.echo(f"note: {note}", err=as_json)
    for reason in dict.fromkeys(absent):
        typer.echo(f"no estimate: {reason}", err=as_json)
    if absent:
        raise typer.Exit(1)


def _plan_suite(
    suite: str, model: str | None, stacks: list[str] | None, settings: dict[str, str], plugins: list[Path] | None
) -> "tuple[Plan, Sources]":
    """A suite's plan, on this model if one is named; lengths, batches and types are the suite's."""
    from effbench.plan.plan import plan
    from effbench.plan.suite import find_suite, read_suite

    file = find_suite(suite)
    catalog, sources = find_plugins(plugins, file.parent / "plugins")
    given = _ELSEWHERE | settings
    if model is not None:
        given["models"] = json.dumps([_reference(model, catalog)])
    return plan(read_suite(file, given), catalog, tuple(stacks or ())), sources


def _plan_typed(
    model: str, stacks: list[str] | None, settings: dict[str, Any], overridden: dict[str, str], plugins: list[Path] | None
) -> "tuple[Plan, Sources]":
    """A plan of the stacks that were typed."""
    from effbench.plan.plan import plan
    from effbench.plan.suite import suite_of

    catalog, sources = find_plugins(plugins)
    typed = dict(map(_stack, stacks or ["[]"]))
    content = settings | {
        "name": "estimate",
        "baseline": next(iter(typed)),
        "models": [_reference(model, catalog)],
        "workloads": ["docs"],
        "stacks": typed,
    }
    return plan(suite_of(content, "estimate", overrides=_ELSEWHERE | overridden), catalog), sources


def _reference(model: str, catalog: "Catalog") -> str:
    """A bare name that no source of models has is that of a shape."""
    return model if ":" in model or model in catalog.models.names() else f"shape:{model}"


def _stack(given: str) -> tuple[str, Any]:
    """A stack and what to call it: `lora+fsdp`, or TOML such as `[{technique="lora", rank=4}, "fsdp"]`."""
    if not given.lstrip().startswith("["):
        return given, [name.strip() for name in given.split("+")]
    try:
        techniques: list[Any] = tomllib.loads(f"x = {given}")["x"]
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"--stack {given}: not a TOML list of techniques: {error}") from error
    for technique in techniques:
        if not isinstance(technique, str | dict) or (isinstance(technique, dict) and "technique" not in technique):
            raise InputError(f'--stack {given}: a technique is a name, or a table that has one: {{technique="lora", rank=4}}')
    return "+".join(map(_name, techniques)) or _UNTOUCHED, techniques


def _name(technique: str | dict[str, Any]) -> str:
    """`lora(rank=4)`."""
    if isinstance(technique, str):
        return technique
    options = ", ".join(f"{key}={value}" for key, value in technique.items() if key != "technique")
    return f"{technique['technique']}({options})" if options else str(technique["technique"])


def _as_object(cell: "Cell", found: "Footprint") -> dict[str, Any]:
    point = cell.model_dump(
        mode="json", include={"stack", "techniques", "model", "seq_len", "batch_size", "world_size", "dtype"}
    )
    return point | found.model_dump(mode="json", exclude_none=True)


def _reasons(cell: "Cell", found: "Footprint", planned: Mapping[str, str]) -> Iterator[str]:
    """Why something has no estimate that the plan has a place for."""
    if found.absent:
        yield f"{cell.stack}: {found.absent}"
    for rank in found.ranks:
        yield from (f"{cell.stack}, {phase}: {reason}" for phase, reason in rank.absent.items() if phase not in planned)
