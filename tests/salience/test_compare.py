"""compare_salience: overlap, shares and mass, and what chance gives."""

import itertools
import json

import numpy as np
import pytest
import torch
from scipy.stats import hypergeom

from sip_plugin.salience import GradientSalience
from sip_plugin.salience.compare import SalienceComparison, compare_salience, expected_iou


def rows(*maps):
    """Maps ``(N, 1, 1, W)`` from strings of 0 and 1."""
    return torch.tensor([[int(mark) for mark in row] for row in maps])[:, None, None] == 1


def test_each_measure_equals_what_a_hand_counts():
    scores = torch.tensor([[5.0, 1.0, 3.0, 1.0], [2.0, 0.0, 0.0, 2.0]])[:, None, None]
    found = compare_salience(rows("1100", "1111"), rows("0110", "0001"), scores=scores)
    assert len(found) == 2
    assert found.share_first.tolist() == [0.5, 1.0]
    assert found.share_second.tolist() == [0.5, 0.25]
    assert found.iou.tolist() == [1 / 3, 0.25]
    assert found.overlap_first.tolist() == [0.5, 0.25]
    assert found.overlap_second.tolist() == [0.5, 1.0]
    assert found.mass_first.tolist() == [0.6, 1.0]
    assert found.mass_second.tolist() == [0.4, 0.5]


def test_two_empty_maps_agree_and_an_empty_map_has_no_share_in_the_other():
    found = compare_salience(rows("0000", "0000"), rows("0000", "0110"))
    assert found.iou.tolist() == [1.0, 0.0]
    assert found.expected_iou.tolist() == [1.0, 0.0]
    assert found.overlap_first.isnan().all()
    assert found.overlap_second[0].isnan()
    assert found.overlap_second[1] == 0.0


def test_what_is_undefined_is_counted_and_left_out_of_the_means():
    scores = torch.tensor([[0.0, 0.0], [1.0, 3.0], [0.0, 0.0]])[:, None, None]
    found = compare_salience(rows("00", "01", "11"), rows("10", "10", "01"), scores=scores)
    summary = found.to_dict()
    assert summary["mass_first"] == {"mean": 0.75, "std": 0.0, "min": 0.75, "median": 0.75, "max": 0.75, "undefined": 2}
    assert summary["overlap_first"]["undefined"] == 1
    assert summary["overlap_first"]["mean"] == 0.25
    assert summary["iou"]["undefined"] == 0
    assert "(undefined for 2)" in str(found)
    nothing = compare_salience(rows("00"), rows("00"))
    assert nothing.to_dict()["overlap_first"]["mean"] is None
    assert "undefined for every image" in str(nothing)
    json.dumps(nothing.to_dict(), allow_nan=False)


def test_swapping_the_sources_swaps_their_measures():
    generator = torch.Generator().manual_seed(0)
    one, two = (torch.rand(9, 3, 5, 4, generator=generator) < share for share in (0.2, 0.6))
    scores = torch.rand(9, 3, 5, 4, generator=generator)
    there, back = compare_salience(one, two, scores=scores), compare_salience(two, one, scores=scores)
    for measure in ("share", "overlap", "mass"):
        assert torch.equal(getattr(there, f"{measure}_first"), getattr(back, f"{measure}_second"))
    assert torch.equal(there.iou, back.iou)
    assert torch.allclose(there.expected_iou, back.expected_iou, atol=1e-14)


def test_a_map_of_pixels_stands_for_every_channel():
    generator = torch.Generator().manual_seed(1)
    pixels = torch.rand(4, 1, 6, 5, generator=generator) < 0.4
    elements = torch.rand(4, 3, 6, 5, generator=generator) < 0.3
    one = compare_salience(elements, pixels)
    other = compare_salience(elements, pixels.expand(4, 3, 6, 5))
    for name in ("share_second", "iou", "expected_iou", "overlap_first", "overlap_second"):
        assert torch.equal(getattr(one, name), getattr(other, name))
    flat = compare_salience(elements, pixels[0, 0])
    assert torch.equal(flat.iou[:1], one.iou[:1])
    assert len(flat) == 4


