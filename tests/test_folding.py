"""A network with BatchNorm folded into its convolutions is the same function, and the network is left alone."""

import copy

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from benchmarks.paper.networks import WideResNet, build_network
from benchmarks.speed.folding import kept
from benchmarks.speed.measure import resnet18
from sip_plugin.folding import FoldedModel
from tests.adapters.test_contract import everything, same

models = torchvision.models
NETWORKS = {  # and how many of their BatchNorm layers are folded, and are not
    "ResNet-18": (lambda: build_network("resnet18", 3, 10), 20, 0),
    "WRN-10-1, pre-activation": (lambda: WideResNet(10, depth=10, factor=1), 3, 4),
    "DenseNet-121": (lambda: models.densenet121(num_classes=10), 59, 62),
    "MobileNet-v3": (lambda: models.mobilenet_v3_small(num_classes=10), 34, 0),
    "EfficientNet-b0": (lambda: models.efficientnet_b0(num_classes=10), 49, 0),
    "ConvNeXt-tiny": (lambda: models.convnext_tiny(num_classes=10), 0, 0),
    "ViT": (lambda: models.VisionTransformer(32, 8, 2, 2, 16, 32, num_classes=10), 0, 0),
    "Swin": (lambda: models.SwinTransformer([4, 4], 16, [2, 2], [2, 4], [4, 4], num_classes=10), 0, 0),
}

LARGE = {"ResNet-18", "DenseNet-121", "EfficientNet-b0", "ConvNeXt-tiny"}


