import time

import pytest
import torch
from torch import nn

from lookupffn.evaluation import latency


def test_medians_are_by_turns_after_a_warm_up(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    now, calls = [0.0], []
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    durations = {"a": iter([9.0, 1.0, 5.0, 2.0]), "b": iter([9.0, 0.1, 0.3, 0.2])}

    def called(name):
        def function():
            calls.append(name)
            now[0] += next(durations[name])

        return function

    found = latency.medians({name: called(name) for name in durations}, 3)
    assert found == pytest.approx({"a": 2.0, "b": 0.2})
    assert calls == ["a", "b"] * 4


def test_one_thread_is_measured_in_cpu_time(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert latency.medians({"sleep": lambda: time.sleep(0.05)}, 1)["sleep"] < 0.04


def test_runners_pass_every_input():
    seen = []
    module = nn.Linear(3, 3)
    module.register_forward_hook(lambda module, arguments, output: seen.append(output.requires_grad))
    inputs = [torch.randn(2, 3), torch.randn(4, 3)]
    latency.runner(module, inputs, "inference")()
    latency.layers_runner([module, module], inputs)()
    assert seen == [False] * 4
    latency.runner(module, inputs, "training")()
    assert seen[4:] == [True, True] and module.weight.grad is None


def test_module_inputs_are_what_each_module_was_called_with():
    first, second = nn.Linear(3, 5), nn.Linear(5, 2)
    x = torch.randn(2, 4, 3)
    caught = latency.module_inputs([second, first], lambda: second(first(x)))
    assert torch.equal(caught[1], x.reshape(8, 3))
    assert torch.allclose(caught[0], first(x).reshape(8, 5))
    assert not first._forward_pre_hooks and not second._forward_pre_hooks