def test_maps_may_be_arrays_numbers_or_functions_of_the_images():
    images = torch.rand(5, 3, 4, 4, generator=torch.Generator().manual_seed(2))
    labels = torch.arange(5)
    bright, by_label = images > 0.5, (images > labels.view(-1, 1, 1, 1) / 5)
    expected = compare_salience(bright, by_label)
    seen = compare_salience(
        lambda x: (x > 0.5).numpy(), lambda x, labels: (x > labels.view(-1, 1, 1, 1) / 5).float(), images, labels
    )
    assert torch.equal(seen.iou, expected.iou)
    assert torch.equal(compare_salience(bright.numpy(), by_label.numpy().astype(np.uint8)).iou, expected.iou)
    masses = compare_salience(bright, by_label, images, scores=lambda x: x).mass_first
    assert torch.allclose(masses, ((images * bright).sum((1, 2, 3)) / images.sum((1, 2, 3))).double(), atol=1e-6)


def test_with_images_every_measure_is_over_the_images_own_elements():
    images = torch.rand(6, 3, 4, 4)
    found = compare_salience(torch.eye(4), torch.ones(1, 1, 4, 4), images)
    assert found.share_first.tolist() == [0.25] * 6
    assert found.iou.tolist() == [0.25] * 6


def test_a_gradients_map_holds_just_the_mass_that_was_asked_for(network, images):
    for mass in (0.5, 0.8):
        mask_fn = GradientSalience(network, mass)
        magnitude = mask_fn.magnitude(images)
        found = compare_salience(mask_fn, torch.ones(16, 16), images, scores=mask_fn.magnitude)
        assert (found.mass_first >= mass).all()
        assert (found.mass_first < mass + (magnitude.amax((1, 2, 3)) / magnitude.sum((1, 2, 3))).double()).all()
        assert (found.mass_second == 1).all()


def test_it_works_in_inference_mode_and_leaves_images_alone(network, images):
    expected = compare_salience(GradientSalience(network), images > 0.5, images)
    before = images.clone()
    with torch.inference_mode():
        found = compare_salience(GradientSalience(network), images > 0.5, images)
    assert torch.equal(found.iou, expected.iou)
    assert torch.equal(images, before)


# --- chance -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("elements", [1, 2, 5, 6])
def test_chance_is_the_mean_over_all_pairs_of_maps(elements):
    places = range(elements)
    for a, b in itertools.product(range(elements + 1), repeat=2):
        ious = [
            len(one & two) / len(one | two) if one | two else 1.0
            for one in map(set, itertools.combinations(places, a))
            for two in map(set, itertools.combinations(places, b))
        ]
        found = expected_iou(torch.tensor([a]), torch.tensor([b]), elements)
        assert found.item() == pytest.approx(np.mean(ious), abs=1e-12)


@pytest.mark.parametrize("elements", [64, 3072, 150528])
def test_chance_equals_the_sum_over_scipys_hypergeometric_distribution(elements):
    shares = (0, 1 / elements, 0.01, 0.18, 0.5, 0.97, 1)
    sizes = torch.tensor([[round(share * elements) for share in pair] for pair in itertools.product(shares, repeat=2)])
    found = expected_iou(sizes[:, 0], sizes[:, 1], elements)
    for (a, b), value in zip(sizes.tolist(), found.tolist(), strict=True):
        both = np.arange(max(0, a + b - elements), min(a, b) + 1)
        either = a + b - both
        iou = np.divide(both, either, out=np.ones(len(both)), where=either > 0)
        assert value == pytest.approx((hypergeom(elements, a, b).pmf(both) * iou).sum(), rel=1e-7, abs=1e-12)


def test_random_maps_have_the_overlap_of_chance():
    generator = torch.Generator().manual_seed(0)
    one, two = (torch.rand(400, 3, 8, 8, generator=generator) < share for share in (0.15, 0.3))
    found = compare_salience(one, two)
    error = (found.iou - found.expected_iou).std() / 400**0.5
    assert (found.iou.mean() - found.expected_iou.mean()).abs() < 4 * error
    assert error < 0.002


# --- data sets --------------------------------------------------------------------------------------------------------


