"""AttributionSalience: over the table of Captum's methods, against attributions that the tests ask Captum for themselves."""

import copy
import pickle
import random
import warnings

import captum.attr as captum
import numpy as np
import pytest
import torch
from torch import nn

from sip_plugin.salience import AttributionSalience
from tests.adapters.test_contract import everything, same
from tests.salience.captum_table import BASES, NOT_WORKING, WORKING, WithoutFlatten, stage
from tests.salience.test_selection import plain


@pytest.fixture
def images(images):
    return images[:3]


@pytest.fixture
def labels(labels):
    return labels[:3]


every_method = pytest.mark.parametrize("row", WORKING, ids=str)
deterministic = pytest.mark.parametrize("row", [row for row in WORKING if not row.random], ids=str)


def built(row, network, **options):
    """The row's network, the method on it, and the maps' source."""
    network = row.network(network).eval()
    method = row.build(network)
    target = {} if row.takes_target else {"target": None}
    given = {"seed": 0 if row.random else None, "per_batch": row.per_batch, **row.options, **target, **options}
    return network, method, AttributionSalience(method, **given)


def seeded(seed=0):
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)


def attributions(row, network, images, classes=None):
    """What Captum itself says of each pixel or element, as non-negative scores in float64."""
    seeded()
    options = row.options | {name: function(images) for name, function in row.per_batch.items()}
    if row.takes_target:
        options["target"] = network(images).argmax(1) if classes is None else classes
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = row.build(network).attribute(images.clone().requires_grad_(), **options).detach().abs()
    if not row.layer:
        return found
    summed = found.double().sum(1, keepdim=True)
    return captum.LayerAttribution.interpolate(summed, (16, 16), interpolate_mode="bilinear")


@every_method
def test_a_map_holds_the_fewest_elements_for_the_mass(row, network, images):
    mass = 0.4
    network, _, mask_fn = built(row, network, mass=mass)
    chosen = mask_fn(images)
    assert chosen.dtype == torch.bool
    assert chosen.shape == images.shape
    scores = attributions(row, network, images)
    expected = torch.stack([plain(image, mass) for image in scores])
    assert torch.equal(chosen, expected.expand_as(images))
    assert 0 < chosen.float().mean() < mass + 0.1  # no more elements than equal ones would need


@every_method
def test_the_true_class_and_a_fixed_one_are_options(row, network, images, labels):
    if not row.takes_target:
        with pytest.raises(TypeError, match="unexpected keyword argument 'target'"):
            built(row, network, target="true")
        return
    for target, classes in (("true", (labels + 1) % 10), (3, torch.full((3,), 3))):
        used, _, mask_fn = built(row, network, target=target)
        scores = attributions(row, used, images, classes)
        expected = torch.stack([plain(image, 0.5) for image in scores]).expand_as(images)
        assert torch.equal(mask_fn(images, (labels + 1) % 10), expected)
    # What a neuron of one channel sees does not depend on the class.
    assert row.name.startswith("Neuron") or not torch.equal(built(row, network)[2](images), expected)


@deterministic
def test_each_image_has_the_map_it_has_alone(row, network, images):
    _, _, mask_fn = built(row, network)
    together = mask_fn(images)
    shares = [(together[i] != mask_fn(images[i : i + 1])[0]).float().mean() for i in range(len(images))]
    assert max(shares) < 0.01  # but for rounding in the batched convolutions


@deterministic
def test_the_method_can_be_given_some_images_at_a_time(row, network, images, labels):
    target = {"target": "true"} if row.takes_target else {}
    together = built(row, network, **target)[2](images, labels)
    apart = built(row, network, batch_size=2, **target)[2](images, labels)
    assert (together != apart).float().mean() < 0.01


@every_method
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_maps_can_be_made_where_gradients_are_off(mode, row, network, images, labels):
    target = {"target": "true"} if row.takes_target else {}
    _, _, mask_fn = built(row, network, seed=0, **target)
    expected = mask_fn(images, labels)
    with mode():
        inside = mask_fn(images * 1, labels * 1)
    assert torch.equal(inside, expected)


def trace(network, method):
    """All that Captum may leave behind, besides what any attack may."""
    return (
        [set(vars(module)) for module in network.modules()],
        [(p.data_ptr(), p.detach().clone()) for p in network.parameters()],
        state_of(method),
    )


