"""plot_salience: what is in the picture, where it is, and that it can be read."""

import itertools
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch

pytest.importorskip("matplotlib", reason="needs matplotlib: pip install 'sip-plugin[plots]'")

from matplotlib import rc_context
from matplotlib.image import imread

from sip_plugin.salience.compare import compare_salience
from sip_plugin.salience.plots import (
    CHANNEL_COLOURS,
    display_gain,
    plot_salience,
    render_map,
    render_overlay,
    render_perturbation,
)
from tests.conftest import ROOT

EPS = 8 / 255


@pytest.fixture
def batch():
    """Five images, maps and adversarial images, 3×12×10."""
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(5, 3, 12, 10, generator=generator) * 0.9 + 0.05
    maps = torch.rand(5, 3, 12, 10, generator=generator) < 0.3
    return images, maps, images + EPS * torch.randn(5, 3, 12, 10, generator=generator).sign()


def drawn(figure):
    """The pictures in the order in which they were added, in 8 bits, as (N, 3, H, W)."""
    return torch.stack([torch.from_numpy(np.asarray(image.get_array())) for image in figure.axes[0].images]).movedim(
        3, 1
    )


def shows(shown, picture):
    """Whether it is the picture, to the rounding of 8 bits."""
    return shown.shape == picture.shape and (shown - 255 * picture.float()).abs().max() < 0.51


GREY = 128  # half of 255, rounded to the even one


def all_texts(figure):
    """Titles and names along the sides, captions, the legend."""
    (axes,) = figure.axes
    legend = axes.get_legend()
    beneath = [] if legend is None else [legend.get_title(), *legend.get_texts()]
    every = [*axes.get_xticklabels(), *axes.get_yticklabels(), *axes.texts, *beneath]
    return [text for text in every if text.get_text()]


def texts(figure):
    """Their lines."""
    return [line for text in all_texts(figure) for line in text.get_text().split("\n")]


# --- pictures ---------------------------------------------------------------------------------------------------------


def test_a_map_is_black_where_nothing_is_salient_white_where_all_is_and_has_the_mixed_colours_between():
    maps = torch.tensor([[0, 0, 0], [1, 1, 1], [1, 0, 0], [0, 1, 1]]).view(4, 3, 1, 1) == 1
    red, green, blue = CHANNEL_COLOURS
    expected = torch.stack([torch.zeros(3), torch.ones(3), red, green + blue])
    assert torch.allclose(render_map(maps)[:, :, 0, 0], expected)
    pixels = torch.rand(2, 1, 3, 3) < 0.5
    assert torch.equal(render_map(pixels), pixels.float().expand(2, 3, 3, 3))
    assert torch.allclose(render_map(pixels.expand(2, 3, 3, 3)), render_map(pixels))


PROTANOPIA = [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
DEUTERANOPIA = [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]


def smallest_difference(colours, vision):
    """The smallest CIE76 difference of two of the eight mixtures, seen with ``vision`` (Machado et al. 2009)."""
    mixtures = np.array(list(itertools.product((0, 1), repeat=3))) @ np.array(colours)
    linear = np.where(mixtures <= 0.04045, mixtures / 12.92, ((mixtures + 0.055) / 1.055) ** 2.4)
    xyz_of_rgb = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = np.clip(linear @ np.array(vision).T, 0, 1) @ xyz_of_rgb.T / xyz_of_rgb.sum(1)
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    lab = np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], 1)
    return min(np.linalg.norm(a - b) for a, b in itertools.combinations(lab, 2))


@pytest.mark.parametrize("vision", [np.eye(3), PROTANOPIA, DEUTERANOPIA], ids=["normal", "protanopia", "deuteranopia"])
def test_the_eight_colours_of_a_map_are_told_apart_with_every_sight(vision):
    assert torch.allclose(CHANNEL_COLOURS.sum(0), torch.ones(3))
    assert smallest_difference(CHANNEL_COLOURS.tolist(), vision) > 28  # pure red, green and blue: 8 at worst


