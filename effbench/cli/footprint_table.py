"""Footprints as a table: a column for each stack, point, and rank that differs."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from effbench.plugin.cell import Cell
from effbench.store.footprint import InferFootprint, RankFootprint, TrainFootprint, Work

_MISSING, _NOTHING = "–", "0 B"


def footprint_table(columns: "Sequence[tuple[Cell, RankFootprint]]") -> Any:
    """What is the same in all columns stands in the title, what differs above each; rows that nobody has are left out."""
    from rich.table import Column, Table

    points = [_point(*column) for column in columns]
    varying = [key for key in points[0] if len({point[key] for point in points}) > 1]
    common = " · ".join(text for key, text in points[0].items() if key not in varying and text)
    heads = [Column("\n".join(point[key] for key in varying), overflow="fold") for point in points]
    table = Table("", *heads, title=common, title_justify="left", title_style="", show_edge=False, pad_edge=False)
    for section, rows in _SECTIONS.items():
        shown = {name: [value(rank) or _MISSING for _, rank in columns] for name, value in rows.items()}
        present = {name: cells for name, cells in shown.items() if not {*cells} <= {_MISSING, _NOTHING}}
        if section and present:
            table.add_section()
            table.add_row(section)
        for name, cells in present.items():
            table.add_row(name, *cells)
    return table


def _point(cell: Cell, rank: RankFootprint) -> dict[str, str]:
    stage = rank.mesh.get("pp")
    return {
        "model": cell.model,
        "stack": cell.stack,
        "option_axes": ", ".join(f"{key}={value}" for key, value in cell.option_axes.items()),
        "seq_len": f"{cell.seq_len} tokens",
        "batch_size": f"batch {cell.batch_size}",
        "world_size": f"{cell.world_size} rank{'s' if cell.world_size > 1 else ''}",
        "dtype": cell.dtype,
        "rank": "" if stage is None else f"stage {stage}",
    }


def _train(value: Callable[[TrainFootprint], str]) -> Callable[[RankFootprint], str]:
    return lambda rank: value(rank.train) if rank.train else ""


def _infer(value: Callable[[InferFootprint], str]) -> Callable[[RankFootprint], str]:
    return lambda rank: value(rank.infer) if rank.infer else ""


def _bytes(count: float | None) -> str:
    return "" if count is None else _scaled(count, 1024, ("B", "KiB", "MiB", "GiB", "TiB"))


def _count(count: float | None, unit: str = "") -> str:
    return "" if count is None else _scaled(count, 1000, tuple(f"{prefix}{unit}" for prefix in ("", "K", "M", "G", "T", "P")))


def _scaled(count: float, base: int, units: Sequence[str]) -> str:
    """Three significant digits, in the unit that leaves one to three before the point."""
    place = 0
    while count >= 999.5 and place < len(units) - 1:
        count, place = count / base, place + 1
    return f"{count:.3g} {units[place]}".strip() if count < 999.5 else f"{count:.0f} {units[place]}"


def _sent(work: Work) -> str:
    """Bytes, and by how many collectives of each kind."""
    if work.collectives is None:
        return ""
    calls = ", ".join(f"{collective.calls} {collective.kind}" for collective in work.collectives)
    return f"{_bytes(work.sent_bytes)}\n{calls}" if calls else _NOTHING


_SECTIONS: Mapping[str, Mapping[str, Callable[[RankFootprint], str]]] = {
    "": {
        "parameters": lambda rank: _count(rank.parameters),
        "trainable": lambda rank: _count(rank.trainable),
    },
    "training step, each rank": {
        "weights": _train(lambda train: _bytes(train.weights)),
        "gradients": _train(lambda train: _bytes(train.gradients)),
        "optimizer state": _train(lambda train: _bytes(train.optimizer_state)),
        "other": _train(lambda train: _bytes(train.other) if train.other > train.peak / 1000 else ""),
        "activations": _train(lambda train: _bytes(train.activations)),
        "peak": _train(lambda train: f"{_bytes(train.peak)}{' (update)' if train.update_peak > train.step_peak else ''}"),
        "products": _train(lambda train: _count(train.work.flops, "FLOP")),
        "sent": _train(lambda train: _sent(train.work)),
    },
    "inference, each rank": {
        "weights": _infer(lambda infer: _bytes(infer.weights)),
        "KV cache": _infer(lambda infer: _bytes(infer.kv_cache)),
        "prefill peak": _infer(lambda infer: _bytes(infer.prefill_peak)),
        "prefill products": _infer(lambda infer: _count(infer.prefill.flops, "FLOP")),
        "prefill sent": _infer(lambda infer: _sent(infer.prefill)),
        "token products": _infer(lambda infer: _count(infer.decode_token.flops, "FLOP") if infer.decode_token else ""),
        "token sent": _infer(lambda infer: _sent(infer.decode_token) if infer.decode_token else ""),
    },
}
