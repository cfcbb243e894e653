"""The training loop of a cell, on Lightning Fabric; a killed run goes on where it was."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler
from tqdm.auto import tqdm

from benchmarks.paper.data import Maps, Splits
from benchmarks.paper.files import load, save
from benchmarks.paper.methods import METHODS
from benchmarks.paper.networks import build_network
from benchmarks.paper.protocols import Cell
from benchmarks.paper.seeds import derived
from benchmarks.record import run_record
from sip_plugin import AdversarialTrainer
from sip_plugin.salience import SalientDataset


class EpochOrder(Sampler[int]):
    """A random order that depends on seed and epoch alone, shared out over the processes; an incomplete batch is left out.

    So a resumed epoch sees the very batches that the uninterrupted one would have seen.
    """

    def __init__(self, length: int, batch_size: int, seed: int, rank: int, processes: int) -> None:
        self.length, self.batch_size, self.seed = length, batch_size, seed
        self.rank, self.processes = rank, processes
        self.epoch = 0
        self.batches = length // batch_size
        if not self.batches:
            raise ValueError(f"{length} training images do not fill a batch of {batch_size}: lower --batch-size.")

    def __iter__(self) -> Iterator[int]:
        order = torch.randperm(self.length, generator=torch.Generator().manual_seed(derived(self.seed, self.epoch)))
        return iter(order[: self.batches * self.batch_size][self.rank :: self.processes].tolist())

    def __len__(self) -> int:
        return self.batches * self.batch_size // self.processes


def train_network(
    cell: Cell, splits: Splits, maps: Maps | None, folder: Path, fabric: Fabric, workers: int, log: str
) -> tuple[nn.Module, dict[str, Any]]:
    """The trained network, and its history epoch by epoch; from ``folder``'s checkpoint if there is one.

    Args:
        cell: What to train.
        splits: The data.
        maps: The training images' salience maps, None for a method without.
        folder: Of the checkpoint and the logs; its checkpoint must be of this very cell.
        fabric: Devices and precision; launched.
        workers: Processes that load images.
        log: ``"csv"`` or ``"tensorboard"``.
    """
    protocol = cell.training
    if protocol.batch_size % fabric.world_size:
        raise ValueError(
            f"A batch of {protocol.batch_size} images cannot be shared out evenly over {fabric.world_size} processes."
        )
    torch.manual_seed(derived(cell.seed))  # the same initial weights for each method
    network = build_network(cell.arch, splits.channels, splits.classes, protocol.pretrained)
    network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    model, optimizer = fabric.setup(
        network,
        torch.optim.SGD(
            network.parameters(),
            protocol.learning_rate,
            momentum=protocol.momentum,
            weight_decay=protocol.weight_decay,
            nesterov=protocol.nesterov,
        ),
    )
    method = METHODS[cell.method].method()
    criterion = AdversarialTrainer(
        model,
        method,
        eps=protocol.eps,
        alpha=protocol.alpha,
        steps=protocol.steps,
        compile=protocol.compile and method.fixed_length,
        fold_batchnorm=protocol.fold_search,
    )
    order = EpochOrder(len(splits.train), protocol.batch_size, cell.seed, fabric.global_rank, fabric.world_size)  # type: ignore[arg-type]
    loader = fabric.setup_dataloaders(
        DataLoader(
            augmented(splits.train, maps, protocol.augmentation),
            protocol.batch_size // fabric.world_size,
            sampler=order,
            num_workers=workers,
            # Not persistent: workers take their random numbers from this process's when they start, which an epoch does
            # with a seed of its own, so that a resumed one draws what the uninterrupted one would have drawn.
            pin_memory=fabric.device.type == "cuda",
        ),
        use_distributed_sampler=False,
    )
    checkpoint = folder / "checkpoint.pt"
    history: list[dict[str, float]] = []
    commits: list[str | None] = []
    if checkpoint.exists():
        state = load(checkpoint)
        network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
        criterion.load_state_dict(state["trainer"])
        if state.get("precision"):
            fabric.strategy.precision.load_state_dict(state["precision"])  # the gradient scaler's
        history = state["history"]
        commits = state.get("commits", [None])
    if (commit := run_record(None)["commit"]) not in commits:
        commits.append(commit)
    logger = _logger(log, folder) if fabric.global_rank == 0 else None
    with tqdm(
        total=protocol.epochs * order.batches,
        initial=len(history) * order.batches,
        desc=f"train {cell.name}",
        unit="batch",
        disable=fabric.global_rank > 0,
        mininterval=1,
        dynamic_ncols=True,
    ) as bar:
        for epoch in range(len(history), protocol.epochs):
            began = time.perf_counter()
            # All that this epoch draws (augmentation, starts of searches) follows from here.
            torch.manual_seed(derived(cell.seed, epoch, fabric.global_rank))
            order.epoch = epoch
            criterion.set_epoch(epoch, protocol.epochs)
            figures = _epoch(model, criterion, optimizer, loader, cell, epoch, fabric, bar)
            last = epoch + 1 == protocol.epochs
            if len(splits.validation) and (last or (epoch + 1) % protocol.validation_every == 0):  # type: ignore[arg-type]
                _share_buffers(network, fabric)
                figures |= validate(network, splits.validation, cell, fabric)
            figures["seconds"] = time.perf_counter() - began
            history.append(figures)
            if logger is not None:
                logger.log_metrics(figures, step=epoch)
                logger.save()
                save(
                    checkpoint,
                    {
                        "network": network.state_dict(),
                        "optimizer": optimizer.state_dict(),
                        "trainer": criterion.state_dict(),
                        "precision": fabric.strategy.precision.state_dict(),
                        "history": history,
                        "commits": commits,
                    },
                )
            fabric.barrier()
    _share_buffers(network, fabric)
    model.eval()
    network = network.to(memory_format=torch.contiguous_format)
    # Without Fabric around it: the evaluation has neither its precision nor DistributedDataParallel.
    return network, {"epochs": history, "commits": commits, **_conditions(fabric, workers)}


def _epoch(
    model: Any,
    criterion: AdversarialTrainer,
    optimizer: Any,
    loader: Any,
    cell: Cell,
    epoch: int,
    fabric: Fabric,
    bar: Any,
) -> dict[str, float]:
    model.train()
    sums: dict[str, Tensor] = {}
    for number, (images, labels, *maps) in enumerate(loader):
        rate = cell.training.rate(epoch + number / len(loader))
        for group in optimizer.param_groups:
            group["lr"] = rate
        images = images.contiguous(memory_format=torch.channels_last)
        loss = criterion(images, labels, mask=maps[0] if maps else None)
        optimizer.zero_grad()
        fabric.backward(loss)
        optimizer.step()
        for name, value in criterion.metrics.items():
            sums[name] = sums.get(name, torch.zeros_like(value)) + value
        bar.update()
    means = {name: fabric.all_reduce(value / len(loader)).item() for name, value in sums.items()}
    if not all(value == value for value in means.values()):
        raise FloatingPointError(f"{cell.name} diverged in epoch {epoch + 1}: {means}.")
    return {"learning_rate": rate, **means}


def _logger(kind: str, folder: Path) -> Any:
    from lightning.fabric.loggers import CSVLogger, TensorBoardLogger

    # A resumed run begins a new version of the log; the history in the checkpoint is whole.
    return {"csv": CSVLogger, "tensorboard": TensorBoardLogger}[kind](str(folder), "log")


def _share_buffers(network: nn.Module, fabric: Fabric) -> None:
    """Give all processes the first one's BatchNorm statistics: each has gathered those of its own share of the images."""
    if fabric.world_size > 1:
        for buffer in network.buffers():
            buffer.copy_(fabric.broadcast(buffer))


