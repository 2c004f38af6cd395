import json

import pytest
import torch

from effbench.plugin import InputError, LoadRequest
from effbench.plugin.discovery import discover
from effbench.plugin.transformers_source import read_facts
from tests.end_to_end.conftest import TINY

CATALOG = discover()


@pytest.fixture
def config(tmp_path):
    file = tmp_path / "tiny.json"
    file.write_text(json.dumps(TINY))
    return f"config:{file}"


def test_random_weights_are_the_same_at_every_load_and_have_no_quality(config):
    source = CATALOG.model(config)
    one, other = (source.load(LoadRequest(dtype="float32"), seed) for seed in (1, 2))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    assert not source.trained
    assert source.label == "config:tiny.json"


def test_a_folder_is_loaded_in_the_asked_dtype_with_its_hash(config, tmp_path):
    model = CATALOG.model(config).load(LoadRequest(dtype="bfloat16"), 0)
    model.save_pretrained(tmp_path / "saved")
    source = CATALOG.model(f"path:{tmp_path / 'saved'}")
    loaded = source.load(LoadRequest(dtype="float32"), 0)
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    torch.testing.assert_close(loaded.get_input_embeddings().weight, model.get_input_embeddings().weight.float())
    before = source.weights_hash()
    with torch.no_grad():
        model.get_input_embeddings().weight.add_(1)
    model.save_pretrained(tmp_path / "saved")
    assert source.weights_hash() != before
    assert source.label == "path:saved"


def test_pickled_weights_are_never_loaded(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(TINY))
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x02")
    source = CATALOG.model(f"path:{tmp_path}")
    for action in (source.weights_hash, lambda: source.load(LoadRequest(dtype="float32"), 0)):
        with pytest.raises(InputError, match=r"no \.safetensors file"):
            action()


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (TINY, ("llama", True, 2, 32, 4, 2, 64)),
        (
            {"model_type": "gpt2", "n_embd": 8, "n_layer": 3, "n_head": 2, "n_positions": 64, "vocab_size": 300},
            ("gpt2", True, 3, 8, 2, 2, 32),
        ),
        (
            {"model_type": "bert", "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 300},
            ("bert", False, 1, 8, 2, 2, 32),
        ),
    ],
)
def test_facts_under_each_familys_names(tmp_path, config, expected):
    file = tmp_path / "config.json"
    file.write_text(json.dumps(config))
    facts = read_facts(file, "x")
    found = (facts.model_type, facts.causal, facts.layers, facts.hidden, facts.heads, facts.kv_heads, facts.intermediate)
    assert found == expected


@pytest.mark.parametrize(
    ("reference", "words"),
    [
        ("path:/no/such", "no such folder"),
        ("config:/no/such.json", "no such file"),
        ("hf:not-a-repository", "write hf:ORG/NAME"),
        ("nothing", "unknown model 'nothing'"),
    ],
)
def test_a_model_that_is_not_there_is_one_clear_line(reference, words):
    with pytest.raises(InputError, match=words) as caught:
        CATALOG.model(reference).facts()
    assert "\n" not in str(caught.value)


def test_a_hub_model_without_a_network_says_so(monkeypatch):
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    def offline(*arguments, **keywords):
        raise LocalEntryNotFoundError("no connection")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(InputError, match="cannot be downloaded, and is not in the local cache: no connection"):
        CATALOG.model("hf:org/name").facts()


def test_a_hub_snapshot_loads_like_any_folder(monkeypatch, config, tmp_path):
    import huggingface_hub

    CATALOG.model(config).load(LoadRequest(dtype="float32"), 0).save_pretrained(tmp_path / "snapshot")
    asked = {}

    def download(repository, **keywords):
        asked.update(keywords, repository=repository)
        return str(tmp_path / "snapshot")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    source = CATALOG.model("hf:org/name@v1")
    assert source.facts().layers == 2
    source.load(LoadRequest(dtype="float32"), 0)
    assert (asked["repository"], asked["revision"]) == ("org/name", "v1")
    assert not any(pattern.endswith((".bin", ".pt", ".py")) for pattern in asked["allow_patterns"])