def state_of(method):
    """A method's attributes: lists with their lengths, methods inside, and the rest by identity."""
    inner = {name: state_of(value) for name, value in vars(method).items() if isinstance(value, captum.Attribution)}
    lists = {name: len(value) for name, value in vars(method).items() if isinstance(value, list)}
    return {name: id(value) for name, value in vars(method).items() if name not in inner}, inner, lists


def as_before(before, after):
    assert before[0] == after[0]
    assert before[2] == after[2]
    for (place, value), (now, value_now) in zip(before[1], after[1], strict=True):
        assert place == now
        assert torch.equal(value, value_now)


@every_method
@pytest.mark.parametrize("fails", [False, True])
def test_network_method_and_images_are_left_as_they_were(fails, row, network, images, labels):
    network, method, mask_fn = built(row, network, seed=0, **({"target": "true"} if row.takes_target else {}))
    expected = mask_fn(images, labels)
    network.train()
    stage(network).eval()
    for parameter in list(network.parameters())[::2]:
        parameter.grad = torch.ones_like(parameter)
    given = images.clone()
    handle = list(network.children())[-1].register_forward_hook(lambda *_: 1 / 0 if fails else None)
    before, traces = everything(network), trace(network, method)
    if fails:
        with pytest.raises(ZeroDivisionError):
            mask_fn(given, labels)
    else:
        assert torch.equal(mask_fn(given, labels), expected)  # in eval mode, whatever its mode was
    same(before, everything(network))
    as_before(traces, trace(network, method))
    assert torch.equal(given, images)
    assert not given.requires_grad
    assert given.grad is None
    handle.remove()
    assert torch.equal(mask_fn(images, labels), expected)  # nor is anything left that would change the next map


@every_method
def test_captums_expected_warnings_are_kept_quiet(row, network, images):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        built(row, network)[2](images)
    assert not [w.message for w in caught if "captum" in w.filename]


@every_method
def test_with_a_seed_the_maps_are_the_same_and_the_generators_stay_as_they_were(row, network, images):
    _, _, mask_fn = built(row, network, seed=5)
    seeded(1)
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    expected = mask_fn(images)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (np.random.get_state()[1] == states[1]).all()
    assert random.getstate() == states[2]
    seeded(2)
    assert torch.equal(mask_fn(images), expected)


def test_without_a_seed_each_call_draws_anew(network, images):
    _, _, mask_fn = built(next(row for row in WORKING if row.name == "NoiseTunnel(Saliency)"), network, seed=None)
    seeded()
    first, second = mask_fn(images), mask_fn(images)
    assert not torch.equal(first, second)
    seeded()
    assert torch.equal(mask_fn(images), first)


@every_method
def test_a_source_can_be_copied_and_its_copy_has_its_own_network(row, network, images):
    network, _, mask_fn = built(row, network, seed=0)
    expected = mask_fn(images)
    copied = copy.deepcopy(mask_fn)
    with torch.no_grad():
        next(network.parameters()).zero_()
    assert torch.equal(copied(images), expected)


def test_a_source_can_be_pickled(network, images):
    mask_fn = AttributionSalience(
        captum.IntegratedGradients(network), 0.3, n_steps=3, per_batch={"baselines": torch.zeros_like}
    )
    loaded = pickle.loads(pickle.dumps(mask_fn))
    assert torch.equal(loaded(images), mask_fn(images))
    assert repr(loaded) == repr(mask_fn)


def test_every_method_of_captum_is_in_the_table():
    kinds = {name: getattr(captum, name) for name in captum.__all__}
    methods = {name for name, kind in kinds.items() if isinstance(kind, type) and issubclass(kind, captum.Attribution)}
    tested = {part for row in WORKING for part in row.name.rstrip(")").split("(")}
    assert methods - BASES == tested | set(NOT_WORKING)
    assert not tested & set(NOT_WORKING)


# --- what counts ----------------------------------------------------------------------------------------------------------


