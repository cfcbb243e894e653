"""Attack functions by functools.partial, and libraries without an adapter of their own; test_contract.py has their rows."""

import copy
import importlib
import inspect
import pickle
import threading
import warnings
from functools import partial
from importlib import metadata
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
import torchattack
import torchvision
from secmlt.adv.evasion import pgd
from secmlt.adv.evasion.pgd import PGDNative
from secmlt.models.pytorch.base_pytorch_nn import BasePyTorchClassifier
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchvision.transforms import Normalize

from benchmarks.strength.functions import built
from sip_plugin import AdversarialTrainer, SIPWrapper
from sip_plugin.evaluation import evaluate_robustness
from tests.adapters.function_rows import LIBRARIES, OUTSIDE, TABLE
from tests.adapters.test_contract import run, same_values

adv_lib = importlib.import_module("adv_lib.attacks")  # after secmlt, which puts something in the place of visdom
CPU = torch.device("cpu")
NORMALIZE = Normalize((0.4, 0.5, 0.6), (0.2, 0.3, 0.25))
PGD = {"perturbation_model": "linf", "epsilon": 0.1, "num_steps": 3, "step_size": 0.04, "random_start": True}


def fgsm(model, images, labels, eps=0.1, targets=None, scale=None):
    """A function as libraries have them."""
    images = images.clone().requires_grad_()
    loss = F.cross_entropy(model(images), labels if targets is None else targets)
    (gradient,) = torch.autograd.grad(loss if targets is None else -loss, images)
    step = eps if scale is None else eps * scale.view(-1, 1, 1, 1)
    return (images + step * gradient.sign()).clamp(0, 1).detach()


def named(image, *, y, net, loss=None):
    return fgsm(net, image, y)


class Result(NamedTuple):
    images: torch.Tensor
    success: torch.Tensor
    steps: int


# --- the tables ---------------------------------------------------------------------------------------------------------


def test_the_table_has_every_attack_of_each_library_and_names_its_version():
    listed = {}
    for library, name in [(row.library, row.name) for row in TABLE] + [(k, n) for k in OUTSIDE for n in OUTSIDE[k]]:
        listed.setdefault(library, set()).add(name)
    functions = {name for name, value in vars(adv_lib).items() if inspect.isfunction(value)}
    assert listed["adv_lib"] == functions
    assert listed["torchattack"] == set(torchattack.ATTACK_REGISTRY)
    for library, title in LIBRARIES.items():
        assert metadata.version(library.replace("_", "-")).startswith(title.split()[1])


def resnet():
    torch.manual_seed(0)
    return torchvision.models.resnet18(num_classes=10).eval()


@pytest.mark.parametrize(
    ("name", "size", "arguments"),
    [("BPA", 32, {"hook_cfg": "resnet18"}), ("SGM", 32, {"hook_cfg": "resnet18"}), ("SSA", 224, {"num_spectrum": 1})],
)
def test_attacks_of_torchattack_bound_to_a_network_or_size(name, size, arguments, network):
    model = resnet() if "hook_cfg" in arguments else network
    x, y = torch.rand(1, 3, size, size), torch.tensor([1])
    salience = torch.rand(x.shape) < 0.5
    attack = getattr(torchattack, name)(model, device=CPU, steps=1, **arguments)
    adversarial = SIPWrapper(attack, salience)(x, y)
    assert torch.equal(adversarial[salience], x[salience])
    assert not torch.equal(adversarial, x)


# --- functions ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given",
    [
        lambda net: partial(fgsm, net),
        lambda net: partial(fgsm, model=net),
        lambda net: partial(fgsm, net, eps=0.1),
        lambda net: partial(named, net=net),
        lambda net: partial(named, net=net, loss=nn.CrossEntropyLoss()),  # a module, but no network
        lambda net: partial(lambda x, labels, model: fgsm(model, x, labels), model=net),
    ],
)
def test_a_function_takes_its_network_by_position_or_name(given, network, images, labels, salience):
    expected = torch.where(salience, images, fgsm(network, images, labels))
    assert torch.equal(SIPWrapper(given(network), salience)(images, labels), expected)


