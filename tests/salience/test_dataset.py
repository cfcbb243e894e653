"""SalientDataset: whatever the transform, each pixel's map stays with the pixel.

The images carry their own coordinates: what arrives somewhere tells where it came from, and the map must have come from
there.
"""

import math
import pickle
import random
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from sip_plugin import AdversarialTrainer
from sip_plugin.salience import MaskStore, SalientDataset

v2 = pytest.importorskip("torchvision.transforms.v2", reason="transforms need torchvision")
v1, tv_tensors = pytest.importorskip("torchvision.transforms"), pytest.importorskip("torchvision.tv_tensors")
F, InterpolationMode = v2.functional, v2.InterpolationMode

NEAREST = {"interpolation": InterpolationMode.NEAREST}
HEIGHT, WIDTH = 26, 20
INSIDE = 201  # in the third channel; what a transform brings in from outside has other values there


def carrying_coordinates(height=HEIGHT, width=WIDTH):
    """An image of bytes (3, H, W): row, column, and that it is inside."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([rows, columns, torch.full_like(rows, INSIDE)]).to(torch.uint8)


IMAGE = carrying_coordinates()
_generator = torch.Generator().manual_seed(0)
MAPS = {
    "per pixel": torch.rand(1, HEIGHT, WIDTH, generator=_generator) < 0.5,
    "per element": torch.rand(3, HEIGHT, WIDTH, generator=_generator) < 0.5,
}
FORMS = {
    "float": lambda image: image / 255,
    "uint8": lambda image: image,
    "pil": F.to_pil_image,
}


class One(Dataset):
    """One image, as often as one likes."""

    def __init__(self, image, length=1):
        self.image, self.length = image, length

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        return self.image, index


def transformed(transform, salience, form="float", draws=1):
    data = SalientDataset(One(FORMS[form](IMAGE)), [salience], transform)
    for seed in range(draws):
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed)
        image, _, moved = data[0]
        assert image.is_floating_point()
        assert moved.dtype == torch.bool
        assert moved.shape == (len(salience), *image.shape[1:])
        assert type(image) is type(moved) is torch.Tensor
        yield image, moved


def expected(image, salience):
    """The map that an image which carries coordinates must have: its elements' own, and none outside."""
    rows, columns, inside = image.mul(255).round().long()
    there = inside == INSIDE
    return torch.where(there, salience[:, rows.where(there, 0), columns.where(there, 0)], False)