def test_batches_join_to_the_comparison_of_the_whole():
    generator = torch.Generator().manual_seed(3)
    one, two = (torch.rand(10, 3, 5, 5, generator=generator) < 0.3 for _ in range(2))
    scores = torch.rand(10, 3, 5, 5, generator=generator)
    whole = compare_salience(one, two, scores=scores, names=("machine", "human"))
    parts = [
        compare_salience(one[part], two[part], scores=scores[part], names=("machine", "human"))
        for part in torch.arange(10).split(4)
    ]
    joined = SalienceComparison.join(iter(parts))
    assert len(joined) == 10
    assert joined.to_dict() == whole.to_dict()
    assert str(joined) == str(whole)


def test_only_comparisons_of_one_kind_can_be_joined():
    one, other = (compare_salience(rows("10"), rows("01"), names=("machine", name)) for name in ("human", "other"))
    with pytest.raises(ValueError, match="one pair"):
        SalienceComparison.join([one, other])


def test_the_table_names_the_sources_and_has_a_line_for_each_measure():
    generator = torch.Generator().manual_seed(3)
    one, two = (torch.rand(10, 1, 5, 5, generator=generator) < 0.3 for _ in range(2))
    found = compare_salience(one, two, names=("machine", "human"))
    head, *lines = str(found).splitlines()
    assert head.startswith("10 images")
    assert [line.split("  ")[0] for line in lines] == [
        "share of machine",
        "share of human",
        "iou",
        "expected_iou",
        "overlap of machine",
        "overlap of human",
    ]
    iou = found.to_dict()["iou"]
    assert f"{iou['mean']:.3f} ± {iou['std']:.3f}" in lines[2]
    assert iou["mean"] == pytest.approx(found.iou.mean().item())
    assert iou["median"] == pytest.approx(np.median(found.iou.numpy()))
    with_mass = compare_salience(one, two, scores=torch.rand(10, 1, 5, 5), names=("machine", "human"))
    assert "mass of human" in str(with_mass)


# --- errors -----------------------------------------------------------------------------------------------------------

MAP = torch.ones(2, 3, 4, 4, dtype=torch.bool)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((MAP, MAP / 2), "map is soft.*Binarise"),
        ((MAP[0], MAP), "ambiguous"),
        ((MAP[0], MAP[0]), "ambiguous"),
        ((MAP, MAP[..., :3], torch.rand(2, 3, 4, 4)), "broadcastable"),
        ((MAP, MAP, torch.rand(3, 3, 4, 4)), "broadcastable"),
        ((lambda x: x > 0.5, MAP), "is a function, so images are needed"),
        ((MAP, MAP, torch.rand(2, 3, 4, 4) * 255), r"\[0, 1\]"),
    ],
)
def test_sources_that_cannot_be_compared_are_a_clear_error(arguments, says):
    with pytest.raises(ValueError, match=says):
        compare_salience(*arguments)


@pytest.mark.parametrize(
    "scores",
    [
        -torch.ones(2, 3, 4, 4),
        torch.tensor([1.0, float("nan")]).view(2, 1, 1, 1),
        torch.tensor([float("inf"), 1.0]).view(2, 1, 1, 1),
        torch.ones(3, 4, 4),
    ],
)
def test_scores_that_are_no_scores_are_a_clear_error(scores):
    with pytest.raises(ValueError, match="finite and not negative"):
        compare_salience(MAP, MAP, torch.rand(2, 3, 4, 4), scores=scores)


class OneByOne:
    """As a ``MaskStore`` and a ``HumanMasks`` are: a length and an index."""

    def __init__(self, maps):
        self.maps = maps

    def __len__(self):
        return len(self.maps)

    def __getitem__(self, index):
        return self.maps[index]


def test_maps_may_come_one_by_one():
    generator = torch.Generator().manual_seed(3)
    images = torch.rand(4, 3, 5, 5, generator=generator)
    elements, pixels = images > 0.5, torch.rand(4, 1, 5, 5, generator=generator) > 0.5
    expected = compare_salience(elements, pixels)
    for one, other in (
        (OneByOne(elements), OneByOne(pixels)),
        (list(elements), pixels),
        (lambda x: x > 0.5, list(pixels)),
    ):
        assert torch.equal(compare_salience(one, other, images).iou, expected.iou)
    assert torch.equal(compare_salience(OneByOne(elements), list(pixels)).iou, expected.iou)
    with pytest.raises(ValueError, match="maps, and there are"):  # those of a whole data set, and images of a batch
        compare_salience(OneByOne(elements), elements[:2], images[:2])
