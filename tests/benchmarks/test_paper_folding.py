"""benchmarks/paper: the evaluated network with BatchNorm folded away computes what the trained one does."""

import pytest
import torch
from torch import nn

from benchmarks.paper.folding import fold_batchnorm
from benchmarks.paper.networks import WideResNet, build_network


def with_statistics(network):
    """In eval mode, with BatchNorm statistics of some images."""
    torch.manual_seed(0)
    network.train()
    with torch.no_grad():
        for _ in range(3):
            network(torch.rand(16, 3, 16, 16))
    return network.eval()


@pytest.mark.parametrize("name", ["convnet8", "convnet24", "resnet18", "wide"])
def test_a_folded_network_is_the_same_function(name):
    network = with_statistics(WideResNet(10, depth=10, factor=1) if name == "wide" else build_network(name, 3, 10))
    before = {key: value.clone() for key, value in network.state_dict().items()}
    images = torch.rand(8, 3, 16, 16)
    folded, difference = fold_batchnorm(network, images)
    with torch.no_grad():
        ours, theirs = folded(images), network(images)
    assert ours == pytest.approx(theirs, abs=1e-4)
    assert difference["largest_logit_difference"] == pytest.approx((ours - theirs).abs().max().item(), abs=1e-5)
    assert difference["predictions_that_differ"] == 0
    count, left = (sum(isinstance(m, nn.BatchNorm2d) for m in net.modules()) for net in (network, folded))
    assert left < count  # a pre-activation network keeps some
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def test_a_folded_network_that_is_another_function_is_refused(monkeypatch):
    def wrong(network):
        network[0].weight.data.mul_(5)
        return network

    monkeypatch.setattr("torch.fx.experimental.optimization.fuse", wrong)
    with pytest.raises(ValueError, match=r"changes logits by up to .*leave it out .--no-fold-batchnorm"):
        fold_batchnorm(with_statistics(build_network("convnet8", 3, 10)), torch.rand(8, 3, 16, 16))
