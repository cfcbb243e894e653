"""benchmarks/paper: cells that are trained and evaluated, as a user would run them."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from lightning.fabric import Fabric
from lightning.fabric.plugins.precision import MixedPrecision

from benchmarks.paper.__main__ import main
from benchmarks.paper.data import Source, load_splits
from benchmarks.paper.files import load, save
from benchmarks.paper.networks import build_network
from benchmarks.paper.protocols import Cell, Evaluation, Training
from benchmarks.paper.state import TimeUp, pack, unpack
from benchmarks.paper.training import train_network
from sip_plugin.model_utils import model_hash
from tests.conftest import SHARED_DATA
from tests.evaluation.conftest import QuickPackage
from tests.salience.annotations.archive import Archive

ROOT = Path(__file__).resolve().parents[2]
TINY = ("--epochs", "2", "--steps", "2", "--images", "4", "--threads", "1", "--accelerator", "cpu")


def start(*arguments, torchrun=False):
    """The command line in a process of its own."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"] if torchrun else []
    return subprocess.Popen(
        [sys.executable, *launcher, "-m", "benchmarks.paper", *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process):
    output, _ = process.communicate(timeout=400)
    assert process.returncode == 0, output
    return output


def result(folder, name):
    return json.loads((folder / "cells" / f"{name}.json").read_text())


@pytest.fixture(scope="module", autouse=True)
def quick_autoattack():
    """AutoAttack with few iterations: what it finds is not what is tested here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sip_plugin.evaluation.autoattack.autoattack_package", lambda: QuickPackage)
        yield


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """The weights of a network that nobody trained, as a teacher."""
    path = tmp_path_factory.mktemp("teacher") / "teacher.pt"
    torch.manual_seed(0)
    torch.save(build_network("convnet16", 1, 10).state_dict(), path)
    return str(path)


METHODS = ["standard", "madry", "sip-s", "fat", "sip-random", "sip-least", "sip-s-25", "sip-other-class"]


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """The folder of a table that was run, and the arguments that run it again."""
    folder = tmp_path_factory.mktemp("table")
    arguments = ["table", "--preset", "digits", "--seeds", "0", "--results", str(folder), *TINY, "--methods", *METHODS]
    assert main(arguments) == 0
    return folder, arguments


@pytest.mark.slow
@pytest.mark.xdist_group("one table")
def test_a_table_is_trained_evaluated_and_reported(table):
    folder, arguments = table
    cells = {method: result(folder, f"digits-convnet8-{method}-seed0") for method in METHODS}
    for cell in cells.values():
        assert cell["cell"]["training"]["epochs"] == 2
        assert len(cell["training"]["epochs"]) == 2
        assert 0 <= cell["robust_accuracy"]["51/255"] <= cell["clean_accuracy"] <= 1
        assert cell["data"]["training_images"] == 1167
        assert {"validation_clean_accuracy", "validation_pgd_accuracy"} <= set(cell["training"]["epochs"][-1])
    teachers = {cells[method]["teacher"]["weights_sha256"] for method in METHODS if "sip" in method}
    assert len(teachers) == 1  # one teacher for all, trained once
    shares = {method: cell["teacher"]["salient_share"] for method, cell in cells.items() if cell["teacher"]}
    assert shares["sip-s-25"] < shares["sip-s"] == shares["sip-random"] == shares["sip-least"]
    assert cells["madry"]["teacher"] is None
    hashes = {cell["network"]["weights_sha256"] for cell in cells.values()}
    assert len(hashes) == len(METHODS)  # each method trains another network

    written = {path: path.stat().st_mtime_ns for path in (folder / "cells").iterdir()}
    assert main(arguments) == 0  # all done: nothing is written again
    assert written == {path: path.stat().st_mtime_ns for path in (folder / "cells").iterdir()}

    assert main(["report", "--preset", "digits", "--results", str(folder)]) == 0
    markdown = (folder / "table.md").read_text()
    assert "SIP-S" in markdown
    assert "control: random map" in markdown
    assert (folder / "curves.png").stat().st_size > 5000
    assert "toprule" in (folder / "table.tex").read_text()


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="kill -9 is not for Windows")
@pytest.mark.parametrize("workers", ["0", "1"])
def test_a_killed_run_goes_on_and_ends_with_the_same_weights(workers, teacher, tmp_path):
    name = "digits-convnet8-sip-s-seed0"
    arguments = ["run", "--dataset", "digits", "--method", "sip-at", *TINY[2:], "--epochs", "4", "--train-only"]
    arguments += ["--workers", workers, "--augmentation", "crop-flip"]  # which is drawn where the images are loaded
    arguments += ["--teacher", teacher]
    assert main([*arguments, "--results", str(tmp_path / "whole")]) == 0
    process = start(*arguments, "--results", tmp_path / "killed")
    work = tmp_path / "killed" / "work"
    deadline = time.monotonic() + 200
    while not (found := list(work.glob(f"{name}-*/checkpoint.pt"))) and time.monotonic() < deadline:
        time.sleep(0.005)
        assert process.poll() is None, process.communicate()[0]
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    done = len(load(found[0])["history"])
    assert done < 4, "the run ended before it could be killed"
    assert main([*arguments, "--results", str(tmp_path / "killed")]) == 0
    whole, killed = (
        load(next((tmp_path / folder / "work").glob(f"{name}-*/network.pt"))) for folder in ("whole", "killed")
    )
    assert len(killed["history"]["epochs"]) == 4
    assert killed["history"]["workers"] == int(workers)
    for name, value in whole["network"].items():
        assert torch.equal(value, killed["network"][name]), name


@pytest.mark.slow
def test_a_table_goes_on_elsewhere_from_its_state(teacher, tmp_path, monkeypatch, capsys):
    arguments = ["table", "--preset", "digits", "--seeds", "0", "--methods", "madry", "sip-s", "--teacher", teacher]
    arguments += [*TINY, "--version", "rand", "--test-eps", "0.1", "--state", str(tmp_path / "state")]
    assert main([*arguments, "--results", str(tmp_path / "first")]) == 0
    whole = result(tmp_path / "first", "digits-convnet8-sip-s-seed0")
    shutil.rmtree(tmp_path / "state")

    def save_and_stop(path, state):
        save(path, state)
        if "sip-s" in str(path):
            raise TimeUp

    with monkeypatch.context() as patch:
        patch.setattr("benchmarks.paper.training.save", save_and_stop)
        patch.setattr("benchmarks.paper.state.PIECE", 2**16)
        assert main([*arguments, "--results", str(tmp_path / "second")]) == 0
    assert "time is up" in capsys.readouterr().out
    pieces = list((tmp_path / "state").glob("*/*.part"))
    assert len(pieces) > 1
    assert max(piece.stat().st_size for piece in pieces) == 2**16
    assert main([*arguments, "--results", str(tmp_path / "third")]) == 0
    assert "train digits-convnet8-madry" not in capsys.readouterr().err  # its result came along
    resumed = result(tmp_path / "third", "digits-convnet8-sip-s-seed0")
    assert resumed["network"] == whole["network"]
    assert result(tmp_path / "third", "digits-convnet8-madry-seed0") == result(
        tmp_path / "second", "digits-convnet8-madry-seed0"
    )


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Folders of state, results and work, with a cell that is under way; 120 pieces."""
    monkeypatch.setattr("benchmarks.paper.state.PIECE", 2**10)
    state, results, work = (tmp_path / name for name in ("state", "results", "work"))
    (work / "digits-seed0-key").mkdir(parents=True)
    (work / "digits-seed0-key" / "checkpoint.pt").write_bytes(os.urandom(120 * 2**10))
    (work / "digits-seed0-key" / ".checkpoint.pt.x").touch()  # which a kill has left
    return state, results, work


def contents(work):
    return {path.relative_to(work): path.read_bytes() for path in work.rglob("*") if path.is_file()}


def test_a_state_holds_what_was_there(place, tmp_path):
    state, results, work = place
    pack(state, results, work)
    unpack(state, tmp_path / "elsewhere", tmp_path / "there")
    (work / "digits-seed0-key" / ".checkpoint.pt.x").unlink()
    assert contents(tmp_path / "there") == contents(work)


def test_processes_of_one_run_take_up_a_state_at_once(place, tmp_path, monkeypatch):
    monkeypatch.undo()  # larger pieces
    state, results, work = place
    for number in range(30):
        shutil.copytree(work / "digits-seed0-key", work / f"digits-seed{number + 1}-key")
    pack(state, results, work)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: unpack(state, results, tmp_path / "there"), range(4)))
    for path in work.glob("*/.*"):
        path.unlink()
    assert contents(tmp_path / "there") == contents(work)


