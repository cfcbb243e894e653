"""RobustnessReport: every figure follows from the outcomes, and what cannot have been found is refused."""

import dataclasses
import json
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from sip_plugin.evaluation import RobustnessReport
from sip_plugin.evaluation.radii import PerEps, eps_labels
from sip_plugin.evaluation.report import ASSUMED, CARRIED, MISCLASSIFIED, ROBUST
from sip_plugin.evaluation.statistics import mcnemar, wilson_interval
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
    """The outcomes of each image, from the smallest ε on."""
    return list(zip(*report.outcome.tolist(), strict=True))


@settings(max_examples=40, deadline=None)
@given(reports)
def test_the_accuracies_are_those_counted_image_by_image(report):
    count, images = len(report.labels), columns(report)
    assert len(report) == count
    assert report.clean_accuracy == sum(image[0] != MISCLASSIFIED for image in images) / count
    assert list(report.robust_accuracy) == list(report.eps)
    for row, eps in enumerate(report.eps):
        right = [image[row] in (ROBUST, ASSUMED) for image in images]
        assert report.robust_accuracy[eps] == sum(right) / count
        assert report.correct[eps].tolist() == right
        p = Fraction(sum(right), count)
        assert report.robust_standard_error[eps] == pytest.approx(math.sqrt(p * (1 - p) / count), abs=1e-15)
    assert report.correct_clean.tolist() == [image[0] != MISCLASSIFIED for image in images]


@settings(max_examples=40, deadline=None)
@given(reports)
def test_accuracy_falls_with_eps_and_with_every_stage(report):
    robust = [report.clean_accuracy, *report.robust_accuracy.values()]
    assert robust == sorted(robust, reverse=True)
    for eps in report.eps:
        left = [report.clean_accuracy, report.after_carrying[eps], *report.after_attack[eps].values()]
        assert left == sorted(left, reverse=True)
        assert left[-1] == report.robust_accuracy[eps]
        assert tuple(report.after_attack[eps]) == report.attacks


@settings(max_examples=40, deadline=None)
@given(reports)
def test_what_a_stage_took_is_what_it_broke(report):
    for row, eps in enumerate(report.eps):
        codes = [image[row] for image in columns(report)]
        before = report.after_carrying[eps]
        assert before == pytest.approx(report.clean_accuracy - codes.count(CARRIED) / len(report))
        for index, left in enumerate(report.after_attack[eps].values()):
            assert before - left == pytest.approx(codes.count(index) / len(report))
            before = left


@settings(max_examples=40, deadline=None)
@given(reports)
def test_the_accuracies_by_class_are_those_of_the_images_of_the_class(report):
    assert list(report.per_class) == sorted(set(report.labels.tolist()))
    for label, of_class in report.per_class.items():
        images = [image for image, own in zip(columns(report), report.labels.tolist(), strict=True) if own == label]
        assert of_class.images == len(images)
        assert of_class.clean == pytest.approx(sum(image[0] != MISCLASSIFIED for image in images) / len(images))
        for row, eps in enumerate(report.eps):
            right = sum(image[row] in (ROBUST, ASSUMED) for image in images)
            assert of_class.robust[eps] == pytest.approx(right / len(images))
    for eps in report.eps:
        total = sum(each.images * each.robust[eps] for each in report.per_class.values())
        assert total / len(report) == pytest.approx(report.robust_accuracy[eps])


@settings(max_examples=40, deadline=None)
@given(reports)
def test_each_image_has_the_smallest_eps_that_broke_it_and_the_attack(report):
    for index, image in enumerate(columns(report)):
        at, name = report.broken_at[index].item(), report.broken_by_names[index]
        if image[0] == MISCLASSIFIED:
            assert (at, name) == (0, None)
            continue
        broken = [eps for eps, code in zip(report.eps, image, strict=True) if code not in (ROBUST, ASSUMED)]
        assert at == (broken[0] if broken else math.inf)
        assert (name is None) == (not broken)
        if broken:
            first = image[report.eps.index(at)]
            assert name == report.attacks[report.broken_by[index]]
            assert first in (CARRIED, report.attacks.index(name))


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


