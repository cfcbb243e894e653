"""The choice of eq. 8, exactly: against a plain search in Python floats, which are float64."""

import pytest
import torch
import torch.nn.functional as F

from sip_plugin.salience import selection
from sip_plugin.salience.selection import top_mass_mask

MASSES = (0.5, 0.01, 0.25, 0.9, 1.0)


def plain(scores, mass):
    """The map of one image: elements one after the other, the largest first, of equals the first in memory."""
    values = scores.flatten().tolist()
    order = sorted(range(len(values)), key=lambda i: (-values[i], i))
    total = 0.0
    for i in order:
        total += values[i]
    chosen, held = [False] * len(values), 0.0
    for i in order:
        if held >= mass * total:
            break
        chosen[i] = True
        held += values[i]
    return torch.tensor(chosen).view(scores.shape)


def denormal(dtype):
    info = torch.finfo(dtype)
    return info.tiny * info.eps


SHAPE = (6, 3, 7, 5)
CASES = {
    "normal": lambda g: torch.randn(SHAPE, generator=g).abs(),
    "heavy-tailed": lambda g: torch.randn(SHAPE, generator=g).pow(4),
    "tiny": lambda g: torch.rand(SHAPE, generator=g) * 1e-30,
    "huge range": lambda g: 10 ** (70 * torch.rand(SHAPE, generator=g) - 35),
    "near the largest float": lambda g: torch.rand(SHAPE, generator=g) * torch.finfo(torch.float32).max,
    "denormals": lambda g: torch.randint(0, 9, SHAPE, generator=g) * torch.tensor(denormal(torch.float32)),
    "denormals and others": lambda g: torch.where(torch.rand(SHAPE, generator=g) < 0.5, denormal(torch.float32), 1e-37),
    "all equal": lambda g: torch.full(SHAPE, 0.1),
    "all equal, sums inexact": lambda g: torch.full(SHAPE, 0.1, dtype=torch.float64),
    "few values": lambda g: torch.randint(0, 4, SHAPE, generator=g) / 7,
    "few values, sums inexact": lambda g: torch.randint(0, 4, SHAPE, generator=g).double() / 7,
    "mostly zero": lambda g: torch.randn(SHAPE, generator=g).abs() * (torch.rand(SHAPE, generator=g) < 0.1),
    "zeros of both signs": lambda g: torch.where(torch.rand(SHAPE, generator=g) < 0.2, 1.0, -0.0),
    "one": lambda g: F.one_hot(torch.arange(6), 105).float().view(SHAPE),
    "zero": lambda g: torch.zeros(SHAPE),
    "some images zero": lambda g: torch.rand(SHAPE, generator=g) * (torch.arange(6) % 2)[:, None, None, None],
    "one large, many small": lambda g: (
        torch.rand(SHAPE, generator=g) * 1e-9 + F.one_hot(torch.arange(6), 105).view(SHAPE)
    ),
    "half": lambda g: torch.rand(SHAPE, generator=g).half(),
    "half, denormal": lambda g: (torch.randint(0, 9, SHAPE, generator=g) * denormal(torch.float16)).half(),
    "bfloat16": lambda g: torch.rand(SHAPE, generator=g).bfloat16(),
    "double": lambda g: torch.rand(SHAPE, generator=g, dtype=torch.float64),
    "double, huge range": lambda g: 10 ** (600 * torch.rand(SHAPE, generator=g, dtype=torch.float64) - 320),
}


@pytest.mark.parametrize("case", CASES)
def test_the_map_is_that_of_a_plain_search(case):
    for seed in range(5):
        scores = CASES[case](torch.Generator().manual_seed(seed))
        for mass in MASSES:
            chosen = top_mass_mask(scores, mass)
            assert chosen.dtype == torch.bool
            assert torch.equal(chosen, torch.stack([plain(image, mass) for image in scores])), (seed, mass)


# Other devices add in another order, so that a sum may be rounded otherwise, and a map be of one element more or less.
ELSEWHERE = (
    "normal",
    "heavy-tailed",
    "all equal",
    "few values",
    "mostly zero",
    "one",
    "zero",
    "half",
    "bfloat16",
    "double",
)


