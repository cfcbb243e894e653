"""A network is as it was found, whatever the block did to it."""

import threading

import pytest
import torch
from torch import nn

from sip_plugin.model_state import eval_mode, preserve_model_state
from tests.conftest import small_network


def mixed_modes(network: nn.Sequential) -> list[bool]:
    network.train()
    network[1].eval()
    return [module.training for module in network.modules()]


def test_evaluating_puts_each_modules_own_mode_back_also_after_an_exception(network):
    modes = mixed_modes(network)
    seen = []
    try:
        with eval_mode(network):
            seen = [module.training for module in network.modules()]
            raise KeyError
    except KeyError:
        assert not any(seen)
    assert [module.training for module in network.modules()] == modes


def spoil(network: nn.Sequential) -> None:
    """Everything that an attack could leave behind."""
    network.train()
    network(torch.rand(4, 3, 16, 16)).sum().backward()
    network[1].running_mean = torch.zeros(8)
    network[0].register_forward_hook(lambda *_: None)
    network[3].register_forward_pre_hook(lambda *_: None)
    network[0].weight.requires_grad_(False)


@pytest.mark.parametrize("fails", [False, True])
def test_preserved_restores_modes_buffers_hooks_gradients_and_flags(fails, network):
    modes = mixed_modes(network)
    gradients = [torch.randn_like(p) for p in network.parameters()]
    for parameter, gradient in zip(network.parameters(), gradients, strict=True):
        parameter.grad = gradient
    values = [gradient.clone() for gradient in gradients]
    kept = network[0].register_forward_hook(lambda *_: None)
    buffers = {name: (buffer, buffer.clone()) for name, buffer in network.named_buffers()}
    try:
        with preserve_model_state(network):
            assert all(p.grad is None for p in network.parameters())
            spoil(network)
            if fails:
                raise KeyError
    except KeyError:
        assert fails
    assert [module.training for module in network.modules()] == modes
    for parameter, gradient, value in zip(network.parameters(), gradients, values, strict=True):
        assert parameter.grad is gradient
        assert torch.equal(gradient, value)
        assert parameter.requires_grad
    for name, buffer in network.named_buffers():
        assert buffer is buffers[name][0]
        assert torch.equal(buffer, buffers[name][1])
    assert list(network[0]._forward_hooks) == [kept.id]
    assert not network[3]._forward_pre_hooks


def test_nested_and_concurrent_uses_restore_once_the_last_one_ends(network):
    network.train()
    first_in, second_in = threading.Event(), threading.Event()
    done = []

    def second() -> None:
        first_in.wait(10)
        with preserve_model_state(network):
            network.eval()
            second_in.set()
            done.append(True)

    thread = threading.Thread(target=second)
    with preserve_model_state(network), preserve_model_state(network):
        thread.start()
        first_in.set()
        second_in.wait(10)
        thread.join(10)
        assert not network.training  # the second user's end must not disturb the first
    assert done
    assert all(module.training for module in network.modules())


def buffers_of(kind):
    if kind == "quantised":
        return [torch.quantize_per_tensor(torch.tensor([v, 2 * v]), v / 2, 0, torch.quint8) for v in (0.01, 100.0)]
    if kind == "integers":
        return [torch.zeros(2), torch.tensor([2**24 + 1])]  # the latter is no float32
    return [torch.ones(1, 3, 1).to(getattr(torch, kind)), torch.zeros(0).to(getattr(torch, kind)), torch.ones(2, 2)]


@pytest.mark.parametrize("kind", ["quantised", "integers", "bfloat16", "float16", "bool", "complex64"])
@pytest.mark.parametrize("autocast", [torch.bfloat16, torch.float16])
def test_buffers_of_any_kind_are_put_back(kind, autocast):
    module, values = nn.Module(), buffers_of(kind)
    for number, buffer in enumerate(buffers_of(kind)):
        module.register_buffer(str(number), buffer)
    with torch.autocast("cpu", autocast), preserve_model_state(module):
        for buffer in module.buffers():
            if kind == "integers":
                buffer.clamp_(max=2**24)
            else:
                buffer.copy_(buffer.flip(0).clone() if kind == "quantised" else torch.zeros_like(buffer))
    assert all(map(torch.equal, values, module.buffers()))


def test_only_buffers_that_were_changed_are_written_to():
    module = nn.BatchNorm1d(3)
    loss = (torch.ones(3, requires_grad=True) * module.running_mean).sum()
    with preserve_model_state(module):
        module.running_var.add_(1)
    loss.backward()  # fails if what it needs was written to
    assert torch.equal(module.running_var, torch.ones(3))


def test_a_buffer_that_was_resized_does_not_keep_the_rest_from_being_put_back():
    module = nn.BatchNorm1d(3)
    module.register_buffer("scale", torch.ones(1))
    with preserve_model_state(module):
        module.scale.resize_(4).zero_()
        module.running_mean.add_(1)
    assert torch.equal(module.scale, torch.ones(4))
    assert torch.equal(module.running_mean, torch.zeros(3))


def test_something_that_is_no_network_is_left_alone():
    with preserve_model_state(lambda x: x):
        pass


def test_a_network_is_not_kept_alive():
    import gc
    import weakref

    network = small_network()
    with preserve_model_state(network):
        pass
    reference = weakref.ref(network)
    del network
    gc.collect()
    assert reference() is None


class Merges(nn.Linear):
    """Does more than set the flag, as LoRA layers do."""

    merged = False

    def train(self, mode=True):
        self.merged = not mode
        return super().train(mode)


def test_a_module_with_a_train_of_its_own_is_told():
    network = nn.Sequential(Merges(2, 2), nn.ReLU()).train()
    with eval_mode(network):
        assert network[0].merged
    assert not network[0].merged
    assert all(module.training for module in network.modules())


def test_two_threads_evaluate_one_network_until_both_are_done(network):
    network.train()
    inside, ended = threading.Event(), threading.Event()
    modes = []

    def second():
        with eval_mode(network):
            inside.set()
            ended.wait(10)
            modes.append(network.training)

    thread = threading.Thread(target=second)
    with eval_mode(network):
        thread.start()
        inside.wait(10)
    ended.set()
    thread.join(10)
    assert modes == [False]
    assert all(module.training for module in network.modules())
