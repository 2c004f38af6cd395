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
        (
            {"model_type": "t5", "d_model": 8, "num_layers": 1, "num_heads": 2, "d_ff": 24, "vocab_size": 300},
            ("t5", False, 1, 8, 2, 2, 24),
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
        raise LocalEntryNotFoundError("no connection\nand more")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", offline)
    with pytest.raises(InputError, match=r"cannot be downloaded, and is not in the local cache: no connection$"):
        CATALOG.model("hf:org/name").facts()


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A Hub with one repository, whose only commit is abc; `asked` is what was downloaded of it."""
    import huggingface_hub

    snapshot, asked = tmp_path / "snapshots" / "abc", []
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text(json.dumps(TINY))

    def one_file(repository, *, filename, revision):
        asked.append((repository, filename, revision))
        return str(snapshot / filename)

    def all_files(repository, *, revision, allow_patterns, ignore_patterns):
        asked.append((repository, allow_patterns, revision))
        return str(snapshot)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", one_file)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", all_files)
    return snapshot, asked


def test_a_hub_model_is_planned_from_its_config_and_downloaded_once_at_its_commit(hub, config):
    snapshot, asked = hub
    source = CATALOG.model("hf:org/name@v1")
    assert source.facts().layers == 2
    assert asked == [("org/name", "config.json", "v1")]
    CATALOG.model(config).load(LoadRequest(dtype="float32"), 0).save_pretrained(snapshot)
    assert source.weights_hash() == CATALOG.model("hf:org/name").weights_hash()  # of the commit, however it is called
    source.tokenizer()
    source.load(LoadRequest(dtype="float32"), 0)
    repository, patterns, revision = asked[1]
    assert (repository, revision) == ("org/name", "abc")
    assert not any(pattern.endswith((".bin", ".pt", ".py")) for pattern in patterns)
    assert len([what for _, what, _ in asked if what is patterns]) == 1
    trusting = CATALOG.model("hf:org/name", trust_remote_code=True)
    trusting.directory()
    assert "*.py" in asked[-1][1]


def test_a_hub_model_without_safetensors_is_refused_before_any_trial(hub):
    with pytest.raises(InputError, match=r"hf:org/name: no \.safetensors file"):
        CATALOG.model("hf:org/name").weights_hash()


def test_loading_leaves_the_random_generator_alone(config):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    CATALOG.model(config).load(LoadRequest(dtype="float32"), 0)
    assert torch.equal(torch.rand(3), expected)


def test_random_weights_are_not_quantized(config):
    with pytest.raises(InputError, match="cannot be quantized"):
        CATALOG.model(config).load(LoadRequest(dtype="float32", quantization_config=object()), 0)


def test_an_encoder_gives_logits_too(tmp_path):
    from transformers import BertConfig, BertForMaskedLM

    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 256}
    BertForMaskedLM(BertConfig(**shape)).save_pretrained(tmp_path)
    model = CATALOG.model(f"path:{tmp_path}").load(LoadRequest(dtype="float32"), 0)
    assert model(input_ids=torch.ones(1, 4, dtype=torch.long)).logits.shape == (1, 4, 256)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "no config.json there"),
        ("{", "config.json cannot be read"),
        ("[]", "holds no object"),
        ("{}", "names no model_type"),
        ('{"model_type": "llama"}', "has none of hidden_size, n_embd, d_model"),
    ],
)
def test_a_config_that_is_no_models_says_why(tmp_path, content, words):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(InputError, match=words) as caught:
        CATALOG.model(f"path:{tmp_path}").facts()
    assert "\n" not in str(caught.value)


def test_bytes_need_256_ids(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(TINY | {"vocab_size": 100}))
    with pytest.raises(InputError, match="vocabulary of 100 is too small for bytes"):
        CATALOG.model(f"path:{tmp_path}").tokenizer()


def test_a_folders_own_tokenizer_is_used_without_special_tokens(tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.WordLevel({"<s>": 0, "hello": 2, "world": 3}))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=inner, **{"bos_token": "<s>"}).save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(TINY))
    tokenizer = CATALOG.model(f"path:{tmp_path}").tokenizer()
    assert (tokenizer.start, tokenizer.encode("hello world")) == (0, [2, 3])
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(InputError, match="tokenizer cannot be loaded"):
        CATALOG.model(f"path:{tmp_path}").tokenizer()


FROM_SCRATCH = pytest.mark.parametrize("name", ["tiny-decoder", "tiny-encoder"])


@FROM_SCRATCH
def test_models_from_scratch_have_the_weights_of_the_seed(name):
    source = CATALOG.model(name)
    one, same, other = (source.load(LoadRequest(dtype="float32"), seed) for seed in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), same.parameters(), strict=True))
    assert not torch.equal(one.previous.weight, other.previous.weight)
    assert source.from_scratch
    assert not source.trained


@FROM_SCRATCH
def test_models_from_scratch_come_in_other_sizes(name):
    sized = CATALOG.model(f"{name}:1x64x4")
    facts = sized.facts()
    assert (facts.layers, facts.hidden, facts.heads, facts.kv_heads, facts.intermediate) == (1, 64, 4, 4, 128)
    assert facts.context == 2**20
    assert sized.weights_hash() != CATALOG.model(name).weights_hash()
    config = sized.load(LoadRequest(dtype="float32"), 0).config
    assert (config.num_hidden_layers, config.hidden_size, config.num_attention_heads) == (1, 64, 4)


@FROM_SCRATCH
@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("4", "write {name}:LAYERSxHIDDENxHEADS with whole numbers from 1, as {name}:2x64x2"),
        ("1x64x3", "64 channels do not make 3 heads of an even size"),
        ("1x12x4", "12 channels do not make 4 heads of an even size"),
    ],
)
def test_a_size_that_is_none_is_one_clear_line(name, argument, words):
    with pytest.raises(InputError, match=words.format(name=name)):
        CATALOG.model(f"{name}:{argument}").facts()


@FROM_SCRATCH
def test_the_facts_of_a_model_from_scratch_are_its_configs(name, tmp_path):
    source = CATALOG.model(name)
    source.load(LoadRequest(dtype="float32"), 0).save_pretrained(tmp_path)
    assert read_facts(tmp_path / "config.json", "x") == source.facts()
    assert source.facts().causal == (name == "tiny-decoder")


@FROM_SCRATCH
def test_the_token_before_reaches_a_token_and_attention_goes_through_the_interface(name):
    from transformers import AttentionInterface

    calls = []

    def nothing(module, query, key, value, mask, **keywords):
        calls.append(getattr(module, "is_causal", None))
        return torch.zeros_like(query).transpose(1, 2), None

    AttentionInterface.register("effbench-test-nothing", nothing)
    source = CATALOG.model(name)
    model = source.load(LoadRequest(dtype="float32", attention="effbench-test-nothing"), 0)
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        one = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
        ids[0, 1] = 9
        other = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    changed = (one != other).any(-1)[0].tolist()
    assert changed == [False, True, True, False], "without attention a token sees itself and the one before"
    assert calls == [source.facts().causal] * 4


@FROM_SCRATCH
def test_a_label_is_learnt_where_its_kind_of_model_predicts_it(name):
    source = CATALOG.model(name)
    model = source.load(LoadRequest(dtype="float32"), 0)
    ids, labels = torch.randint(3, 256, (2, 9)), torch.full((2, 9), -100)
    labels[:, 6] = torch.tensor([20, 30])
    with torch.no_grad():
        output = model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=labels)
    place = 5 if source.facts().causal else 6
    expected = torch.nn.functional.cross_entropy(output.logits[:, place], labels[:, 6])
    torch.testing.assert_close(output.loss, expected)


@FROM_SCRATCH
def test_the_token_shift_needs_tokens(name):
    """Virtual embeddings before them would come without the shift, and decoded tokens with it."""
    model = CATALOG.model(name).load(LoadRequest(dtype="float32"), 0)
    with pytest.raises(InputError, match="takes tokens, not embeddings"):
        model(inputs_embeds=torch.zeros(1, 3, model.config.hidden_size))


def test_the_token_shift_decodes_as_it_reads():
    model = CATALOG.model("tiny-decoder").load(LoadRequest(dtype="float32"), 0)
    ids = torch.randint(0, 256, (2, 12), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        full = model(input_ids=ids).logits
        output = model(input_ids=ids[:, :8], use_cache=True)
        stepped = [output.logits[:, -1]]
        for place in range(8, 12):
            output = model(input_ids=ids[:, place : place + 1], past_key_values=output.past_key_values, use_cache=True)
            stepped.append(output.logits[:, -1])
    torch.testing.assert_close(torch.stack(stepped, 1), full[:, 7:], atol=1e-5, rtol=1e-5)