def test_settings_come_back_from_the_file_as_they_are_in_the_report(tmp_path):
    given_settings = {"attack": "PGD", "targets": (1, 2), "nested": {"eps": 0.1}, "none": None}
    report = random_report(settings=given_settings)
    report.to_json(tmp_path / "report.json")
    assert report.settings == {**given_settings, "targets": [1, 2]}
    assert RobustnessReport.from_json(tmp_path / "report.json").settings == report.settings


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"format": "other"}, "no report of RobustnessReport.to_json"),
        ({"version": 2}, "version 2 of the format"),
        ({"eps": None}, "eps must be a list"),
        ({"eps": ["8/255"]}, "eps must be a number"),
        ({"norm": "L1"}, 'norm must be "Linf" or "L2"'),
        ({"attacks": ["a", 1]}, "attacks must be a sequence of strings"),
        ({"labels": []}, "labels must be"),
        ({"labels": [0, 1]}, "outcome must have the shape"),
        ({"labels": [0.5] * 40}, "labels must be integer"),
        ({"labels": [2**70] * 40}, "labels must hold integers"),
        ({"outcome": [[0, 1], [0]]}, "outcome must hold integers, and rows of one length"),
        ({"outcome": "none"}, "outcome must be a list"),
        ({"broken_by": [{}]}, "broken_by must hold integers"),
        ({"smallest_norm": ["a"] * 40}, "smallest_norm must hold numbers"),
        ({"smallest_norm": [True] * 40}, "smallest_norm must hold numbers"),
        ({"settings": []}, "settings must be a dict"),
        ({"warnings": [3]}, "warnings must be a sequence of strings"),
        ({"seconds": "long"}, "seconds must be a number"),
        ({"seconds": -1}, "seconds must be finite and not negative"),
    ],
)
def test_a_wrong_field_of_a_file_is_named_with_the_file(tmp_path, change, complaint):
    path = tmp_path / "report.json"
    path.write_text(json.dumps(json.loads(random_report().to_json()) | change))
    with pytest.raises(ValueError, match=f"report.json.*{complaint}"):
        RobustnessReport.from_json(path)