@pytest.mark.parametrize("first", [True, False], ids=["the first state", "a later one"])
def test_a_kill_while_the_state_is_written_loses_nothing(first, place, tmp_path):
    state, results, work = place
    checkpoint, there = work / "digits-seed0-key" / "checkpoint.pt", tmp_path / "there"
    last = None
    if not first:
        pack(state, results, work)
        last = checkpoint.read_bytes()
    left = 0

    def counted(function):
        def call(*arguments, **options):
            nonlocal left
            left -= 1
            if left < 0:
                raise KeyboardInterrupt
            return function(*arguments, **options)

        return call

    for kills in range(200):  # each time at the next thing that is done to the disk
        checkpoint.write_bytes(os.urandom(2500))
        left = kills
        with pytest.MonkeyPatch.context() as patch:
            for owner, name in ((os, "fsync"), (os, "unlink"), (os, "rmdir"), (Path, "rename"), (Path, "mkdir")):
                patch.setattr(owner, name, counted(getattr(owner, name)))
            try:
                pack(state, results, work)
                break
            except KeyboardInterrupt:
                pass
        shutil.rmtree(there, ignore_errors=True)
        unpack(state, results, there)
        found = there / "digits-seed0-key" / "checkpoint.pt"
        now = found.read_bytes() if found.exists() else None
        assert now in (last, checkpoint.read_bytes())
        last = now
    assert 10 < kills < 199
    unpack(state, results, there)
    assert found.read_bytes() == checkpoint.read_bytes()
    assert len([path for path in state.iterdir() if path.name != ".lock"]) == 1


