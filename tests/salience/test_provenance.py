"""A provenance is the same for the same source of maps, another for another, and plain JSON."""

import argparse
import copy
import dataclasses
import enum
import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from sip_plugin.model_utils import model_hash
from sip_plugin.salience import GradientSalience
from sip_plugin.salience.provenance import find_models, provenance
from tests.conftest import ROOT, small_network

THRESHOLD = 0.5
SETTINGS = {"threshold": 0.5}


def by_threshold(images):
    return images > THRESHOLD


def by_argument(images, threshold=0.5):
    return images > threshold


def helper(images):
    return by_threshold(images)


def by_settings(images):
    return images > max(SETTINGS)


class Method:
    def __init__(self, threshold=0.5, network=None):
        self.threshold = threshold
        self._network = network
        self._calls = 0

    def maps(self, images):
        self._calls += 1
        return images > self.threshold


class Captum:
    """As Captum's methods are: they hold the network's forward function."""

    def __init__(self, forward_func):
        self.forward_func = forward_func

    def attribute(self, images):
        return images


class Kind(enum.Enum):
    LOGIT = "logit"
    LOSS = "loss"


@dataclasses.dataclass
class Config:
    threshold: float = 0.5


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


def inside(layer):
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 3, 3), nn.Sequential(layer))


A, B = small_network(), other_network()
TWINS = {  # the same source made twice, and another that differs in one thing
    "network": (lambda: GradientSalience(small_network()), lambda: GradientSalience(B)),
    "number": (lambda: GradientSalience(A), lambda: GradientSalience(A, 0.4)),
    "string": (lambda: GradientSalience(A), lambda: GradientSalience(A, target="true")),
    "flag": (lambda: GradientSalience(A), lambda: GradientSalience(A, per_pixel=True)),
    "activation": (lambda: inside(nn.ReLU()), lambda: inside(nn.Tanh())),
    "its setting": (lambda: inside(nn.LeakyReLU(0.1)), lambda: inside(nn.LeakyReLU(0.2))),
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
    "lambda's set": (lambda: lambda x: x in {"a", "b", "c"}, lambda: lambda x: x in {"a", "b", "d"}),
    "lambda's operator": (lambda: lambda images: images > 0.3, lambda: lambda images: images < 0.3),
    "bound method": (lambda: Method().maps, lambda: Method(0.4).maps),
    "captured captum": (lambda: captured(Captum(A)), lambda: captured(Captum(B))),
    "private network": (lambda: Method(network=A).maps, lambda: Method(network=B).maps),
    "private captum": (lambda: Method(network=Captum(A)).maps, lambda: Method(network=Captum(B)).maps),
    "captum on a bound forward": (lambda: Captum(A.forward).attribute, lambda: Captum(B.forward).attribute),
    "tensor": (lambda: torch.ones(3, 3), lambda: torch.eye(3)),
    "array": (lambda: np.ones((3, 3), bool), lambda: np.eye(3, dtype=bool)),
    "shape": (lambda: torch.ones(3, 4), lambda: torch.ones(4, 3)),
    "a network itself": (lambda: small_network(), lambda: B),
    "list": (lambda: Method([1, 2]).maps, lambda: Method([2, 1]).maps),
    "dictionary": (lambda: Method({"a": 1}).maps, lambda: Method({"a": 2}).maps),
    "dataclass": (lambda: closure(Config()), lambda: closure(Config(0.4))),
    "namespace": (lambda: closure(argparse.Namespace(a=1)), lambda: closure(argparse.Namespace(a=2))),
    "enum": (lambda: Method(Kind.LOGIT).maps, lambda: Method(Kind.LOSS).maps),
    "not a number": (lambda: Method(float("nan")).maps, lambda: Method(float("inf")).maps),
    "device": (lambda: Method(torch.device("cpu")).maps, lambda: Method(torch.device("meta")).maps),
    "path": (lambda: Method(Path("a")).maps, lambda: Method(Path("b")).maps),
    "bytes": (lambda: Method(b"a").maps, lambda: Method(b"b").maps),
    "class": (lambda: Method(Method).maps, lambda: Method(Captum).maps),
    "NumPy number": (lambda: Method(np.float32(0.5)).maps, lambda: Method(np.float32(0.25)).maps),
}


@pytest.mark.parametrize("name", TWINS)
def test_the_same_source_has_the_same_provenance_and_another_one_another(name):
    make, other = TWINS[name]
    ours = repr(provenance(make()))  # NaN is the same as NaN here
    assert repr(provenance(make())) == ours
    assert repr(provenance(other())) != ours
    assert repr(json.loads(json.dumps(provenance(make())))) == ours