@pytest.mark.parametrize("field", FIELDS)
def test_a_missing_field_of_a_file_is_named(tmp_path, field):
    fields = json.loads(random_report().to_json())
    del fields[field]
    (tmp_path / "report.json").write_text(json.dumps(fields))
    with pytest.raises(ValueError, match=f"report.json.*{field}"):
        RobustnessReport.from_json(tmp_path / "report.json")


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe", b"null"])
def test_a_file_that_holds_no_report_is_a_clear_error(tmp_path, content):
    (tmp_path / "report.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"report\.json is no"):
        RobustnessReport.from_json(tmp_path / "report.json")
    with pytest.raises(FileNotFoundError):
        RobustnessReport.from_json(tmp_path / "absent.json")


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


def test_an_eps_that_was_computed_another_way_is_found():
    accuracy = random_report().robust_accuracy
    for eps in (8 / 255, 8 * (1 / 255), np.float32(8 / 255), torch.tensor(8 / 255), 0.0313725490):
        assert accuracy[eps] == list(accuracy.values())[-1]
        assert eps in accuracy
        assert accuracy.get(eps) == accuracy[8 / 255]
    assert 0.0313 not in accuracy
    assert accuracy.get(0.0313, "nothing") == "nothing"
    assert isinstance(accuracy, dict)
    assert json.loads(json.dumps(accuracy)) == {str(eps): share for eps, share in accuracy.items()}


def test_an_eps_that_is_not_there_is_an_error_that_lists_those_that_are():
    accuracy = random_report().robust_accuracy
    with pytest.raises(KeyError, match=r"at eps = 0\.03, only at 1/255, 2/255, 4/255, 8/255\."):
        accuracy[0.03]
    with pytest.raises(KeyError, match=r"Did you mean 8/255\?"):
        accuracy[8]
    with pytest.raises(KeyError, match="only at"):
        accuracy["8/255"]


def test_adversarial_images_are_kept_as_they_are_and_can_be_saved(tmp_path):
    images = torch.rand(40, 1, 2, 2)
    report = random_report(adversarial=PerEps({8 / 255: images}))
    assert report.adversarial[8 / 255] is images
    torch.save(report.adversarial, tmp_path / "adversarial.pt")
    assert torch.equal(torch.load(tmp_path / "adversarial.pt", weights_only=True)[8 / 255], images)
    with pytest.raises(ValueError, match="40 images"):
        random_report(adversarial={8 / 255: images[:3]})
    with pytest.raises(ValueError, match=r"adversarial has images at eps = 0\.1"):
        random_report(adversarial={0.1: images})


@pytest.mark.parametrize(
    ("eps", "labels"),
    [
        (LINF, ["1/255", "2/255", "4/255", "8/255"]),
        ((0.5 / 255, 16 / 255), ["0.5/255", "16/255"]),
        ((0.2, 0.4), ["0.2", "0.4"]),  # multiples of 1/255 too
        ((0.5, 1.0, 2.0), ["0.5", "1", "2"]),
        ((128 / 255,), ["128/255"]),
        ((0.3, 1 / 7), ["0.3", "0.142857"]),
        ((51 / 255, 52 / 255), ["51/255", "52/255"]),
    ],
)
def test_radii_are_written_in_255ths_where_they_are_such(eps, labels):
    assert eps_labels(eps) == labels
    assert eps_labels([float(np.float32(radius)) for radius in eps]) == labels


def one_image(outcome, **fields):
    """A report on one image, with what follows from its outcomes filled in."""
    broken = [row for row, code in enumerate(outcome) if code >= 0 or code == CARRIED]
    norm = LINF[broken[0]] if broken else 0.0 if MISCLASSIFIED in outcome else math.inf
    attacks = [code for code in outcome if code >= 0]
    return RobustnessReport(
        **{
            "eps": LINF,
            "norm": "Linf",
            "attacks": STAGES,
            "labels": torch.tensor([3]),
            "outcome": torch.tensor(outcome)[:, None],
            "broken_by": torch.tensor([attacks[0] if attacks else 1 if broken else -1]),
            "smallest_norm": torch.tensor([norm], dtype=torch.float64),
        }
        | fields
    )


R, M, A, C = ROBUST, MISCLASSIFIED, ASSUMED, CARRIED


@pytest.mark.parametrize(
    "outcome",
    [[R, R, R, R], [M, M, M, M], [0, C, C, C], [R, 3, C, C], [R, R, C, C], [C, C, 2, 0], [1, 1, 1, 1], [C, C, C, 3]],
)
def test_outcomes_that_can_be_are_taken(outcome):
    assert one_image(outcome).outcome.flatten().tolist() == outcome


@pytest.mark.parametrize("outcome", [[A, A, A, R], [A, A, R, 0], [1, C, C, C], [A, A, C, C], [A, R, C, 2]])
def test_outcomes_that_can_be_with_survivors_assumed_are_taken(outcome):
    report = one_image(outcome, settings={"assume_survivors": True})
    assert list(report.robust_accuracy.values()) == [float(code in (R, A)) for code in outcome]


@pytest.mark.parametrize(
    ("outcome", "fields", "complaint"),
    [
        ([R, R, R, 4], {}, r"outcome must be from -4 to 3 \(4 attacks\): image\(s\) 0"),
        ([R, R, R, -5], {}, "outcome must be from -4 to 3"),
        ([M, M, M, R], {}, "MISCLASSIFIED at every eps or at none"),
        ([M, M, C, C], {}, "MISCLASSIFIED at every eps or at none"),
        ([R, 0, R, R], {}, "broken at 2/255 and not at 4/255"),
        ([R, R, C, R], {}, "broken at 4/255 and not at 8/255"),
        ([A, A, A, A], {"settings": {"assume_survivors": True}}, "ASSUMED at the largest eps"),
        ([R, R, R, A], {"settings": {"assume_survivors": True}}, "ASSUMED at the largest eps"),
        ([A, A, A, R], {"settings": {"assume_survivors": False}}, r'settings\["assume_survivors"\] is not true'),
        ([A, A, A, R], {}, r'settings\["assume_survivors"\] is not true'),
        ([0, C, C, C], {"broken_by": torch.tensor([4])}, "broken_by must be from -1 to 3"),
        ([0, C, C, C], {"broken_by": torch.tensor([-2])}, "broken_by must be from -1 to 3"),
        ([0, C, C, C], {"broken_by": torch.tensor([-1])}, "broken_by must be an attack"),
        ([R, R, R, R], {"broken_by": torch.tensor([0])}, "broken_by must be an attack"),
        ([M, M, M, M], {"broken_by": torch.tensor([0])}, "broken_by must be an attack"),
        ([0, C, C, C], {"broken_by": torch.tensor([1])}, "broken_by is not the attack"),
        ([R, 2, 1, C], {"broken_by": torch.tensor([1])}, "broken_by is not the attack"),
        ([R, R, R, 0], {"smallest_norm": torch.tensor([math.nan])}, "negative or NaN"),
        ([R, R, R, 0], {"smallest_norm": torch.tensor([-0.1])}, "negative or NaN"),
        ([M, M, M, M], {"smallest_norm": torch.tensor([0.1])}, "0 where the clean image is wrong"),
        ([R, R, R, 0], {"smallest_norm": torch.tensor([math.inf])}, "larger than the smallest eps"),
        ([0, C, C, C], {"smallest_norm": torch.tensor([1.5 / 255])}, "larger than the smallest eps"),
        ([R, R, 0, C], {"smallest_norm": torch.tensor([1.5 / 255])}, "smaller than an eps"),
        ([R, R, R, R], {"smallest_norm": torch.tensor([7 / 255])}, "smaller than an eps"),
        ([R, R, R, R], {"eps": (4 / 255, 2 / 255, 1 / 255, 8 / 255)}, "eps must ascend"),
        ([R, R, R, R], {"eps": (1 / 255, 2 / 255, 2 / 255, 8 / 255)}, "eps must ascend"),
        ([R, R, R, R], {"eps": (0, 1 / 255, 2 / 255, 8 / 255)}, "only positive ones"),
        ([R, R, R, R], {"eps": (1, 2, 4, 8)}, r"Did you mean 2/255\?"),
        ([R, R, R, R], {"attacks": ()}, "one name or more"),
        ([R, R, R, R], {"attacks": ("PGD", "PGD")}, "each one once"),
        ([R, R, R, R], {"labels": torch.tensor([-1])}, "class indices from 0"),
        ([R, R, R, R], {"labels": torch.tensor(3)}, "labels must be"),
        ([R, R, R, R], {"labels": torch.tensor([], dtype=torch.long)}, "labels must be"),
        ([R, R, R, R], {"labels": torch.tensor([0, 1])}, r"outcome must have the shape \(4, 2\)"),
        ([R, R, R, R], {"broken_by": torch.tensor([[-1]])}, r"broken_by must have the shape \(1,\)"),
        ([R, R, R, R], {"seconds": math.inf}, "seconds must be finite"),
        ([R, R, R, R], {"settings": {"seed": math.nan}}, "settings must hold plain JSON values"),
    ],
)
def test_fields_that_contradict_each_other_are_refused(outcome, fields, complaint):
    with pytest.raises(ValueError, match=complaint):
        one_image(outcome, **fields)


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"broken_by": torch.zeros(1)}, "broken_by must be integer"),
        ({"broken_by": [0]}, r"broken_by must be a torch\.Tensor"),
        ({"labels": torch.tensor([True])}, "labels must be integer"),
        ({"attacks": "PGD"}, "attacks must be a sequence of strings"),
        ({"warnings": "careful"}, "warnings must be a sequence of strings"),
        ({"settings": {"model": torch.nn.Identity()}}, "settings must hold plain JSON values"),
        ({"settings": {1: 2}}, "strings for names"),
        ({"eps": ("1/255",)}, "eps must be a number"),
        ({"eps": 8 / 255}, "eps must be a sequence of numbers"),
        ({"attacks": None}, "attacks must be a sequence of strings"),
    ],
)
def test_fields_of_another_type_are_refused(fields, complaint):
    with pytest.raises(TypeError, match=complaint):
        one_image([R, R, R, R], **fields)