def test_a_state_that_is_not_whole_is_refused_and_stays(place, tmp_path, capsys):
    state, results, work = place
    pack(state, results, work)
    first, second, *_ = sorted(state.glob("*/*.part"))
    whole = second.read_bytes()
    second.write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
    arguments = ["run", "--dataset", "digits", "--method", "madry", "--state", str(state), "--results", str(tmp_path)]
    for damaged in (second, first, first.with_name("pieces.txt")):
        if damaged is not second:
            damaged.unlink()
        before = contents(state)
        with pytest.raises(SystemExit):
            main(arguments)
        assert damaged.name in capsys.readouterr().err
        assert contents(state) == before


@pytest.mark.parametrize("left", [0, 40, -8])
def test_a_list_of_pieces_that_is_cut_off_is_refused(left, place, tmp_path):
    state, results, work = place
    pack(state, results, work)
    shutil.copytree(state / "1", state / "2.bak")  # is none
    index = next(state.glob("1/pieces.txt"))
    index.write_text(index.read_text()[:left])
    with pytest.raises((ValueError, FileNotFoundError), match="state"):
        unpack(state, tmp_path / "elsewhere", tmp_path / "there")


@pytest.mark.parametrize("kind", ["work", "cells"])
def test_of_state_and_work_the_newer_is_taken_all_or_nothing(kind, place):
    state, results, work = place
    cell = work / "digits-seed0-key"
    if kind == "cells":
        shutil.rmtree(cell)
        cell = results / "cells"
    files = [cell / name for name in ("digits-seed0.json", "digits-seed0.report.json")]
    cell.mkdir(exist_ok=True, parents=True)
    for file in files:
        file.write_bytes(b"packed")
    pack(state, results, work)
    for ages, kept in (((-60, -90), b"packed"), ((60, -90), b"here")):
        for file in files:
            file.write_bytes(b"here")
        for path in cell.iterdir():
            os.utime(path, (time.time() - 90,) * 2)
        for file, age in zip(files, ages, strict=True):
            os.utime(file, (time.time() + age,) * 2)
        unpack(state, results, work)
        assert [file.read_bytes() for file in files] == [kept, kept]


