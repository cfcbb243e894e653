"""A provenance is the same for the same source of maps, another for another, and plain JSON."""

import argparse
import copy
import dataclasses
import enum
import functools
import json
import subprocess
import sys
import textwrap
import types
from pathlib import Path
from threading import Lock

import numpy as np
import pytest
import torch
from torch import nn

from sip_plugin.salience import GradientSalience
from sip_plugin.salience.provenance import differences, network_of, provenance, weights_hash
from tests.conftest import ROOT, small_network

THRESHOLD = 0.5


def by_threshold(images):
    return images > THRESHOLD


def by_argument(images, threshold=0.5):
    return images > threshold


def helper(images):
    return by_threshold(images)


class Method:
    def __init__(self, threshold=0.5, network=None):
        self.threshold = threshold
        self._network = network

    def maps(self, images):
        return images > self.threshold


class Captum:
    """As captum's methods are: they hold the network's forward function."""

    def __init__(self, forward_func):
        self.forward_func = forward_func

    def attribute(self, images):
        return images


class Slots:
    __slots__ = ("threshold",)

    def __init__(self, threshold):
        self.threshold = threshold

    def __call__(self, images):
        return images


class Kind(enum.Enum):
    LOGIT = "logit"
    LOSS = "loss"


def closure(threshold, network=None):
    def maps(images):
        return images > threshold if network is None else network(images) > threshold

    return maps


def captured(method):
    return lambda images: method.attribute(images) > 0


def other_network():
    network = small_network()
    with torch.no_grad():
        network[1].running_mean[3] += 1e-6  # a buffer: as good as a parameter
    return network


A, B = small_network(), other_network()
TWINS = {  # the same source made twice, and another that differs in one thing
    "network": (lambda: GradientSalience(small_network()), lambda: GradientSalience(B)),
    "number": (lambda: GradientSalience(A), lambda: GradientSalience(A, 0.4)),
    "string": (lambda: GradientSalience(A), lambda: GradientSalience(A, target="true")),
    "flag": (lambda: GradientSalience(A), lambda: GradientSalience(A, per_pixel=True)),
    "function": (lambda: by_threshold, lambda: helper),
    "partial": (
        lambda: functools.partial(by_argument, threshold=0.3),
        lambda: functools.partial(by_argument, threshold=0.4),
    ),
    "partial by position": (lambda: functools.partial(by_argument, 0.3), lambda: functools.partial(by_argument, 0.4)),
    "default": (lambda: by_argument, lambda: functools.partial(by_argument)),
    "captured number": (lambda: closure(0.3), lambda: closure(0.4)),
    "captured network": (lambda: closure(0.3, A), lambda: closure(0.3, B)),
    "lambda": (lambda: lambda images: images > 0.3, lambda: lambda images: images > 0.4),
    "lambda's operator": (lambda: lambda images: images > 0.3, lambda: lambda images: images < 0.3),
    "bound method": (lambda: Method().maps, lambda: Method(0.4).maps),
    "captured captum": (lambda: captured(Captum(A)), lambda: captured(Captum(B))),
    "private network": (lambda: Method(network=A).maps, lambda: Method(network=B).maps),
    "captum": (lambda: Captum(small_network()).attribute, lambda: Captum(B).attribute),
    "captum on a bound forward": (lambda: Captum(A.forward).attribute, lambda: Captum(B.forward).attribute),
    "callable object": (lambda: Callable(), lambda: Callable(0.4)),
    "layer": (lambda: inside(Scaled()), lambda: inside(Squared())),
    "slots": (lambda: Slots(0.3), lambda: Slots(0.4)),
    "tensor": (lambda: torch.ones(3, 3), lambda: torch.eye(3)),
    "array": (lambda: np.ones((3, 3), bool), lambda: np.eye(3, dtype=bool)),
    "shape": (lambda: torch.ones(3, 4), lambda: torch.ones(4, 3)),
    "a network itself": (lambda: small_network(), lambda: B),
    "list": (lambda: Method([1, 2]).maps, lambda: Method([2, 1]).maps),
    "long list": (lambda: Method(list(range(1000))).maps, lambda: Method(list(range(1001))).maps),
    "set": (lambda: Method({"a", "b", "c"}).maps, lambda: Method({"a", "b"}).maps),
    "dictionary": (lambda: Method({"a": 1}).maps, lambda: Method({"a": 2}).maps),
    "enum": (lambda: Method(Kind.LOGIT).maps, lambda: Method(Kind.LOSS).maps),
    "not a number": (lambda: Method(float("nan")).maps, lambda: Method(float("inf")).maps),
    "device": (lambda: Method(torch.device("cpu")).maps, lambda: Method(torch.device("meta")).maps),
    "path": (lambda: Method(Path("a")).maps, lambda: Method(Path("b")).maps),
    "bytes": (lambda: Method(b"a").maps, lambda: Method(b"b").maps),
    "class": (lambda: Method(Method).maps, lambda: Method(Slots).maps),
    "NumPy number": (lambda: Method(np.float32(0.5)).maps, lambda: Method(np.float32(0.25)).maps),
}


