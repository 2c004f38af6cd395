from functools import cache
from tempfile import TemporaryDirectory

import pytest
import torch
from torch import nn
from transformers import (
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from effbench.plugin import Context, LoadRequest
from effbench.plugin.discovery import discover
from effbench.worker import defaults
from tests.records import make_cell

CATALOG = discover()


def llama(layers=2, hidden=32):
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=256,
            hidden_size=hidden,
            intermediate_size=2 * hidden,
            num_hidden_layers=layers,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=128,
            tie_word_embeddings=True,
        )
    ).eval()


def gpt2():
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=256, n_embd=32, n_layer=2, n_head=4, n_positions=128)).eval()


def bert():
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=256,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=128,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return BertForMaskedLM(config).eval()


def t5():
    torch.manual_seed(0)
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_decoder_layers": 2, "num_heads": 4}
    return T5ForConditionalGeneration(T5Config(vocab_size=256, decoder_start_token_id=0, dropout_rate=0.0, **sizes)).eval()


BASES = {"llama": llama, "gpt2": gpt2, "bert": bert, "t5": t5}


def random_batch(generator=None):
    ids = torch.randint(0, 256, (2, 16), generator=generator)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}


def calibration(n):
    generator = torch.Generator().manual_seed(3)
    return [random_batch(generator) for _ in range(n)]


@cache
def source_of(base):
    """The model in a folder, so that it is loaded as any other and a technique's `load` has its say."""
    folder = TemporaryDirectory()
    base().save_pretrained(folder.name)
    source = CATALOG.model(f"path:{folder.name}")
    source.folder = folder  # removed with the source
    return source


def cell_of(base, **fields):
    return make_cell(facts=source_of(base).facts(), **fields)


class Harness:
    """load → apply → train → infer by hand, as the trial does it."""

    def __init__(self, base, techniques, steps=2, lr=1e-2):
        self.techniques = techniques
        self.cell = cell_of(base, steps=steps, lr=lr)
        source, plain = source_of(base), LoadRequest(dtype="float32")
        self.context = Context(
            cell=self.cell,
            device=torch.device("cpu"),
            rank=0,
            world_size=1,
            seed=0,
            base_model=lambda: source.load(plain, 0),
            calibration=calibration,
        )
        request = plain
        for technique in techniques:
            request = technique.load(request)
        self.model: nn.Module = source.load(request, 0)
        torch.manual_seed(1)
        for technique in techniques:
            self.model = technique.apply(self.model, self.context)
        for technique in techniques:
            if teacher := technique.teacher(self.context):
                self.context.kept[technique.name] = teacher

    def step(self):
        trainable = [p for p in self.model.parameters() if p.requires_grad]
        step = defaults.train_step(self.model, trainable, self.cell)
        for technique in self.techniques:
            step = technique.train(step, self.context)
        self.model.train()
        return step

    def train(self, steps=2):
        step = self.step()
        torch.manual_seed(2)
        losses = [float(step.run(random_batch())) for _ in range(steps)]
        self.model.eval()
        return losses

    def infer(self):
        inference = defaults.inference(self.model)
        for technique in self.techniques:
            inference = technique.infer(inference, self.context)
        return inference


def logits_of(inference, ids):
    with torch.no_grad():
        return inference.logits(inference, ids, torch.ones_like(ids)).float()


@pytest.fixture
def uncompiled():
    """torch.compile takes seconds for each model: where the place in a stack is what is tested, it gives the model itself."""
    with torch.compiler.set_stance("force_eager"):
        yield


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)
