"""Networks and images that the tests share."""

import copy
import os
import tempfile
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is imported
os.environ.setdefault("NUMBA_OPT", "0")  # Brendel-Bethge's compilation takes minutes, its work seconds

import pytest
import torch
import torch.nn.functional as F
from torch import nn

_home = tempfile.TemporaryDirectory()
os.environ["HOME"] = _home.name  # into which ART writes its configuration when it is imported, and models it pickles
torch.set_num_threads(1)  # for networks this small, waking other threads takes longer than the work

ROOT = Path(__file__).resolve().parents[1]
SHARED_DATA = ROOT.parent / "shared" / "data"


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("results") and not (ROOT / "benchmarks" / "results").is_dir():
        pytest.skip("benchmarks/results is not in the source distribution")


def small_network(seed: int = 0) -> nn.Sequential:
    """Convolutions, BatchNorm and Dropout, images 3×16×16 to ten logits; statistics as after some training."""
    torch.manual_seed(seed)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Dropout(0.2),
        nn.AdaptiveAvgPool2d(4),
        nn.Flatten(),
        nn.Linear(256, 10),
    )
    with torch.no_grad():
        for _ in range(3):
            network(torch.rand(16, 3, 16, 16))
    return network.eval()


@pytest.fixture
def network(trained: nn.Sequential) -> nn.Sequential:
    """A network of one's own that classifies the digits."""
    return copy.deepcopy(trained)


@pytest.fixture
def images(digits: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Six digits that the network was not trained on and classifies correctly."""
    return digits[0][1500:1506].clone()


@pytest.fixture
def labels(digits: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    return digits[1][1500:1506].clone()


@pytest.fixture
def salience() -> torch.Tensor:
    """Half of all elements of the ``images`` fixture, another half for each image."""
    return torch.rand(6, 3, 16, 16, generator=torch.Generator().manual_seed(2)) < 0.5


@pytest.fixture(scope="session")
def digits() -> tuple[torch.Tensor, torch.Tensor]:
    """scikit-learn's digits as noisy colour images, (1797, 3, 16, 16) in [0, 1], and their labels."""
    from sklearn.datasets import load_digits

    pixels, targets = load_digits(return_X_y=True)
    x = torch.tensor(pixels, dtype=torch.float32).view(-1, 1, 8, 8) / 16
    x = F.interpolate(x, scale_factor=2).repeat(1, 3, 1, 1)
    noise = torch.rand(x.shape, generator=torch.Generator().manual_seed(1))
    return 0.1 + 0.7 * x + 0.15 * noise, torch.tensor(targets)


@pytest.fixture(scope="session")
def trained(digits: tuple[torch.Tensor, torch.Tensor]) -> nn.Sequential:
    """A network that classifies the digits (the last 297 are not trained on)."""
    x, y = digits[0][:1500], digits[1][:1500]
    # In double precision: in single, the rounding of one kind of processor or another makes another network of it.
    torch.manual_seed(0)
    model = small_network().double()
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(6):
        for rows in torch.randperm(len(x)).split(50):
            optimizer.zero_grad()
            F.cross_entropy(model(x[rows].double()), y[rows]).backward()
            optimizer.step()
    model.float().eval()
    for parameter in model.parameters():
        parameter.grad = None
    with torch.no_grad():
        right = model(digits[0][1500:]).argmax(1) == digits[1][1500:]
    assert right.float().mean() > 0.85
    assert right[:6].all()
    return model