@pytest.mark.parametrize("name", TWINS)
def test_the_same_source_has_the_same_provenance_and_another_one_another(name):
    make, other = TWINS[name]
    ours = provenance(make())
    assert ours == provenance(make())
    assert differences(ours, provenance(make())) == []
    assert ours != provenance(other())
    assert differences(ours, provenance(other()))
    assert json.loads(json.dumps(ours, allow_nan=False)) == ours


def test_what_a_function_of_ones_module_uses_is_part_of_it(monkeypatch):
    before = provenance(helper), provenance(by_threshold)
    monkeypatch.setattr(sys.modules[__name__], "THRESHOLD", 0.25)
    assert provenance(by_threshold) != before[1]
    assert provenance(helper) != before[0]
    assert differences(before[1], provenance(by_threshold)) == ["uses.THRESHOLD: 0.5 against 0.25"]


def test_what_changes_while_maps_are_made_is_no_part_of_it():
    calls = []

    def counts(images):
        calls.append(1)
        return images > 0.5

    before = provenance(counts)
    counts(torch.zeros(1))
    assert provenance(counts) == before


def test_what_it_says_of_a_gradients_maps():
    described = provenance(GradientSalience(A, 0.3))
    assert len(architecture := described["teacher"].pop("architecture")) == 64
    assert architecture == provenance(B)["architecture"]  # which has other weights
    assert described == {
        "class": "sip_plugin.salience.gradient.GradientSalience",
        "mass": 0.3,
        "target": "predicted",
        "per_pixel": False,
        "teacher": {"class": "torch.nn.modules.container.Sequential", "weights": weights_hash(A)},
    }


class Scaled(nn.Module):
    """As a user writes one: its settings are attributes, and its code is its own."""

    power = 2

    def __init__(self, scale=1.0, mean=(0.5,), act=torch.relu, persistent=True):
        super().__init__()
        self.scale, self.mean, self.act, self._seen = scale, mean, act, 0
        self.register_buffer("shift", torch.full((3,), float(scale)), persistent=persistent)

    def forward(self, images):
        self._seen += 1
        return self.act(images * self.scale) ** self.power


class Squared(Scaled):
    def forward(self, images):
        return images * images


class Renamed(Scaled):
    pass


def inside(layer):
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 3, 3), nn.Sequential(layer))


def patched():
    network = inside(Scaled())
    network[1][0].forward = functools.partial(torch.mul, other=3)
    return network


