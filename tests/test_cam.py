"""Class activation maps, against maps made plainly, image by image."""

from collections import OrderedDict

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sip_plugin.cam import channel_axis, class_activation_maps
from sip_plugin.salience import CAMSalience, GradientSalience
from tests.adapters.test_contract import everything, same

KINDS = ("gradcam", "xgradcam", "layercam")


@pytest.fixture
def batch(digits):
    return digits[0][1500:1512].clone(), digits[1][1500:1512].clone()


def plain_map(network, image, kind, split=4):
    """The map of one image from a Sequential's first ``split`` modules' output, (H, W) in [0, 1]."""
    activation = network[:split](image[None]).detach().requires_grad_()
    logits = network[split:](activation)[0]
    (gradient,) = torch.autograd.grad(logits[logits.argmax()], activation)
    total = torch.zeros(activation.shape[2:])
    for a, g in zip(activation.detach()[0], gradient[0], strict=True):
        if kind == "gradcam":
            total += g.mean() * a
        elif kind == "xgradcam":
            total += (g * a).sum() / a.sum() * a
        else:
            total += g.clamp(min=0) * a
    total = total.clamp(min=0)
    total = (total - total.min()) / (total.max() - total.min())
    return F.interpolate(total[None, None], size=image.shape[1:], mode="bilinear", align_corners=False)[0, 0]


@pytest.mark.parametrize("kind", KINDS)
def test_the_maps_of_a_batch_are_those_of_its_images_alone(kind, network, batch):
    maps = class_activation_maps(network, batch[0], kind)
    assert maps.shape == (12, 1, 16, 16)
    plain = torch.stack([plain_map(network, image, kind) for image in batch[0]])
    assert torch.allclose(maps[:, 0], plain, atol=1e-5)
    assert maps.amax((1, 2, 3)).min() > 0.5
    assert maps.min() >= 0
    assert maps.max() <= 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_map_fills_0_to_1_also_where_all_of_it_is_positive(kind, batch):
    network = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10))
    for parameter in network.parameters():
        nn.init.constant_(parameter, 0.5)
    maps = class_activation_maps(network, batch[0], kind)
    assert torch.equal(maps.amin((1, 2, 3)), torch.zeros(12))
    assert torch.equal(maps.amax((1, 2, 3)), torch.ones(12))


def test_maps_leave_no_trace_and_need_no_trainable_weights(network, batch):
    network.requires_grad_(False)
    before = everything(network)
    maps = class_activation_maps(network, batch[0])
    same(before, everything(network))
    assert not maps.requires_grad
    assert not batch[0].requires_grad
    network[9].register_forward_hook(lambda *_: 1 / 0)
    before = everything(network)
    with pytest.raises(ZeroDivisionError):
        class_activation_maps(network, batch[0])
    same(before, everything(network))


@pytest.mark.parametrize(("name", "layer"), [("resnet18", "layer4"), ("densenet121", "features")])
def test_the_last_convolution_stage_of_known_networks_is_found(name, layer):
    models = pytest.importorskip("torchvision").models
    torch.manual_seed(0)
    network = getattr(models, name)(num_classes=4).eval()
    images = torch.rand(2, 3, 64, 64)
    found = class_activation_maps(network, images)
    assert torch.equal(found, class_activation_maps(network, images, layer=layer))
    assert not torch.equal(found, class_activation_maps(network, images, layer=_earlier(network)))


def _earlier(network):
    return next(name for name, module in network.named_modules() if isinstance(module, nn.Conv2d))


def test_a_layer_with_one_position_is_no_map(batch):
    network = nn.Sequential(nn.Conv2d(3, 4, 5), nn.ReLU(), nn.Conv2d(4, 4, 12), nn.Flatten(), nn.Linear(4, 10))
    found = class_activation_maps(network, batch[0])
    assert torch.equal(found, class_activation_maps(network, batch[0], layer="0"))


