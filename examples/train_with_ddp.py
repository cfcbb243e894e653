"""SIP-AT on several processes with DistributedDataParallel; the search makes it exchange nothing.

torchrun --nproc-per-node 2 examples/train_with_ddp.py
"""

import torch
import torch.distributed as dist
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from sip_plugin import AdversarialTrainer
from sip_plugin.training import FAT

EPS, EPOCHS = 0.2, 6


def main() -> None:
    """Train with FAT, whose batches shrink differently in each process, and print the accuracy of the first."""
    dist.init_process_group("gloo")  # "nccl" on GPUs
    torch.manual_seed(0)
    torch.set_num_threads(1)
    pixels, targets = load_digits(return_X_y=True)
    x, y = torch.tensor(pixels, dtype=torch.float32).view(-1, 1, 8, 8) / 16, torch.tensor(targets)
    network = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(512, 10),
    )
    model = DistributedDataParallel(network)
    torch.manual_seed(1 + dist.get_rank())  # each process draws starts of its own
    data = TensorDataset(x[:1400], y[:1400])
    sampler: DistributedSampler[tuple[torch.Tensor, ...]] = DistributedSampler(data)
    loader = DataLoader(data, batch_size=32, sampler=sampler)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.002)
    # Any map will do; here what is bright (the strokes of the digits) stays as it is.
    criterion = AdversarialTrainer(
        model, FAT(tau=0), salience=lambda images: images > 0.9, eps=EPS, alpha=EPS / 4, steps=7
    )
    for epoch in range(EPOCHS):
        sampler.set_epoch(epoch)
        criterion.set_epoch(epoch, EPOCHS)
        for images, labels in loader:
            optimizer.zero_grad()
            criterion(images, labels).backward()
            optimizer.step()

    weights = torch.cat([parameter.detach().flatten() for parameter in network.parameters()])
    others = [torch.empty_like(weights) for _ in range(dist.get_world_size())]
    dist.all_gather(others, weights)
    if dist.get_rank() == 0:
        with torch.no_grad():
            accuracy = (network(x[1400:]).argmax(1) == y[1400:]).float().mean().item()
        same = all(torch.equal(weights, other) for other in others)
        print(f"{len(others)} processes, weights {'equal' if same else 'DIFFERENT'}, clean accuracy {accuracy:.1%}")
    del (
        criterion,
        model,
    )  # before the group: destroyed after it, DistributedDataParallel can wait for its threads for ever
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