BEHAVE_OTHERWISE = {  # with the same state_dict
    "activation": (inside(nn.ReLU()), inside(nn.Tanh())),
    "its setting": (inside(nn.LeakyReLU(0.1)), inside(nn.LeakyReLU(0.2))),
    "buffer that is not saved": (inside(Scaled(1.0, persistent=False)), inside(Scaled(2.0, persistent=False))),
    "number": (inside(Scaled(1.0, persistent=False)), inside(Scaled(1.5, persistent=False))),
    "tuple": (inside(Scaled()), inside(Scaled(mean=(0.4,)))),
    "list": (inside(Scaled(mean=[0.5])), inside(Scaled(mean=[0.4]))),
    "tensor": (inside(Scaled(mean=torch.ones(3))), inside(Scaled(mean=torch.zeros(3)))),
    "dictionary": (inside(Scaled(mean={"a": 0.5})), inside(Scaled(mean={"a": 0.4}))),
    "namespace": (inside(Scaled(mean=types.SimpleNamespace(a=1))), inside(Scaled(mean=types.SimpleNamespace(a=2)))),
    "function": (inside(Scaled()), inside(Scaled(act=torch.tanh))),
    "class": (inside(Scaled()), inside(Renamed())),
    "forward": (inside(Renamed()), inside(Squared())),
    "forward of one object": (inside(Scaled()), patched()),
}


def same_weights(name):
    torch.manual_seed(0)
    ours = nn.Conv2d(3, 3, 3, padding=1)
    theirs = nn.Conv2d(3, 3, 3, padding=2, dilation=2)
    theirs.load_state_dict(ours.state_dict())
    return (ours, theirs) if name == "dilation" else BEHAVE_OTHERWISE[name]


@pytest.mark.parametrize("name", [*BEHAVE_OTHERWISE, "dilation"])
def test_a_network_of_the_same_weights_that_behaves_otherwise_is_another_source(name):
    ours, theirs = same_weights(name)
    same = nn.DataParallel(copy.deepcopy(ours).train())
    if name != "number":
        assert [*ours.state_dict()] == [*theirs.state_dict()]
    described = provenance(GradientSalience(ours))
    assert described == provenance(GradientSalience(same))
    found = differences(described, provenance(GradientSalience(theirs)))
    assert any(line.startswith("teacher.architecture: ") for line in found)


def test_the_code_of_a_class_that_is_edited_between_two_runs_is_part_of_it(monkeypatch):
    network, source = inside(Scaled()), Method()
    before = provenance(network), provenance(source.maps), provenance(Method(Squared()).maps)
    monkeypatch.setattr(Scaled, "forward", lambda self, images: images * self.scale)
    monkeypatch.setattr(Method, "maps", lambda self, images: images < self.threshold)
    after = provenance(network), provenance(Method().maps), provenance(Method(Squared()).maps)
    assert all(ours != theirs for ours, theirs in zip(before, after, strict=True))
    monkeypatch.undo()
    monkeypatch.setattr(Scaled, "power", 3)
    assert provenance(network) != before[0]
    monkeypatch.undo()
    assert provenance(network) == before[0]


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile, lambda layer: layer.train(), copy.deepcopy])
def test_wrappers_and_mode_do_not_matter_wherever_they_are(wrap):
    ours = inside(Scaled())
    wrapped = inside(Scaled())
    wrapped[1] = wrap(wrapped[1])
    assert provenance(wrapped) == provenance(ours)
    ours(torch.ones(1, 3, 4, 4))  # which counts itself
    assert provenance(wrapped) == provenance(ours)


def accelerated(layer):
    return pytest.importorskip("accelerate").Accelerator(cpu=True).prepare(layer)


def compiled_where_lightning_is_imported(layer):
    pytest.importorskip("lightning.fabric")  # which puts a function of its own in place of torch.compile
    return torch.compile(layer, dynamic=True)


