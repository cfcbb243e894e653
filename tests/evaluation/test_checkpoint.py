"""An evaluation that was killed resumes where it was, and gives the report of one that was not."""

import copy
import os
import signal
import subprocess
import sys
import textwrap

import pytest
import torch

from sip_plugin.evaluation.checkpoint import Checkpoint, fingerprint
from tests.conftest import ROOT
from tests.evaluation.conftest import same
from tests.evaluation.test_evaluate import evaluate

OPTIONS = {"version": ["apgd-ce", "apgd-t", "fab-t"], "batch_size": 8, "return_adversarial": True}
NOTHING = {"attack": lambda model, eps: lambda x, y: x}


class Interrupt(BaseException):
    pass


class Counter:
    """Counts a network's passes; stops it at one."""

    def __init__(self, network, stop=None):
        self.passes, self.stop = 0, stop
        self.hook = network.register_forward_pre_hook(self)

    def __call__(self, *_):
        self.passes += 1
        if self.passes == self.stop:
            raise Interrupt

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.hook.remove()


@pytest.mark.slow
@pytest.mark.parametrize("assume", [False, True])
def test_an_interrupted_evaluation_redoes_no_finished_batch(assume, quick, network, evaluated, tmp_path):
    options = OPTIONS | {"assume_survivors": assume}
    with Counter(network) as whole:
        plain = evaluate(network, evaluated, **options)
    folder, spent, interruptions = tmp_path / "evaluation", 0, 0
    while True:
        finished = len(list(folder.glob("batches/*.pt")))
        with Counter(network, stop=whole.passes // 3) as counter:
            try:
                resumed = evaluate(network, evaluated, checkpoint=folder, **options)
                spent += counter.passes
                break
            except Interrupt:
                spent += counter.passes
                interruptions += 1
                assert len(list(folder.glob("batches/*.pt"))) > finished
                assert interruptions < 20
    with Counter(network) as counter:
        evaluate(network, [part[:8] for part in evaluated], **(options | {"version": ["fab-t"]}))
    same(resumed, plain)
    assert interruptions >= 2
    # Each interruption lost at most the batch it fell into, and repeats the few passes that look at the network.
    assert spent <= whole.passes + interruptions * (counter.passes + 10)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="kill -9 is not for Windows")
def test_an_evaluation_killed_without_warning_resumes(quick, network, evaluated, tmp_path):
    torch.save([network.state_dict(), *evaluated], tmp_path / "data.pt")
    script = f"""
        import os, signal
        import torch
        import sip_plugin.evaluation.autoattack
        from sip_plugin.evaluation import evaluate_robustness
        from tests.conftest import small_network
        from tests.evaluation.conftest import EPS, QuickPackage
        sip_plugin.evaluation.autoattack.autoattack_package = lambda: QuickPackage
        state, x, y = torch.load({str(tmp_path / "data.pt")!r})
        network = small_network()
        network.load_state_dict(state)
        passes = 0
        def count(*_):
            global passes
            passes += 1
            if passes == 300:
                os.kill(os.getpid(), signal.SIGKILL)
        network.register_forward_pre_hook(count)
        evaluate_robustness(network, (x, y), eps=EPS, checkpoint={str(tmp_path / "folder")!r}, **{OPTIONS!r})
    """
    killed = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        timeout=300,
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()[-2000:]
    assert list(tmp_path.glob("folder/batches/*.pt"))
    with Counter(network) as counter:
        resumed = evaluate(network, evaluated, checkpoint=tmp_path / "folder", **OPTIONS)
    with Counter(network) as whole:
        same(resumed, evaluate(network, evaluated, **OPTIONS))
    assert counter.passes < whole.passes


def test_a_finished_evaluation_gives_its_report_at_once(quick, network, evaluated, tmp_path):
    report = evaluate(network, evaluated, checkpoint=tmp_path, **OPTIONS)
    with Counter(network) as counter:
        again = evaluate(network, evaluated, checkpoint=str(tmp_path), **OPTIONS)
    assert counter.passes == 2  # a look whether it is the same network
    same(again, report)
    assert again.seconds == report.seconds
    assert again.settings == report.settings
    assert not list(tmp_path.glob("batches/*"))


def test_batches_do_not_hold_adversarial_images_that_nobody_asked_for(quick, network, evaluated, tmp_path):
    with Counter(network, stop=200), pytest.raises(Interrupt):
        evaluate(network, evaluated, checkpoint=tmp_path, version=["apgd-ce", "fab-t"])
    files = list(tmp_path.glob("batches/*.pt"))
    assert files
    assert max(path.stat().st_size for path in files) < 10_000


