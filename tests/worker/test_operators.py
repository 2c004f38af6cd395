from types import SimpleNamespace

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from effbench.worker.operators import WAITING, by_operator, kind_of


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        (
            "matmul",
            ["aten::mm", "aten::addmm", "aten::linear", "aten::_int_mm", "quantized::linear_dynamic", "aten::convolution"],
        ),
        ("matmul", ["aten::_weight_int8pack_mm", "aten::bmm", "aten::_scaled_mm", "aten::_grouped_mm"]),
        ("attention", ["aten::_scaled_dot_product_flash_attention_for_cpu_backward", "aten::_flash_attention_forward"]),
        ("normalisation", ["aten::native_layer_norm", "aten::_fused_rms_norm_backward", "aten::native_batch_norm"]),
        (
            "elementwise",
            ["aten::mul_", "aten::silu_backward", "aten::_log_softmax_backward_data", "aten::normal_", "aten::sum"],
        ),
        (
            "memory/copy",
            ["aten::copy_", "aten::t", "aten::cat", "Memcpy", "aten::embedding_dense_backward", "aten::zeros_like"],
        ),
        ("communication", ["c10d::allreduce_", "gloo:all_reduce", "nccl:all_reduce", "record_param_comms"]),
        ("other", ["MmBackward0", "ViewBackward0", "autograd::engine::evaluate_function: MmBackward0", "mine::secret"]),
    ],
)
def test_kinds_go_by_name(kind, names):
    assert {name: kind_of([name]) for name in names} == dict.fromkeys(names, kind)


def test_what_an_optimizer_or_attention_is_made_of_belongs_to_it():
    assert kind_of(["aten::mul_", "Optimizer.step#AdamW.step", "ProfilerStep*"]) == "optimizer"
    assert kind_of(["aten::bmm", "aten::_scaled_dot_product_attention_math", "ProfilerStep*"]) == "attention"


def test_time_in_no_operator_is_apart():
    assert kind_of(["ProfilerStep*"], annotation=True) == "outside operators"
    assert kind_of(["Optimizer.step#AdamW.step", "ProfilerStep*"], annotation=True) == "optimizer"


def test_own_times_add_up_to_the_whole_and_are_per_step():
    def step():
        with torch.profiler.record_function("step"):
            torch.randn(64, 64) @ torch.randn(64, 64)

    with profile(activities=[ProfilerActivity.CPU]) as recorded:
        for _ in range(3):
            step()
    operators = by_operator(recorded.events(), "cpu", steps=3)
    whole = sum(event.cpu_time_total for event in recorded.events() if event.name == "step") / 1e6 / 3
    assert sum(operator.seconds for operator in operators) == pytest.approx(whole, rel=1e-6)
    calls = {operator.name: operator.calls for operator in operators}
    assert calls["aten::mm"] == 1
    assert calls["aten::randn"] == 2
    assert [o.seconds for o in operators] == sorted((o.seconds for o in operators), reverse=True)


class Event:
    """What a profiler's event shows of itself, in microseconds."""

    is_async = is_user_annotation = False
    cpu_parent = None

    def __init__(self, name, start, end, *children, **flags):
        self.name, self.cpu_children = name, children
        self.time_range = SimpleNamespace(start=start, end=end)
        self.device_type = SimpleNamespace(name="CPU")
        self.self_cpu_time_total = end - start - sum(c.time_range.end - c.time_range.start for c in children)
        self.__dict__.update(flags)
        for child in children:
            child.cpu_parent = self


def test_waiting_for_gloo_is_communication_and_what_operators_hide_is_not():
    mm, add = Event("aten::mm", 10, 40), Event("aten::add", 80, 90)
    step = Event("ProfilerStep*", 0, 100, mm, add, is_user_annotation=True)
    reduces = [
        Event("gloo:all_reduce", start, end, is_async=True, self_cpu_time_total=0) for start, end in ((30, 60), (50, 85))
    ]
    found = {o.name: o.seconds * 1e6 for o in by_operator([step, mm, add, *reduces], "cpu", steps=1)}
    assert found.pop("gloo:all_reduce") == 0
    assert found == pytest.approx({"aten::mm": 30, "aten::add": 10, WAITING: 40, "ProfilerStep*": 20})
