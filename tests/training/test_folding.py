"""fold_batchnorm=True: the losses of the search on the network as it is, but for rounding, in every kind of loop."""

import copy
import pickle

import pytest
import torch
import torch.multiprocessing
from torch import nn

from sip_plugin import AdversarialTrainer
from sip_plugin.folding import FoldedModel
from sip_plugin.training import PART
from tests.adapters.test_contract import everything, same
from tests.conftest import small_network
from tests.test_folding import DataDependent
from tests.training.table import every_search
from tests.training.test_compile import without_code_generation  # noqa: F401
from tests.training.test_distributed import process_group

METHODS = ("madry", "sip-at", "trades", "mart", "fat", "part")


def method(name):
    return PART(warmup=0, eps_low=0.02) if name == "part" else name


def losses(model, name, images, labels, salience, fold, *, steps=3, optimizer=None, backward=torch.Tensor.backward):
    """Of a few training steps, in double precision, where signs of gradients do not turn by rounding."""
    torch.manual_seed(0)
    trainer = AdversarialTrainer(
        model, method(name), salience=salience, eps=0.1, alpha=0.03, steps=4, fold_batchnorm=fold
    )
    trainer.set_epoch(5, 10)
    optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=0.01)
    model.train()
    found = []
    for _ in range(steps):
        loss = trainer(images, labels)
        optimizer.zero_grad()
        backward(loss)
        optimizer.step()
        found.append(loss.item())
    assert trainer._folded is None or trainer._folded[1] is not None  # was not refused
    return found


@pytest.fixture
def doubles(images):
    return images.double()


@pytest.mark.parametrize("name", METHODS)
def test_losses_of_every_method(name, network, doubles, labels, salience):
    network = network.double()
    plain, folded = (losses(copy.deepcopy(network), name, doubles, labels, salience, fold) for fold in (False, True))
    assert plain == pytest.approx(folded, abs=1e-9)
    assert len(set(plain)) == 3


@every_search
def test_the_search_leaves_no_trace(row, network, images, labels, salience):
    network.train()
    network[1].eval()
    before = everything(network)
    trainer = row.trainer(network, salience, fold_batchnorm=True)
    trainer.perturb(images, labels)
    same(before, everything(network))
    assert "fold_batchnorm=True" in repr(trainer)