@pytest.mark.parametrize("wrap", [compiled_where_lightning_is_imported, accelerated])
def test_training_libraries_leave_nothing_that_matters(wrap):
    source, network = GradientSalience(copy.deepcopy(A)), copy.deepcopy(A)
    wrapped = wrap(network)
    assert {*vars(network)} > {*vars(A)}  # what they leave
    assert provenance(GradientSalience(wrapped)) == provenance(source) == provenance(GradientSalience(network))


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_networks_that_torch_has_written_are_told_by_their_code():
    class Two(nn.Module):
        def __init__(self, factor):
            super().__init__()
            self.factor = factor

        def forward(self, images):
            return images * self.factor

    for write in (torch.fx.symbolic_trace, lambda network: torch.jit.trace(network, torch.ones(1, 3, 4, 4))):
        assert provenance(write(Two(2.0))) == provenance(write(Two(2.0)))
        assert provenance(write(Two(2.0))) != provenance(write(Two(3.0)))


@dataclasses.dataclass
class Config:
    threshold: float = 0.5


SETTINGS = {"threshold": 0.5}


def by_settings(images):
    return images > (SETTINGS.threshold if hasattr(SETTINGS, "threshold") else next(iter(SETTINGS.values())))


def by_list(images):
    return images > max(SETTINGS)


def in_a_comprehension(images):
    return torch.stack([image > THRESHOLD for image in images])


@pytest.mark.parametrize(
    "make", [lambda n: {"threshold": n}, lambda n: argparse.Namespace(threshold=n), Config, lambda n: [n],
             lambda n: types.SimpleNamespace(threshold=n), lambda n: {"deep": {"list": [n]}}]
)  # fmt: skip
def test_the_containers_and_namespaces_that_a_function_names_are_part_of_it(make, monkeypatch):
    for function in (by_settings, by_list):
        described = []
        for threshold in (0.5, 0.5, 0.25):
            monkeypatch.setattr(sys.modules[__name__], "SETTINGS", make(threshold))
            described.append(provenance(function))
        assert described[0] == described[1]
        assert described[0] != described[2]
        assert differences(described[0], described[2])[0].startswith("uses.SETTINGS")


def test_what_a_function_names_in_a_comprehension_is_part_of_it(monkeypatch):
    before = provenance(in_a_comprehension)
    monkeypatch.setattr(sys.modules[__name__], "THRESHOLD", 0.25)
    assert provenance(in_a_comprehension) != before


class Callable:
    """A source as a user writes it."""

    share = 0.5

    def __init__(self, threshold=0.5, sign=1):
        self._threshold, self._sign, self._calls, self._cache, self._lock = threshold, {"sign": sign}, [], {}, Lock()

    def __call__(self, images):
        self._calls.append(len(images))
        self._cache["last"] = images
        return self._above(images)

    def _above(self, images):
        return images > self._threshold * self.share


class Below(Callable):
    def _above(self, images):
        return images < self._threshold * self.share


class LowerShare(Callable):
    share = 0.25


def test_private_and_class_attributes_and_the_code_of_a_callable_object_are_part_of_it():
    source = Callable()
    described = provenance(source)
    source(torch.zeros(1))
    assert provenance(source) == described == provenance(Callable())
    assert described["_threshold"] == 0.5
    assert not {"_calls", "_cache", "_lock"} & {*described}
    others = [Callable(0.4), Callable(sign=2), Below(), LowerShare()]
    for other in others:
        other_described = provenance(other)
        assert {**other_described, "class": 0} != {**described, "class": 0}
    Callable.share = 0.75
    try:
        assert provenance(source) != described
    finally:
        Callable.share = 0.5
    assert json.loads(json.dumps(described)) == described


@pytest.mark.slow
def test_it_is_the_same_in_every_process():
    code = (
        "import json, tests.salience.test_provenance as t; from sip_plugin.salience.provenance import provenance; "
        "print(json.dumps({name: provenance(make()) for name, (make, _) in t.TWINS.items()}))"
    )
    for seed in ("1", "2"):  # of the hash of strings, which orders sets
        run = subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            cwd=ROOT,
        )
        assert run.returncode == 0, run.stderr.decode()[-2000:]
        assert json.loads(run.stdout) == {name: provenance(make()) for name, (make, _) in TWINS.items()}


