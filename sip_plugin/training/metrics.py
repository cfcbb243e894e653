"""What a training step tells about itself, from the passes that it makes anyway."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sip_plugin.checks import check_classes


class ForwardRecorder:
    """The network as a method's loss sees it; remembers its outputs for the clean and for the adversarial images."""

    def __init__(self, network: Callable[[Tensor], Any], images: Tensor, adversarial: Tensor, labels: Tensor) -> None:
        self._network = network
        self._labels = labels
        self._inputs = {"clean": images, "adversarial": adversarial}
        self._outputs: dict[str, Tensor] = {}

    def __call__(self, images: Tensor) -> Any:
        """The network's output."""
        output = self._network(images.clone())  # which may write into its input
        if isinstance(output, Tensor) and output.dim() == 2:
            if not self._outputs:
                check_classes(self._labels, output)
            self._outputs |= {name: output.detach() for name, inputs in self._inputs.items() if images is inputs}
        return output

    @torch.no_grad()
    def metrics(self) -> dict[str, Tensor]:
        """Cross-entropy and accuracy for the clean and the adversarial images, as far as there was a pass with them."""
        found = {}
        for name, logits in self._outputs.items():
            found[f"{name}_loss"] = F.cross_entropy(logits.float(), self._labels)
            found[f"{name}_accuracy"] = (logits.argmax(1) == self._labels).float().mean()
        return found