def as_on_other_devices(monkeypatch, scores):
    ours = selection._descending_sums
    monkeypatch.setattr(selection, "_descending_sums", lambda rows, on_cpu: ours(rows, on_cpu=False))
    return scores


@pytest.mark.parametrize(
    "moved",
    [
        as_on_other_devices,
        pytest.param(
            lambda monkeypatch, scores: scores.cuda(),
            marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
        ),
    ],
    ids=["their way", "cuda"],
)
@pytest.mark.parametrize("case", ELSEWHERE)
def test_other_devices_choose_the_same(case, moved, monkeypatch):
    for seed in range(5):
        scores = CASES[case](torch.Generator().manual_seed(seed))
        for mass in MASSES:
            chosen = top_mass_mask(moved(monkeypatch, scores), mass).cpu()
            assert torch.equal(chosen, torch.stack([plain(image, mass) for image in scores])), (seed, mass)


@pytest.mark.parametrize("length", [1, 2, 3, 64, 1000])
def test_sums_by_doubling_are_running_sums(length):
    generator = torch.Generator().manual_seed(0)
    whole = torch.randint(0, 1000, (3, length), generator=generator).float()
    others = torch.rand(3, length, generator=generator)
    for rows, close in ((whole, torch.equal), (others, lambda a, b: torch.allclose(a, b, rtol=1e-14, atol=0))):
        ordered, sums = selection._descending_sums(rows, on_cpu=False)
        assert torch.equal(ordered, selection._descending_sums(rows, on_cpu=True)[0])
        assert close(sums, ordered.double().cumsum(1))


def test_random_multisets_of_few_values_have_the_plain_maps():
    generator = torch.Generator().manual_seed(0)
    for length in range(1, 40):
        values = torch.rand(3, generator=generator, dtype=torch.float64)
        scores = values[torch.randint(0, 3, (4, length), generator=generator)]
        for mass in (*MASSES, 1 / 3, torch.rand((), generator=generator).item()):
            assert torch.equal(top_mass_mask(scores, mass), torch.stack([plain(row, mass) for row in scores]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_so_has_a_large_image(dtype):
    scores = torch.randn(1, 3, 300, 300, generator=torch.Generator().manual_seed(0)).abs().to(dtype)
    assert torch.equal(top_mass_mask(scores)[0], plain(scores[0], 0.5))


def test_ties_are_broken_by_memory_order_every_time():
    scores = torch.ones(1, 1, 3, 3)
    expected = torch.tensor([[[[1, 1, 1], [1, 1, 0], [0, 0, 0]]]], dtype=torch.bool)
    for _ in range(3):
        assert torch.equal(top_mass_mask(scores, 0.5), expected)


def test_the_order_is_that_of_the_indices_however_the_scores_lie_in_memory():
    scores = torch.randint(0, 4, (4, 3, 6, 6), generator=torch.Generator().manual_seed(0)).float()
    expected = top_mass_mask(scores)
    assert torch.equal(top_mass_mask(scores.contiguous(memory_format=torch.channels_last)), expected)
    assert torch.equal(top_mass_mask(scores.repeat(1, 1, 1, 2)[..., :6]), expected)
    assert torch.equal(top_mass_mask(scores[:1].expand(4, -1, -1, -1)), expected[:1].expand(4, -1, -1, -1))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, lambda: torch.autocast("cpu", torch.bfloat16)])
def test_the_mode_that_it_is_called_in_does_not_matter(mode):
    scores = torch.rand(4, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    expected = top_mass_mask(scores)
    with mode():
        assert torch.equal(top_mass_mask(scores * 1), expected)
    assert torch.equal(top_mass_mask(scores.requires_grad_()), expected)


def test_scores_are_left_as_they_are():
    scores = torch.rand(4, 3, 6, 6)
    before = scores.clone()
    top_mass_mask(scores)
    assert torch.equal(scores, before)


def test_no_mass_is_an_empty_map():
    assert not top_mass_mask(torch.rand(4, 3, 6, 6), 0.0).any()