def test_a_dead_channel_has_no_part_in_xgradcam(network, batch):
    with torch.no_grad():
        network[3].weight[:4] = 0
        network[3].bias[:4] = 0
    alive = class_activation_maps(network, batch[0], "xgradcam")
    assert alive.isfinite().all()
    assert alive.amax((1, 2, 3)).min() > 0.5


@pytest.mark.parametrize(
    ("network", "layer", "says"),
    [
        (nn.Sequential(nn.Flatten(), nn.Linear(768, 10)), None, "No stage"),
        (nn.Sequential(nn.Conv2d(3, 2, 16), nn.Flatten(), nn.Linear(2, 10)), None, "layer="),
        (nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten(), nn.Linear(392, 10)), "1", "more than one position"),
        (nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten(), nn.Linear(392, 10)), "layer4", "nearest are 2, 1, 0"),
    ],
)
def test_no_usable_layer_is_a_clear_error(network, layer, says, batch):
    with pytest.raises(ValueError, match=says):
        class_activation_maps(network, batch[0], layer=layer)


@pytest.mark.parametrize("kind", KINDS)
def test_the_maps_of_given_classes_are_of_those_logits(kind, network, batch):
    images, classes = batch[0], (batch[1] + 1) % 10
    maps = class_activation_maps(network, images, kind, classes=classes)
    own = class_activation_maps(network, images, kind)
    assert not torch.equal(maps, own)
    assert torch.equal(class_activation_maps(network, images, kind, classes=network(images).argmax(1)), own)
    # With those logits the largest, and their gradients as before.
    network.register_forward_hook(lambda module, inputs, output: output + 1000 * F.one_hot(classes, 10))
    assert torch.equal(class_activation_maps(network, images, kind), maps)


def test_a_class_that_the_network_does_not_have_is_a_clear_error(network, batch):
    with pytest.raises(ValueError, match="below 10"):
        class_activation_maps(network, batch[0], classes=batch[1] + 5)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("kind", KINDS)
def test_an_image_whose_activations_are_not_finite_has_a_map_of_nan_and_the_others_theirs(kind, value, network, batch):
    expected = class_activation_maps(network, batch[0], kind, layer="4")
    place = [torch.tensor(index) for index in (2, 3, 1, 1)]
    network[4].register_forward_hook(lambda module, inputs, output: output.index_put(place, torch.tensor(value)))
    maps = class_activation_maps(network, batch[0], kind, layer="4")
    assert maps[2].isnan().any()
    others = [i for i in range(12) if i != 2]
    assert torch.equal(maps[others], expected[others])


@pytest.mark.parametrize("layer", [None, "0"])
def test_what_follows_the_layer_may_write_into_its_output(layer, batch):
    maps = []
    for inplace in (False, True):
        torch.manual_seed(0)
        head = [nn.Flatten(), nn.Linear(4 * batch[0][0, 0].numel(), 10)]
        net = nn.Sequential(nn.Conv2d(batch[0].shape[1], 4, 3, padding=1), nn.ReLU(inplace=inplace), *head)
        maps.append(class_activation_maps(net.to(batch[0].dtype).eval(), batch[0], layer=layer))
    assert torch.equal(*maps)


@pytest.mark.parametrize("kind", KINDS)
def test_a_network_may_write_into_its_input_and_not_into_the_callers_images(kind, network, images):
    class Normalises(nn.Module):
        def __init__(self, in_place):
            super().__init__()
            self.network, self.in_place = network, in_place

        def forward(self, x):
            return self.network(x.sub_(0.5) if self.in_place else x - 0.5)

    given = images.clone()
    expected = class_activation_maps(Normalises(False), images, kind)
    assert torch.equal(class_activation_maps(Normalises(True), given, kind), expected)
    assert torch.equal(given, images)


class Stages(nn.Module):
    """Two stages and a head; the last stage's output is (N, h, w, K) if ``last`` says so."""

    def __init__(self, last):
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.stage = ChannelsLast() if last else nn.Sequential()
        self.stage.conv = nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 10)
        self.last = last

    def forward(self, x):
        return self.head(self.stage(self.stem(x)).mean((1, 2) if self.last else (2, 3)))


