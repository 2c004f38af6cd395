"""Inference through the pipeline: forward passes, one stage after the other."""

from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from effbench.plugin import Inference

from .stages import Line, Stage, bare


class Relay:
    """Hands a whole batch from stage to stage; every rank gets what the last one computes."""

    def __init__(self, line: Line) -> None:
        self._line = line
        self._made: tuple[nn.Module, list[Stage]] | None = None

    def over(self, inference: Inference) -> Inference:
        """The inference with each stage going through its ways of getting logits, whatever techniques put around them."""
        logits, prefill = inference.logits, inference.prefill

        def all_logits(current: Inference, ids: Tensor, mask: Tensor) -> Tensor:
            def use(stage: nn.Module) -> Tensor:
                return logits(replace(current, model=stage), ids, mask)

            return self._pass(current.model, use, ids, (*ids.shape, self._vocabulary(current)))

        def last_logits(current: Inference, ids: Tensor, mask: Tensor) -> tuple[Tensor, Any]:
            def use(stage: nn.Module) -> Tensor:
                return prefill(replace(current, model=stage), ids, mask)[0]

            return self._pass(current.model, use, ids, (len(ids), self._vocabulary(current))), None

        return replace(inference, logits=all_logits, prefill=last_logits)

    def _pass(self, model: nn.Module, use: Any, ids: Tensor, shape: tuple[int, ...]) -> Tensor:
        line, config = self._line, self._config(model)
        hidden = torch.empty(*ids.shape, config.hidden_size, dtype=config.dtype or torch.float32, device=ids.device)
        result = torch.empty(shape, device=ids.device)
        for stage in self._stages(model):
            if stage.number > 0:
                dist.recv(hidden, group=line.group, group_src=(stage.number - 1) % line.ranks)
            returned, output = stage.run(use, hidden if stage.number else None)
            if stage.last:
                result = returned.float()
            else:
                dist.send(output.to(hidden.dtype).contiguous(), group=line.group, group_dst=(stage.number + 1) % line.ranks)
        dist.broadcast(result, group=line.group, group_src=line.ranks - 1)
        return result

    def _stages(self, model: nn.Module) -> list[Stage]:
        """Of the model as it is now: techniques convert it after it was trained."""
        if self._made is None or self._made[0] is not model:
            self._made = model, [self._line.stage(model, number) for number in self._line.mine]
        for stage in self._made[1]:
            stage.module.train(model.training)
        return self._made[1]

    def _vocabulary(self, current: Inference) -> int:
        size: int = self._config(current.model).vocab_size
        return size

    def _config(self, model: nn.Module) -> Any:
        return bare(model).config