@pytest.mark.parametrize("newest", [0, 1])
def test_a_kill_between_the_two_files_of_a_result_leaves_no_half_of_it(newest, place, tmp_path, monkeypatch):
    state, results, work = place
    there = tmp_path / "there" / "cells"
    (results / "cells").mkdir(parents=True)
    names = ("digits-seed0.json", "digits-seed0.report.json")
    for number, name in enumerate(names):
        (results / "cells" / name).write_text(name)
        os.utime(results / "cells" / name, (time.time() - 60 * (number != newest),) * 2)
    pack(state, results, work)
    replace, done = Path.replace, []

    def killed(path, target):
        if Path(target).parent == there and done:
            raise KeyboardInterrupt
        done.append(target)
        return replace(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            unpack(state, there.parent, tmp_path / "work")
    unpack(state, there.parent, tmp_path / "work")
    assert sorted(contents(there)) == sorted(map(Path, names))


@pytest.mark.skipif(os.name == "nt", reason="there is no alarm on Windows")
@pytest.mark.parametrize("terminated", [False, True])
def test_a_time_limit_or_a_sigterm_stops_whatever_runs(terminated, tmp_path, monkeypatch, capsys):
    def endless(*_, **__):
        if terminated:
            os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)

    monkeypatch.setattr("benchmarks.paper.cell.run_cell", endless)
    began = time.monotonic()
    arguments = ["run", "--dataset", "digits", "--method", "madry", "--results", str(tmp_path), "--accelerator", "cpu"]
    arguments += ["--state", str(tmp_path / "state"), "--time-limit"]
    assert main([*arguments, "50" if terminated else "1"]) == 0
    assert time.monotonic() - began < 30
    assert "The time is up" in capsys.readouterr().out
    assert (tmp_path / "state" / "1" / "pieces.txt").exists()
    with pytest.raises(SystemExit):
        main([*arguments, "0"])
    assert "--time-limit" in capsys.readouterr().err


def test_a_cell_that_diverges_does_not_keep_the_others_from_being_run(tmp_path, monkeypatch, capsys):
    run = []

    def diverging(cell, *_, **__):
        run.append(cell.method)
        if cell.method == "madry":
            raise FloatingPointError("madry diverged.")
        return True

    monkeypatch.setattr("benchmarks.paper.cell.run_cell", diverging)
    arguments = ["table", "--preset", "digits", "--seeds", "0", "--methods", "madry", "fat", "--accelerator", "cpu"]
    with pytest.raises(SystemExit) as error:
        main([*arguments, "--results", str(tmp_path)])
    assert (run, error.value.code) == (["madry", "fat"], 2)
    assert "madry diverged" in capsys.readouterr().err


@pytest.mark.parametrize(("method", "known"), [("madry", "madry"), ("sip-at", "sip-s")])
def test_cells_of_the_table_that_a_preset_builds_on_are_not_left_out_in_silence(method, known, capsys):
    with pytest.raises(SystemExit):
        main(["table", "--preset", "cifar10-cpu-maps", "--methods", method, "sip-s-25"])
    assert f"{known}: make these cells with --preset cifar10-cpu," in capsys.readouterr().err


@pytest.mark.slow
def test_two_processes_train_and_evaluate_one_cell(teacher, tmp_path):
    arguments = ["run", "--dataset", "digits", "--method", "sip-s", "--results", tmp_path, *TINY, "--teacher", teacher]
    arguments += ["--test-eps", "0.1", "--version", "rand", "--validation-share", "0"]
    finish(start(*arguments, torchrun=True))
    cell = result(tmp_path, "digits-convnet8-sip-s-seed0")
    assert cell["training"]["processes"] == 2
    (log,) = (tmp_path / "work").glob("digits-convnet8-sip-s-*/log/version_0/metrics.csv")
    assert len(log.read_text().splitlines()) == 3  # a head and two epochs
    assert len(cell["training"]["epochs"]) == 2


@pytest.mark.slow
@pytest.mark.xdist_group("one table")
def test_a_result_or_checkpoint_of_other_settings_is_refused(table, tmp_path, capsys):
    arguments = ["run", "--dataset", "digits", "--method", "madry", "--results", str(table[0]), *TINY]
    assert main(arguments) == 0  # done already
    with pytest.raises(SystemExit) as error:
        main([*arguments, "--epochs", "3"])
    assert error.value.code == 2
    message = capsys.readouterr().err
    assert "training.epochs" in message
    assert "--results" in message
    with pytest.raises(SystemExit):
        main(["report", "--preset", "digits", "--results", str(tmp_path / "empty")])
    assert "no results" in capsys.readouterr().err


@pytest.mark.slow
def test_human_maps_are_for_the_data_set_that_has_them(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["run", "--dataset", "digits", "--method", "sip-h", "--results", str(tmp_path), *TINY])
    assert "no human annotations for digits" in capsys.readouterr().err