def test_rounding_of_a_norm_is_no_contradiction():
    report = one_image([R, 0, C, C], smallest_norm=torch.tensor([2 / 255]) * (1 + 1e-5))
    assert report.broken_at.item() == 2 / 255


def test_an_example_outside_all_balls_is_no_contradiction():
    report = one_image([R, R, R, R], smallest_norm=torch.tensor([9 / 255]))
    assert report.broken_at.item() == math.inf


def test_a_report_does_not_change_with_the_tensors_it_was_made_of():
    labels = torch.arange(40) % 5
    report = random_report(labels=labels)
    before = report.to_json()
    labels.zero_()
    assert report.to_json() == before
    with pytest.raises(dataclasses.FrozenInstanceError):
        report.eps = (0.1,)


def test_reports_can_be_made_and_read_under_inference_mode():
    with torch.inference_mode():
        report = random_report(2)
    assert report.to_json() == random_report(2).to_json()
    assert report.per_class.keys() == {0, 1, 2, 3, 4}


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
    assert lines["clean"][1:] == [f"{100 * report.clean_accuracy:.1f}", "±", f"{100 * report.clean_standard_error:.1f}"]
    for label, eps in zip(("1/255", "2/255", "4/255", "8/255"), report.eps, strict=True):
        shares = (report.robust_accuracy, report.robust_standard_error, report.after_carrying)
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
        ({"attack": "PGD"}, "PGD."),
        ({"attack": "AutoAttack", "version": "plus"}, "AutoAttack plus."),
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
    assert text.startswith("RobustnessReport(256 images, Linf, clean_accuracy=0.")
    assert "8/255: " in text
    assert len(text) < 150


@pytest.mark.parametrize(("share", "count"), [(0, 10), (1, 10), (0.3, 10), (0.75, 1000), (1 / 3, 3)])
def test_the_interval_is_scipys(share, count):
    expected = binomtest(round(share * count), count).proportion_ci(0.95, "wilson")
    assert wilson_interval(share, count) == pytest.approx((expected.low, expected.high), abs=1e-6)


@given(st.integers(0, 300), st.integers(0, 300))
def test_the_p_value_is_scipys(first, second):
    expected = binomtest(first, first + second).pvalue if first + second else 1.0
    assert mcnemar(first, second) == pytest.approx(expected, rel=1e-9)


def test_many_images_that_tell_two_networks_apart_are_no_overflow():
    assert mcnemar(5000, 5000) == 1
    assert 0 < mcnemar(4800, 5200) < 1e-3


@given(st.lists(st.floats(1e-4, 1), min_size=1, max_size=5, unique=True))
def test_a_dict_by_eps_is_a_dict(radii):
    by_eps = PerEps({eps: str(eps) for eps in radii})
    assert [by_eps[eps] for eps in radii] == [str(eps) for eps in radii]
    assert dict(by_eps) == {eps: str(eps) for eps in radii}