GEOMETRIC = {
    "RandomCrop": lambda: v2.RandomCrop((20, 15)),
    "RandomCrop, padded": lambda: v2.RandomCrop((HEIGHT, WIDTH), padding=4),
    "RandomCrop, padded with grey": lambda: v2.RandomCrop((HEIGHT, WIDTH), padding=4, fill=1),
    "RandomCrop, padded with colours": lambda: v2.RandomCrop(
        20, padding=4, fill={tv_tensors.Image: (0.4, 0.5, 0.6), tv_tensors.Mask: 0}
    ),
    "RandomCrop, reflected": lambda: v2.RandomCrop((HEIGHT, WIDTH), padding=4, padding_mode="reflect"),
    "RandomCrop, edges": lambda: v2.RandomCrop((HEIGHT, WIDTH), padding=4, padding_mode="edge"),
    "RandomCrop, larger": lambda: v2.RandomCrop(40, pad_if_needed=True),
    "RandomHorizontalFlip": lambda: v2.RandomHorizontalFlip(),
    "RandomVerticalFlip": lambda: v2.RandomVerticalFlip(),
    "Resize, smaller": lambda: v2.Resize((11, 9), **NEAREST),
    "Resize, larger": lambda: v2.Resize((50, 61), **NEAREST),
    "Resize, exact": lambda: v2.Resize((13, 10), **NEAREST),
    "CenterCrop": lambda: v2.CenterCrop(12),
    "CenterCrop, larger": lambda: v2.CenterCrop(40),
    "Pad": lambda: v2.Pad((1, 2, 3, 4), fill=1),
    "Pad, symmetric": lambda: v2.Pad(5, padding_mode="symmetric"),
    "RandomResizedCrop": lambda: v2.RandomResizedCrop((24, 24), antialias=False, **NEAREST),
    "RandomRotation": lambda: v2.RandomRotation(180, **NEAREST),
    "RandomRotation, filled": lambda: v2.RandomRotation(45, fill=1, **NEAREST),
    "RandomRotation, filled with colours": lambda: v2.RandomRotation(45, fill=(0.1, 0.2, 1.0), **NEAREST),
    "RandomRotation, expanded": lambda: v2.RandomRotation(45, expand=True, **NEAREST),
    "RandomAffine": lambda: v2.RandomAffine(30, (0.2, 0.2), (0.6, 1.5), 20, fill=0.5, **NEAREST),
    "RandomPerspective": lambda: v2.RandomPerspective(0.6, p=0.9, fill=1, **NEAREST),
    "ElasticTransform": lambda: v2.ElasticTransform(80.0, 3.0, fill=1, **NEAREST),
    "RandomZoomOut": lambda: v2.RandomZoomOut(fill=1, p=0.9),
    "ScaleJitter": lambda: v2.ScaleJitter((30, 30), **NEAREST),
    "RandomShortestSize": lambda: v2.RandomShortestSize([10, 20, 33], **NEAREST),
    "RandomResize": lambda: v2.RandomResize(10, 40, **NEAREST),
    "Compose": lambda: v2.Compose(
        [v2.RandomResizedCrop(22, **NEAREST), v2.RandomHorizontalFlip(), v2.RandomRotation(20, fill=1, **NEAREST)]
    ),
    "Compose in Compose": lambda: v2.Compose([v2.Compose([v2.RandomVerticalFlip()]), v2.RandomCrop(18, padding=3)]),
    "RandomApply": lambda: v2.RandomApply([v2.RandomAffine(90, **NEAREST)], p=0.7),
    "RandomApply of modules": lambda: v2.RandomApply(nn.ModuleList([v2.RandomAffine(90, **NEAREST)]), p=0.7),
    "RandomChoice": lambda: v2.RandomChoice([v2.RandomHorizontalFlip(1), v2.RandomVerticalFlip(1), v2.Identity()]),
    "RandomOrder": lambda: v2.RandomOrder([v2.RandomCrop(20, padding=4), v2.RandomRotation(30, **NEAREST)]),
    "tensors and types": lambda: v2.Compose(
        [v2.ToImage(), v2.RandomHorizontalFlip(), v2.ToDtype(torch.float32, scale=True), v2.RandomCrop(20, padding=4)]
    ),
}


@pytest.mark.parametrize("kind", MAPS)
@pytest.mark.parametrize("name", GEOMETRIC)
def test_each_element_of_the_map_stays_with_its_element_of_the_image(name, kind):
    shares = []
    for image, moved in transformed(GEOMETRIC[name](), MAPS[kind], draws=25):
        assert torch.equal(moved, expected(image, MAPS[kind]))
        shares.append(moved.float().mean().item())
    assert max(shares) > 0.1
    assert min(shares) < 0.9


@pytest.mark.parametrize("form", ["uint8", "pil"])
@pytest.mark.parametrize(
    "name",
    ["RandomCrop, padded", "RandomRotation", "RandomAffine", "Compose", "RandomPerspective", "tensors and types"],
)
def test_that_holds_for_images_of_bytes_and_of_pil_too(name, form):
    for image, moved in transformed(GEOMETRIC[name](), MAPS["per pixel"], form, draws=10):
        assert torch.equal(moved, expected(image, MAPS["per pixel"]))


def test_each_image_is_moved_differently():
    seen = {tuple(image[:, 0, 0].tolist()) for image, _ in transformed(v2.RandomCrop(10), MAPS["per pixel"], draws=40)}
    assert len(seen) > 20


SMOOTH = {
    "Resize": lambda: v2.Resize((39, 14)),
    "Resize, no antialias": lambda: v2.Resize((9, 31), antialias=False),
    "Resize, bicubic": lambda: v2.Resize((52, 40), interpolation=InterpolationMode.BICUBIC),
    "RandomResizedCrop": lambda: v2.RandomResizedCrop(24, scale=(0.3, 1)),
    "RandomRotation": lambda: v2.RandomRotation(180, InterpolationMode.BILINEAR),
    "RandomAffine": lambda: v2.RandomAffine(30, (0.2, 0.2), (0.7, 1.5), 10, InterpolationMode.BILINEAR),
    "RandomPerspective": lambda: v2.RandomPerspective(0.4, p=1),
    "ElasticTransform": lambda: v2.ElasticTransform(20.0, 2.0),
}


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("name", SMOOTH)
def test_where_the_image_is_interpolated_the_map_is_binary_and_within_a_pixel(name, axis):
    middle = (HEIGHT, WIDTH)[axis] // 2
    salience = (IMAGE[axis] >= middle)[None]  # one half of the image
    compared = 0
    for image, moved in transformed(SMOOTH[name](), salience, draws=20):
        assert moved.dtype == torch.bool
        place, inside = image[axis] * 255, (image[2] * 255 - INSIDE).abs() < 0.5
        scale = max(1.0, HEIGHT / image.shape[1], WIDTH / image.shape[2])  # a pixel of the coarser of the two
        beyond, before = inside & (place > middle + scale), inside & (place < middle - 1 - scale)
        assert moved[0][beyond].all()
        assert not moved[0][before].any()
        compared += int(beyond.sum() + before.sum())
    assert compared > 20 * 40


