import pytest

from effbench.plugin import Technique
from effbench.plugin.mesh import degrees, mesh_shape


class Spread(Technique):
    name = "spread"
    family = "parallelism"
    size: int | None = None

    def degree(self):
        return self.size


class Data(Spread):
    dimension = "dp"


class Tensors(Spread):
    dimension = "tp"


class Stages(Spread):
    dimension = "pp"


class Plain(Technique):
    name = "plain"
    family = "other"


@pytest.mark.parametrize(
    ("stack", "world_size", "expected"),
    [
        ([Plain()], 4, [1]),
        ([Data()], 4, [4]),
        ([Data(size=2)], 4, [2]),  # the plan refuses it: half of the ranks would have nothing to do
        ([Tensors(), Data()], 4, [2, 2]),
        ([Tensors(), Plain(), Data()], 8, [2, 1, 4]),
        ([Data(), Tensors()], 8, [4, 2]),
        ([Tensors(size=4), Data()], 8, [4, 2]),
        ([Stages(), Tensors(), Data()], 8, [2, 2, 2]),
        ([Stages(), Tensors()], 8, [2, 4]),
        ([Stages(), Data()], 2, [2, 1]),
        ([Stages(), Data()], 1, [1, 1]),
        ([Stages(size=4), Data()], 2, [4, 1]),
        ([Stages(), Data()], 3, [2, 1]),
    ],
)
def test_degrees(stack, world_size, expected):
    assert degrees(stack, world_size) == expected


def test_tensor_parallel_ranks_are_neighbours_and_stages_are_far():
    assert list(mesh_shape([Tensors(), Data(), Plain(), Stages()], 8).items()) == [("pp", 2), ("dp", 2), ("tp", 2)]
