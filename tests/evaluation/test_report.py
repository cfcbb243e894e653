"""RobustnessReport: every figure follows from the norms, and a report comes back from its file as it was."""

import dataclasses
import json
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sip_plugin.evaluation import RobustnessReport
from tests.evaluation.random_reports import LINF, STAGES, random_report

reports = st.builds(
    random_report,
    st.integers(0, 10**6),
    st.integers(1, 30),
    eps=st.sampled_from([LINF, (8 / 255,), (0.1, 0.25, 1.0)]),
    attacks=st.sampled_from([STAGES, ("PGD",)]),
    clean=st.sampled_from([0.0, 0.7, 1.0]),
    scale=st.sampled_from([0.2, 1.0, 5.0]),
    assume_survivors=st.booleans(),
    warnings=st.sampled_from([(), ("One.", "Größer ε.")]),
)
FIELDS = [field.name for field in dataclasses.fields(RobustnessReport) if field.name != "adversarial"]


def columns(report):
    """The norms of each image, one for each attack."""
    return list(zip(*report.norms.tolist(), strict=True))


@settings(max_examples=40, deadline=None)
@given(reports)
def test_the_accuracies_are_those_counted_image_by_image(report):
    count, images = len(report.labels), columns(report)
    assert len(report) == count
    assert report.correct_clean.tolist() == [min(image) > 0 for image in images]
    assert report.clean_accuracy == sum(min(image) > 0 for image in images) / count
    assert list(report.robust_accuracy) == list(report.eps)
    for eps in report.eps:
        right = [all(norm > eps for norm in image) for image in images]
        assert report.robust_accuracy[eps] == sum(right) / count
        assert report.correct[eps].tolist() == right
        p = Fraction(sum(right), count)
        assert report.standard_error[eps] == pytest.approx(math.sqrt(p * (1 - p) / count), abs=1e-15)


@settings(max_examples=40, deadline=None)
@given(reports)
def test_accuracy_falls_with_eps_and_with_every_attack(report):
    robust = [report.clean_accuracy, *report.robust_accuracy.values()]
    assert robust == sorted(robust, reverse=True)
    for eps in report.eps:
        left = [report.clean_accuracy, report.after_carrying[eps], *report.after_attack[eps].values()]
        assert left == sorted(left, reverse=True)
        assert left[-1] == report.robust_accuracy[eps]
        assert tuple(report.after_attack[eps]) == report.attacks


def test_what_was_left_after_each_attack_is_what_autoattack_would_have_logged():
    inf = math.inf
    norms = torch.tensor(
        [
            # misclassified, broken at 1 by the first, at 2 by the last, at 1 by FAB, at 2 by FAB which ran at 1, robust
            [0, 0.5, inf, inf, inf, inf],
            [0, inf, inf, 0.5, 1.5, 3.0],
            [0, inf, 1.5, inf, inf, inf],
        ],
        dtype=torch.float64,
    )
    fields = {"attacks": ("apgd-ce", "fab-t", "square"), "norms": norms, "assumed": torch.zeros(6, dtype=torch.bool)}
    report = random_report(count=6, eps=(1.0, 2.0), norm="L2", **fields)
    left = [[round(6 * share) for share in each.values()] for each in report.after_attack.values()]
    assert [round(6 * share) for share in report.after_carrying.values()] == [5, 2]
    assert left == [[4, 3, 3], [2, 2, 1]]
    assert report.broken_by_names == (None, "apgd-ce", "square", "fab-t", "fab-t", None)
    assert report.broken_at.tolist() == [0, 1, 2, 1, 2, inf]
    assumed = dataclasses.replace(report, settings={"assume_survivors": True})
    left = [[round(6 * share) for share in each.values()] for each in assumed.after_attack.values()]
    assert [round(6 * share) for share in assumed.after_carrying.values()] == [5, 5]
    assert left == [[4, 3, 3], [4, 2, 1]]


@settings(max_examples=40, deadline=None)
@given(reports)
def test_the_accuracies_by_class_are_those_of_the_images_of_the_class(report):
    assert list(report.per_class) == sorted(set(report.labels.tolist()))
    for label, of_class in report.per_class.items():
        images = [image for image, own in zip(columns(report), report.labels.tolist(), strict=True) if own == label]
        assert of_class.images == len(images)
        assert of_class.clean == pytest.approx(sum(min(image) > 0 for image in images) / len(images))
        for eps in report.eps:
            assert of_class.robust[eps] == pytest.approx(sum(min(image) > eps for image in images) / len(images))


@settings(max_examples=40, deadline=None)
@given(reports)
def test_each_image_has_the_smallest_eps_that_broke_it_and_the_attack(report):
    for index, image in enumerate(columns(report)):
        at, name = report.broken_at[index].item(), report.broken_by_names[index]
        broken = [eps for eps in report.eps if min(image) <= eps]
        assert at == (0 if min(image) == 0 else broken[0] if broken else math.inf)
        assert (name is None) == (min(image) == 0 or not broken)
        if name is not None:
            assert image[report.attacks.index(name)] <= at
        assert report.smallest_norm[index] == min(image)