COLOURS = {
    "ColorJitter": lambda: v2.ColorJitter(0.5, 0.5, 0.5, 0.3),
    "Grayscale": lambda: v2.Grayscale(3),
    "RandomGrayscale": lambda: v2.RandomGrayscale(0.5),
    "GaussianBlur": lambda: v2.GaussianBlur(5),
    "GaussianNoise": lambda: v2.GaussianNoise(),
    "RandomInvert": lambda: v2.RandomInvert(),
    "RandomPosterize": lambda: v2.RandomPosterize(3),
    "RandomSolarize": lambda: v2.RandomSolarize(0.4),
    "RandomAdjustSharpness": lambda: v2.RandomAdjustSharpness(3),
    "RandomAutocontrast": lambda: v2.RandomAutocontrast(),
    "RandomEqualize": lambda: v2.RandomEqualize(),
    "Normalize": lambda: v2.Normalize((0.5, 0.4, 0.3), (0.2, 0.3, 0.4)),
    "ToDtype": lambda: v2.ToDtype(torch.float64, scale=True),
    "Identity": lambda: v2.Identity(),
}


@pytest.mark.parametrize("kind", MAPS)
@pytest.mark.parametrize("name", COLOURS)
def test_transforms_of_colours_leave_the_map_as_it_is(name, kind):
    if name == "GaussianNoise" and not hasattr(v2, "GaussianNoise"):
        pytest.skip("this torchvision has no v2.GaussianNoise")
    form = "uint8" if name == "RandomPosterize" else "float"
    for _, moved in transformed(COLOURS[name](), MAPS[kind], form, draws=5):
        assert torch.equal(moved, MAPS[kind])


@pytest.mark.parametrize("name", [*GEOMETRIC, *COLOURS])
def test_none_of_them_takes_away_by_what_the_next_knows_image_and_map(name):
    if name == "RandomPosterize":
        pytest.skip("for images of bytes")
    transform = (GEOMETRIC | COLOURS)[name]()
    given = transform(tv_tensors.Image(IMAGE / 255), tv_tensors.Mask(MAPS["per element"].float()))
    assert [type(value) for value in given] == [tv_tensors.Image, tv_tensors.Mask]


def test_every_transform_of_this_torchvision_is_moved_right_or_refused_or_tried():
    """So that a new one is noticed: it is in one of the tables here, or in one of the list of those without a place."""
    from sip_plugin.salience.dataset import _MIXES_CHANNELS, _UNTRUSTED

    others = {"AutoAugmentPolicy", "InterpolationMode", "Transform", "UniformTemporalSubsample", "ToPILImage"}
    boxes = {"ClampBoundingBoxes", "ClampKeyPoints", "ConvertBoundingBoxFormat", "SanitizeBoundingBoxes"}
    boxes |= {"SanitizeKeyPoints", "SetClampingMode"}
    names = {name for name in dir(v2) if name[0].isupper()} - others - boxes - {*_MIXES_CHANNELS, *_UNTRUSTED}
    tested = {name.split(",")[0].split(" ")[0] for name in (*GEOMETRIC, *COLOURS)}
    assert names - tested - set(REFUSED) == {
        "ConvertImageDtype",
        "JPEG",
        "PILToTensor",
        "RGB",
        "RandomErasing",
        "ToImage",
        "ToTensor",
    }


# --- what cannot move both ------------------------------------------------------------------------------------------------