def test_labels_and_further_arguments_go_by_position_or_name(network, images, labels, salience):
    wrapper, bare = SIPWrapper(partial(fgsm, network), salience), partial(fgsm, network)
    targets, scale = (labels + 1) % 10, torch.linspace(0.2, 1, 6)
    for args, kwargs in [
        ((), {"labels": labels}),
        ((labels, 0.05), {}),
        ((labels,), {"targets": targets, "eps": 0.05}),
        ((labels, 0.05, targets), {}),
        ((labels,), {"scale": scale}),
    ]:
        expected = torch.where(salience, images, bare(images, *args, **kwargs))
        assert torch.equal(wrapper(images, *args, **kwargs), expected)
        alone = SIPWrapper(partial(fgsm, network), salience, one_by_one=True)(images, *args, **kwargs)
        torch.testing.assert_close(alone, expected)  # each image with its own targets and scale
    targeted = SIPWrapper(partial(adv_lib.ddn, network, steps=20), salience)(images, targets, targeted=True)
    assert (network(targeted).argmax(1) == targets).any()
    assert torch.equal(targeted[salience], images[salience])


def test_a_function_without_labels_is_called_without_and_refuses_them(network, images, labels, salience):
    attack = partial(lambda model, x, *, steps=1: fgsm(model, x, model(x).argmax(1)), network)
    expected = torch.where(salience, images, fgsm(network, images, labels))
    assert torch.equal(SIPWrapper(attack, salience)(images), expected)
    with pytest.raises(TypeError, match="no argument for labels"):
        SIPWrapper(attack, salience)(images, labels)


@pytest.mark.parametrize("one_by_one", [False, True])
@pytest.mark.parametrize(
    ("result", "image"),
    [
        (lambda x, ok: (x, ok), lambda r: r[0]),
        (lambda x, ok: [None, x], lambda r: r[1]),
        (lambda x, ok: {"adv": x, "success": ok, "more": ("text", 3)}, lambda r: r["adv"]),
        (lambda x, ok: Result(x, ok, 3), lambda r: r.images),
    ],
)
def test_what_a_function_gives_besides_images_is_handed_through(
    result, image, one_by_one, network, images, labels, salience
):
    def attack(model, x, y):
        x = fgsm(model, x, y)
        return result(x, model(x).argmax(1) != y)

    found = SIPWrapper(partial(attack, network), salience, one_by_one=one_by_one)(images, labels)
    bare = attack(network, images, labels)
    assert type(found) is type(bare)
    torch.testing.assert_close(image(found), torch.where(salience, images, image(bare)))
    if isinstance(found, Result):
        assert found.success.shape == (6,)


def test_two_tensors_of_the_images_shape_are_an_error(network, images, labels, salience):
    attack = partial(lambda model, x, y: (fgsm(model, x, y), fgsm(model, x, y) - x), network)
    with pytest.raises(RuntimeError, match="2 tensors of the images' shape"):
        SIPWrapper(attack, salience)(images, labels)


def test_a_function_of_no_network_or_of_two_is_refused(network):
    for arguments in [(), (network, copy.deepcopy(network)), (nn.CrossEntropyLoss(), nn.MSELoss())]:
        with pytest.raises(TypeError, match="one network"):
            SIPWrapper(partial(fgsm, *arguments), torch.zeros(16, 16))


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda w: pickle.loads(pickle.dumps(w))])
def test_a_copy_works_alike(duplicate, network, images, labels, salience):
    wrapper = SIPWrapper(partial(adv_lib.ddn, network, steps=5), salience)
    assert torch.equal(duplicate(wrapper)(images, labels), wrapper(images, labels))


def test_in_the_evaluation(network, images, labels, salience):
    def accuracy(attack):
        report = evaluate_robustness(network, [(images, labels)], eps=(0.3,), attack=attack, progress=False)
        return report.robust_accuracy[0.3]

    bare = accuracy(lambda model, eps: partial(fgsm, model, eps=eps))
    assert bare == (network(fgsm(network, images, labels, eps=0.3)).argmax(1) == labels).float().mean()
    wrapped = accuracy(lambda model, eps: SIPWrapper(partial(fgsm, model, eps=eps), torch.ones(16, 16)))
    assert wrapped == 1 > bare