class Linear(nn.Module):
    """Logits whose gradients are known, of both signs."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(10, 3, 16, 16, generator=torch.Generator().manual_seed(0)))

    def forward(self, x):
        return torch.einsum("nchw,kchw->nk", x, self.weight)


def test_positive_counts_only_what_speaks_for_the_class(images, labels):
    teacher = Linear()
    gradient = (teacher.weight[labels] * images).detach()
    for sign, scores in (("positive", gradient.clamp(min=0)), ("absolute", gradient.abs())):
        mask_fn = AttributionSalience(captum.InputXGradient(teacher), target="true", sign=sign)
        assert torch.equal(mask_fn(images, labels), torch.stack([plain(s, 0.5) for s in scores]))
    assert (gradient[mask_fn(images, labels)] < 0).any()


def test_per_pixel_maps_mark_all_channels_or_none(images, labels):
    teacher = Linear()
    chosen = AttributionSalience(captum.Saliency(teacher), target="true", per_pixel=True)(images, labels)
    summed = teacher.weight[labels].abs().double().sum(1, keepdim=True).detach()
    assert torch.equal(chosen, torch.stack([plain(s, 0.5) for s in summed]).expand_as(images))


def test_nothing_attributed_is_an_empty_map(network, images):
    with torch.no_grad():
        network[9].weight.zero_()
    assert not AttributionSalience(captum.Saliency(network))(images).any()


def test_passes_are_the_methods_and_one_more_for_the_predicted_class(network, images, labels):
    passes = []
    network.register_forward_hook(lambda module, inputs, output: passes.append(output.requires_grad))
    AttributionSalience(captum.Saliency(network), target="true")(images, labels)
    assert passes == [True]
    AttributionSalience(captum.Saliency(network))(images)
    assert passes == [True, False, True]


def test_no_gradient_of_the_weights_is_computed(network, images):
    for parameter in network.parameters():
        parameter.register_hook(lambda gradient: pytest.fail("a gradient of a weight"))
    AttributionSalience(captum.IntegratedGradients(network), n_steps=2)(images)


def test_options_may_depend_on_the_images_of_each_part(network, images):
    seen = []

    def baselines(part):
        seen.append(part)
        return part.flip(0)

    mask_fn = AttributionSalience(captum.InputXGradient(network), batch_size=2)
    with pytest.raises(TypeError, match="unexpected keyword argument 'baselines'"):
        AttributionSalience(captum.InputXGradient(network), per_batch={"baselines": baselines})
    mask_fn = AttributionSalience(captum.DeepLift(network), batch_size=2, per_batch={"baselines": baselines})
    mask_fn(images)
    assert torch.equal(torch.cat(seen), images)
    assert [len(part) for part in seen] == [2, 1]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_images_may_be_of_other_precision(dtype, network, images):
    mask_fn = AttributionSalience(captum.Saliency(network.to(dtype)), target=3)
    gradient = captum.Saliency(network).attribute(images.to(dtype).requires_grad_(), target=3)
    assert torch.equal(mask_fn(images.to(dtype)), torch.stack([plain(g, 0.5) for g in gradient]))


@pytest.mark.parametrize("kind", [captum.Saliency, captum.IntegratedGradients, captum.DeepLift, captum.GuidedBackprop])
def test_maps_can_be_made_under_autocast(kind, network, images):
    mask_fn = AttributionSalience(kind(network))
    with torch.autocast("cpu", torch.bfloat16):
        inside = mask_fn(images)
    assert (inside != mask_fn(images)).float().mean() < 0.1


# --- networks that cannot be seen, or not be used -------------------------------------------------------------------------


def test_a_method_on_a_function_or_a_bound_method_works(network, images):
    expected = AttributionSalience(captum.Saliency(network))(images)
    assert torch.equal(AttributionSalience(captum.Saliency(lambda x: network(x)))(images), expected)
    bound = AttributionSalience(captum.Saliency(network.forward))
    network.train()
    before = everything(network)
    assert torch.equal(bound(images), expected)  # whose network can be seen
    same(before, everything(network))


def test_a_layer_of_a_network_inside_a_function_is_left_as_it_was(network, images):
    method = captum.LayerGradCam(lambda x: network(x), network[4])
    expected = AttributionSalience(captum.LayerGradCam(network, network[4]))(images)
    before, traces = everything(network), trace(network, method)
    assert torch.equal(AttributionSalience(method)(images), expected)
    network[5].register_forward_hook(lambda *_: 1 / 0)
    before, traces = everything(network), trace(network, method)
    with pytest.raises(ZeroDivisionError):
        AttributionSalience(method, target=3)(images)
    same(before, everything(network))
    as_before(traces, trace(network, method))


def test_a_network_with_one_number_per_image_needs_no_class(network, images):
    def score(x):
        return network(x).logsumexp(1)

    chosen = AttributionSalience(captum.Saliency(score), target=None)(images)
    gradient = captum.Saliency(score).attribute(images.requires_grad_())
    assert torch.equal(chosen, torch.stack([plain(g, 0.5) for g in gradient]))
    with pytest.raises(ValueError, match="logits"):
        AttributionSalience(captum.Saliency(score))(images)


def test_more_arguments_of_the_network_reach_it_in_every_pass(network, images):
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.network = network

        def forward(self, x, power, shift):
            return self.network(x**power) + shift

    alone = AttributionSalience(captum.Saliency(network))(images)
    assert torch.equal(AttributionSalience(captum.Saliency(network), additional_forward_args=None)(images), alone)
    shift = torch.zeros(10).index_fill(0, torch.tensor(4), 1e3)
    mask_fn = AttributionSalience(captum.Saliency(Scaled()), additional_forward_args=(2, shift))
    gradient = captum.Saliency(lambda x: network(x**2)).attribute(images.requires_grad_(), target=4)
    assert torch.equal(mask_fn(images), torch.stack([plain(g, 0.5) for g in gradient]))
    squared = AttributionSalience(captum.Saliency(lambda x, power: network(x**power)), additional_forward_args=2)
    assert torch.equal(squared(images), AttributionSalience(captum.Saliency(lambda x: network(x**2)))(images))


@pytest.mark.parametrize(
    "build",
    [
        lambda whole, net: captum.GuidedBackprop(whole),
        lambda whole, net: captum.NoiseTunnel(captum.DeepLift(whole)),
        lambda whole, net: captum.LayerGradCam(whole, net[4]),
        lambda whole, net: captum.GuidedGradCam(whole, net[4]),
    ],
)
def test_a_method_with_hooks_refuses_a_compiled_network_which_would_not_call_them(build, network):
    AttributionSalience(build(network, network))
    with pytest.raises(ValueError, match="A compiled network does not call"):
        AttributionSalience(build(torch.compile(network, backend="eager"), network))
    network.compile(backend="eager")
    with pytest.raises(ValueError, match="A compiled network does not call"):
        AttributionSalience(build(network, network))


def test_a_method_without_hooks_takes_a_compiled_network(network, images):
    expected = AttributionSalience(captum.Saliency(network))(images)
    compiled = torch.compile(network, backend="eager")
    before = everything(network)
    mask_fn = AttributionSalience(captum.Saliency(compiled))
    for _ in range(2):
        assert torch.equal(mask_fn(images), expected)
    same(before, everything(network))
    assert "_orig_mod" not in vars(network)


def reuses_an_activation(network):
    network[5] = network[2]
    return captum.DeepLift(network), "used more than once"


def has_a_module_without_a_rule(network):
    return captum.LRP(network), "has no rule"


def writes_into_the_layers_output(network):
    network[5].inplace = True
    return captum.LayerIntegratedGradients(network, network[4]), "in-place"


@pytest.mark.parametrize("build", [reuses_an_activation, has_a_module_without_a_rule, writes_into_the_layers_output])
def test_what_captum_raises_is_passed_on_and_leaves_the_network_as_it_was(build, network, images):
    method, says = build(network)
    before, traces = everything(network), trace(network, method)
    with pytest.raises((RuntimeError, TypeError), match=says):
        AttributionSalience(method)(images)
    same(before, everything(network))
    as_before(traces, trace(network, method))


def test_ones_own_rules_for_lrp_stay(network, images):
    from captum.attr._utils.lrp_rules import Alpha1_Beta0_Rule

    network = WithoutFlatten(network)
    without = AttributionSalience(captum.LRP(network))(images)
    network.features[3].rule = rule = Alpha1_Beta0_Rule()
    mask_fn = AttributionSalience(captum.LRP(network))
    first, second = mask_fn(images), mask_fn(images)
    assert network.features[3].rule is rule
    assert torch.equal(first, second)
    assert not torch.equal(first, without)


class Functional(nn.Module):
    """The small network with activations that are no modules."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        first, second, head = self.network[:2], self.network[3:5], self.network[6:]
        return head(second(first(x).relu()).relu())