def test_an_overlay_is_grey_where_nothing_is_salient_and_coloured_where_something_is(batch):
    images, maps, _ = batch
    picture = render_overlay(images, maps)
    salient = maps.any(1, keepdim=True).expand_as(picture)
    spread = (picture.amax(1, keepdim=True) - picture.amin(1, keepdim=True)).expand_as(picture)
    assert spread[~salient].max() < 1e-6
    assert spread[salient].min() > 0.1
    assert 0 <= picture.min() < picture.max() <= 1


def test_perturbations_are_enlarged_around_grey():
    change = torch.tensor([0.0, 0.03, -0.03, 0.3]).view(1, 1, 2, 2)
    assert torch.allclose(render_perturbation(change, 10)[0, 0], torch.tensor([[0.5, 0.8], [0.2, 1.0]]))


@pytest.mark.parametrize(
    ("changes", "factor"),
    [
        ([torch.full((10,), EPS)], 15),
        ([torch.full((10,), -0.2)], 2),
        ([torch.full((10,), 0.25)], 2),
        ([torch.full((10,), 0.125), torch.full((10,), 0.01)], 4),
        ([torch.ones(10)], 0.5),
        ([torch.zeros(10)], 1),
        ([torch.cat([torch.full((1,), 0.9), torch.full((199,), 0.05), torch.zeros(5000)])], 10),
    ],
)
def test_the_factor_keeps_nearly_all_that_was_changed_between_black_and_white(changes, factor):
    assert display_gain(changes) == factor


# --- the figure -------------------------------------------------------------------------------------------------------


def test_a_row_holds_image_map_overlay_perturbation_and_projected_perturbation(batch):
    images, maps, adversarial = batch
    figure = plot_salience(images, maps, adversarial=adversarial)
    shown = drawn(figure).unflatten(0, (5, 5))
    assert shows(shown[:, 0], images)
    assert shows(shown[:, 1], render_map(maps))
    assert shows(shown[:, 2], render_overlay(images, maps))
    assert shows(shown[:, 3], 0.5 + 15 * (adversarial - images))
    assert (shown[:, 4][maps] == GREY).all()  # nothing is left of it on salient elements
    assert torch.equal(shown[:, 4][~maps], shown[:, 3][~maps])
    ours = "image", "salience map", "overlay", "perturbation ×15", "projected perturbation", "×15"
    assert tuple(text for text in texts(figure) if text in ours) == ours
    assert f"{100 * maps[0].float().mean():.0f} % salient" in texts(figure)


def test_images_may_be_columns(batch):
    images, maps, _ = batch
    rows, columns = (plot_salience(images, maps, images_as=side) for side in ("rows", "columns"))
    assert torch.equal(drawn(columns).unflatten(0, (3, 5)).transpose(0, 1), drawn(rows).unflatten(0, (5, 3)))
    first, second, *_, below = (picture.get_window_extent() for picture in columns.axes[0].images[:6])
    assert first.x1 < second.x0
    assert first.y0 == second.y0 > below.y1


def test_what_a_wrapped_attack_found_is_shown_instead_of_the_projection(batch):
    images, maps, adversarial = batch
    wrapped = torch.where(maps, images, images - EPS)
    shown = drawn(plot_salience(images, maps, adversarial=adversarial, projected=wrapped)).unflatten(0, (5, 5))
    assert shows(shown[:, 4], 0.5 + 15 * (wrapped - images))
    alone = drawn(plot_salience(images, maps, projected=wrapped, show=("projected",)))
    assert torch.equal(alone, shown[:, 4])


