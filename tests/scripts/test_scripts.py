"""The scripts of the set-up and of the documentation."""

import importlib.util
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
import torch

from tests.conftest import ROOT


def script(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_compatibility_page_is_made_from_the_tables():
    assert script("make_compatibility").PAGE.read_text(encoding="utf-8") == script("make_compatibility").page()


@pytest.mark.results
def test_the_pages_have_the_figures_of_the_committed_results():
    results = script("make_results")
    for path in results.PAGES:
        page = path.read_text(encoding="utf-8")
        assert "<!-- results:" in page
        assert results.filled(page) == page, f"{path.name}: run python scripts/make_results.py"


@pytest.mark.results
def test_what_stands_between_results_is_left_alone():
    results = script("make_results")
    page = "Before.\n<!-- results: published cifar10 resnet18 -->old<!-- end -->\nAfter.\n"
    filled = results.filled(page)
    assert filled.startswith("Before.\n")
    assert filled.endswith("\nAfter.\n")
    assert "old" not in filled
    assert results.filled(filled) == filled


@pytest.mark.parametrize(
    ("clean", "robust", "says"),
    [
        ((2, 1, 3), (0, -1, 1), "Here salience helps on clean images"),
        ((2, 1, 3), (-2, -3, -1), "Here salience gains clean accuracy and loses robustness"),
        ((0, -1, 1), (0, -1, 1), "Nothing here shows that salience helps"),
        ((-2, -3, -1), (-2, -3, -1), "Here random maps do better than salience"),
        ((-2, -3, -1), (0, -1, 1), "Here random maps do better on clean images"),
        ((-2, -3, -1), (2, 1, 3), "Here salience gains robustness and loses clean accuracy"),
    ],
)
def test_whether_it_is_salience_follows_from_the_intervals(clean, robust, says, monkeypatch):
    results = script("make_results")
    monkeypatch.setattr(results, "gain", lambda *_: [results.Difference(*figure) for figure in (clean, robust)])
    assert results.comparison_verdict().startswith(f"**{says}**")


def test_the_package_index_gets_no_relative_link():
    links = re.findall(r"\]\(([^)]*)\)", metadata.metadata("sip-plugin").json["description"])
    assert len(links) > 20
    assert [link for link in links if not link.startswith("https://")] == []


def test_torchvision_imports_in_this_environment():
    run = subprocess.run([sys.executable, "-c", "import torchvision.transforms.v2"], capture_output=True, check=False)
    assert run.returncode == 0, run.stderr.decode()


@pytest.fixture
def cure(monkeypatch, tmp_path):
    module = script("cure_torchvision")
    monkeypatch.setattr(module.sysconfig, "get_paths", lambda: {"purelib": str(tmp_path)})
    return module


CAPTURED = {"capture_output": True, "text": True, "check": False}
NMS = "RuntimeError: operator torchvision::nms does not exist"


@pytest.mark.parametrize("error", ["", "ModuleNotFoundError: No module named 'torchvision'"])
def test_nothing_is_changed_where_torchvision_imports_or_is_not_installed(error, cure, monkeypatch, tmp_path):
    monkeypatch.setattr(cure, "import_error", lambda: error)
    assert cure.main() == 0
    assert not list(tmp_path.iterdir())


def test_another_error_is_shown_and_not_cured(cure, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(cure, "import_error", lambda: "ImportError: libjpeg")
    assert cure.main() == 1
    assert "libjpeg" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_outside_a_virtual_environment_nothing_is_changed(cure, monkeypatch, tmp_path):
    monkeypatch.setattr(cure, "import_error", lambda: NMS)
    monkeypatch.setattr(cure.sys, "prefix", cure.sys.base_prefix)
    assert cure.main() == 1
    assert not list(tmp_path.iterdir())


def test_a_cure_that_is_not_needed_any_more_is_taken_away(cure, monkeypatch, tmp_path):
    for suffix in (".py", ".pth"):
        (tmp_path / f"{cure.MODULE}{suffix}").write_text("raise ImportError")
    monkeypatch.setattr(cure, "import_error", lambda: "")
    assert cure.main() == 0
    assert not list(tmp_path.iterdir())


def test_the_cure_does_nothing_for_other_versions(cure, monkeypatch, tmp_path):
    answers = iter([NMS, ""])
    monkeypatch.setattr(cure, "import_error", lambda: next(answers))
    monkeypatch.setattr(cure.sys, "prefix", "/somewhere/else")
    assert cure.main() == 0
    (tmp_path / "torchvision.py").write_text("print('imported')")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import {cure.MODULE}; from importlib import metadata; "
    code += "metadata.version = lambda package: '0'; import torchvision; print('torch' in sys.modules)"
    run = subprocess.run([sys.executable, "-S", "-c", code], **CAPTURED)
    assert run.stdout.split() == ["imported", "False"], run.stderr


def test_the_cure_declares_the_operators_before_torchvision_is_imported(cure, monkeypatch, tmp_path):
    answers = iter([NMS, ""])
    monkeypatch.setattr(cure, "import_error", lambda: next(answers))
    monkeypatch.setattr(cure.sys, "prefix", "/somewhere/else")
    assert cure.main() == 0
    assert (tmp_path / f"{cure.MODULE}.pth").read_text() == f"import {cure.MODULE}\n"
    # A package of that name that needs the operators, as torchvision does, in a process without the cure's effect.
    (tmp_path / "torchvision.py").write_text(
        "import torch\ntorch.library.register_fake('torchvision::nms', lambda *a: a)\n"
    )
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import {cure.MODULE}; import torchvision; print('imported')"
    packages = str(Path(torch.__file__).parents[1])
    run = subprocess.run(
        [sys.executable, "-S", "-c", f"import site; site.addsitedir({packages!r}); {code}"], **CAPTURED
    )
    assert "imported" in run.stdout, run.stderr
