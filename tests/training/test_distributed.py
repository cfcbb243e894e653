"""DistributedDataParallel over two processes: the gradients of one process on the joined batch, and no deadlock."""

import contextlib
import datetime
import gc

import pytest
import torch
import torch.distributed
import torch.multiprocessing
from torch import nn

from sip_plugin.training import FAT, MART, PART, SIPAT, TRADES, AdversarialTrainer, Madry, Standard

pytestmark = pytest.mark.xdist_group("processes in training")  # they are started once for all tests
HALF = 8


class StartsByTheImage(TRADES):
    """Its start is a function of the image, so that it does not depend on which process draws it."""

    def start(self, feasible):
        return feasible.project(feasible.images + 0.001 * torch.cos(1000 * feasible.images))


METHODS = {
    "standard": (Standard, False),
    "madry": (Madry, False),
    "sip-at": (SIPAT, False),
    "trades": (StartsByTheImage, True),
    "mart": (MART, False),
    "fat": (lambda: FAT(tau=0, omega=0), False),
    "part": (lambda: PART(warmup=0, eps_low=0.02), False),
}


def network():
    """Without BatchNorm, whose statistics are each process's own; in float64.

    The sign of a KL term's gradient near the image is a matter of the last bits in float32, and those of the batch's size.
    """
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(512, 10)
    ).double()


def batch():
    """Images that the network gets wrong, for the first process, and some that it gets right."""
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(2 * HALF, 3, 16, 16, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        y = network()(x).argmax(1)
    y[:HALF] = (y[:HALF] + 1) % 10
    return x, y, torch.rand(2 * HALF, 1, 16, 16, generator=generator) < 0.3


def gradients(model, name, x, y, salience):
    make, random_start = METHODS[name]
    trainer = AdversarialTrainer(
        model, make(), salience=salience, eps=0.05, alpha=0.002, steps=6, random_start=random_start
    )
    for parameter in model.parameters():
        parameter.grad = None
    trainer(x, y).backward()
    return [parameter.grad.clone() for parameter in model.parameters()], trainer.metrics.get("steps")


@contextlib.contextmanager
def process_group(rank, folder):
    """One of two processes, which meet in a folder."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo",
        init_method=f"file://{folder}/rendezvous",
        rank=rank,
        world_size=2,
        timeout=datetime.timedelta(seconds=120),  # a process that waits in vain is an error, not a test that hangs
    )
    try:
        yield
    finally:
        gc.collect()  # what is left of a DistributedDataParallel could wait for the group's threads for ever
        torch.distributed.destroy_process_group()


def process(rank, folder):
    with process_group(rank, folder):
        part = slice(rank * HALF, (rank + 1) * HALF)
        mine = [tensor[part] for tensor in batch()]
        found = {}
        for name in METHODS:
            parallel = nn.parallel.DistributedDataParallel(network())
            found[name] = gradients(parallel, name, *mine)
            compiled = torch.compile(nn.parallel.DistributedDataParallel(network()), backend="eager")
            if name in ("fat", "trades"):
                found[f"{name}, compiled"] = gradients(compiled, name, *mine)
        torch.save(found, f"{folder}/{rank}.pt")
        del parallel, compiled  # after the group they could wait for the group's threads for ever


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.spawn(process, (str(folder),), nprocs=2)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.slow
@pytest.mark.parametrize("name", [*METHODS, "fat, compiled", "trades, compiled"])
def test_two_processes_have_the_gradients_of_one_on_the_joined_batch(name, ranks):
    method = name.partition(",")[0]
    joined, _ = gradients(network(), method, *batch())
    for rank in ranks:
        ours, _ = rank[name]
        assert all(torch.allclose(a, b, atol=1e-8) for a, b in zip(ours, joined, strict=True))
    assert max(g.abs().max() for g in joined) > 1e-3
    first, _ = gradients(network(), method, *[tensor[:HALF] for tensor in batch()])
    assert not all(torch.allclose(a, b, atol=1e-8) for a, b in zip(first, joined, strict=True))


@pytest.mark.slow
def test_fats_batches_had_different_lengths_in_the_two(ranks):
    steps = [rank["fat"][1].item() for rank in ranks]
    assert steps[0] == 1
    assert steps[1] > 2