class ChannelsLast(nn.Module):
    def forward(self, x):
        return self.conv(x).permute(0, 2, 3, 1)


@pytest.fixture
def twins():
    first, last = Stages(False).eval(), Stages(True).eval()
    last.load_state_dict(first.state_dict())
    return first, last


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "choice", [{}, {"layer": "stage"}, {"layer": "stage", "reshape": lambda output: output.movedim(3, 1)}]
)
def test_channels_last_give_the_maps_of_channels_first(kind, choice, twins):
    x = torch.rand(
        5, 3, 8, 8, generator=torch.Generator().manual_seed(0)
    )  # as many channels as rows: shapes do not tell
    first, last = (
        class_activation_maps(network, x, kind, **choice) for network, choice in zip(twins, ({}, choice), strict=True)
    )
    assert torch.allclose(first, last, atol=1e-6)
    assert first.amax((1, 2, 3)).min() > 0.1
    masks = [CAMSalience(network, kind, **choice)(x) for network, choice in zip(twins, ({}, choice), strict=True)]
    assert torch.equal(*masks)


def test_swin_gives_the_map_made_by_hand():
    torch.manual_seed(0)
    network = pytest.importorskip("torchvision").models.swin_t().eval()
    x = torch.rand(1, 3, 64, 64, requires_grad=True)
    seen = []
    handle = network.features.register_forward_hook(lambda module, inputs, output: seen.append(output))
    logits = network(x)
    handle.remove()
    gradient = torch.autograd.grad(logits.max(), seen[0])[0].permute(0, 3, 1, 2)
    activation = seen[0].detach().permute(0, 3, 1, 2)
    expected = (gradient.mean((2, 3), keepdim=True) * activation).sum(1, keepdim=True).relu()
    expected = (expected - expected.min()) / (expected.max() - expected.min())
    expected = F.interpolate(expected, size=(64, 64), mode="bilinear", align_corners=False)
    assert torch.equal(class_activation_maps(network, x.detach()), expected)