def test_two_sources_are_side_by_side_with_their_overlap_beneath(batch):
    images, maps, adversarial = batch
    human = torch.zeros(12, 10)
    human[3:9, 2:8] = 1
    figure = plot_salience(images, {"machine": maps, "human": human}, show=("image", "map"))
    shown = drawn(figure).unflatten(0, (5, 3))
    assert shows(shown[:, 1], render_map(maps))
    assert shows(shown[:, 2], human.expand(5, 3, 12, 10))
    found = compare_salience(maps, human)
    for iou, chance in zip(found.iou, found.expected_iou, strict=True):
        assert f"IoU {iou:.2f}" in texts(figure)
        assert f"({chance:.2f} by chance)" in texts(figure)
    whole = plot_salience(images, {"machine": maps, "human": human}, adversarial=adversarial)
    projected = drawn(whole).unflatten(0, (5, 8))[:, 6:]
    assert (projected[:, 0][maps] == GREY).all()
    assert (projected[:, 1][human.expand(5, 3, 12, 10) == 1] == GREY).all()
    assert (projected[:, 1][human.expand(5, 3, 12, 10) == 0] != GREY).all()


def test_the_first_images_alone_are_drawn_and_asked_for(batch):
    images, maps, adversarial = batch
    asked = []

    def mask_fn(x, labels):
        asked.append((x, labels))
        return maps[: len(x)]

    figure = plot_salience(
        images,
        mask_fn,
        torch.arange(5),
        adversarial=adversarial,
        names=list("abcde"),
        max_images=2,
        show=("image", "map"),
    )
    assert shows(drawn(figure).unflatten(0, (2, 2))[:, 1], render_map(maps[:2]))
    ((x, labels),) = asked
    assert torch.equal(x, images[:2])
    assert labels.tolist() == [0, 1]
    assert {"a", "b"} <= set(texts(figure))
    assert "c" not in texts(figure)


def test_grey_images_and_maps_of_pixels_have_no_legend_and_maps_of_elements_have_one(batch):
    images, maps, _ = batch
    assert "salient in:" in texts(plot_salience(images, maps))
    assert "salient in:" not in texts(plot_salience(images, maps[:, :1]))
    assert "salient in:" not in texts(plot_salience(images, maps, show=("overlay",)))
    grey = plot_salience(images[:, :1], maps[:, :1])
    assert "salient in:" not in texts(grey)
    assert shows(drawn(grey)[0], images[0, :1].expand(3, 12, 10))


def test_the_legend_names_every_colour_of_a_map_of_elements(batch):
    images, maps, _ = batch
    figure = plot_salience(images, maps, show=("map",))
    named = texts(figure)[texts(figure).index("salient in:") + 1 :]
    assert named == ["red", "green", "blue", "red+green", "red+blue", "green+blue", "all three"]
    swatches = [patch.get_facecolor()[:3] for patch in figure.axes[0].get_legend().get_patches()]
    red, green, blue = CHANNEL_COLOURS.tolist()
    for swatch, parts in zip(
        swatches,
        [[red], [green], [blue], [red, green], [red, blue], [green, blue], [red, green, blue]],
        strict=True,
    ):
        assert swatch == pytest.approx(np.sum(parts, 0), abs=1e-6)


def test_a_figure_of_strips_without_a_legend_has_room_for_its_title():
    figure = plot_salience(torch.rand(1, 3, 200, 4), torch.ones(200, 4), show=("map",))
    assert figure.get_size_inches()[0] * figure.dpi > 150
    box = figure.axes[0].images[0].get_window_extent()
    assert box.width / box.height == pytest.approx(4 / 200)  # and its pixels are square all the same


def test_a_soft_map_is_drawn_in_its_strength(batch):
    images, _, adversarial = batch
    soft = torch.linspace(0, 1, 120).view(1, 1, 12, 10)
    figure = plot_salience(images, soft, adversarial=adversarial)
    shown = drawn(figure).unflatten(0, (5, 5))
    assert shows(shown[:, 1], soft.expand(5, 3, 12, 10))
    assert shows(shown[:, 4], 0.5 + 15 * (adversarial - images) * (1 - soft))
    assert "mean 0.50" in texts(figure)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_any_float_type_and_layout_can_be_drawn_also_in_inference_mode(dtype, batch):
    images, maps, adversarial = (part.contiguous(memory_format=torch.channels_last) for part in batch)
    with torch.inference_mode():
        figure = plot_salience(images.to(dtype), maps, adversarial=adversarial.to(dtype))
    assert (drawn(figure)[0] / 255 - images[0]).abs().max() < 0.01