def test_a_folder_of_another_evaluation_is_refused(quick, network, evaluated, tmp_path):
    options = {"version": ["apgd-ce"], "checkpoint": tmp_path}
    evaluate(network, evaluated, **options)
    x, y = evaluated
    others = {
        "seed: there 0, now 1": {"seed": 1},
        "batch_size: there 128, now 9": {"batch_size": 9},
        "eps: there": {"eps": (0.1,)},
        "assume_survivors: there False, now True": {"assume_survivors": True},
        "return_adversarial": {"return_adversarial": True},
        "attack: there": {"version": ["fab-t"]},
    }
    for match, other in others.items():
        with pytest.raises(ValueError, match=f"belongs to another evaluation.*{match}"):
            evaluate(network, evaluated, **(options | other))
    with pytest.raises(ValueError, match="data: there"):
        evaluate(network, (x.flip(0), y.flip(0)), **options)
    with torch.no_grad():
        network[0].bias[0] += 1e-6
    with pytest.raises(ValueError, match="network: there"):
        evaluate(network, evaluated, **options)


class Switched(torch.nn.Module):
    """A network whose forward depends on a plain attribute, as its author pleases."""

    def __init__(self, network, attribute):
        super().__init__()
        self.network, self.attribute = network, attribute

    def forward(self, x):
        return self.network(x) * (1 + (self.attribute() if callable(self.attribute) else self.attribute))


@pytest.mark.parametrize(("first", "second"), [(0, 1), (lambda: 0, lambda: 1), (0, lambda: torch.rand(10))])
def test_a_network_of_equal_weights_that_computes_something_else_is_refused(
    first, second, network, evaluated, tmp_path
):
    options = NOTHING | {"checkpoint": tmp_path}
    for _ in range(2):
        evaluate(Switched(network, first), evaluated, **options)
    with pytest.raises(ValueError, match=r"belongs to another evaluation.*other logits"):
        evaluate(Switched(network, second), evaluated, **options)


@pytest.mark.parametrize("second", [lambda: 1e-4, lambda: 0.0])
def test_rounding_of_a_network_makes_no_other_network(second, network, evaluated, tmp_path):
    for attribute in (0.0, second):
        evaluate(Switched(network, attribute), evaluated, checkpoint=tmp_path, **NOTHING)


def test_the_randomness_of_a_network_makes_no_other_network(network, evaluated, tmp_path):
    for seed in (0, 1):
        torch.manual_seed(seed)
        evaluate(Switched(network, lambda: torch.rand(10)), evaluated, checkpoint=tmp_path, **NOTHING)


def compiled_in_part(network):
    network[0] = torch.compile(network[0], backend="eager")
    return network


@pytest.mark.parametrize(
    "wrap", [torch.nn.DataParallel, lambda net: torch.compile(net, backend="eager"), compiled_in_part]
)
def test_a_network_that_was_wrapped_since_is_still_the_same_one(wrap, network, evaluated, tmp_path):
    report = evaluate(network, evaluated, checkpoint=tmp_path, **NOTHING)
    same(evaluate(wrap(copy.deepcopy(network)), evaluated, checkpoint=tmp_path, **NOTHING), report)


def test_a_network_that_gives_nan_is_refused_for_that_also_the_second_time(evaluated, tmp_path):
    class NaN(torch.nn.Module):
        def forward(self, x):
            return x.flatten(1)[:, :10] * float("nan")

    for _ in range(2):
        with pytest.raises(ValueError, match="gives NaN on clean images"):
            evaluate(NaN(), evaluated, checkpoint=tmp_path, **NOTHING)


def test_a_batch_of_other_images_is_evaluated_again(tmp_path):
    checkpoint = Checkpoint(tmp_path)
    first = checkpoint.batch("one", torch.arange(3), lambda: {"x": torch.zeros(3)})
    assert torch.equal(checkpoint.batch("one", torch.arange(3), lambda: {"x": torch.ones(3)})["x"], first["x"])
    assert checkpoint.batch("one", torch.arange(3) + 1, lambda: {"x": torch.ones(3)})["x"].tolist() == [1, 1, 1]
    assert checkpoint.seconds > 0


def test_a_folder_with_other_files_is_refused(quick, network, evaluated, tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(ValueError, match="holds other files"):
        evaluate(network, evaluated, checkpoint=tmp_path, version=["apgd-ce"])
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_hidden_files_are_in_nobodys_way_but_a_file_for_a_folder_is(network, evaluated, tmp_path):
    (tmp_path / ".DS_Store").write_text("")
    (tmp_path / ".identity.x7.pt").write_text("half")  # of a process that was killed while it wrote
    evaluate(network, evaluated, checkpoint=tmp_path, **NOTHING)
    file = tmp_path / "report.txt"
    file.write_text("precious")
    with pytest.raises(OSError, match=r"report\.txt"):
        evaluate(network, evaluated, checkpoint=file, **NOTHING)
    assert file.read_text() == "precious"


def test_fingerprints_tell_values_types_and_shapes_apart():
    tensors = [torch.ones(4), torch.ones(2, 2), torch.ones(4).int(), torch.zeros(4), torch.ones(0), torch.tensor(1.0)]
    prints = [fingerprint(tensor) for tensor in [*tensors, torch.ones(4).bfloat16(), torch.ones(4).bool()]]
    assert len(set(prints)) == len(prints)
    assert fingerprint(torch.ones(4)) == prints[0]
    assert fingerprint(torch.arange(6).view(2, 3).T) == fingerprint(torch.arange(6).view(2, 3).T.contiguous())
