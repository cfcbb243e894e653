"""Files as on Windows, which neither replaces nor deletes one that is open or mapped, and flushes none that is only read."""

import contextlib
import errno
import functools
import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torchattacks
from torch.utils.data import TensorDataset

from sip_plugin.evaluation import RobustnessReport
from sip_plugin.salience import MaskStore, plot_salience
from sip_plugin.utils import atomic_write
from tests.evaluation.random_reports import random_report
from tests.evaluation.test_evaluate import evaluate

PROC = Path("/proc/self")
WINDOWS = sys.platform == "win32"
pytestmark = pytest.mark.skipif(not (WINDOWS or (PROC / "maps").exists()), reason="needs /proc, to see what is open")
refusing = False


def in_use():
    """The files that this process has open or mapped."""
    mapped = (line.split(maxsplit=5) for line in (PROC / "maps").read_text().splitlines())
    found = {columns[5] for columns in mapped if len(columns) > 5}
    for descriptor in os.listdir(PROC / "fd"):  # noqa: PTH208
        with contextlib.suppress(FileNotFoundError):
            found.add(os.readlink(PROC / "fd" / descriptor))  # noqa: PTH115
    return {path for path in found if not path.endswith(".lock")}  # filelock has another implementation on Windows


def refuse(event, arguments):
    """An audit hook for renaming, replacing and deleting, by whichever function."""
    if not refusing or event not in ("os.rename", "os.remove"):
        return
    half = len(arguments) // 2  # paths, and then the folder that each is relative to
    for path, folder in zip(arguments[:half], arguments[half:], strict=True):
        base = Path(os.readlink(PROC / "fd" / str(folder)) if folder >= 0 else ".")  # noqa: PTH115
        place = str((base / os.fsdecode(path)).resolve())
        if any(used == place or used.startswith(f"{place}/") for used in in_use()):
            raise PermissionError(errno.EACCES, "The file is open", place)


@functools.cache
def install():
    sys.addaudithook(refuse)


@pytest.fixture(autouse=True)
def windows(monkeypatch):
    """Windows' rules; on Windows it has them itself."""
    if WINDOWS:
        yield
        return
    import fcntl

    def fsync(descriptor):
        if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))

    install()
    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.delattr(os, "posix_fallocate", raising=False)
    monkeypatch.setitem(globals(), "refusing", True)
    yield


@pytest.fixture
def x():
    return torch.rand(20, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def bright(images):
    return images > 0.5


class Failing:
    """A source of maps that fails once it was asked ``times`` times."""

    def __init__(self, times):
        self._left = times

    def __call__(self, images):
        self._left -= 1
        if self._left < 0:
            raise RuntimeError("no more")
        return images > 0.5


def build(path, x, mask_fn=bright, **options):
    return MaskStore.build(path, TensorDataset(x, torch.arange(len(x))), mask_fn, 4, progress=False, **options)


def test_the_rules_hold(tmp_path):
    path = tmp_path / "file.npy"
    np.save(path, np.zeros(10_000))
    for used in (path.open("rb"), np.load(path, mmap_mode="r")):
        for act in (
            path.unlink,
            lambda: shutil.rmtree(tmp_path),
            lambda: path.replace(tmp_path / "other"),
            lambda: tmp_path.rename(tmp_path.with_name("other")),
        ):
            with pytest.raises(PermissionError):
                act()
        with pytest.raises(PermissionError), atomic_write(path) as part:
            part.write_bytes(b"")
        assert [each.name for each in tmp_path.iterdir()] == ["file.npy"]
        (used if hasattr(used, "close") else used._mmap).close()
    path.unlink()


def test_a_store_is_built_resumed_built_anew_and_deleted(x, tmp_path):
    path, source = tmp_path / "maps", Failing(2)
    with pytest.raises(RuntimeError) as kept:  # as a notebook keeps the last exception, and with it what was open
        build(path, x, source)
    source._left = 100
    assert torch.equal(build(path, x, source)[:], x > 0.5)
    with pytest.raises(RuntimeError) as again:
        build(path, 1 - x, Failing(2), overwrite=True)
    with MaskStore(build(path, x, overwrite=True).path) as store:
        assert torch.equal(store[:], x > 0.5)
        if not WINDOWS:
            with pytest.raises(PermissionError):
                build(path, 1 - x, overwrite=True)
    build(path, 1 - x, overwrite=True).close()
    shutil.rmtree(path)
    assert kept.value.args == again.value.args == ("no more",)


def test_a_damaged_store_is_deleted_where_its_error_is_caught(x, tmp_path):
    path = build(tmp_path / "maps", x).path
    np.save(path / "maps.npy", np.load(path / "maps.npy")[:-1])
    try:
        MaskStore(path)
    except ValueError:
        shutil.rmtree(path)
    assert torch.equal(build(path, x)[:], x > 0.5)


class Attack:
    """Of one step; fails at its last call."""

    def __init__(self, calls):
        self.calls = calls

    def __call__(self, model, eps):
        bare = torchattacks.PGD(model, eps, steps=1)

        def attack(images, labels):
            self.calls -= 1
            if self.calls == 0:
                raise RuntimeError("no more")
            return bare(images, labels)

        return attack


def test_an_evaluation_is_interrupted_resumed_and_read(network, images, labels, tmp_path):
    options = {"batch_size": 2, "checkpoint": tmp_path / "evaluation", "sanity_checks": False}
    with pytest.raises(RuntimeError) as kept:
        evaluate(network, (images, labels), attack=Attack(4), **options)
    assert len(list(tmp_path.glob("evaluation/batches/*"))) > 2
    report = evaluate(network, (images, labels), attack=Attack(-1), **options)
    assert {path.name for path in (tmp_path / "evaluation").iterdir()} == {"identity.pt", "report.pt"}
    assert torch.equal(evaluate(network, (images, labels), attack=Attack(1), **options).norms, report.norms)
    shutil.rmtree(tmp_path / "evaluation")
    assert kept.value.args == ("no more",)


def test_reports_tables_and_figures_are_written_over(x, tmp_path):
    pytest.importorskip("matplotlib", reason="needs matplotlib")
    for seed in (0, 1):
        report = random_report(seed)
        report.to_json(tmp_path / "report.json")
        for name in ("text", "markdown", "latex"):
            getattr(report, f"to_{name}")(tmp_path / name)
        report.plot(tmp_path / "report.png")
        RobustnessReport.compare([report]).plot(tmp_path / "comparison.pdf")
        plot_salience(x[:1], x[:1] > 0.5, path=tmp_path / "maps.png")
        assert torch.equal(RobustnessReport.from_json(tmp_path / "report.json").norms, report.norms)
    assert len(list(tmp_path.iterdir())) == 7
    assert "ε" in (tmp_path / "markdown").read_text(encoding="utf-8")
    assert json.loads((tmp_path / "report.json").read_bytes())["norm"] == "Linf"
    shutil.rmtree(tmp_path)