REFUSED = {
    **{name: getattr(v2, name) for name in ("AutoAugment", "RandAugment", "TrivialAugmentWide", "AugMix")},
    **{name: (lambda name=name: getattr(v2, name)(8)) for name in ("FiveCrop", "TenCrop")},
    **{name: (lambda name=name: getattr(v2, name)(num_classes=2)) for name in ("CutMix", "MixUp")},
    "RandomIoUCrop": v2.RandomIoUCrop,
    "v1 RandomCrop": lambda: v1.RandomCrop(20),
    "v1 Compose": lambda: v1.Compose([v2.RandomCrop(20)]),
    "v1 Lambda": lambda: v1.Lambda(lambda image: image.flip(-1)),
    "nn.Sequential": lambda: nn.Sequential(v2.RandomCrop(20)),
    "fill of colours": lambda: v2.Pad(2, fill=(1, 2, 3)),
}


class Around(v2.Transform):
    """A container of a user's own."""

    def __init__(self, transforms):
        super().__init__()
        self.transforms = transforms

    def forward(self, *inputs):
        return self.transforms[0](*inputs)


@pytest.mark.parametrize("around", [None, "Compose", "within", "own"])
@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_move_both_is_an_error_wherever_it_is(name, around):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        transform = REFUSED[name]()
    if around == "within":  # where it is not used in each call
        transform = v2.Compose([v2.RandomHorizontalFlip(), v2.RandomApply([v2.Compose([transform])], p=0.3)])
    elif around == "own":
        transform = Around([transform])
    elif around:
        transform = v2.Compose([transform])
    with pytest.raises((TypeError, ValueError)):
        list(transformed(transform, MAPS["per pixel"], draws=1 if around != "within" else 30))


def test_a_transform_that_raises_is_an_error_of_the_same_kind_at_once():
    with pytest.raises(ValueError, match="larger than input image size"):
        SalientDataset(One(IMAGE / 255), [MAPS["per pixel"]], v2.RandomCrop(40))
    with pytest.raises(TypeError, match="not callable"):
        SalientDataset(One(IMAGE / 255), [MAPS["per pixel"]], "flip")


class OwnDistortion(v2.RandomPhotometricDistort):
    pass


@pytest.mark.parametrize(
    "transform", [v2.RandomChannelPermutation(), v2.Compose([v2.RandomPhotometricDistort()]), OwnDistortion()]
)
def test_moving_values_between_channels_is_only_for_maps_per_pixel(transform):
    with pytest.raises(ValueError, match="between channels"):
        SalientDataset(One(IMAGE / 255), [MAPS["per element"]], transform)
    for _, moved in transformed(transform, MAPS["per pixel"], draws=5):
        assert torch.equal(moved, MAPS["per pixel"])


def test_a_data_set_that_augments_by_itself_is_refused():
    class Flipping(One):
        def __getitem__(self, index):
            return v2.RandomHorizontalFlip()(self.image), index

    state = torch.get_rng_state()
    with pytest.raises(ValueError, match="another image each time"):
        SalientDataset(Flipping(IMAGE / 255, 40), torch.zeros(40, 1, HEIGHT, WIDTH))
    assert torch.equal(torch.get_rng_state(), state)


class Lazy(One):
    """Opens its file at the first use, for each process anew."""

    file = None

    def __getitem__(self, index):
        self.file = self.file or Path(__file__).open()  # noqa: SIM115
        return super().__getitem__(index)


def test_a_data_set_that_opens_a_file_when_it_is_used_and_an_empty_one():
    data = SalientDataset(Lazy(IMAGE / 255, 2), torch.zeros(2, 1, HEIGHT, WIDTH))
    assert data.dataset.file is None
    assert len(SalientDataset(One(IMAGE / 255, 0), torch.zeros(0, 1, HEIGHT, WIDTH))) == 0


def test_maps_per_element_need_the_images_channels():
    with pytest.raises(ValueError, match="use per-pixel maps"):
        SalientDataset(One(IMAGE / 255), [MAPS["per element"]], v2.Grayscale())[0]
    image, _, moved = SalientDataset(One(IMAGE / 255), [MAPS["per pixel"]], v2.Grayscale())[0]
    assert image.shape == moved.shape == (1, HEIGHT, WIDTH)


def test_a_transform_that_changes_the_maps_dtype_says_so():
    transform = v2.ToDtype({tv_tensors.Mask: torch.bool, "others": None})
    with pytest.raises(ValueError, match=r"torch\.bool"):
        SalientDataset(One(IMAGE / 255), [MAPS["per pixel"]], transform)[0]
    transform = v2.ToDtype({tv_tensors.Mask: torch.float64, "others": None})
    assert torch.equal(SalientDataset(One(IMAGE / 255), [MAPS["per pixel"]], transform)[0][2], MAPS["per pixel"])


# --- transforms of one's own ----------------------------------------------------------------------------------------------