def test_in_the_trainer(network, images, labels, salience):
    seen = []
    network.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach().clone()))
    attack = SIPWrapper(partial(adv_lib.pgd_linf, network, ε=0.1, steps=2), salience)
    AdversarialTrainer(network, "madry", attack=attack)(images, labels).backward()
    assert any(not torch.equal(x, images) for x in seen)
    assert all(torch.equal(x[salience], images[salience]) for x in seen if len(x) == 6)


# --- spaces other than [0, 1] --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("normalize", [NORMALIZE, lambda x: (x - 0.5) / 0.25, nn.Sequential(NORMALIZE)])
@pytest.mark.parametrize("row", [row for row in TABLE if row.library == "torchattack" and row.name != "GeoDA"], ids=str)
def test_torchattacks_normalize(row, normalize, network, images, labels, salience):
    if normalize is not NORMALIZE and row.name not in ("PGD", "MIG"):
        return
    own = nn.Sequential(*network)
    seen = []
    attack = built("torchattack", row.name, own, {**row.arguments, "normalize": normalize})
    bare = run(row, attack, images, labels)
    assert same_values(run(row, SIPWrapper(attack, torch.zeros(16, 16)), images, labels), bare)
    own[0].register_forward_pre_hook(lambda _, args: seen.append(args[0].detach().clone()))
    adversarial = run(row, SIPWrapper(attack, salience), images, labels)
    assert torch.equal(adversarial[salience], images[salience])
    assert not torch.equal(adversarial, images)
    clean = normalize(images)
    for queries in seen:
        assert ((queries[:, None] == clean[None]) | ~salience[None]).flatten(2).all(2).any(1).all()


def test_secml_torchs_preprocessing_and_loaders(network, images, labels, salience):
    seen = []
    model, attack = BasePyTorchClassifier(network, preprocessing=NORMALIZE), PGDNative(**PGD)
    loader = DataLoader(TensorDataset(images, labels), batch_size=4)
    wrapper = SIPWrapper(
        partial(attack, model), lambda x, y: salience[[int((images == one).flatten(1).all(1).nonzero()) for one in x]]
    )
    torch.manual_seed(0)
    (bare,) = attack(model, loader).dataset.tensors[:1]
    torch.manual_seed(0)
    assert torch.equal(SIPWrapper(partial(attack, model), torch.zeros(16, 16))(loader).dataset.tensors[0], bare)
    network.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach().clone()))
    result = wrapper(loader)
    adversarial, same_labels = result.dataset.tensors
    assert isinstance(result, DataLoader)
    assert result.batch_size == 4
    assert torch.equal(same_labels, labels)
    assert torch.equal(adversarial[salience], images[salience])
    assert not torch.equal(adversarial, images)
    assert all(torch.equal(x[salience[:4]], NORMALIZE(images)[:4][salience[:4]]) for x in seen if len(x) == 4)
    assert model._model is network
    parts = wrapper(loader, stream=True)
    seen.clear()
    assert len(next(iter(parts))[0]) == 4
    assert all(len(x) == 4 for x in seen)  # the second batch waits


# --- attacks that ask other networks --------------------------------------------------------------------------------------


class Surrogate:
    """An attack on a network of its own."""

    def __init__(self, model, own):
        self.model, self.own = model, own

    def __call__(self, images, labels):
        return fgsm(self.own, images, labels)


def test_an_attack_with_a_surrogate_or_a_generator_of_its_own_says_so(network, images, labels, salience):
    own = copy.deepcopy(network)
    generator = torchattack.CDA(device=CPU)
    for attack in (Surrogate(network, own), partial(lambda model, x, y: fgsm(own, x, y), network), generator):
        with pytest.warns(RuntimeWarning, match="without one query to its network"):
            adversarial = SIPWrapper(attack, salience)(images, labels)
        assert torch.equal(adversarial[salience], images[salience])


def test_a_function_finds_the_networks_own_mode(network, images, labels, salience):
    def in_eval_mode(model, images, labels):
        was = model.training
        model.eval()
        result = fgsm(model, images, labels)
        model.train(was)
        return result

    network.train()
    bare = in_eval_mode(network, images, labels)
    assert torch.equal(SIPWrapper(partial(in_eval_mode, network), torch.zeros(1, 1, 16, 16))(images, labels), bare)
    assert network.training