def test_functional_activations_are_passed_over_by_captum_in_silence(network, images):
    functional = Functional(network)
    gradient = AttributionSalience(captum.Saliency(network))(images)
    assert torch.equal(AttributionSalience(captum.GuidedBackprop(functional))(images), gradient)
    assert not torch.equal(AttributionSalience(captum.GuidedBackprop(network))(images), gradient)
    times_input = AttributionSalience(captum.InputXGradient(network))(images)
    assert torch.equal(AttributionSalience(captum.DeepLift(functional))(images), times_input)
    assert not torch.equal(AttributionSalience(captum.DeepLift(network))(images), times_input)


# --- errors ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("sign", ["absolute", "positive"])
def test_attributions_that_are_not_finite_are_an_error_that_names_the_images(value, sign, images):
    class Breaks(nn.Module):
        def forward(self, x):
            scale = torch.ones(len(x), 1, 1, 1)
            scale[2] = value
            return (x * scale).flatten(1)[:, :10]

    with pytest.raises(ValueError, match=r"Saliency.* NaN or infinite for image\(s\) \[2\]"):
        AttributionSalience(captum.Saliency(Breaks()), target=1, sign=sign, abs=False)(images)


def test_attributions_without_pixels_are_a_clear_error(network, images):
    with pytest.raises(ValueError, match=r"\(N, K, h, w\), got .*\[3, 256\]"):
        AttributionSalience(captum.LayerGradientXActivation(network, network[8]))(images)
    method = captum.FeatureAblation(lambda x: network(x).sum())  # one result for a whole batch
    with pytest.raises(ValueError, match=r"got .*\[1, 3, 16, 16\]"):
        AttributionSalience(method, target=None, feature_mask=torch.arange(3)[None, :, None, None])(images)
    method = captum.LayerActivation(network, [network[1], network[4]])
    with pytest.raises(ValueError, match="got <class 'list'>"):
        AttributionSalience(method, target=None)(images)