class Tokens(nn.Module):
    """Patches of 4×4 as tokens, and a class token."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.patches, self.mix, self.head = nn.Conv2d(3, 8, 4, 4), nn.Linear(8, 8), nn.Linear(8, 10)

    def forward(self, x):
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        tokens = self.mix(torch.cat([tokens.mean(1, keepdim=True), tokens], 1))
        return self.head(tokens.relu().mean(1))


def test_tokens_need_a_reshape():
    network, x = Tokens().eval(), torch.rand(2, 3, 16, 16)
    network.head.weight.data.abs_()  # so that tokens speak for a class
    for choice in ({}, {"layer": "mix"}):
        with pytest.raises(ValueError, match="reshape="):
            class_activation_maps(network, x, **choice)
    with pytest.raises(ValueError, match="layer="):
        class_activation_maps(network, x, reshape=lambda output: output)
    maps = class_activation_maps(
        network, x, layer="mix", reshape=lambda output: output[:, 1:].unflatten(1, (4, 4)).movedim(3, 1)
    )
    assert maps.shape == (2, 1, 16, 16)
    assert maps.amax((1, 2, 3)).min() > 0.5


@pytest.mark.parametrize(
    ("shape", "make", "axis"),
    [
        ((2, 8, 4, 4), nn.Conv2d(8, 8, 1), 1),
        ((2, 8, 4, 4), nn.Sequential(nn.InstanceNorm2d(8), nn.ReLU()), 1),
        ((2, 8, 4, 4), nn.MaxPool2d(2), 1),
        ((2, 4, 4, 8), nn.Linear(8, 8), 3),
        ((2, 4, 4, 8), nn.Sequential(nn.LayerNorm(8), nn.GELU()), 3),
        ((2, 8, 4, 4), nn.LayerNorm([8, 4, 4]), None),
        ((2, 8, 4, 4), nn.Sequential(nn.Conv2d(8, 8, 1), nn.LayerNorm([8, 4, 4])), None),
    ],
    ids=str,
)
def test_the_operations_tell_where_the_channels_are(shape, make, axis):
    output = make(torch.rand(shape, requires_grad=True))
    assert channel_axis(output) == axis
    if axis:
        assert channel_axis(2 * output.transpose(-1, 1) + 1) == {1: 3, 3: 1}[axis]
        assert channel_axis(output.permute(0, 2, -1, 1).contiguous()) == {1: 3, 3: 2}[axis]


def test_a_gate_that_is_broadcast_over_the_positions_does_not_mislead():
    x = torch.rand(2, 8, 8, 8, requires_grad=True)
    features = nn.Conv2d(8, 8, 1)(x)
    gate = nn.Linear(8, 8)(features.mean((2, 3)))
    assert channel_axis(gate.view(2, 8, 1, 1) * features) == 1


@pytest.mark.parametrize("cam", [False, True])
def test_a_teacher_without_a_gradient_is_an_error(cam, network, images):
    class Blind(nn.Module):
        def __init__(self):
            super().__init__()
            self.network = network

        def forward(self, x):
            with torch.no_grad():
                return self.network(x)

    quantised = torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Flatten(), nn.Linear(768, 10)), {nn.Linear})
    for teacher in [Blind()] if cam else [Blind(), quantised]:
        with pytest.raises(ValueError, match=r"gradient|stage"):
            (CAMSalience if cam else GradientSalience)(teacher)(images)


class Stage(nn.Module):
    """A convolution, and what ``rest`` makes of its output."""

    def __init__(self, rest):
        super().__init__()
        self.conv, self.rows, self.embed = nn.Conv2d(8, 8, 3, padding=1), nn.Linear(16, 16), nn.Linear(2, 8)
        self.gate, self.rest = nn.Conv2d(2, 1, 3, padding=1), rest

    def forward(self, x):
        return self.rest(self, self.conv(x))


def spatial_gate(stage, x):
    gate = stage.gate(torch.cat([x.amax(1, keepdim=True), x.mean(1, keepdim=True)], 1))
    return (x * gate.sigmoid()).abs().sqrt()


class Swish(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x.sigmoid()

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return gradient * (x.sigmoid() + x * x.sigmoid() * (1 - x.sigmoid()))


TOLD = {
    "an activation of one's own": lambda stage, x: Swish.apply(x),
    "a position embedding": lambda stage, x: stage.embed(torch.ones(16, 16, 2)).permute(2, 0, 1) + x,
    "a spatial bias": lambda stage, x: stage.rows(torch.ones(16, 16)) + x,
    "a gate": spatial_gate,
}
NOT_TOLD = {
    "a linear layer over the width": lambda stage, x: stage.rows(x).relu(),
    "one over the height": lambda stage, x: stage.rows(x.transpose(2, 3)).transpose(2, 3),
    "both and the input": lambda stage, x: stage.rows(x) + stage.rows(x.transpose(2, 3)).transpose(2, 3) + x,
    "a LayerNorm over the width": lambda stage, x: F.layer_norm(x, (16,)),
    "an unknown operation": lambda stage, x: torch.einsum("nchw,cd->ndhw", x, torch.eye(8)),
}


@pytest.mark.parametrize("name", [*TOLD, *NOT_TOLD])
def test_a_stage_is_taken_for_what_it_is_or_refused(name):
    torch.manual_seed(0)
    stage = Stage((TOLD | NOT_TOLD)[name])
    stem, head = nn.Conv2d(3, 8, 3, padding=1), nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))
    network = nn.Sequential(OrderedDict(stem=stem, stage=stage, head=head)).eval()
    x = torch.rand(3, 3, 16, 16)
    expected = class_activation_maps(network, x, layer="stage", reshape=lambda output: output)
    for choice in ({}, {"layer": "stage"}):
        if name in TOLD:
            assert torch.equal(class_activation_maps(network, x, **choice), expected)
        else:
            with pytest.raises(ValueError, match="reshape="):
                class_activation_maps(network, x, **choice)