@pytest.mark.slow
def test_sip_h_trains_on_the_birds_with_their_annotators_maps(tmp_path, capsys):
    Archive(tmp_path)
    splits = load_splits("cub", Source(tmp_path), 0.1, 0)
    assert (len(splits.train), len(splits.validation), len(splits.test), splits.classes) == (7, 1, 4, 3)
    image, _ = splits.train[0]
    assert image.shape == (3, 224, 224)
    assert splits.human_maps[0].shape == (1, 224, 224)
    assert 0.05 < splits.human_maps[0].float().mean() < 0.6
    arguments = [
        "run",
        "--dataset",
        "cub",
        "--arch",
        "convnet8",
        "--no-pretrained",
        "--batch-size",
        "2",
        "--epochs",
        "1",
    ]
    arguments += [
        "--steps",
        "1",
        "--train-only",
        "--accelerator",
        "cpu",
        "--data-dir",
        tmp_path,
        "--results",
        tmp_path / "out",
    ]
    assert main([*map(str, arguments), "--method", "sip-h"]) == 0
    (network,) = (tmp_path / "out" / "work").glob("cub-convnet8-sip-h-seed0-*/network.pt")
    salient = load(network)["history"]["epochs"][0]["salient"]
    assert main([*map(str, arguments), "--method", "sip-h"]) == 0  # trained already
    result_file = tmp_path / "out" / "cells" / "cub-convnet8-sip-h-seed0.json"
    result_file.parent.mkdir()
    teacher = {"salience": "human annotations", "weights_sha256": None}  # as an earlier version recorded it
    result_file.write_text(json.dumps({"cell": {}, "data": {"content": splits.content}, "teacher": teacher}))
    with pytest.raises(SystemExit):
        main([*map(str, arguments), "--method", "sip-h"])
    assert "maps: other annotations" in capsys.readouterr().err
    result_file.unlink()
    for mask in tmp_path.rglob("segmentations/**/*.png"):
        mask.write_bytes(mask.read_bytes() + b"0")  # other annotations, which look the same
    assert main([*map(str, arguments), "--method", "sip-h"]) == 0
    assert len(list((tmp_path / "out" / "work").glob("cub-convnet8-sip-h-seed0-*/network.pt"))) == 2
    shares = [splits.human_maps[index].float().mean() for index in range(len(splits.human_maps))]
    assert min(shares) <= salient <= max(shares)


@pytest.mark.slow
@pytest.mark.skipif(not SHARED_DATA.is_dir(), reason="the shared images of CIFAR are not beside this clone")
def test_cifar_is_read_in_its_own_layout_and_only_when_told_that_it_is_not_the_archive(tmp_path, capsys):
    for archive in ("cifar10_exact_partial.c10", "cifar100_exact_partial.c10"):
        command = [sys.executable, SHARED_DATA / "unpack_cifar10.py", tmp_path, SHARED_DATA / archive]
        subprocess.run(command, check=True, capture_output=True)
    folders = {"cifar10": "cifar-10-batches-py-partial", "cifar100": "cifar-100-python-partial"}
    sizes = {}
    for name, folder in folders.items():
        splits = load_splits(name, Source(tmp_path, unofficial=folder), 0.1, 0)
        sizes[name] = (len(splits.train), len(splits.validation), len(splits.test), splits.classes)
        assert splits.train[0][0].shape == (3, 32, 32)
        assert "not the official archive" in splits.origin
        with pytest.raises(SystemExit):
            main(
                ["run", "--dataset", name, "--method", "madry", "--data-dir", str(tmp_path), "--results", str(tmp_path)]
            )
        assert "--unofficial-data" in capsys.readouterr().err
    assert sizes == {"cifar10": (7502, 834, 1017, 10), "cifar100": (1005, 112, 916, 100)}
    shutil.copytree(tmp_path / folders["cifar10"], tmp_path / "train")
    shutil.copy(tmp_path / "train" / "data_batch_1", tmp_path / "train" / "test_batch")
    splits = load_splits("cifar10", Source(tmp_path, unofficial="train", unofficial_test=folders["cifar10"]), 0.1, 0)
    assert (len(splits.train), len(splits.test)) == (7502, 1017)
    assert splits.origin.endswith(f"not the official archive: train, test images of {folders['cifar10']}")