@pytest.mark.parametrize(
    ("arguments", "kind", "says"),
    [
        ({"mass": 0.0}, ValueError, r"\(0, 1\]"),
        ({"target": "loss"}, ValueError, "predicted"),
        ({"sign": "negative"}, ValueError, "positive"),
        ({"steps": 3}, TypeError, "unexpected keyword argument 'steps'"),
        ({"inputs": 3}, TypeError, "inputs"),
        ({"per_batch": {"baseline": torch.zeros_like}}, TypeError, "unexpected keyword argument 'baseline'"),
        ({"per_batch": {"baselines": torch.zeros_like}, "baselines": 0}, TypeError, "baselines"),
    ],
)
def test_bad_arguments_are_refused_at_once(arguments, kind, says, network):
    with pytest.raises(kind, match=says):
        AttributionSalience(captum.IntegratedGradients(network), **arguments)


def test_a_needed_option_is_asked_for_at_once(network):
    with pytest.raises(TypeError, match=r"missing a required.*sliding_window_shapes"):
        AttributionSalience(captum.Occlusion(network))
    with pytest.raises(TypeError, match=r"missing a required.*baselines"):
        AttributionSalience(captum.NoiseTunnel(captum.GradientShap(network)))


def test_options_that_captum_would_ignore_are_refused_too(network):
    with pytest.raises(TypeError, match="unexpected keyword argument 'perturbations'"):
        AttributionSalience(captum.FeatureAblation(network), perturbations=3)
    with pytest.raises(TypeError, match="unexpected keyword argument 'n_samples'"):
        AttributionSalience(captum.NoiseTunnel(captum.Saliency(network)), n_samples=3)


def test_a_method_of_ones_own_may_take_any_option(network, images):
    class Own(captum.GradientAttribution):
        def attribute(self, inputs, **options):
            return torch.where(options["region"], 1.0, 0.0).expand_as(inputs)

    region = torch.rand(16, 16, generator=torch.Generator().manual_seed(0)) < 0.3
    chosen = AttributionSalience(Own(network), 1.0, target=None, region=region)(images)
    assert torch.equal(chosen, region.expand_as(images))


def test_bad_images_are_a_clear_error(network, images):
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        AttributionSalience(captum.Saliency(network))(images * 255)