def test_what_a_function_of_ones_module_uses_is_part_of_it(monkeypatch):
    before = [provenance(function) for function in (by_threshold, helper, by_settings)]
    monkeypatch.setattr(sys.modules[__name__], "THRESHOLD", 0.25)
    monkeypatch.setattr(sys.modules[__name__], "SETTINGS", {"threshold": 0.25})
    after = [provenance(function) for function in (by_threshold, helper, by_settings)]
    assert (before[0]["uses"], after[0]["uses"]) == ({"THRESHOLD": 0.5}, {"THRESHOLD": 0.25})
    assert all(ours != theirs for ours, theirs in zip(before, after, strict=True))


def test_private_attributes_are_state():
    source = Method()
    before = provenance(source.maps)
    source.maps(torch.zeros(1))
    assert provenance(source.maps) == before


def test_what_it_says_of_a_gradients_maps():
    described = provenance(GradientSalience(A, 0.3))
    assert len(described["teacher"].pop("architecture")) == 64
    assert described == {
        "class": "sip_plugin.salience.gradient.GradientSalience",
        "mass": 0.3,
        "target": "predicted",
        "per_pixel": False,
        "teacher": {"class": "torch.nn.modules.container.Sequential", "model_hash": model_hash(A)},
    }


def accelerated(network):
    return pytest.importorskip("accelerate").Accelerator(cpu=True).prepare(network)


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile, lambda net: net.train(), copy.deepcopy, accelerated])
def test_wrappers_mode_and_memory_format_do_not_matter(wrap):
    network = copy.deepcopy(A).to(memory_format=torch.channels_last)
    assert provenance(GradientSalience(wrap(network))) == provenance(GradientSalience(A))


@pytest.mark.slow
def test_it_is_the_same_in_every_process():
    code = (
        "import json, tests.salience.test_provenance as t; from sip_plugin.salience.provenance import provenance; "
        "print(json.dumps({name: provenance(make()) for name, (make, _) in t.TWINS.items()}))"
    )
    for seed in ("1", "2"):  # of the hash of strings, which orders sets
        run = subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            cwd=ROOT,
        )
        assert run.returncode == 0, run.stderr.decode()[-2000:]
        assert repr(json.loads(run.stdout)) == repr({name: provenance(make()) for name, (make, _) in TWINS.items()})


def test_a_source_may_say_it_itself():
    class Own:
        def __init__(self, said):
            self.said = said

        def __call__(self, images):
            return images

        def provenance(self):
            return self.said

    said = provenance(Own({"annotators": 5, "teacher": A}))
    assert said["annotators"] == 5
    assert said["teacher"]["model_hash"] == model_hash(A)
    assert said["class"].endswith("Own")


def test_objects_that_hold_each_other_are_an_error():
    one, two = Method(), Method()
    one.other, two.other = two, one
    with pytest.raises(ValueError, match="Circular"):
        provenance(one)


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
        lambda network: lambda images: torch.stack([(lambda image: network(image[None])[0] > 0)(i) for i in images]),
        lambda network: lambda images, labels=None, net=network: net(images),
        lambda network: lambda images, *, net=network: net(images),
    ],
)
def test_the_network_of_a_source_is_found(make):
    assert find_models(make(A)) == [A]


def test_all_networks_of_a_source_are_found():
    criterion = nn.CrossEntropyLoss()
    found = find_models(lambda images, labels: criterion(A(images), labels) + B(images).sum())
    assert set(map(id, found)) == {id(criterion), id(A), id(B)}


def within(images):
    return torch.stack([(lambda: image > THRESHOLD)() for image in images])


def test_what_a_function_within_a_function_uses_counts(monkeypatch):
    before = provenance(within)
    monkeypatch.setitem(globals(), "THRESHOLD", 0.25)
    assert provenance(within) != before


def test_a_source_without_a_network_has_none():
    for source in (by_threshold, helper, Method().maps, torch.ones(2, 2), torch.sigmoid, closure(0.5)):
        assert find_models(source) == []


def test_captums_own_methods():
    attr = pytest.importorskip("captum.attr")
    for method in (attr.Saliency, attr.IntegratedGradients, attr.GuidedBackprop):
        described = provenance(method(A).attribute)
        assert described == provenance(method(small_network()).attribute)
        assert described != provenance(method(B).attribute)
        assert find_models(method(A).attribute) == [A]


@pytest.mark.slow
def test_salience_needs_torch_and_numpy_alone():
    code = (
        "import sys\n"
        "for name in ('torchvision', 'PIL', 'tqdm', 'captum', 'matplotlib', 'sklearn'): sys.modules[name] = None\n"
        "from sip_plugin.salience import GradientSalience, MaskStore, SalientDataset\n"
    )
    run = subprocess.run([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True)
    assert run.returncode == 0, run.stderr.decode()[-2000:]