# --- legible ----------------------------------------------------------------------------------------------------------

LONG = [
    "Black_footed_Albatross",
    "002.Laysan Albatross",
    "cat",
    "a_class_whose_name_goes_on_and_on_and_never_ends",
    "ship",
]
LAYOUTS = {
    "one image": {"count": 1, "names": None},
    "rows": {"count": 5, "names": LONG},
    "columns": {"count": 5, "names": LONG, "images_as": "columns"},
    "one column": {"count": 1, "names": LONG[:1], "images_as": "columns"},
    "two sources": {"count": 5, "names": LONG, "sources": ("machine (Madry teacher)", "human annotators")},
    "two sources in columns": {"count": 5, "names": LONG, "sources": ("machine", "human"), "images_as": "columns"},
    "many": {"count": 14, "names": ["automobile"] * 14, "max_images": 14},
    "grey 8×8": {"count": 5, "names": list("01234"), "size": (1, 8, 8)},
    "224×224": {"count": 1, "names": LONG[:1], "size": (3, 224, 224)},
    "wide": {"count": 2, "names": LONG[:2], "size": (3, 10, 40)},
    "tall": {"count": 2, "names": LONG[:2], "size": (3, 100, 30)},
    "a strip": {"count": 1, "names": None, "size": (3, 200, 4)},
    "strips": {"count": 3, "names": LONG[:3], "size": (3, 32, 4), "sources": ("machine", "human")},
    "strips in columns": {"count": 3, "names": LONG[:3], "size": (3, 32, 4), "images_as": "columns"},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_no_text_leaves_the_figure_or_lies_on_a_picture_or_another_text(layout):
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    options = dict(LAYOUTS[layout])
    count, size, sources = options.pop("count"), options.pop("size", (3, 32, 32)), options.pop("sources", ("",))
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(count, *size, generator=generator)
    maps = {name: torch.rand(count, *size, generator=generator) < 0.3 for name in sources}
    adversarial = (images + EPS).clamp(0, 1)
    figure = plot_salience(images, maps if len(maps) > 1 else maps[""], adversarial=adversarial, **options)
    FigureCanvasAgg(figure).draw()
    (page,) = figure.axes
    boxes = [(text.get_text(), text.get_window_extent()) for text in all_texts(figure)]
    cells = [("a picture", picture.get_window_extent()) for picture in page.images]
    everything = boxes + cells
    for what, box in everything:
        assert box.x0 >= 0, what
        assert box.y0 >= 0, what
        assert box.x1 <= figure.bbox.x1, what
        assert box.y1 <= figure.bbox.y1, what
    for (one, first), (other, second) in itertools.combinations(everything, 2):
        across = min(first.x1, second.x1) - max(first.x0, second.x0)
        along = min(first.y1, second.y1) - max(first.y0, second.y0)
        assert across <= 1 or along <= 1, (one, other)
    assert 200 < figure.bbox.width < 2400


def test_every_pixel_of_a_small_image_is_a_square_of_equal_size(tmp_path):
    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    plot_salience(images, images > 0.5, path=tmp_path / "picture.png")
    picture = imread(tmp_path / "picture.png")[..., :3]
    figure = plot_salience(images, images > 0.5)
    box = figure.axes[0].images[0].get_window_extent()
    size = box.width / 32
    assert size == pytest.approx(round(size))
    left, top = round(box.x0), picture.shape[0] - round(box.y1)
    middle = (np.arange(32) * size + size / 2).astype(int)
    pixels = torch.from_numpy(picture[top + middle][:, left + middle]).movedim(2, 0)
    assert shows(255 * pixels, images[0])


def test_the_users_style_does_not_move_or_colour_the_pictures(batch, tmp_path):
    plot_salience(*batch[:2], path=tmp_path / "plain.png")
    style = {"image.cmap": "jet", "image.interpolation": "bicubic", "figure.constrained_layout.use": True}
    with rc_context(style | {"axes.facecolor": "blue", "savefig.dpi": 30}):
        plot_salience(*batch[:2], path=tmp_path / "styled.png")
    plain, styled = (imread(tmp_path / f"{name}.png") for name in ("plain", "styled"))
    assert np.array_equal(plain, styled)
    assert (plain[0, 0] == 1).all()  # on white


# --- files and imports ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("suffix", "start"), [("png", b"\x89PNG"), ("pdf", b"%PDF"), ("svg", b"<?xml")])
def test_the_figure_is_written_in_the_format_of_the_files_name(suffix, start, batch, tmp_path):
    path = tmp_path / "folder" / f"maps.{suffix}"
    plot_salience(*batch[:2], path=path)
    assert path.read_bytes().startswith(start)
    assert list(path.parent.iterdir()) == [path]


def test_a_figure_that_cannot_be_written_leaves_nothing_behind(batch, tmp_path):
    path = tmp_path / "maps.nonsense"
    path.write_text("before")
    with pytest.raises(ValueError, match="nonsense"):
        plot_salience(*batch[:2], path=path)
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_matplotlib_is_imported_only_when_something_is_drawn_and_pyplot_never(tmp_path):
    code = """
import sys, torch
import sip_plugin.salience.compare
from sip_plugin.salience.plots import plot_salience
assert not any(name.startswith("matplotlib") for name in sys.modules)
plot_salience(torch.rand(1, 3, 4, 4), torch.ones(4, 4), path=sys.argv[1])
assert "matplotlib.figure" in sys.modules and "matplotlib.pyplot" not in sys.modules
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "maps.png")], check=True, env=environment)


def test_without_matplotlib_the_error_names_the_extra(batch, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"sip-plugin\[plots\]"):
        plot_salience(*batch[:2])


# --- errors -----------------------------------------------------------------------------------------------------------

X = torch.full((2, 3, 4, 4), 0.5)
M = torch.ones(2, 3, 4, 4, dtype=torch.bool)


@pytest.mark.parametrize(
    ("arguments", "options", "says"),
    [
        ((X * 255, M), {}, r"images must lie in \[0, 1\]"),
        ((X[0], M), {}, "four dimensions"),
        ((X, M[0]), {}, "ambiguous"),
        ((X, M[..., :2]), {}, "broadcastable"),
        ((X, M * 2), {}, "0 and 1"),
        ((X, None), {}, "No salience map"),
        ((X, M), {"adversarial": X * 3}, r"adversarial must lie in \[0, 1\]"),
        ((X, M), {"show": ("image", "perturbation")}, "show must be one of 'image', 'map', 'overlay'"),
        ((X, M), {"show": ("picture",)}, "show must be one of 'image', 'map', 'overlay'"),
        ((X, M), {"images_as": "grid"}, "'rows', 'columns'"),
    ],
)
def test_what_cannot_be_drawn_is_a_clear_error(arguments, options, says):
    with pytest.raises(ValueError, match=says):
        plot_salience(*arguments, **options)


@pytest.mark.parametrize("name", ["x", "x.gif2"])
def test_a_file_name_without_a_known_format_is_an_error_that_says_which_there_are(name, batch, tmp_path):
    images, maps, _ = batch
    with pytest.raises(ValueError, match=r"supported formats.*pdf.*png.*svg"):
        plot_salience(images, maps, path=tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_a_figure_shows_in_a_notebook_and_a_comparison_as_a_table(images):
    figure = plot_salience(images, images < 0.5)
    assert figure._repr_png_().startswith(b"\x89PNG")
    assert pickle.loads(pickle.dumps(figure))._repr_png_().startswith(b"\x89PNG")
    found = compare_salience(images < 0.5, images < 0.4, names=("low", "lower"))
    assert str(found) in found._repr_markdown_()
    assert "tensor" not in repr(found)