@pytest.mark.parametrize("backend", ["native", "advlib", "foolbox"])
def test_secml_projects_where_each_backend_asks_the_network(backend, network, images, labels, salience):
    seen = []
    network.register_forward_pre_hook(lambda module, args: seen.append(args[0].detach()))
    model = BasePyTorchClassifier(network, preprocessing=NORMALIZE)
    attack = pgd.PGD(**PGD, backend=backend)
    SIPWrapper(partial(attack, model), salience)(images, labels)
    clean = images if backend == "foolbox" else NORMALIZE(images)  # SecML-Torch's Foolbox backend goes past it
    assert len(seen) >= 2
    assert all(torch.equal(query[salience], clean[salience]) for query in seen)


def test_settings_of_a_partial_cannot_be_set(network):
    wrapper = SIPWrapper(partial(fgsm, network, eps=0.1))
    with pytest.raises(AttributeError, match="eps"):
        wrapper.eps = 0.2
    wrapper.one_by_one = True
    assert wrapper.one_by_one


def test_labels_do_not_become_another_argument(network, images, labels, salience):
    def shifted(model, images, eps=0.1):
        model(images)
        return images + eps

    wrapper = SIPWrapper(partial(shifted, network), salience, one_by_one=True)
    with pytest.raises(TypeError, match="labels"):
        wrapper(images, labels)
    assert torch.allclose(wrapper(images)[~salience], images[~salience] + 0.1)


def test_mask_fn_gets_labels_by_whatever_name_and_no_targets(network, images, labels, salience):
    class Own:
        model = network

        def __call__(self, x, y=None, targeted=False):
            return fgsm(self.model, x, y)

    seen = []

    def mask_fn(images, labels):
        seen.append(None if labels is None else labels.tolist())
        return salience

    wrapper = SIPWrapper(Own(), mask_fn)
    for given in ({"labels": labels}, {"y": labels}, {"labels": labels, "targeted": True}):
        adversarial = wrapper(images, **given)
        assert torch.equal(adversarial[salience], images[salience])
    assert seen == [labels.tolist(), labels.tolist(), None]


def test_an_attack_that_catches_exceptions_is_not_told_a_wrong_batch_size(network, images, labels, salience):
    def retries(model, images, labels):
        try:
            model(torch.cat([images, images]))
        except Exception:
            return images
        return fgsm(model, images, labels)

    with pytest.warns(RuntimeWarning, match="one_by_one"):
        found = SIPWrapper(partial(retries, network), salience)(images, labels)
    assert not torch.equal(found, images)


def test_bound_labels_and_positional_only_arguments(network, images, labels, salience):
    def by_position(model, images, labels, /, eps=0.1):
        return fgsm(model, images, labels, eps)

    def anything(model, *args, **kwargs):
        return fgsm(model, *args, **kwargs)

    expected = SIPWrapper(partial(fgsm, network), salience)(images, labels)
    for function in (by_position, anything):
        assert torch.equal(SIPWrapper(partial(function, network), salience)(images, labels), expected)
    assert torch.equal(SIPWrapper(partial(fgsm, network, labels=labels), salience)(images), expected)


def test_a_network_in_another_precision(network, images, labels, salience):
    def cast(model, images, labels):
        return fgsm(lambda z: model(z.float()), images, labels)

    found = SIPWrapper(partial(cast, network), salience)(images.double(), labels)
    assert torch.equal(found[salience], images.double()[salience])


def test_a_part_of_the_network_is_the_networks_own(network, images, labels):
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = network

        def forward(self, x):
            return self.model(x * 0.5)

    def asks_a_part(model, images, labels):
        return (images + 0.01 * model.model(images).mean()).clamp(0, 1)

    bare = asks_a_part(Scaled(), images, labels)
    with pytest.warns(RuntimeWarning, match="not projected"):
        assert torch.equal(SIPWrapper(partial(asks_a_part, Scaled()), torch.zeros(1, 1, 16, 16))(images, labels), bare)


def test_another_threads_use_of_the_network_is_not_the_attacks(network, images, labels, salience):
    def beside_another(model, images, labels):
        other = threading.Thread(target=network, args=(images,))
        other.start()
        other.join()
        return fgsm(model, images, labels)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        SIPWrapper(partial(beside_another, network), salience)(images, labels)