def validate(network: nn.Module, images: Dataset[Any], cell: Cell, fabric: Fabric) -> dict[str, float]:
    """Clean accuracy on the held-out images, and accuracy under 10 steps of PGD at the training ε."""
    network.eval()
    attack = AdversarialTrainer(network, "madry", eps=cell.training.eps, alpha=cell.training.eps / 4, steps=10)
    mine = torch.utils.data.Subset(images, range(fabric.global_rank, len(images), fabric.world_size))  # type: ignore[arg-type]
    counts = torch.zeros(3, device=fabric.device)
    for x, y in DataLoader(mine, 256):
        x, y = x.to(fabric.device), y.to(fabric.device)
        with fabric.autocast(), torch.no_grad():
            adversarial = attack.perturb(x, y)
            for place, shown in enumerate((x, adversarial)):
                counts[place] += (network(shown).argmax(1) == y).sum()
        counts[2] += len(x)
    clean, robust, total = fabric.all_reduce(counts, reduce_op="sum").tolist()
    return {"validation_clean_accuracy": clean / total, "validation_pgd_accuracy": robust / total}


def augmented(images: Dataset[Any], maps: Maps | None, augmentation: str) -> Dataset[Any]:
    """Training images with their maps, if there are any, after augmentation: both moved together.

    Args:
        images: Un-augmented images with their labels.
        maps: Their salience maps, or None.
        augmentation: ``"none"``, ``"flip"`` or ``"crop-flip"``.
    """
    from torchvision.transforms import v2

    size, flip = images[0][0].shape[-1], v2.RandomHorizontalFlip()
    crop_flip = v2.Compose([v2.RandomCrop(size, padding=size // 8), flip])
    transform = {"none": v2.Identity(), "flip": flip, "crop-flip": crop_flip}[augmentation]
    return _Transformed(images, transform) if maps is None else SalientDataset(images, maps, transform)


class _Transformed(Dataset[Any]):
    def __init__(self, images: Dataset[Any], transform: Callable[[Tensor], Tensor]) -> None:
        self.images, self.transform = images, transform

    def __len__(self) -> int:
        return len(self.images)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> Any:
        image, label = self.images[index]
        return self.transform(image), label


def _conditions(fabric: Fabric, workers: int) -> dict[str, Any]:
    record = run_record(None)
    return {
        "processes": fabric.world_size,
        "workers": workers,
        "device": str(fabric.device),
        "hardware": record["hardware"],
        "versions": record["versions"],
    }
