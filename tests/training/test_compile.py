"""compile=True: the search's step as one graph, with the same results."""

import copy
import pickle

import pytest
import torch

from sip_plugin import AdversarialTrainer
from sip_plugin.training import FAT, Method
from sip_plugin.training import search as search_module
from tests.training.table import ROWS

COMPILABLE = [row for row in ROWS if str(row) not in ("standard", "fat")]


@pytest.fixture
def without_code_generation(monkeypatch):
    """One graph, as it is traced: fast, and needs no compiler."""
    compiled, real = [], torch.compile

    def traced(function, **options):
        assert options.pop("fullgraph") is True
        compiled.append(function)
        torch._dynamo.reset()
        return real(function, fullgraph=True, backend="aot_eager", **options)

    monkeypatch.setattr(torch, "compile", traced)
    return compiled


@pytest.mark.parametrize("row", COMPILABLE, ids=str)
@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_results_are_those_of_the_search_as_it_is(
    row, norm, without_code_generation, network, images, labels, salience
):
    settings = {
        "norm": norm,
        "eps": 0.1 if norm == "Linf" else 1.0,
        "alpha": 0.03 if norm == "Linf" else 0.3,
        "steps": 4,
    }
    found = []
    for compiled in (False, True):
        trainer = AdversarialTrainer(network, row.make(), salience=salience, compile=compiled, **settings)
        trainer.set_epoch(5, 10)
        torch.manual_seed(0)
        found.append(trainer.perturb(images, labels))
    difference = (found[0] - found[1]).abs()
    # Rounding may turn a gradient's sign where it is nearly zero.
    assert (difference < 1e-5).float().mean() > 0.99
    assert torch.equal(found[1][salience], images[salience])
    assert len(without_code_generation) == 1


def test_the_step_is_compiled_once_for_batches_of_one_shape_and_the_loss_is_not(
    without_code_generation, network, images, labels, salience
):
    trainer = AdversarialTrainer(network, "sip-at", salience=salience, compile=True, steps=3)
    network.train()
    modes = [module.training for module in network.modules()]
    for _ in range(3):
        loss = trainer(images, labels)
    torch._dynamo.utils.counters.clear()
    loss = trainer(images.flip(0), labels.flip(0))
    assert not torch._dynamo.utils.counters["stats"]  # nothing was traced anew
    loss.backward()
    assert all(parameter.grad is not None for parameter in network.parameters())
    assert [module.training for module in network.modules()] == modes
    (step,) = without_code_generation
    assert step.__code__.co_code == search_module.ascent_step.__code__.co_code
    assert float(trainer.metrics["steps"]) == 3


def test_no_steps_are_the_start(without_code_generation, network, images, labels, salience):
    trainer = AdversarialTrainer(network, "sip-at", salience=salience, compile=True, steps=0, random_start=False)
    found = trainer.perturb(images, labels)
    assert torch.equal(found, images)
    assert found.data_ptr() != images.data_ptr()


def test_weights_that_change_between_calls_are_seen(without_code_generation, network, images, labels):
    trainer = AdversarialTrainer(network, "madry", compile=True, random_start=False, steps=2)
    before = trainer.perturb(images, labels)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(-1)
    after = trainer.perturb(images, labels)
    expected = AdversarialTrainer(network, "madry", random_start=False, steps=2).perturb(images, labels)
    assert not torch.equal(before, after)
    torch.testing.assert_close(after, expected)


@pytest.mark.slow
def test_with_code_generation(network, images, labels, salience):
    torch._dynamo.reset()
    found = []
    for compiled in (False, True):
        trainer = AdversarialTrainer(network, "sip-at", salience=salience, compile=compiled, steps=3)
        torch.manual_seed(0)
        found.append(trainer.perturb(images, labels))
    assert ((found[0] - found[1]).abs() < 1e-5).float().mean() > 0.99


class WithPatience:
    def patience(self, progress):
        return 0


class Impatient(WithPatience, Method):
    pass


def test_a_gradient_that_is_cut_off_is_an_error_there_too(without_code_generation, network, images, labels):
    class Rounding(torch.nn.Module):
        def forward(self, images):
            return network((255 * images).round().detach() / 255)

    with pytest.raises(ValueError, match="no gradient with respect to the image"):
        AdversarialTrainer(Rounding(), "madry", compile=True)(images, labels)


@pytest.mark.parametrize(
    "settings", [{"method": "fat"}, {"method": FAT(tau=0)}, {"method": Impatient()}, {"attack": lambda x, y: x}]
)
def test_what_cannot_be_compiled_is_refused_at_once(settings, network):
    with pytest.raises(ValueError, match="compile"):
        AdversarialTrainer(network, settings.pop("method", "madry"), compile=True, **settings)


def test_a_copy_compiles_for_itself(without_code_generation, network, images, labels):
    trainer = AdversarialTrainer(network, "madry", compile=True, random_start=False, steps=2)
    found = trainer.perturb(images, labels)
    for duplicate in (copy.deepcopy(trainer), pickle.loads(pickle.dumps(trainer))):
        assert "compile=True" in repr(duplicate)
        torch.testing.assert_close(duplicate.perturb(images, labels), found)


def test_a_method_of_ones_own_is_compiled_too(without_code_generation, network, images, labels):
    class Margin(Method):
        name = "margin"

        def objective(self, target):
            def margin(logits):
                of_label = logits.gather(1, target[:, None]).squeeze(1)
                return (logits.logsumexp(1) - 2 * of_label).sum()

            return margin

    found = [
        AdversarialTrainer(network, Margin(), compile=c, random_start=False, steps=3).perturb(images, labels)
        for c in (False, True)
    ]
    torch.testing.assert_close(*found)


def test_a_schedule_of_alpha_compiles_one_graph(without_code_generation, network, images, labels):
    trainer = AdversarialTrainer(
        network, "madry", compile=True, alpha=lambda epoch: 0.002 * (epoch + 1), steps=1, random_start=False
    )
    plain = AdversarialTrainer(network, "madry", alpha=trainer.alpha, steps=1, random_start=False)
    for epoch in range(12):
        for each in (trainer, plain):
            each.set_epoch(epoch, 12)
        torch.testing.assert_close(trainer.perturb(images, labels), plain.perturb(images, labels))


def test_many_trainers_of_one_process_do_not_use_up_each_others_graphs(monkeypatch, images, labels):
    real = torch.compile
    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", lambda function, **options: real(function, backend="eager", **options))
    for classes in range(10, 20):
        network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(768, classes))
        AdversarialTrainer(network, "madry", compile=True, steps=1).perturb(images, labels)
