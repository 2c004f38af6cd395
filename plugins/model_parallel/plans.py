"""Which of a model's layers are split by columns and which by rows, in transformers' words. Without torch."""

import ast
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path

Plan = Mapping[str, str]
"""Style by the name of a module below the base model, with `*` for a layer's number."""

_STYLES = frozenset(("colwise", "rowwise", "colwise_gather_output", "rowwise_split_input", "replicated_with_grad_allreduce"))
_OURS: Mapping[str, Plan] = {
    "bert": {
        "encoder.layer.*.attention.self.query": "colwise",
        "encoder.layer.*.attention.self.key": "colwise",
        "encoder.layer.*.attention.self.value": "colwise",
        "encoder.layer.*.attention.output.dense": "rowwise",
        "encoder.layer.*.intermediate.dense": "colwise",
        "encoder.layer.*.output.dense": "rowwise",
    },
    "gpt2": {
        "h.*.attn.c_attn": "packed_colwise",  # queries, keys and values side by side, each split
        "h.*.attn.c_proj": "rowwise",
        "h.*.mlp.c_fc": "colwise",
        "h.*.mlp.c_proj": "rowwise",
    },
    "opt": {
        "decoder.layers.*.self_attn.q_proj": "colwise",
        "decoder.layers.*.self_attn.k_proj": "colwise",
        "decoder.layers.*.self_attn.v_proj": "colwise",
        "decoder.layers.*.self_attn.out_proj": "rowwise",
        "decoder.layers.*.fc1": "colwise",
        "decoder.layers.*.fc2": "rowwise",
    },
}
"""For models that bring no plan of their own."""
WIDTHS: Mapping[str, tuple[str, ...]] = {"gpt2": ("split_size",), "opt": ("num_heads",)}
"""Attributes of attention modules that tell how much one rank has, where the code does not read it off its tensors."""
SEQUENCE_PARALLEL = frozenset(("llama", "mistral", "qwen2", "qwen3"))
"""Models whose layers are norm, attention, norm, feed-forward, so that each norm feeds column-split layers alone."""


def plan_of(model_type: str) -> Plan | None:
    """The plan for models of this type; None where there is none, or one with styles for other than dense layers."""
    plan = _OURS.get(model_type) or _library_plan(model_type)
    return plan if plan and (model_type in _OURS or set(plan.values()) <= _STYLES) else None


@cache
def _library_plan(model_type: str) -> Plan | None:
    """What the type's configuration class says in the installed transformers, read in its source."""
    spec = find_spec("transformers")  # finds the package without importing it
    if spec is None or not spec.submodule_search_locations:
        return None
    folder = Path(spec.submodule_search_locations[0]) / "models" / model_type.replace("-", "_")
    for file in sorted(folder.glob("configuration_*.py")):
        for config in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(config, ast.ClassDef):
                said = dict(_constants(config))
                if said.get("model_type") == model_type and isinstance(plan := said.get("base_model_tp_plan"), dict):
                    return plan
    return None


def _constants(config: ast.ClassDef) -> Iterator[tuple[str, object]]:
    """A class's attributes that are given as literals."""
    for line in config.body:
        if isinstance(line, ast.Assign) and isinstance(line.targets[0], ast.Name):
            try:
                yield line.targets[0].id, ast.literal_eval(line.value)
            except ValueError:
                continue  # computed