def randomised(network):
    """With statistics and weights of BatchNorm as after some training."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, 0, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.normal_(module.weight, 1, 0.2)
            nn.init.normal_(module.bias, 0, 0.2)
    return network


def assert_equal_functions(folded, network, images, tolerance=1e-5):
    assert not folded.training
    modes = [module.training for module in network.modules()]
    network.eval()
    ours, own = (x.clone().requires_grad_() for x in (images, images))
    logits, expected = folded(ours), network(own)
    weights = torch.linspace(-1, 1, logits.shape[1])
    (gradient,) = torch.autograd.grad((logits * weights).sum(), ours)
    (theirs,) = torch.autograd.grad((expected * weights).sum(), own)
    for module, mode in zip(network.modules(), modes, strict=True):
        module.training = mode
    assert (logits - expected).abs().max() <= tolerance * expected.abs().max()
    # A tie of two maxima may go the other way.
    assert (gradient.sign() == theirs.sign()).float().mean() >= 0.999


@pytest.mark.parametrize("name", NETWORKS)
def test_the_folded_network_is_the_same_function_also_after_training(name):
    torch.manual_seed(0)
    make, pairs, alone = NETWORKS[name]
    network, images = randomised(make()), torch.rand(4, 3, 32, 32)
    folded = FoldedModel(network, images)
    left = [type(module).__name__ for module in folded.modules()]
    assert (left.count("Identity"), left.count("_ScaleShift")) >= (pairs, alone)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    assert not any(parameter.requires_grad for parameter in folded.parameters())
    assert_equal_functions(folded, network, images)
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-4, momentum=0.9)
    for _ in range(2 if name in LARGE else 20):
        optimizer.zero_grad()
        F.cross_entropy(network.train()(images), torch.arange(4)).backward()
        optimizer.step()
        folded.refresh()
        assert_equal_functions(folded, network, images)


class Branches(nn.Module):
    """Reuses a convolution, hands its output to others too, has a linear layer with BatchNorm, and keeps its features."""

    def __init__(self):
        super().__init__()
        self.twice, self.shared, self.alone = (nn.Conv2d(3, 3, 3, padding=1) for _ in range(3))
        self.norms = nn.ModuleList(nn.BatchNorm2d(3) for _ in range(4))
        self.linear, self.norm = nn.Linear(3, 10, bias=False), nn.BatchNorm1d(10, affine=False)
        self.features = None

    def forward(self, x):
        x = self.norms[0](self.twice(x)) + self.norms[1](self.twice(x))
        y = self.shared(x)
        x = self.norms[2](y) + y
        self.features = self.norms[3](self.alone(x))
        return self.norm(self.linear(self.features.mean((2, 3))))


def branches():
    torch.manual_seed(0)
    network = Branches()
    for _ in range(3):
        network(torch.rand(8, 3, 8, 8))
    network.features = None
    return network


def test_only_pairs_that_nothing_else_uses_are_folded_and_the_network_is_left_alone():
    network, images = branches(), torch.rand(4, 3, 8, 8)
    network.train()
    before = everything(network)
    folded = FoldedModel(network)
    folded(images)
    same(before, everything(network))
    assert network.features is None  # nor what its forward pass keeps, while it is traced
    assert isinstance(folded.network, Branches)
    kinds = [type(module).__name__ for module in folded.modules()]
    assert kinds.count("Identity") == 1
    assert kinds.count("_ScaleShift") == 4
    assert_equal_functions(folded, network, images)


@pytest.mark.parametrize("container", [False, True])
def test_layers_with_hooks_are_not_folded_and_the_hooks_run(container, network, images):
    watched = network if container else network[1]
    calls, network = [], nn.Sequential(network, nn.Identity())
    hook = watched.register_forward_hook(lambda *_: calls.append(1))
    folded = FoldedModel(network, images)
    calls.clear()
    assert_equal_functions(folded, network.eval(), images)
    assert len(calls) == 2
    left = sum(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    assert left == (2 if container else 1)
    hook.remove()
    folded.refresh()  # sees it
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    assert_equal_functions(folded, network, images)


def test_a_copy(network, images):
    duplicate = copy.deepcopy(FoldedModel(network, images))
    assert_equal_functions(duplicate, network, images)
    duplicate.refresh()
    assert_equal_functions(duplicate, network, images)


def test_what_changes_in_the_network_is_taken_over(network, images):
    folded = FoldedModel(network)
    with torch.no_grad():
        network[0].weight = nn.Parameter(-network[0].weight)
        network[4].running_mean = network[4].running_mean + 1
        network[9].weight.data = network[9].weight * 2
    folded.refresh()
    assert_equal_functions(folded, network, images)
    network[6].p, network[7].output_size = 0.5, 2
    network[9].weight, network[9].in_features = nn.Parameter(network[9].weight[:, :64] * 1), 64
    folded.refresh()
    assert_equal_functions(folded, network, images)
    network[7].output_size = 4
    network[9] = nn.Linear(256, 10)
    network[4] = nn.Identity()
    folded.refresh()
    assert_equal_functions(folded, network, images)
    network[0].stride, network[0].padding_mode = (2, 2), "reflect"
    network[3].weight.data = network[3].weight.data.flip(0).transpose(2, 3)
    folded.refresh()
    assert_equal_functions(folded, network, images)
    first = network[0].forward
    network[0].forward = lambda x: first(x) + 1  # which BatchNorm's factor would have to reach
    network[9].weight.data, network[9].bias.data = network[9].weight.data[:5], network[9].bias.data[:5]
    folded.refresh()
    assert_equal_functions(folded, network, images)


class Tokens(nn.Module):
    """BatchNorm over the tokens that a linear layer gives, as many as they have channels."""

    def __init__(self, tokens):
        super().__init__()
        self.linear, self.norm, self.kept = nn.Linear(8, 8), nn.BatchNorm1d(tokens), {}

    def forward(self, x):
        if "ones" not in self.kept:
            self.kept["ones"] = torch.ones_like(x[0])
        return self.norm(self.linear(x * self.kept["ones"])).flatten(1)


@pytest.mark.parametrize("tokens", [4, 8])
def test_channels_of_tokens_are_not_batchnorms_and_nothing_is_left_of_tracing(tokens):
    torch.manual_seed(0)
    network = Tokens(tokens)
    network.norm.running_mean.uniform_(-1, 1)
    folded = FoldedModel(network.eval())
    assert not network.kept
    images = torch.rand(3, tokens, 8)
    assert (folded(images) - network(images)).abs().max() < 1e-5


def test_what_is_done_to_the_folded_network_is_not_done_to_the_network(network, images):
    before = everything(network)
    folded = FoldedModel(network, images).double()
    folded.network.register_forward_pre_hook(lambda *_: 1 / 0)
    same(before, everything(network))
    network(images)


def test_a_network_that_gives_more_than_logits_cannot_be_folded(network, images):
    class Two(DataDependent):
        def forward(self, x):
            return self.network(x), x

    with pytest.raises(ValueError, match="tuple"):
        FoldedModel(Two(network), images)


def test_it_can_be_made_in_inference_mode(network, images):
    with torch.inference_mode():
        folded = FoldedModel(network, images)
    assert_equal_functions(folded, network, images)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_precisions(dtype, network, images):
    network = network.to(dtype)
    images = images.to(dtype)
    folded = FoldedModel(network, images)
    tolerance = 1e-12 if dtype == torch.float64 else 0.03
    assert folded(images).dtype == dtype
    assert (folded(images) - network(images)).abs().max() <= tolerance * network(images).abs().max()


@pytest.mark.parametrize("narrow", [torch.bfloat16, torch.float16])
def test_a_network_of_narrow_weights_is_folded_under_autocast_of_the_other_kind(narrow):
    model = (
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5)).to(narrow).eval()
    )
    model[1].running_mean.fill_(0.5)
    with torch.autocast("cpu", torch.float16 if narrow == torch.bfloat16 else torch.bfloat16):
        folded = FoldedModel(model)
    images = torch.rand(2, 3, 8, 8, dtype=narrow)
    assert torch.allclose(folded(images), model(images), atol=0.02)


def test_under_autocast_gradients_are_as_close_to_float32_as_the_networks_own(network, images):
    def gradient(model, autocast):
        x = images.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            logits = model(x)
        return torch.autograd.grad(logits.float()[:, 3].sum(), x)[0]

    with torch.autocast("cpu", torch.bfloat16):
        folded = FoldedModel(network, images)
    exact = gradient(network, False)
    ours, own = (gradient(model, True) for model in (folded, network))
    assert (ours - exact).norm() <= 1.5 * (own - exact).norm()
    assert (ours.sign() == exact.sign()).float().mean() > 0.95
    wide = gradient(folded, False)  # of the one that was made under autocast
    assert (wide - exact).norm() <= 1e-5 * exact.norm()


def test_autograd_keeps_at_most_half():
    network = resnet18(16).eval()
    images, labels = torch.rand(8, 3, 32, 32), torch.zeros(8, dtype=torch.long)
    assert kept(FoldedModel(network), images, labels) <= 0.5 * kept(network, images, labels)


class DataDependent(nn.Module):
    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        return self.network(x if x.mean() > 0 else -x)


class LooksAtItsLayers(DataDependent):
    """Not the same function without its BatchNorm."""

    def forward(self, x):
        return self.network(x) * sum(isinstance(module, nn.BatchNorm2d) for module in self.network)


class Sharded(nn.Sequential):
    """Bears the name by which a sharded network is known."""


Sharded.__name__ = "FSDPModule"


@pytest.mark.parametrize(
    ("wrap", "reason"),
    [(DataDependent, "trace"), (LooksAtItsLayers, "logits"), (Sharded, "sharded")],
)
def test_a_network_that_cannot_be_folded_is_refused_with_the_reason(wrap, reason, network, images):
    before = everything(network)
    with pytest.raises(ValueError, match=reason):
        FoldedModel(wrap(network), images)
    same(before, everything(network))


def test_a_compiled_network(network, images):
    compiled = torch.compile(network, backend="eager")
    folded = FoldedModel(compiled, images)
    assert hasattr(folded.network, "_orig_mod")
    assert_equal_functions(folded, network, images)
    with torch.no_grad():
        network[1].weight.mul_(-1)
    folded.refresh()
    assert_equal_functions(folded, network, images)
