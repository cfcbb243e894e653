"""Two processes share an evaluation: the report of one, and no process waits for one that failed."""

import pytest
import torch
import torch.multiprocessing
from torch.nn.parallel import DistributedDataParallel

import sip_plugin.evaluation.autoattack
from sip_plugin.distributed import ProcessGroup
from tests.conftest import small_network
from tests.evaluation.conftest import QuickPackage, same
from tests.evaluation.test_checkpoint import Counter, Interrupt
from tests.evaluation.test_evaluate import evaluate
from tests.training.test_distributed import process_group

pytestmark = pytest.mark.xdist_group("processes of an evaluation")  # they are started once for all tests
OPTIONS = {"version": ["apgd-ce", "fab-t"], "batch_size": 4, "return_adversarial": True}


def cases(rank, folder, network, data):
    """What each process does; the results, or the errors, by name."""
    passes = 0

    def count(*_):
        nonlocal passes
        passes += 1

    hook = network.register_forward_pre_hook(count)
    yield "plain", lambda: evaluate(network, data, **OPTIONS)
    yield "passes", lambda: passes
    yield "assumed", lambda: evaluate(network, data, assume_survivors=True, checkpoint=f"{folder}/shared", **OPTIONS)
    yield "finished", lambda: evaluate(network, data, assume_survivors=True, checkpoint=f"{folder}/shared", **OPTIONS)
    passes = 0
    yield "resumed", lambda: evaluate(network, data, checkpoint=f"{folder}/begun", **OPTIONS)
    yield "passes of the rest", lambda: passes
    hook.remove()
    yield "parallel", lambda: evaluate(DistributedDataParallel(network), data, **OPTIONS)
    yield "alone", lambda: evaluate(network, data, distributed=False, **OPTIONS) if rank == 0 else None
    yield "other data", lambda: evaluate(network, [part[rank:] for part in data], **OPTIONS)
    yield "other seed", lambda: evaluate(network, data, seed=rank, **OPTIONS)

    def broken(model, eps):
        def attack(images, labels):
            if rank == 1:
                raise KeyError("lost")
            return images

        return attack

    def no_data():
        yield tuple(part[:4] for part in data)
        if rank == 0:
            raise OSError("no such file")

    yield "data missing", lambda: evaluate(network, no_data(), **OPTIONS)
    yield "failing", lambda: evaluate(network, data, attack=broken, batch_size=4)
    yield "one wrong argument", lambda: evaluate(network, data, **OPTIONS | {"batch_size": rank})


def process(rank, folder):
    sip_plugin.evaluation.autoattack.autoattack_package = lambda: QuickPackage
    with process_group(rank, folder):
        state, *data = torch.load(f"{folder}/data.pt")
        network = small_network()
        network.load_state_dict(state)
        found = {}
        for name, run in cases(rank, folder, network, data):
            try:
                found[name] = run()
            except Exception as error:
                found[name] = error
        torch.save(found, f"{folder}/{rank}.pt")


@pytest.fixture(scope="module")
def ranks(tmp_path_factory, trained, digits):
    folder = tmp_path_factory.mktemp("ranks")
    x, y = digits[0][1500:1520].clone(), digits[1][1500:1520].clone()
    torch.save([trained.state_dict(), x, y], folder / "data.pt")
    with pytest.MonkeyPatch.context() as patch, Counter(trained, stop=500):
        patch.setattr(sip_plugin.evaluation.autoattack, "autoattack_package", lambda: QuickPackage)
        with pytest.raises(Interrupt):
            evaluate(trained, (x, y), checkpoint=folder / "begun", **OPTIONS)
    assert len(list(folder.glob("begun/batches/*.pt"))) > 8
    torch.multiprocessing.spawn(process, (str(folder),), nprocs=2)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(2)]


@pytest.fixture
def data(digits):
    return digits[0][1500:1520].clone(), digits[1][1500:1520].clone()


@pytest.mark.slow
def test_two_processes_give_the_report_of_one(ranks, quick, network, data):
    one = evaluate(network, data, **OPTIONS)
    for rank in ranks:
        for case in ("plain", "parallel", "resumed"):
            same(rank[case], one)
        same(rank["assumed"], evaluate(network, data, assume_survivors=True, **OPTIONS))
        same(rank["finished"], rank["assumed"])
    same(ranks[0]["alone"], one)


@pytest.mark.slow
def test_each_process_does_its_part_of_the_work(ranks, quick, network, data):
    passes = 0

    def count(*_):
        nonlocal passes
        passes += 1

    network.register_forward_pre_hook(count)
    evaluate(network, data, **OPTIONS)
    for rank in ranks:
        assert 0.25 * passes < rank["passes"] < 0.75 * passes
        assert rank["passes of the rest"] < 0.8 * rank["passes"]  # one process had begun


@pytest.mark.slow
def test_processes_that_evaluate_different_things_are_told_so(ranks):
    for rank in ranks:
        for case, match in (("other data", "data"), ("other seed", "seed")):
            assert isinstance(rank[case], ValueError)
            assert f"The processes differ in {'images, ' if case == 'other data' else ''}{match}" in str(rank[case])


@pytest.mark.slow
def test_a_failure_in_one_process_is_an_error_in_all(ranks):
    assert isinstance(ranks[1]["failing"], KeyError)
    assert isinstance(ranks[0]["failing"], RuntimeError)
    assert "Process 1 of 2 failed with KeyError: 'lost'" in str(ranks[0]["failing"])
    assert isinstance(ranks[0]["data missing"], OSError)
    assert "Process 0 of 2 failed with OSError: no such file" in str(ranks[1]["data missing"])
    assert "batch_size must be an integer from 1, got 0" in str(ranks[0]["one wrong argument"])
    assert "Process 0 of 2 failed with ValueError: batch_size" in str(ranks[1]["one wrong argument"])


def test_networks_that_synchronise_at_each_pass_are_unwrapped_or_refused(network, data, monkeypatch):
    class FSDPModule:  # what torch.distributed.fsdp.fully_shard makes of a module has this base class
        pass

    class Sharded(torch.nn.Sequential, FSDPModule):
        pass

    options = {"attack": lambda model, eps: lambda x, y: x}
    parallel = DistributedDataParallel.__new__(DistributedDataParallel)
    torch.nn.Module.__init__(parallel)
    parallel.module = network
    for wrapped in (parallel, torch.compile(parallel, backend="eager"), Sharded(network)):
        same(evaluate(wrapped, data, **options), evaluate(network, data, **options))
    monkeypatch.setattr(ProcessGroup, "__init__", lambda self, **_: vars(self).update(rank=0, size=2))
    monkeypatch.setattr(ProcessGroup, "gather_call", lambda self, function: [function()] * 2)
    for inside in (torch.nn.Sequential(parallel), Sharded(network)):
        with pytest.raises(ValueError, match="synchronises"):
            evaluate(inside, data, **options)
