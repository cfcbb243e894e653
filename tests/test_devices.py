"""What holds on a GPU as on a CPU: the contract of wrapped attacks, training in every precision, evaluation, stores.

``pytest -m gpu tests/test_devices.py`` runs it on CUDA; without, on the CPU.
"""

import copy
from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from sip_plugin import AdversarialTrainer, SIPWrapper
from sip_plugin.evaluation import evaluate_robustness
from sip_plugin.folding import FoldedModel
from sip_plugin.salience import CAMSalience, GradientSalience, MaskStore
from sip_plugin.training import FAT, PART
from tests.adapters.test_contract import ATTACKS, everything, run, same
from tests.training.test_compile import without_code_generation  # noqa: F401

MECHANISMS = {  # of each library those that are projected, cut or combined in a way of their own
    "PGD",
    "PGDL2",
    "DIFGSM",
    "PGDRS",
    "SPSA",
    "Square-Linf",
    "FAB-Linf",
    "DeepFool",
    "AutoAttack",
    "ART-ProjectedGradientDescent",
    "ART-AutoProjectedGradientDescent",
    "ART-SquareAttack",
    "ART-CarliniL2Method",
    "Foolbox-LinfProjectedGradientDescentAttack",
    "Foolbox-DDNAttack",
}
ROWS = [row for row in ATTACKS if str(row) in MECHANISMS]
METHODS = {
    "madry": "madry",
    "sip-at": "sip-at",
    "trades": "trades",
    "mart": "mart",
    "fat": FAT(1),
    "part": PART(warmup=0),
}


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request, monkeypatch):
    if request.param == "cuda":
        if not torch.cuda.is_available():
            pytest.skip("no CUDA device")
        monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
        monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
        monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    return torch.device(request.param)


@pytest.fixture
def there(network, images, labels, salience, device):
    """Network, images, labels and maps on the device."""
    return [part.to(device) for part in (network, images, labels, salience)]


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_the_contract_of_a_wrapped_attack(row, there, device):
    network, *batch = there
    images, labels, salience = (part.cpu() if str(row).startswith("ART") else part for part in batch)
    state = everything(network)
    found = run(row, SIPWrapper(row.build(network), salience), images, labels)
    assert found.device == images.device
    assert torch.equal(found[salience], images[salience])
    assert torch.equal(found, images) != row.finds
    ones = run(row, SIPWrapper(row.build(network), torch.ones_like(salience)), images, labels)
    assert torch.equal(ones, images)
    same(state, everything(network))
    bare, again = (run(row, row.build(network), images, labels) for _ in range(2))
    zeros = run(row, SIPWrapper(row.build(network), torch.zeros_like(salience)), images, labels)
    # Some of CUDA's kernels add in any order.
    assert torch.equal(zeros, bare) or (device.type == "cuda" and not torch.equal(bare, again))


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("fold", [False, True], ids=["", "folded"])
@pytest.mark.parametrize("name", METHODS)
def test_training_in_every_precision(name, fold, precision, there, device):
    network, images, labels, salience = there
    dtype = getattr(torch, precision)
    losses = {}
    for way in (torch.float32, dtype):
        torch.manual_seed(0)
        model = copy.deepcopy(network).train()
        model[6].eval()  # whose random numbers depend on the precision
        trainer = AdversarialTrainer(model, METHODS[name], salience=salience, eps=0.1, steps=4, fold_batchnorm=fold)
        trainer.set_epoch(0, 10)
        scaler = torch.amp.GradScaler(device.type, init_scale=16.0, enabled=way == torch.float16)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        for _ in range(2):
            optimizer.zero_grad()
            with nullcontext() if way == torch.float32 else torch.autocast(device.type, way):
                loss = trainer(images, labels)
            losses.setdefault(way, loss.item())  # before the networks part
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
        assert all(bool(p.grad.isfinite().all()) for p in model.parameters())
        found = trainer.perturb(images, labels)
        assert torch.equal(found[salience], images[salience])
        assert (found - images).abs().max() <= 0.1 + 1e-6
    # TRADES starts where its gradient is nearly zero, so that rounding turns the first steps.
    assert losses[dtype] == pytest.approx(losses[torch.float32], rel=0.1, abs=1.0 if name == "trades" else 0.05)


