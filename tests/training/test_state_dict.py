"""Checkpoints: a resumed run is the uninterrupted one."""

import copy
import io

import pytest
import torch

from sip_plugin import AdversarialTrainer
from sip_plugin.training import FAT, TRADES, Method, rising
from tests.conftest import small_network
from tests.training.table import every_method

EPOCHS = 4


def run(row, digits, stop=None, checkpoint=None):
    """Two batches an epoch; the network's weights at the end, or a checkpoint's bytes after ``stop`` epochs."""
    network = small_network().train()  # with Dropout, which draws, too
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    trainer = row.trainer(network, lambda x: x > 0.5, steps=2)
    first = 0
    torch.manual_seed(3)
    if checkpoint is not None:
        state = torch.load(checkpoint, weights_only=True)
        network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
        trainer.load_state_dict(state["trainer"])
        first = trainer.epoch + 1
    for epoch in range(first, EPOCHS):
        trainer.set_epoch(epoch, EPOCHS)
        for rows in torch.randperm(64).split(32):
            optimizer.zero_grad()
            trainer(digits[0][rows], digits[1][rows]).backward()
            optimizer.step()
        if epoch + 1 == stop:
            file = io.BytesIO()
            state = {"network": network, "optimizer": optimizer, "trainer": trainer}
            torch.save({name: part.state_dict() for name, part in state.items()}, file)
            file.seek(0)
            return file
    return network.state_dict()


@every_method
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(row, digits):
    whole = run(row, digits)
    checkpoint = run(row, digits, stop=2)
    torch.rand(7)  # something else happens in between
    resumed = run(row, digits, checkpoint=checkpoint)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("tau", [lambda: rising(0, None), lambda: lambda share: int(2 * share)])
def test_a_schedule_made_anew_is_the_same_setting(tau, network):
    first, second = (AdversarialTrainer(network, FAT(tau=tau())) for _ in range(2))
    second.load_state_dict(first.state_dict())
    with pytest.warns(RuntimeWarning, match=r"FAT\(tau="):
        AdversarialTrainer(network, FAT(tau=rising(1, None))).load_state_dict(first.state_dict())


def test_a_methods_own_state_is_kept(network):
    class Counting(Method):
        name = "counting"

        def __init__(self):
            self.count = 0

        def state_dict(self):
            return {"count": self.count}

        def load_state_dict(self, state):
            self.count = state["count"]

    first, second = (AdversarialTrainer(network, Counting()) for _ in range(2))
    first.method.count = 5
    first.set_epoch(2, 7)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    assert second.method.count == 5
    assert (second.epoch, second.epochs) == (2, 7)


def test_another_methods_state_is_refused_and_changes_nothing(network):
    state = AdversarialTrainer(network, "madry").state_dict()
    trainer = AdversarialTrainer(network, "trades")
    before = torch.get_rng_state()
    with pytest.raises(ValueError, match=r"'madry'.*'trades'"):
        trainer.load_state_dict(state)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_random_state_of_another_process_is_not_taken_up(network, monkeypatch):
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: 2)
    monkeypatch.setattr("torch.distributed.get_rank", lambda: 0)
    trainer = AdversarialTrainer(network, "madry")
    trainer.set_epoch(3)
    state = trainer.state_dict()
    for rank in (0, 1):
        torch.manual_seed(rank + 5)
        before = torch.get_rng_state()
        monkeypatch.setattr("torch.distributed.get_rank", lambda rank=rank: rank)
        other = AdversarialTrainer(network, "madry")
        other.load_state_dict(state)
        assert other.epoch == 3
        assert torch.equal(torch.get_rng_state(), before) == (rank == 1)
    del state["rng"]["process"]  # as earlier versions have it
    other.load_state_dict(state)
    assert torch.equal(torch.get_rng_state(), state["rng"]["cpu"])


def test_other_settings_of_the_method_are_a_warning(network):
    state = AdversarialTrainer(network, TRADES(beta=1.0)).state_dict()
    with pytest.warns(RuntimeWarning, match=r"TRADES\(beta=1\.0\)"):
        AdversarialTrainer(network, TRADES(beta=6.0)).load_state_dict(state)


def test_a_method_without_a_name_has_its_classs(network):
    class One(Method):
        pass

    class Another(TRADES):
        pass

    assert (One.name, Another.name, TRADES.name) == ("One", "Another", "trades")
    with pytest.raises(ValueError, match="'One'"):
        AdversarialTrainer(network, Another()).load_state_dict(AdversarialTrainer(network, One()).state_dict())
