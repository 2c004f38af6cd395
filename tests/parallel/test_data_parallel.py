"""Data parallel."""

import pytest

from tests.ranks import train_losses


@pytest.mark.parametrize("world_size", [2, 4])
def test_losses(world_size):
    one = train_losses([], 1)
    print(one)
    assert train_losses(["ddp"], world_size) == pytest.approx(one, rel=1e-4)