@pytest.mark.parametrize("fold", [False, True], ids=["", "folded"])
@pytest.mark.parametrize("name", sorted(METHODS.keys() - {"fat"}))
def test_a_compiled_search(name, fold, there, device, request):
    network, images, labels, salience = there
    if device.type == "cpu":
        request.getfixturevalue("without_code_generation")
    settings = {"salience": salience, "eps": 0.1, "steps": 4, "fold_batchnorm": fold}
    found = {}
    for compiled in (False, True):
        trainer = AdversarialTrainer(network, METHODS[name], compile=compiled, **settings)
        trainer.set_epoch(0, 10)
        for _ in range(3):  # the first calls of a CUDA graph warm up
            torch.manual_seed(0)
            found[compiled] = trainer.perturb(images, labels)
    # TRADES starts where its gradient is nearly zero, so that rounding turns the first steps. So is all the gradient of an
    # image that the network is sure of but for rounding.
    least = 0.8 if name == "trades" else 0.99
    unsure = network(images).softmax(1).amax(1) < 1 - 1e-6
    assert unsure.sum() >= len(images) - 1
    assert ((found[True] - found[False]).abs() < 1e-5)[unsure].float().mean() > least
    assert torch.equal(found[True][salience], images[salience])


def test_folding_a_trained_network_is_accepted(there, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)  # as it is unless a user switches it off
    network, images, labels, _ = there
    model = copy.deepcopy(network).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for _ in range(30):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
    folded, model = FoldedModel(model, images), model.eval()
    assert torch.allclose(folded(images), model(images), atol=1e-2, rtol=1e-2)


def test_draws_follow_the_devices_generator(there, device):
    network, images, labels, salience = there
    trainer = AdversarialTrainer(network, "sip-at", salience=salience, eps=0.1, steps=2)
    found = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        found.append(trainer.perturb(images, labels))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_verdicts_of_an_evaluation_are_the_cpus(network, digits, device):
    x, y = (part[1500:1548] for part in digits)
    reports = []
    for place in ("cpu", device):
        model = copy.deepcopy(network).to(place)
        generator = torch.random.get_rng_state() if place == "cpu" else None
        reports.append(
            evaluate_robustness(model, (x, y), eps=[0.02, 0.05], attack=Signs, progress=False, batch_size=16)
        )
        if generator is not None:
            assert torch.equal(generator, torch.random.get_rng_state())
    for eps in (0.02, 0.05):
        verdicts = [report.correct[eps].cpu() for report in reports]
        assert (verdicts[0] == verdicts[1]).float().mean() > 0.95
        assert 0 < verdicts[0].float().mean() < 1


class Signs:
    """Four signed gradient steps without random draws."""

    def __init__(self, model: nn.Module, eps: float) -> None:
        self.model, self.eps = model, eps

    def __call__(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        point = images
        for _ in range(4):
            point = point.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(nn.functional.cross_entropy(self.model(point), labels), point)
            point = (point + self.eps / 2 * gradient.sign()).clamp(images - self.eps, images + self.eps).clamp(0, 1)
        return point.detach()


def test_maps_and_their_store(there, device, tmp_path):
    network, images, labels, _ = there
    data = TensorDataset(images.cpu(), labels.cpu())
    for number, kind in enumerate((GradientSalience, CAMSalience)):
        source = kind(network)
        maps = source(images)
        assert maps.device == images.device
        store = MaskStore.build(tmp_path / str(number), data, source, device=device, progress=False)
        stored = torch.stack([store[index] for index in range(len(images))])
        assert (stored.expand_as(maps) == maps.cpu()).float().mean() > 0.99  # but for ties
        if kind is GradientSalience:
            expected = GradientSalience(copy.deepcopy(network).cpu())(images.cpu())
            assert (expected == maps.cpu()).float().mean() > 0.99
