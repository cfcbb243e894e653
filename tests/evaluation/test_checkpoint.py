"""An evaluation that was killed goes on where it was, and gives the report of one that was not."""

import copy
import json
import os
import signal
import subprocess
import sys
import textwrap

import pytest
import torch

from sip_plugin.evaluation.journal import Journal, fingerprint, model_fingerprint
from tests.conftest import ROOT
from tests.evaluation.conftest import same
from tests.evaluation.test_robustness import evaluate

OPTIONS = {"version": ["apgd-ce", "apgd-t", "fab-t"], "batch_size": 8, "return_adversarial": True}


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
    largest_batch = 0
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
        attack = evaluate(network, [part[:8] for part in evaluated], **(options | {"version": ["fab-t"]}))
        largest_batch = counter.passes
    same(resumed, plain)
    assert attack.attacks == ("fab-t",)
    assert interruptions >= 2
    # Each interruption lost at most the batch it fell into, and repeats the few passes that look at the network.
    assert spent <= whole.passes + interruptions * (largest_batch + 10)


@pytest.mark.slow
def test_an_evaluation_killed_without_warning_goes_on(quick, network, evaluated, tmp_path):
    torch.save([network.state_dict(), *evaluated], tmp_path / "data.pt")
    script = f"""
        import os, signal, sys
        import torch
        import sip_plugin.evaluation.autoattack, sip_plugin.evaluation.request
        from sip_plugin.evaluation import evaluate_robustness
        from tests.conftest import small_network
        from tests.evaluation.conftest import EPS, QuickPackage
        for module in (sip_plugin.evaluation.autoattack, sip_plugin.evaluation.request):
            module.autoattack_package = lambda: QuickPackage
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
    finished = sorted(path.name for path in tmp_path.glob("folder/batches/*.pt"))
    assert finished
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
        value = self.attribute
        value = value[0] if isinstance(value, list) else value() if callable(value) else value
        return self.network(x) * (1 + value)


@pytest.mark.parametrize(
    ("first", "second", "complaint"),
    [
        (0, 1, "network: there"),
        ([0.25, "a"], [0.25, "b"], "network: there"),  # not seen in the logits
        (torch.tensor(0.0), torch.tensor(0.1), "other logits"),
        (lambda: 0, lambda: 1, "other logits"),
    ],
)
def test_a_network_of_equal_weights_that_computes_something_else_is_refused(
    first, second, complaint, network, evaluated, tmp_path
):
    options = {"attack": lambda model, eps: lambda x, y: x, "checkpoint": tmp_path}
    evaluate(Switched(network, first), evaluated, **options)
    evaluate(Switched(network, first), evaluated, **options)
    with pytest.raises(ValueError, match=f"belongs to another evaluation.*{complaint}"):
        evaluate(Switched(network, second), evaluated, **options)


def marked(network):
    network._compile_kwargs = {"backend": "eager"}  # as Lightning Fabric does, once imported
    network[0]._ddp_params_and_buffers_to_ignore = []
    return network


def compiled_in_part(network):
    network[0] = torch.compile(network[0], backend="eager")
    return network


@pytest.mark.parametrize(
    "wrap", [torch.nn.DataParallel, lambda net: torch.compile(net, backend="eager"), compiled_in_part, marked]
)
def test_a_network_that_was_wrapped_since_is_still_the_same_one(wrap, network, evaluated, tmp_path):
    options = {"attack": lambda model, eps: lambda x, y: x, "checkpoint": tmp_path}
    report = evaluate(network, evaluated, **options)
    same(evaluate(wrap(copy.deepcopy(network)), evaluated, **options), report)


def test_a_layer_in_two_places_that_was_wrapped_is_still_the_same_one():
    layer = torch.nn.Linear(4, 4)
    prints = {
        model_fingerprint(torch.nn.Sequential(each, torch.nn.ReLU(), each))
        for each in (layer, torch.nn.DataParallel(layer), torch.compile(layer, backend="eager"))
    }
    assert len(prints) == 1


def test_the_module_that_a_class_is_called_in_makes_no_other_network(network, monkeypatch):
    switched = Switched(network, 0)
    before = model_fingerprint(switched)
    monkeypatch.setattr(Switched, "__module__", "__mp_main__")  # as in a process that a script has started
    assert model_fingerprint(switched) == before


def test_a_folder_of_another_version_says_so(network, evaluated, tmp_path):
    options = {"attack": lambda model, eps: lambda x, y: x, "checkpoint": tmp_path}
    evaluate(network, evaluated, **options)
    settings = json.loads((tmp_path / "settings.json").read_text())
    del settings["format"]
    (tmp_path / "settings.json").write_text(json.dumps(settings | {"network": "another hash of the same one"}))
    with pytest.raises(ValueError, match="was written by another version of this library"):
        evaluate(network, evaluated, **options)


def test_a_network_that_gives_nan_is_refused_for_that_also_the_second_time(evaluated, tmp_path):
    class NaN(torch.nn.Module):
        def forward(self, x):
            return x.flatten(1)[:, :10] * float("nan")

    for _ in range(2):
        with pytest.raises(ValueError, match="gives NaN on clean images"):
            evaluate(NaN(), evaluated, checkpoint=tmp_path, attack=lambda model, eps: lambda x, y: x)


def test_rounding_of_a_network_makes_no_other_network(network, evaluated, tmp_path):
    options = {"attack": lambda model, eps: lambda x, y: x, "checkpoint": tmp_path}
    for rounding in (0.0, 1e-4):
        evaluate(Switched(network, lambda rounding=rounding: rounding), evaluated, **options)


def test_the_randomness_of_a_network_makes_no_other_network(network, evaluated, tmp_path):
    options = {"attack": lambda model, eps: lambda x, y: x, "checkpoint": tmp_path}
    for seed in (0, 1):
        torch.manual_seed(seed)
        evaluate(Switched(network, lambda: torch.rand(10)), evaluated, **options)
    with pytest.raises(ValueError, match="other logits"):
        evaluate(Switched(network, lambda: 0), evaluated, **options)


@pytest.mark.parametrize("seed", range(3))
def test_a_file_of_any_other_bytes_is_damaged(seed, tmp_path):
    torch.manual_seed(seed)
    journal = Journal(tmp_path)
    journal.open({})
    journal.save("one", {"x": torch.arange(3)})
    whole = journal.batch("one").read_bytes()
    for _ in range(100):
        place, length = torch.randint(len(whole) // 2, ()).item(), torch.randint(1, 40, ()).item()
        garbage = bytes(torch.randint(256, (length,)).tolist())
        journal.batch("one").write_bytes(garbage if place % 3 == 0 else whole[:place] + garbage)
        with pytest.raises(ValueError, match="is damaged"):
            journal.load("one")


@pytest.mark.parametrize(
    "content", [b"", b"PK\x03\x04 no archive", b"{", "truncated", ["a"], {"rows": torch.arange(3)}]
)
@pytest.mark.parametrize("name", ["settings.json", "logits.pt", "report.pt"])
def test_a_damaged_file_is_an_error_that_says_what_to_remove(name, content, network, evaluated, tmp_path):
    options = {"attack": lambda model, eps: lambda x, y: x, "checkpoint": tmp_path / "folder"}
    evaluate(network, evaluated, **options)
    damage(tmp_path / "folder" / name, content)
    with pytest.raises(ValueError, match=rf"{name}' is damaged.*Remove the folder"):
        evaluate(network, evaluated, **options)


@pytest.mark.parametrize(
    "content", [b"", b"PK\x03\x04 no archive", b"{", "truncated", ["a"], {"rows": None}, {"seconds": "one"}]
)
@pytest.mark.parametrize("name", ["clean-1", "0-0-0"])
def test_a_damaged_batch_is_an_error_until_it_is_removed(name, content, quick, network, evaluated, tmp_path):
    options = {"batch_size": 8, "version": ["apgd-ce", "fab-t"], "checkpoint": tmp_path}
    with Counter(network, stop=200), pytest.raises(Interrupt):
        evaluate(network, evaluated, **options)
    path = tmp_path / "batches" / f"{name}.pt"
    damage(path, torch.load(path) | content if isinstance(content, dict) and "seconds" in content else content)
    with pytest.raises(ValueError, match=rf"{name}\.pt' is damaged.*Remove this file"):
        evaluate(network, evaluated, **options)
    path.unlink()
    with Counter(network, stop=150), pytest.raises(Interrupt):
        evaluate(network, evaluated, **options)
    assert path.exists()


def damage(path, content):
    if content == "truncated":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)


def test_a_folder_whose_batches_are_of_other_images_is_refused(quick, network, evaluated, tmp_path):
    with Counter(network, stop=200), pytest.raises(Interrupt):
        evaluate(network, evaluated, checkpoint=tmp_path, batch_size=8, version=["apgd-ce", "fab-t"])
    path = tmp_path / "batches" / "clean-1.pt"
    torch.save(torch.load(path) | {"rows": torch.arange(8)}, path)
    with pytest.raises(ValueError, match="batch clean-1 is of other images"):
        evaluate(network, evaluated, checkpoint=tmp_path, batch_size=8, version=["apgd-ce", "fab-t"])


def test_a_folder_with_other_files_is_refused(quick, network, evaluated, tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(ValueError, match="holds files but no evaluation"):
        evaluate(network, evaluated, checkpoint=tmp_path, version=["apgd-ce"])
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_hidden_files_are_in_nobodys_way_but_a_file_for_a_folder_is(network, evaluated, tmp_path):
    options = {"attack": lambda model, eps: lambda x, y: x}
    (tmp_path / ".DS_Store").write_text("")
    evaluate(network, evaluated, checkpoint=tmp_path, **options)
    file = tmp_path / "report.txt"
    file.write_text("precious")
    for path in (file, file / "below" / "it"):
        with pytest.raises(ValueError, match=r"must be a folder, but .*report\.txt' is a file"):
            evaluate(network, evaluated, checkpoint=path, **options)
    assert file.read_text() == "precious"


def test_what_is_written_is_whole_and_nothing_else_is_left(tmp_path, monkeypatch):
    journal = Journal(tmp_path / "new" / "folder")
    journal.open({"a": (1, 2)})
    assert json.loads((tmp_path / "new" / "folder" / "settings.json").read_text()) == {"format": 2, "a": [1, 2]}
    journal.open({"a": [1, 2]})
    journal.save("one", {"x": torch.arange(3)})
    assert journal.load("one")["x"].tolist() == [0, 1, 2]
    assert journal.load("two") is None

    def fails(*_):
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", fails)
    with pytest.raises(OSError, match="disk full"):
        journal.save("one", {"x": torch.zeros(3)})
    assert [path.name for path in (tmp_path / "new" / "folder" / "batches").iterdir()] == ["one.pt"]
    assert journal.load("one")["x"].tolist() == [0, 1, 2]


def test_what_a_killed_process_left_half_written_is_in_nobodys_way(tmp_path):
    (tmp_path / ".settings.json.x7").write_text('{"a": ')
    journal = Journal(tmp_path)
    journal.open({"a": 1})
    journal.save("one", {"x": 1})
    (tmp_path / "batches" / ".two.pt.x7").write_text("PK")
    assert journal.load("two") is None
    journal.finish({"done": 1})
    assert journal.load_report() == {"done": 1}
    assert not (tmp_path / "batches").exists()


def test_a_journal_without_folder_remembers_nothing():
    journal = Journal(None)
    journal.open({})
    journal.save("one", {"x": 1})
    journal.finish({})
    assert journal.load("one") is None
    assert journal.load_report() is None


def test_fingerprints_tell_values_types_and_shapes_apart():
    tensors = [torch.ones(4), torch.ones(2, 2), torch.ones(4).int(), torch.zeros(4), torch.ones(0), torch.tensor(1.0)]
    prints = [fingerprint(tensor) for tensor in [*tensors, torch.ones(4).bfloat16(), torch.ones(4).bool()]]
    assert len(set(prints)) == len(prints)
    assert fingerprint(torch.ones(4)) == prints[0]
    assert fingerprint(torch.arange(6).view(2, 3).T) == fingerprint(torch.arange(6).view(2, 3).T.contiguous())


def test_networks_with_equal_weights_but_other_layers_are_told_apart():
    relu, silu = (torch.nn.Sequential(torch.nn.Linear(2, 2), act) for act in (torch.nn.ReLU(), torch.nn.SiLU()))
    silu.load_state_dict(relu.state_dict())
    assert model_fingerprint(relu) != model_fingerprint(silu)
    twin = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.ReLU())
    twin.load_state_dict(relu.state_dict())
    assert model_fingerprint(relu) == model_fingerprint(twin)
    again = torch.nn.Sequential(*relu, relu[1])  # a layer that is there twice
    assert model_fingerprint(relu) != model_fingerprint(again)