def test_a_networks_hash_is_of_names_types_shapes_and_values_alone():
    ours = weights_hash(A)
    assert ours == weights_hash(copy.deepcopy(A))
    assert ours == weights_hash(copy.deepcopy(A).train().requires_grad_(False))
    assert ours == weights_hash(copy.deepcopy(A).to(memory_format=torch.channels_last))
    assert ours == weights_hash(nn.DataParallel(A))
    assert ours == weights_hash(torch.compile(copy.deepcopy(A)))
    assert provenance(GradientSalience(torch.compile(copy.deepcopy(A)))) == provenance(GradientSalience(A))
    others = [B, copy.deepcopy(A).double(), copy.deepcopy(A).bfloat16(), nn.Sequential(A)]
    assert len({ours, *map(weights_hash, others)}) == 5

    class Extra(nn.Linear):
        def get_extra_state(self):
            return {"temperature": self.temperature}

    layers = [Extra(2, 2) for _ in range(2)]
    for layer, temperature in zip(layers, (1.0, 2.0), strict=True):
        nn.init.ones_(layer.weight), nn.init.ones_(layer.bias)
        layer.temperature = temperature
    assert weights_hash(layers[0]) != weights_hash(layers[1])


def test_a_source_may_say_it_itself():
    class Own:
        def __init__(self, said):
            self.said = said

        def __call__(self, images):
            return images

        def provenance(self):
            return self.said

    said = provenance(Own({"annotators": 5}))
    assert said["annotators"] == 5
    assert said["class"].endswith("Own")
    for bad in ([1], None, {"network": A}, {"share": float("nan")}):
        with pytest.raises(TypeError, match=r"Own.provenance\(\) must give"):
            provenance(Own(bad))


def test_objects_that_hold_each_other_have_an_end():
    one, two = Method(), Method()
    one.other, two.other = two, one
    assert provenance(one.maps)["of"]["other"]["other"] == "(itself)"


@pytest.mark.parametrize(
    "make",
    [
        lambda network: network,
        GradientSalience,
        lambda network: network.forward,
        lambda network: Captum(network).attribute,
        lambda network: Captum(network.forward).attribute,
        lambda network: closure(0.5, network),
        lambda network: captured(Captum(network)),
        lambda network: Method(Captum(network)).maps,
        lambda network: functools.partial(closure(0.5, network)),
        lambda network: Method(network=network).maps,
        lambda network: lambda images: GradientSalience(network)(images),
    ],
)
def test_the_network_of_a_source_is_found(make):
    assert network_of(make(A)) is A


def test_a_source_without_a_network_has_none():
    for source in (by_threshold, helper, Method().maps, torch.ones(2, 2), torch.sigmoid, closure(0.5)):
        assert network_of(source) is None


def test_captums_own_methods():
    attr = pytest.importorskip("captum.attr")
    for method in (attr.Saliency, attr.IntegratedGradients, attr.GuidedBackprop):
        described = provenance(method(A).attribute)
        assert described == provenance(method(small_network()).attribute)
        assert described != provenance(method(B).attribute)
        assert network_of(method(A).attribute) is A


@pytest.mark.slow
def test_salience_needs_torch_and_numpy_alone():
    code = (
        "import sys\n"
        "for name in ('torchvision', 'PIL', 'tqdm', 'captum', 'matplotlib', 'sklearn'): sys.modules[name] = None\n"
        "from sip_plugin.salience import GradientSalience, MaskStore, SalientDataset\n"
    )
    run = subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": str(ROOT)}, capture_output=True)
    assert run.returncode == 0, run.stderr.decode()[-2000:]


def test_a_function_of_an_installed_package_is_told_by_its_version_and_not_by_its_code():
    described = provenance(functools.partial(torch.nn.functional.relu, inplace=False))["partial"]
    assert described == {"function": "torch.nn.functional.relu", "version": torch.__version__}
    assert provenance(textwrap.dedent) == {"function": "textwrap.dedent"}
    assert "code" in provenance(lambda images: images > 0.5)
