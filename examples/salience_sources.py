"""Maps of the same digits from different sources: how much of an image each calls salient, and how far they agree.

python examples/salience_sources.py
"""

from collections.abc import Callable

import torch
from captum.attr import GuidedBackprop, IntegratedGradients, NoiseTunnel, Occlusion, Saliency
from sklearn.datasets import load_digits
from torch import Tensor, nn

from sip_plugin import AdversarialTrainer
from sip_plugin.salience import AttributionSalience, CAMSalience, GradientSalience


def adversarially_trained(x: torch.Tensor, y: torch.Tensor, epochs: int = 6) -> nn.Module:
    """A teacher: maps of adversarially trained networks follow what is drawn."""
    teacher = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(128, 10),
    )
    criterion = AdversarialTrainer(teacher, "madry", eps=0.2, alpha=0.1, steps=3)
    optimizer = torch.optim.SGD(teacher.parameters(), lr=0.05, momentum=0.9)
    for _ in range(epochs):
        for rows in torch.randperm(len(x)).split(50):
            loss = criterion(x[rows], y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return teacher.eval()


def intersection_over_union(first: torch.Tensor, second: torch.Tensor) -> float:
    """What two maps have in common: 1 for equal ones, 0 for disjoint ones; the mean over the images."""
    both, either = (first & second).flatten(1).sum(1), (first | second).flatten(1).sum(1)
    return (both / either.clamp(min=1)).mean().item()


def main() -> tuple[dict[str, float], dict[tuple[str, str], float]]:
    """For each source the share of salient elements, and for each pair of sources how far their maps agree."""
    torch.manual_seed(0)
    pixels, targets = load_digits(return_X_y=True)
    x, y = torch.tensor(pixels, dtype=torch.float32).view(-1, 1, 8, 8) / 16, torch.tensor(targets)
    teacher = adversarially_trained(x[:1400], y[:1400])
    images = x[1400:1464]

    sources: dict[str, Callable[[Tensor], Tensor]] = {
        "gradient": GradientSalience(teacher),
        "Grad-CAM": CAMSalience(teacher, layer="5"),  # after the last ReLU
        "LayerCAM": CAMSalience(teacher, "layercam", threshold=0.5, layer="5"),
        "saliency": AttributionSalience(Saliency(teacher)),
        "integrated": AttributionSalience(IntegratedGradients(teacher), n_steps=20),
        "guided": AttributionSalience(GuidedBackprop(teacher), sign="positive"),
        "SmoothGrad": AttributionSalience(NoiseTunnel(Saliency(teacher)), nt_samples=10, stdevs=0.1, seed=0),
        "occlusion": AttributionSalience(Occlusion(teacher), sliding_window_shapes=(1, 3, 3)),
    }
    maps = {name: mask_fn(images) for name, mask_fn in sources.items()}

    shares = {name: salience.float().mean().item() for name, salience in maps.items()}
    agreement = {(a, b): intersection_over_union(maps[a], maps[b]) for a in maps for b in maps}
    print(" " * 12 + "salient" + "".join(f"{name:>12}" for name in maps))
    for name, share in shares.items():
        print(f"{name:12}{share:7.0%}" + "".join(f"{agreement[name, other]:12.2f}" for other in maps))
    return shares, agreement


if __name__ == "__main__":
    main()