@settings(max_examples=30, deadline=None)
@given(reports)
def test_a_report_comes_back_from_its_file_exactly(tmp_path_factory, report):
    path = tmp_path_factory.mktemp("report") / "report.json"
    assert report.to_json(path) == path.read_text(encoding="utf-8")
    again = RobustnessReport.from_json(path)
    for name in FIELDS:
        before, after = getattr(report, name), getattr(again, name)
        assert type(before) is type(after)
        if isinstance(before, torch.Tensor):
            assert before.dtype == after.dtype
            assert torch.equal(before, after)
        else:
            assert before == after
    assert again.to_json() == report.to_json()


def test_the_file_is_strict_json_with_the_figures_in_it():
    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    report = random_report(1, 200, scale=50)
    assert report.smallest_norm.isinf().any()
    fields = json.loads(report.to_json(), parse_constant=refuse)
    assert fields["clean_accuracy"] == report.clean_accuracy
    assert fields["robust_accuracy"] == list(report.robust_accuracy.values())
    assert report.to_json().count("\n") == len(fields) + 2  # one line for each field


@pytest.mark.parametrize("other", [{"version": 1}, {"format": "other"}])
def test_a_file_of_another_format_says_what_to_do(tmp_path, other):
    path = tmp_path / "report.json"
    path.write_text(json.dumps(json.loads(random_report().to_json()) | other))
    with pytest.raises(
        ValueError, match=r"report\.json .* is no report of format 2 .*sip_plugin 0\.1.* Evaluate the network"
    ):
        RobustnessReport.from_json(path)


@pytest.mark.parametrize("form", ["to_json", "to_text", "to_markdown", "to_latex"])
def test_a_file_is_written_whole_or_not_at_all(tmp_path, form, monkeypatch):
    path = tmp_path / "new" / "report.out"
    text = getattr(random_report(), form)(path)
    assert path.read_text(encoding="utf-8") == text

    def full_disk(self, data, **options):
        with self.open("w") as file:
            file.write(data[:10])
        raise OSError("No space left on device")

    monkeypatch.setattr("pathlib.Path.write_text", full_disk)
    with pytest.raises(OSError, match="No space"):
        getattr(random_report(1), form)(path)
    monkeypatch.undo()
    assert path.read_text(encoding="utf-8") == text
    assert list(path.parent.iterdir()) == [path]


def test_adversarial_images_can_be_saved(tmp_path):
    report = random_report(adversarial={8 / 255: torch.rand(40, 1, 2, 2)})
    torch.save(report.adversarial, tmp_path / "adversarial.pt")
    again = torch.load(tmp_path / "adversarial.pt", weights_only=True)
    assert torch.equal(again[8 / 255], report.adversarial[8 / 255])


def test_the_printed_table_says_all_that_a_reader_must_know():
    report = random_report(3, 256, warnings=("The gradient is zero on 12 images.",))
    text = str(report)
    assert text == report.to_text()
    assert "256 images, Linf, AutoAttack standard." in text
    assert "assume_survivors=False" in text
    assert "Seed 0." in text
    assert "Warning: The gradient is zero on 12 images." in text
    assert "not the robust accuracy under that attack alone" in " ".join(text.split())
    lines = {line.split()[0]: line.split() for line in text.splitlines() if line[:1].isdigit() or line[:5] == "clean"}
    assert lines["clean"][1:] == [f"{100 * report.clean_accuracy:.1f}", "±", f"{100 * report.standard_error[0]:.1f}"]
    for label, eps in zip(("1/255", "2/255", "4/255", "8/255"), report.eps, strict=True):
        shares = (report.robust_accuracy, report.standard_error, report.after_carrying)
        expected = [f"{100 * share[eps]:.1f}" for share in shares] + [
            f"{100 * share:.1f}" for share in report.after_attack[eps].values()
        ]
        assert [word for word in lines[label][1:] if word != "±"] == expected
    assert "assume_survivors=True" in str(random_report(assume_survivors=True))
    assert all(len(line) <= 120 for line in text.splitlines())


@pytest.mark.parametrize(
    ("asked_for", "shown"),
    [
        ({}, "apgd-ce + square."),
        ({"attack": {"PGD": "factory"}}, "PGD."),
        (
            {"attack": {"autoattack": {"version": "standard", "package": "pyautoattack 0.2.0"}}},
            "autoattack standard (pyautoattack 0.2.0).",
        ),
        ({"attack": {"PGD": "factory", "autoattack": {"version": "rand"}}}, "PGD + autoattack rand."),
    ],
)
def test_the_attack_is_called_what_the_settings_call_it(asked_for, shown):
    report = random_report(attacks=("apgd-ce", "square"), settings=asked_for)
    assert report.to_text().splitlines()[0] == f"Accuracy in per cent: 40 images, Linf, {shown}"


def test_the_repr_is_one_short_line():
    text = repr(random_report(3, 256))
    assert text.startswith("RobustnessReport(256 images, Linf, accuracy={clean: 0.")
    assert "8/255: " in text
    assert len(text) < 150


def test_a_frame_has_the_accuracies():
    pytest.importorskip("pandas", reason="pandas is not installed")
    report = random_report(3)
    frame = report.to_frame()
    assert frame["accuracy"].tolist() == [report.clean_accuracy, *report.robust_accuracy.values()]
    assert frame["eps"].tolist() == [0, *report.eps]
    runs = {"A": [report, random_report(4)], "B": report}
    frame = RobustnessReport.compare(runs).to_frame()
    means = frame.groupby(["method", "eps"])["accuracy"].mean()
    assert means["A", 8 / 255] == np.mean([each.robust_accuracy[8 / 255] for each in runs["A"]])