class OwnFlip(v2.Transform):
    def make_params(self, flat_inputs):
        return {"flip": torch.rand(()) < 0.5}

    _get_params = make_params  # its name in torchvision before 0.20

    def transform(self, inpt, params):
        return F.horizontal_flip(inpt) if params["flip"] else inpt

    _transform = transform


class OwnFlipOfImages(OwnFlip):
    _transformed_types = (tv_tensors.Image,)


def own_shift(image, salience):
    shift = random.randrange(-9, 10)
    return image.roll(shift, -1), salience.roll(shift, -1)


def own_shift_of_tv_tensors(image, salience):
    moved, followed = own_shift(image, salience)
    return tv_tensors.wrap(moved, like=image), tv_tensors.wrap(followed, like=salience)


OWN = {
    "v2 transform": OwnFlip(),
    "function": own_shift,
    "in Compose": v2.Compose([v2.RandomCrop(20, padding=3), own_shift]),
    "first in Compose": v2.Compose([own_shift_of_tv_tensors, v2.RandomCrop((HEIGHT, WIDTH), padding=3)]),
    "lambda for both": v2.Lambda(lambda tensor: tensor.flip(-1)),
}


@pytest.mark.parametrize("name", OWN)
def test_a_transform_of_ones_own_that_moves_both_is_as_good(name):
    for image, moved in transformed(OWN[name], MAPS["per element"], draws=15):
        assert torch.equal(moved, expected(image, MAPS["per element"]))


def moves_apart(image, salience):
    return image.roll(random.randrange(-9, 10), -1), salience.roll(random.randrange(-9, 10), -1)


