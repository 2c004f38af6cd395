"""The shipped model is what its card says, measured on the file itself."""

import json
import platform

import pytest
import torch

from effbench.plugin import LoadRequest
from effbench.plugin.discovery import discover
from effbench.reference import texts
from tests.records import make_cell

pytestmark = pytest.mark.skipif(
    not (discover().model("tiny-llama").directory() / "model.safetensors").exists(), reason="the model is not trained yet"
)


@pytest.fixture(scope="module")
def source():
    return discover().model("tiny-llama")


def test_is_small_and_safe(source):
    files = list(source.directory().iterdir())
    assert sum(f.stat().st_size for f in files) <= 8e6
    assert not [f for f in files if f.suffix in (".bin", ".pt", ".pkl")]
    facts = source.facts()
    assert (facts.vocab, facts.context) == (256, 1024)
    model = source.load(LoadRequest(dtype="float32"), 0)
    assert 1.8e6 < sum(p.numel() for p in model.parameters()) < 2.2e6


def test_held_out_english_takes_at_most_1_7_bits_per_byte(source):
    torch.set_num_threads(1)
    model = source.load(LoadRequest(dtype="float32"), 0)
    cell = make_cell(seq_len=512, quality_documents=10_000)

    def logits(ids, mask):
        return model(input_ids=ids, attention_mask=mask).logits

    with torch.inference_mode():
        quality = discover().workload("docs").quality(logits, source.tokenizer(), cell)
    assert quality.scores["bits_per_byte"] <= 1.7


def test_the_card_names_the_text_it_was_trained_on(source):
    training = json.loads((source.directory() / "training.json").read_text())
    if training["python"] != platform.python_version():
        pytest.skip(f"trained on the text of Python {training['python']}; this one carries another")
    assert training["data_hash"] == texts.data_hash(texts.reference_corpus())
