import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from effbench.worker.operators import by_operator, kind_of


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