WRONG = {
    "lambda for images": v2.Lambda(lambda image: image.flip(-1), tv_tensors.Image),
    "lambda that turns": v2.Lambda(lambda image: image.flip(-1).flip(-2), tv_tensors.Image),
    "lambda that scales the map too": v2.Lambda(lambda tensor: tensor * 0.9),
    "lambda that cuts the map's values": v2.Lambda(lambda tensor: tensor.clamp(0, 1)),
    "v2 transform of images alone": OwnFlipOfImages(),
    "moves only the image": lambda image, salience: (image.roll(5, -1), salience),
    "moves only the map": lambda image, salience: (image, salience.roll(5, -2)),
    "moves them apart": moves_apart,
    "moves them apart by NumPy": lambda image, salience: (image.roll(int(np.random.randint(4, 9)), -1), salience),
    "behind colours": v2.Compose([v2.ColorJitter(0.3, 0.3), v2.Lambda(lambda image: image.flip(-1), tv_tensors.Image)]),
    "before a crop": v2.Compose([v2.Lambda(lambda image: image.flip(-1), tv_tensors.Image), v2.RandomCrop(20)]),
    "with inverted colours": v2.Compose([v2.RandomInvert(1), lambda image, salience: (image.flip(-1), salience)]),
    "plain tensors, of which the next part moves one": v2.Compose([own_shift, v2.RandomHorizontalFlip()]),
    "plain tensors, cropped": v2.Compose([own_shift, v2.RandomCrop((HEIGHT, WIDTH), padding=6)]),
    "transposes": lambda image, salience: (image[..., :20, :].mT, salience[..., :20, :]),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", WRONG)
def test_one_that_moves_only_one_of_them_is_found_out_at_once(name, form):
    if name.startswith("lambda that") and "turns" not in name and form != "float":
        pytest.skip("for images of floats")
    with pytest.raises(ValueError, match=r"moved an image and not its map|leave the map's values"):
        SalientDataset(One(FORMS[form](IMAGE)), [MAPS["per pixel"]], WRONG[name])


def low_pass(image, salience):
    spectrum = torch.fft.rfft2(image)
    spectrum[..., 6:-6, :] = 0
    spectrum[..., 6:] = 0
    return torch.fft.irfft2(spectrum, image.shape[1:]), salience


def cut_out(image, salience):
    row, column = torch.randint(HEIGHT - 8, (2,)).clamp(max=WIDTH - 8).tolist()
    image = image.clone()
    image[:, row : row + 8, column : column + 8] = 0.5
    return image, salience


def equalised(image, salience):
    return (image.flatten().argsort(stable=True).argsort() / image.numel()).view_as(image), salience


COLOURS_OF_ONES_OWN = {
    "gamma": v2.Lambda(lambda image: image**2.2, tv_tensors.Image),
    "negative": lambda image, salience: (1 - image, salience),
    "black": lambda image, salience: (torch.zeros_like(image), salience),
    "constant noise": lambda image, salience: (torch.rand_like(image), salience),
    "noise": lambda image, salience: (image + torch.randn_like(image), salience),
    "noise by NumPy": lambda image, salience: (image + torch.from_numpy(np.random.randn(*image.shape)), salience),
    "standardised": lambda image, salience: ((image - image.mean()) / image.std(), salience),
    "blurred": lambda image, salience: (F.gaussian_blur(image, [9, 9], [2.0, 2.0]), salience),
    "low-pass": low_pass,
    "cut out": cut_out,
    "one channel": lambda image, salience: (image * torch.tensor([0.0, 0.0, 1.0])[:, None, None], salience),
    "infinite": lambda image, salience: (image / 0, salience),
}


@pytest.mark.parametrize("name", COLOURS_OF_ONES_OWN)
def test_one_that_changes_only_colours_is_not_taken_for_one_that_moves(name):
    data = SalientDataset(One(IMAGE / 255), [MAPS["per pixel"]], COLOURS_OF_ONES_OWN[name])
    assert torch.equal(data[0][2], MAPS["per pixel"])


def test_one_with_a_random_generator_of_its_own_cannot_be_tried_and_is_taken():
    generator = random.Random(0)

    def shift(image, salience):
        by = generator.randrange(-9, 10)
        return image.roll(by, -1), salience.roll(by, -1)

    for image, moved in transformed(shift, MAPS["per pixel"], draws=5):
        assert torch.equal(moved, expected(image, MAPS["per pixel"]))


def in_place(image, salience):
    image.mul_(0.5)
    salience.copy_(salience.flip(-1))
    image.copy_(image.flip(-1))
    return image, salience


@pytest.mark.parametrize("transform", [in_place, v2.Normalize([0.5] * 3, [2.0] * 3, inplace=True)])
def test_a_transform_may_write_to_what_it_gets(transform):
    image = IMAGE / 255
    data = SalientDataset(One(image), [MAPS["per pixel"]], transform)
    first = data[0]
    assert torch.equal(image, IMAGE / 255)
    assert all(torch.equal(a, b) for a, b in zip(first[::2], data[0][::2], strict=True))


def test_a_crop_around_the_contents_is_taken():
    def around(image, salience):
        rows = (image[0] > image[0].min()).any(1).nonzero()[:, 0] if image.max() > image.min() else torch.tensor([0, 9])
        first, last = int(rows[0]), int(rows[-1]) + 1
        return image[:, first:last], salience[:, first:last]

    for image, moved in transformed(around, MAPS["per pixel"]):
        assert torch.equal(moved, expected(image, MAPS["per pixel"]))


def test_trying_draws_nothing_from_the_random_generators():
    torch.manual_seed(1)
    random.seed(1)
    np.random.seed(1)
    first = torch.rand(()), random.random(), np.random.rand()
    torch.manual_seed(1)
    random.seed(1)
    np.random.seed(1)
    SalientDataset(One(IMAGE / 255), [MAPS["per pixel"]], own_shift)
    assert (torch.rand(()), random.random(), np.random.rand()) == first


@pytest.mark.parametrize(
    "transform",
    [
        lambda image, salience: image,
        lambda image, salience: {"image": image, "map": salience},
        lambda image, salience: (image, salience, 0),
        lambda image, salience: (image, None),
        lambda image, salience: (image, salience > 0),
    ],
)
def test_one_that_does_not_give_both_is_an_error(transform):
    with pytest.raises((TypeError, ValueError)):
        SalientDataset(One(IMAGE / 255), [MAPS["per pixel"]], transform)


def test_one_that_gives_other_sizes_is_a_value_error():
    with pytest.raises(ValueError, match="give both one size"):
        SalientDataset(One(IMAGE / 255), [MAPS["per pixel"]], lambda image, salience: (image[:, 2:], salience))


# --- the data set ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def x():
    return torch.rand(40, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def dataset(x):
    return TensorDataset(x, torch.arange(40))


@pytest.fixture
def store(tmp_path, dataset):
    return MaskStore.build(tmp_path / "train.masks", dataset, lambda images: images > 0.5, 16, progress=False)


def test_an_item_is_image_label_and_map(dataset, store, x):
    data = SalientDataset(dataset, store)
    assert len(data) == 40
    for index in (0, 7, -1, np.int64(3)):
        image, label, salience = data[index]
        assert torch.equal(image, x[index])
        assert label == range(40)[index]
        assert torch.equal(salience, x[index] > 0.5)
    for index in (40, -41):
        with pytest.raises(IndexError, match="range"):
            data[index]
    assert len(list(data)) == 40


def test_images_of_bytes_and_of_pil_come_as_floats(x):
    bytes_ = x.mul(255).round().to(torch.uint8)
    for images in (list(bytes_), [F.to_pil_image(image) for image in bytes_]):
        pairs = [(image, "a label") for image in images]
        image, label, _ = SalientDataset(pairs, torch.zeros(40, 1, 16, 16))[3]
        assert torch.equal(image, F.to_dtype(bytes_[3], torch.float32, scale=True))
        assert label == "a label"


def test_maps_may_be_given_in_many_forms(dataset, x):
    maps, grey = x > 0.5, x.mean(1, keepdim=True) > 0.5
    for given, wanted in {
        "tensor": (maps, maps),
        "array": (maps.numpy(), maps),
        "numbers": (maps.float(), maps),
        "one channel": (grey, grey),
        "list": (list(maps), maps),
        "arrays": ([one.numpy() for one in maps], maps),
        "rows and columns": ([one[0].int() for one in grey], grey),
        "one tensor of them": (grey[:, 0], grey),
        "masks": ([tv_tensors.Mask(one) for one in grey], grey),
        "a view": (grey.expand(-1, 3, -1, -1), grey),
    }.values():
        data = SalientDataset(dataset, given, v2.RandomHorizontalFlip(0))
        for index in (0, 39):
            assert torch.equal(data[index][2], wanted[index])
            assert data[index][2].dtype == torch.bool


def test_maps_of_one_channel_in_a_store_come_with_one(tmp_path, dataset, x):
    store = MaskStore.build(tmp_path / "m", dataset, lambda images: images[:, :1] > 0.5, progress=False)
    assert torch.equal(SalientDataset(dataset, store)[5][2], x[5, :1] > 0.5)


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_a_loader_gives_batches_in_which_all_belong_together(workers, dataset, store, x):
    crop = v2.Compose([v2.RandomCrop(16, padding=4), v2.RandomHorizontalFlip()])
    for transform in (None, crop):
        seen = 0
        for images, labels, maps in DataLoader(
            SalientDataset(dataset, store, transform), batch_size=16, shuffle=True, num_workers=workers
        ):
            assert images.shape == maps.shape == (len(labels), 3, 16, 16)
            assert torch.equal(maps, images > 0.5)  # whose map was made so
            if transform is None:
                assert torch.equal(images, x[labels])
            seen += len(labels)
        assert seen == 40


def test_it_can_be_pickled(dataset, store, x):
    data = pickle.loads(pickle.dumps(SalientDataset(dataset, store, v2.RandomHorizontalFlip(1))))
    assert torch.equal(data[2][0], x[2].flip(-1))
    assert torch.equal(data[2][2], x[2].flip(-1) > 0.5)


def test_a_batch_goes_into_the_trainer(store, network, digits):
    images, labels = digits[0][:40], digits[1][:40]
    data = SalientDataset(TensorDataset(images, labels), images > 0.5, v2.RandomCrop(16, padding=2))
    criterion = AdversarialTrainer(network, "sip-at", steps=2)
    batch, targets, maps = next(iter(DataLoader(data, batch_size=8)))
    adversarial = criterion.perturb(batch, targets, mask=maps)
    assert torch.equal(adversarial[maps], batch[maps])
    assert not torch.equal(adversarial, batch)
    assert math.isfinite(criterion(batch, targets, mask=maps).item())


def test_a_store_of_another_data_set_is_refused(dataset, store, x):
    for other, says in (
        (TensorDataset(x.flip(0), torch.arange(40)), "Image 0 is not the one"),
        (TensorDataset(x[:39], torch.arange(39)), "40 maps for 39 images"),
        (TensorDataset(x[..., :12], torch.arange(40)), "Image 0 is not the one"),
    ):
        with pytest.raises(ValueError, match=says):
            SalientDataset(other, store)


def test_an_item_whose_label_changed_is_found_out_where_maps_were_made_with_labels(tmp_path, x):
    labels = torch.arange(40)
    store = MaskStore.build(tmp_path / "m", TensorDataset(x, labels), lambda x, y: x > 0.5, progress=False)
    data = SalientDataset(TensorDataset(x, labels), store)
    assert torch.equal(data[5][2], x[5] > 0.5)
    labels[5] = 7
    with pytest.raises(ValueError, match=r"Image 5 \(or its label\) is not the one"):
        data[5]


def test_a_data_set_that_augments_behind_its_back_is_found_out(dataset, store, x):
    class AugmentsLater(Dataset):
        later = False

        def __len__(self):
            return 40

        def __getitem__(self, index):
            return (x[index].roll(1, -1) if self.later else x[index]), 0

    augments = AugmentsLater()
    data = SalientDataset(augments, store)
    assert torch.equal(data[3][2], x[3] > 0.5)
    augments.later = True
    with pytest.raises(ValueError, match="is not the one that its map"):
        next(iter(DataLoader(data, batch_size=40)))


@pytest.mark.parametrize(
    ("maps", "kind", "says"),
    [
        (torch.ones(39, 1, 16, 16), ValueError, "39 maps for 40 images"),
        (torch.ones(16, 16), ValueError, "16 maps for 40 images"),
        (lambda images: images > 0.5, TypeError, "has no len"),
        (None, TypeError, "has no len"),
    ],
)
def test_maps_that_do_not_fit_are_refused_at_once(maps, kind, says, dataset):
    with pytest.raises(kind, match=says):
        SalientDataset(dataset, maps)


@pytest.mark.parametrize(
    ("one", "kind", "says"),
    [
        (torch.full((1, 16, 16), 0.5), ValueError, "The salience map is soft"),
        (torch.full((1, 16, 16), float("nan")), ValueError, "NaN"),
        (torch.ones(1, 16, 15), ValueError, r"\(1, 3, 16, 16\)"),
        (torch.ones(2, 16, 16), ValueError, "broadcast"),
        ("map", AttributeError, "str"),
    ],
)
def test_a_map_that_is_none_is_an_error(one, kind, says, dataset):
    maps = [torch.ones(1, 16, 16)] * 40
    maps[3] = one
    data = SalientDataset(dataset, maps)
    assert data[2][2].all()
    with pytest.raises(kind, match=says):
        data[3]


def test_a_transform_needs_torchvision(dataset, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torchvision.tv_tensors", None)
    with pytest.raises(ImportError, match=r"sip-plugin\[vision\]"):
        SalientDataset(dataset, torch.ones(40, 1, 16, 16), own_shift)
    assert SalientDataset(dataset, torch.ones(40, 1, 16, 16))[0][2].all()


def test_what_random_erasing_overwrites_is_not_salient(dataset):
    torch.manual_seed(0)  # or the crop may leave nothing of it
    erase = v2.RandomErasing(p=1.0, value=0.77)
    for transform in (erase, v2.Compose([v2.RandomHorizontalFlip(), erase, v2.RandomCrop(16, padding=2)])):
        data = SalientDataset(dataset, torch.ones(40, 1, 16, 16), transform)
        for index in range(20):
            image, _, salience = data[index]
            erased = (image == 0.77).all(0)
            assert erased.any()
            assert not salience[0][erased].any()
            assert salience[0][~erased & (image != 0).any(0)].all()
    assert "_call_kernel" not in vars(erase)  # the caller's own transform is as it was
    again = pickle.loads(pickle.dumps(data))[0]
    assert not again[2][0][(again[0] == 0.77).all(0)].any()


def test_a_crop_outside_the_image_has_an_empty_map(dataset):
    data = SalientDataset(dataset, torch.ones(40, 1, 16, 16), v2.RandomCrop(8, padding=8))
    shares = [data[index % 40][2].float().mean().item() for index in range(400)]
    assert min(shares) == 0
    assert max(shares) > 0.5


def test_an_erasing_of_ones_own_class_and_inside_a_module_is_seen(dataset):
    class Mine(v2.RandomErasing):
        pass

    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.erase = v2.RandomErasing(p=1.0, value=0.77)

        def forward(self, image, salience):
            return self.erase(image, salience)

    for transform in (Mine(p=1.0, value=0.77), Outer()):
        data = SalientDataset(dataset, torch.ones(40, 1, 16, 16), transform)
        for index in range(10):
            image, _, salience = data[index]
            assert not salience[0][(image == 0.77).all(0)].any()
            assert salience.any()


def test_pillow_is_left_out_of_a_joint_transform(dataset):
    with pytest.raises(ValueError, match="ToPILImage"):
        SalientDataset(dataset, torch.ones(40, 1, 16, 16), v2.Compose([v2.ToPILImage(), v2.Resize(24), v2.ToImage()]))
