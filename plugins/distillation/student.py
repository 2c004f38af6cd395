"""The student: fewer layers of the same model, or a narrower one."""

import copy
import re
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from effbench.plugin import InputError

_DEPTHS = ("num_hidden_layers", "num_decoder_layers")
_WIDTHS = ("hidden_size", "num_attention_heads", "num_key_value_heads", "intermediate_size", "n_inner", "d_ff", "ffn_dim")
_IN_LAYER = re.compile(r"(?P<layers>\D+)\.(?P<number>\d+)\.(?P<rest>.+)")


def spaced(count: int, of: int) -> list[int]:
    """Evenly spaced layers with the first and the last: DistilBERT's 0, 2, 4, 7, 9, 11 of BERT's twelve."""
    return [round(number * (of - 1) / max(1, count - 1)) for number in range(count)]


def student_of(model: nn.Module, layers: float, width: float) -> nn.Module:
    """A smaller model of the same kind; its layers have the model's weights unless it is narrower."""
    if not isinstance(model, PreTrainedModel):
        raise InputError("distillation makes its student of a plain transformers model: list it before what wraps the model")
    student: nn.Module = type(model)._from_config(config_of(model.config, layers, width), dtype=model.dtype)
    if width == 1:
        try:
            student.load_state_dict(kept_weights(model, student))
        except (KeyError, RuntimeError) as error:
            reason = "distillation cannot keep these layers: list it before the technique that changed them"
            raise InputError(reason) from error
    return student.to(model.device).eval()


def config_of(config: Any, layers: float, width: float) -> Any:
    """The model's config with `layers` and `width` of what it had, at least one layer; the size of a head stays."""
    smaller = copy.deepcopy(config)
    for name in _DEPTHS:
        if count := getattr(config, name, None):
            setattr(smaller, name, max(1, round(layers * count)))
    if types := getattr(config, "layer_types", None):
        smaller.layer_types = [types[number] for number in spaced(smaller.num_hidden_layers, len(types))]
    if width < 1:
        for name in _WIDTHS:
            if size := getattr(config, name, None):
                setattr(smaller, name, round(width * size))
    return smaller


def kept_weights(model: nn.Module, student: nn.Module) -> dict[str, Tensor]:
    """The student's state dict, filled from the model's layers that it keeps."""
    weights, state = model.state_dict(), {}
    for name in student.state_dict():
        source = name
        if found := _IN_LAYER.fullmatch(name):
            ours, theirs = (len(_layers(m, found["layers"])) for m in (student, model))
            source = f"{found['layers']}.{spaced(ours, theirs)[int(found['number'])]}.{found['rest']}"
        state[name] = weights[source]
    return state


def _layers(model: nn.Module, name: str) -> nn.ModuleList:
    found = model.get_submodule(name)
    assert isinstance(found, nn.ModuleList)  # noqa: S101 - what else has a number for a name
    return found