@pytest.mark.parametrize("name", [name for name in METHODS if name != "trades"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_under_autocast_with_a_scaler_and_accumulation(name, dtype, network, images, labels, salience):
    def accumulated(fold):
        model = copy.deepcopy(network).train()
        torch.manual_seed(0)
        trainer = AdversarialTrainer(
            model, method(name), salience=salience, eps=0.1, alpha=0.03, steps=4, fold_batchnorm=fold
        )
        trainer.set_epoch(5, 10)
        scaler, found = torch.amp.GradScaler("cpu"), []
        for rows in (slice(0, 3), slice(3, 6)):
            with torch.autocast("cpu", dtype):
                loss = trainer(images[rows], labels[rows], mask=salience[rows])
            scaler.scale(loss).backward()
            found.append(loss.item())
        assert all(parameter.grad is not None for parameter in model.parameters())
        return found

    assert accumulated(True) == pytest.approx(accumulated(False), rel=0.05, abs=0.005)


@pytest.mark.parametrize("name", ["madry", "trades"])
def test_a_frozen_backbone_and_an_averaged_copy(name, network, doubles, labels, salience):
    network = network.double()
    for parameter in network[:6].parameters():
        parameter.requires_grad_(False)

    def averaged(fold):
        model = copy.deepcopy(network)
        average = torch.optim.swa_utils.AveragedModel(model)
        found = losses(model, name, doubles, labels, salience, fold)
        average.update_parameters(model)
        average.update_parameters(model)
        return [*found, *losses(average, name, doubles, labels, salience, fold)]

    assert averaged(True) == pytest.approx(averaged(False), abs=1e-9)


@pytest.mark.parametrize("name", ["sip-at", "trades", "fat"])
def test_a_compiled_network(name, network, doubles, labels, salience):
    found = []
    for fold in (False, True):
        compiled = torch.compile(copy.deepcopy(network).double(), backend="eager")
        found.append(losses(compiled, name, doubles, labels, salience, fold))
    assert found[0] == pytest.approx(found[1], abs=1e-9)


@pytest.mark.parametrize("name", ["sip-at", "trades"])
def test_fabric_and_accelerate(name, network, doubles, labels, salience):
    fabric = pytest.importorskip("lightning.fabric", reason="not installed").Fabric(accelerator="cpu", devices=1)
    accelerator = pytest.importorskip("accelerate", reason="not installed").Accelerator(cpu=True)
    expected = losses(copy.deepcopy(network).double(), name, doubles, labels, salience, False)
    for setup, backward in ((fabric.setup, fabric.backward), (accelerator.prepare, accelerator.backward)):
        model = copy.deepcopy(network).double()
        ready, optimizer = setup(model, torch.optim.SGD(model.parameters(), lr=0.01))
        found = losses(ready, name, doubles, labels, salience, True, optimizer=optimizer, backward=backward)
        assert found == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("library", ["fabric", "accelerate"])
def test_the_twin_keeps_the_librarys_precision(library, network, images):
    if library == "fabric":
        fabric = pytest.importorskip("lightning.fabric", reason="not installed")
        model = fabric.Fabric(accelerator="cpu", devices=1, precision="bf16-mixed").setup(network)
    else:
        accelerate = pytest.importorskip("accelerate", reason="not installed")
        accelerate.state.AcceleratorState._reset_state()
        model = accelerate.Accelerator(cpu=True, mixed_precision="bf16").prepare(network)
        accelerate.state.AcceleratorState._reset_state()
    folded, seen = FoldedModel(model, images), []
    twin = next(module for module in folded.modules() if isinstance(module, nn.Conv2d))
    twin.register_forward_hook(lambda _module, _images, output: seen.append(output.dtype))
    logits = folded(images)
    assert seen == [torch.bfloat16]
    assert logits.dtype == torch.float32  # as those libraries' own models give


def process(rank, folder):
    with process_group(rank, folder):
        generator = torch.Generator().manual_seed(rank)
        x, y = torch.rand(6, 3, 16, 16, generator=generator, dtype=torch.float64), torch.arange(6)
        salience = torch.rand(6, 1, 16, 16, generator=generator) < 0.3
        found = {}
        for name in METHODS:
            for fold in (False, True):
                # Without broadcasts, which older releases make between the two passes of a loss.
                model = nn.parallel.DistributedDataParallel(small_network().double(), broadcast_buffers=False)
                found[name, fold] = losses(model, name, x, y, salience, fold)
        torch.save(found, f"{folder}/{rank}.pt")
        del model  # after the group it could wait for the group's threads for ever


@pytest.mark.slow
def test_two_processes(tmp_path):
    torch.multiprocessing.spawn(process, (str(tmp_path),), nprocs=2)
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt")
        for name in METHODS:
            assert found[name, True] == pytest.approx(found[name, False], abs=1e-9)


def test_a_network_that_cannot_be_folded_is_searched_as_it_is_with_one_warning(network, images, labels):
    model = DataDependent(network)
    trainer = AdversarialTrainer(model, "madry", random_start=False, steps=2, fold_batchnorm=True)
    with pytest.warns(RuntimeWarning, match="trace") as caught:
        found = [trainer.perturb(images, labels) for _ in range(2)]
    assert len([each for each in caught if each.category is RuntimeWarning]) == 1
    expected = AdversarialTrainer(model, "madry", random_start=False, steps=2).perturb(images, labels)
    assert all(torch.equal(each, expected) for each in found)


def test_copies_fold_for_themselves(network, images, labels):
    trainer = AdversarialTrainer(network, "madry", random_start=False, steps=2, fold_batchnorm=True)
    found = trainer.perturb(images, labels)
    for duplicate in (copy.deepcopy(trainer), pickle.loads(pickle.dumps(trainer))):
        torch.testing.assert_close(duplicate.perturb(images, labels), found)


def test_it_is_a_setting_of_the_built_in_search(network):
    with pytest.raises(ValueError, match="fold_batchnorm"):
        AdversarialTrainer(network, "madry", attack=lambda x, y: x, fold_batchnorm=True)


def test_with_compile(without_code_generation, network, images, labels):  # noqa: F811
    found = []
    for fold in (False, True):
        trainer = AdversarialTrainer(network, "madry", random_start=False, steps=3, compile=True, fold_batchnorm=fold)
        trainer.perturb(images, labels)
        with torch.no_grad():
            network[1].weight.mul_(1.1)
        found.append(trainer.perturb(images, labels))
        with torch.no_grad():
            network[1].weight.div_(1.1)
    assert ((found[0] - found[1]).abs() < 1e-5).float().mean() > 0.99