@pytest.mark.slow
def test_a_network_is_never_taken_for_one_of_another_teacher(tmp_path, capsys):
    short = ["run", "--dataset", "digits", "--method", "sip-s", "--epochs", "1", "--steps", "1", "--images", "2"]
    short += ["--version", "rand", "--test-eps", "0.1", "--threads", "1", "--accelerator", "cpu"]
    other = build_network("convnet16", 1, 10)
    torch.save(other.state_dict(), tmp_path / "other.pt")
    own, given = [*short, "--results", str(tmp_path / "r")], ["--teacher", str(tmp_path / "other.pt")]
    assert main([*own, "--train-only"]) == 0
    assert main([*own, *given]) == 0
    found = result(tmp_path / "r", "digits-convnet8-sip-s-seed0")
    assert found["teacher"]["file"] == "other.pt"
    assert found["teacher"]["weights_sha256"] == model_hash(other)
    networks = [load(path)["network"] for path in (tmp_path / "r" / "work").glob("digits-convnet8-sip-s-*/network.pt")]
    assert len(networks) == 2  # another network was trained for the other teacher
    assert any(not torch.equal(a, b) for a, b in zip(*(network.values() for network in networks), strict=True))
    with pytest.raises(SystemExit):
        main(own)  # the result there is of the other teacher
    assert "teacher: that of --teacher other.pt" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*short, *given, "--teacher-arch", "convnet8", "--results", str(tmp_path / "s")])
    assert "--teacher-arch" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*short[:3], "--method", "madry", *short[5:], *given])
    assert "madry has no teacher" in capsys.readouterr().err


@pytest.mark.slow
def test_the_log_can_be_tensorboards_the_precision_mixed_and_the_search_folded(tmp_path):
    tensorboard = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    arguments = ["run", "--dataset", "digits", "--method", "madry", "--results", str(tmp_path), *TINY, "--train-only"]
    assert main([*arguments, "--log", "tensorboard", "--precision", "bf16-mixed", "--fold-search"]) == 0
    (log,) = (tmp_path / "work").glob("digits-convnet8-madry-*/log/version_0")
    events = tensorboard.EventAccumulator(str(log)).Reload()
    assert [event.step for event in events.Scalars("loss")] == [0, 1]


@pytest.mark.slow
def test_a_resumed_training_goes_on_with_the_gradient_scalers_state(tmp_path, monkeypatch):
    cell = Cell("digits", "convnet8", "madry", 0, "convnet8", Training(epochs=3, steps=1), Evaluation())
    splits = load_splits("digits", Source(), 0.1, 0)

    def train(folder):
        # So large a scale overflows: the first steps are left out until it has been halved often enough.
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**30)
        precision = MixedPrecision("16-mixed", device="cpu", scaler=scaler)
        network, _ = train_network(
            cell, splits, None, folder, Fabric(accelerator="cpu", plugins=precision), workers=0, log="csv"
        )
        assert scaler.get_scale() < 2.0**30
        return network.state_dict()

    def save_and_stop(path, state):
        save(path, state)
        raise InterruptedError

    whole = train(tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr("benchmarks.paper.training.save", save_and_stop)
        with pytest.raises(InterruptedError):
            train(tmp_path / "stopped")
    resumed = train(tmp_path / "stopped")
    assert all(torch.equal(value, whole[name]) for name, value in resumed.items())


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--threads", "0"], "--threads must be at least 1"),
        (["--accelerator", "abacus"], "Lightning Fabric does not do --accelerator abacus"),
        (["--precision", "16-mixed"], "no --precision 16-mixed on this device: try bf16-mixed"),
        (["--precision", "64-true"], "invalid choice: '64-true'"),
    ],
)
def test_a_machine_that_there_is_not_is_an_error_in_one_line(options, complaint, tmp_path, capsys):
    arguments = ["run", "--dataset", "digits", "--method", "madry", "--results", str(tmp_path)]
    with pytest.raises(SystemExit) as error:
        main([*arguments, *TINY, *options])
    assert error.value.code == 2
    assert complaint in capsys.readouterr().err


def test_a_preset_of_another_data_set_is_refused(capsys):
    with pytest.raises(SystemExit):
        main(["run", "--dataset", "cifar10", "--preset", "digits", "--method", "madry"])
    assert "--preset digits is for digits" in capsys.readouterr().err
