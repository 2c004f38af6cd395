"""What becomes of a form's cache: beams, a new beginning, and caches that a caller brings."""

import pytest
import torch
from effbench_plugins.attention.interface import install_cache
from effbench_plugins.attention.window import Window
from transformers import StaticCache

from effbench.plugin import InputError
from tests.techniques.conftest import llama, logits_of
from tests.techniques.test_attention_models import IDS, SMALL, inference_of, mistral


def test_a_cache_of_another_kind_is_refused_once_it_holds_something():
    model = llama()
    cache = StaticCache(config=model.config, max_cache_len=40)
    with torch.no_grad():
        model(input_ids=IDS[:, :13], past_key_values=cache, use_cache=True)
        install_cache(model, Window(200))
        with pytest.raises(InputError, match="cannot go on from a StaticLayer"):
            model(input_ids=IDS[:, 13:], past_key_values=cache, use_cache=True)


@pytest.mark.parametrize("name", [*SMALL, "performer", "reformer"])
def test_rows_of_a_cache_move_and_it_begins_again(name):
    """As beam search moves them; and `reset` leaves nothing of the tokens before."""
    inference = inference_of(llama, name, SMALL.get(name, {}))
    swapped = torch.tensor([1, 0])
    full = logits_of(inference, IDS)
    with torch.no_grad():
        _, cache = inference.prefill(inference, IDS[:, :30], torch.ones_like(IDS[:, :30]))
        cache.reorder_cache(swapped)
        for place in range(30, 40):
            last, cache = inference.decode(inference, IDS[swapped, place : place + 1], cache)
            torch.testing.assert_close(last[swapped], full[:, place], atol=1e-4, rtol=0)
        cache.reset()
        for place in range(20):
            last, cache = inference.decode(inference, IDS[:, place : place + 1], cache)
            torch.testing.assert_close(last, full[:, place], atol=1e-4, rtol=0)


def test_a_cache_that_has_dropped_tokens_is_refused():
    model = mistral()
    with torch.no_grad():
        cache = model(input_ids=IDS[:, :20], use_cache=True).past_key_values
        install_cache(model, Window(200))
        with pytest.raises(InputError, match="cannot go on from a DynamicSlidingWindowLayer"):
            model(input_ids=IDS[:, 20:], past_key_values=cache, use_cache=True)
