"""Each technique as its library's documentation writes it, with nothing of effbench in it: see over_libraries.py.

All of them leave a model's head as it is, and float32 what they do not quantize, so that both sides compute the same.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import IA3Config, LoraConfig, PromptTuningConfig, get_peft_model, prepare_model_for_kbit_training
from torch.ao.quantization import per_channel_dynamic_qconfig, quantize_dynamic
from torch.nn import Linear
from torchao.prototype.quantization.int4 import PrototypeInt4WeightOnlyConfig
from torchao.quantization import Int8WeightOnlyConfig, quantize_
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

VIRTUAL_TOKENS = 16
Batch = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Recipe:
    """load → adapt → train → convert; a recipe without `adapt` is not trained."""

    adapt: Callable[[Any], Any] | None = None
    convert: Callable[[Any], Any] = lambda model: model
    quantization: BitsAndBytesConfig | None = None
    virtual_tokens: int = 0


class ByLibrary:
    """A recipe on a model's folder, as a script would use it."""

    def __init__(self, folder: Path, recipe: Recipe, seed: int) -> None:
        self.recipe, self.trains = recipe, recipe.adapt is not None
        self.model: Any = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, quantization_config=recipe.quantization
        ).eval()
        torch.manual_seed(seed)
        if recipe.adapt:
            self.model = recipe.adapt(self.model)

    def prepare_training(self, lr: Callable[[int], float]) -> None:
        """`lr` is the learning rate by step."""
        self.optimizer = torch.optim.AdamW([p for p in self.model.parameters() if p.requires_grad], lr=1.0)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lr)
        self.model.train()

    def step(self, batch: Batch) -> None:
        """Forward, backward, update."""
        self.model(**batch).loss.backward()
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad()

    def convert(self) -> None:
        """From training to inference."""
        self.model = self.recipe.convert(self.model.eval())

    def logits(self, ids: torch.Tensor) -> torch.Tensor:
        """Of every real position."""
        found: torch.Tensor = self.model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
        return found[:, self.recipe.virtual_tokens :]

    def prefill(self, ids: torch.Tensor) -> tuple[torch.Tensor, Any]:
        """Logits of the last position, and the cache."""
        output = self.model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=True, logits_to_keep=1)
        return output.logits[:, -1], output.past_key_values

    def decode(self, ids: torch.Tensor, cache: Any) -> tuple[torch.Tensor, Any]:
        """One more token. With virtual tokens in the cache the base goes on alone, as `generate` of peft does it."""
        model = self.model.base_model if self.recipe.virtual_tokens else self.model
        output = model(input_ids=ids, past_key_values=cache, use_cache=True)
        return output.logits[:, -1], output.past_key_values


def _lora(model: Any) -> Any:
    config = LoraConfig(r=16, lora_alpha=32, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM")
    return get_peft_model(model, config)


def _ia3(model: Any) -> Any:
    return get_peft_model(model, IA3Config(task_type="CAUSAL_LM"))


def _prompt_tuning(model: Any) -> Any:
    config = PromptTuningConfig(num_virtual_tokens=VIRTUAL_TOKENS, prompt_tuning_init="SAMPLE_VOCAB", task_type="CAUSAL_LM")
    return get_peft_model(model, config)


def _qlora(model: Any) -> Any:
    return _lora(prepare_model_for_kbit_training(model, use_gradient_checkpointing=False))


def _merged(model: Any) -> Any:
    return model.merge_and_unload()


def _int8_weight_only(model: Any) -> Any:
    quantize_(model.model, Int8WeightOnlyConfig())
    return model


def _int8_dynamic(model: Any) -> Any:
    model.model = quantize_dynamic(model.model, {Linear: per_channel_dynamic_qconfig}, dtype=torch.qint8)
    return model


def _int4(model: Any) -> Any:
    quantize_(model.model, PrototypeInt4WeightOnlyConfig(group_size=32))
    return model


_NF4 = BitsAndBytesConfig(
    load_in_4bit=True,
    bnb_4bit_quant_type="nf4",
    bnb_4bit_use_double_quant=True,
    bnb_4bit_compute_dtype=torch.float32,
)

RECIPES = {
    "lora": Recipe(_lora, _merged),
    "lora-unmerged": Recipe(_lora),
    "ia3": Recipe(_ia3, _merged),
    "ia3-unmerged": Recipe(_ia3),
    "prompt-tuning": Recipe(_prompt_tuning, virtual_tokens=VIRTUAL_TOKENS),
    "int8-weight-only": Recipe(convert=_int8_weight_only),
    "int8-dynamic": Recipe(convert=_int8_dynamic),
    "int4": Recipe(convert=_int4),
    "nf4": Recipe(quantization=_NF4),
    "qlora-unmerged": Recipe(_qlora, quantization=_NF4),
    "qlora": Recipe(_qlora, _merged, quantization=_NF4),
}