def test_the_repr_says_what_made_the_maps(network):
    method = captum.NoiseTunnel(captum.LayerGradCam(network, network[4]))
    options = {"nt_samples": 3, "additional_forward_args": torch.zeros(8, 8)}
    shown = repr(AttributionSalience(method, 0.3, target=2, seed=1, **options))
    assert shown.startswith("AttributionSalience(NoiseTunnel, mass=0.3, target=2, ")
    for setting in ("layer='4'", "seed=1", "nt_samples=3", "additional_forward_args=Tensor of shape (8, 8)"):
        assert setting in shown


def test_the_layer_is_told_by_its_name(network):
    for method, name in (
        (captum.LayerGradCam(network, network[2]), "2"),
        (captum.LayerGradCam(network.forward, network[2]), "2"),
        (captum.GuidedGradCam(network, network[5]), "5"),
        (captum.Saliency(network), None),
        (captum.LayerGradCam(small_function, network[2]), None),
    ):
        assert AttributionSalience(method).layer == name


def small_function(x):
    return x


@pytest.mark.parametrize(
    "build", [captum.Saliency, captum.DeepLift, captum.FeatureAblation, lambda m: captum.LayerGradCam(m, m[3])]
)
def test_a_class_that_the_network_does_not_have_is_a_clear_error(build, network, images, labels):
    before = everything(network)
    mask = torch.arange(256).view(1, 1, 16, 16) // 64
    options = {"feature_mask": mask} if build is captum.FeatureAblation else {}
    with pytest.raises(IndexError, match="index 10 is out of bounds"):
        AttributionSalience(build(network), target=10, **options)(images)
    with pytest.raises(ValueError, match="labels must be below 10, the network's number of classes, got 11"):
        AttributionSalience(build(network), target="true", **options)(images, torch.tensor([0, 11, 2]))
    same(before, everything(network))
    assert AttributionSalience(build(network), target=9, **options)(images).any()


def test_permuting_features_needs_two_images_or_more(network, images):
    mask = torch.arange(256).view(1, 1, 16, 16) // 64
    mask_fn = AttributionSalience(captum.FeaturePermutation(network), seed=0, feature_mask=mask)
    assert mask_fn(images).any()
    with pytest.raises(ValueError, match="FeaturePermutation needs two images or more"):
        mask_fn(images[:1])
    with pytest.raises(ValueError, match="batch of one"):  # the last part of three is of one
        AttributionSalience(captum.FeaturePermutation(network), batch_size=2, feature_mask=mask)(images)
    assert AttributionSalience(captum.FeatureAblation(network), feature_mask=mask)(images[:1]).any()


@pytest.mark.parametrize("target", ["predicted", 3])
def test_a_network_that_writes_into_its_input_is_an_error_and_no_wrong_map(target, network, images):
    class Normalises(nn.Module):
        def __init__(self):
            super().__init__()
            self.network = network

        def forward(self, x):
            return self.network(x.sub_(0.5))

    ablation = captum.FeatureAblation(Normalises())
    mask = torch.arange(256).view(1, 1, 16, 16) // 64
    with pytest.raises(ValueError, match=r"x\.clone\(\)"):
        AttributionSalience(ablation, target=target, feature_mask=mask)(images)
    with pytest.raises(RuntimeError, match="in-place"):
        AttributionSalience(captum.Saliency(Normalises()), target=target)(images)


class EndsChannelsLast(nn.Module):
    def __init__(self):
        super().__init__()
        self.stage = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), Permute())
        self.head = nn.Linear(8, 10)

    def forward(self, x):
        return self.head(self.stage(x).mean((1, 2)))


class Permute(nn.Module):
    def forward(self, x):
        return x.permute(0, 2, 3, 1)


@pytest.mark.parametrize("method", ["LayerGradCam", "LayerActivation", "LayerGradientXActivation"])
def test_a_layer_that_ends_in_its_channels_is_refused(method, images):
    network = EndsChannelsLast().eval()
    make = getattr(captum, method)
    target = {} if method != "LayerActivation" else {"target": None}
    with pytest.raises(ValueError, match=r"\(N, h, w, K\)"):
        AttributionSalience(make(network, network.stage), **target)(images)
    assert AttributionSalience(make(network, network.stage[1]), **target)(images).any()


def test_a_layer_that_works_in_place(images):
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)
    )
    assert AttributionSalience(captum.LayerActivation(network.eval(), network[1]), target=None)(images).any()
