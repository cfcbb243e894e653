"""Salience from a teacher's class activation map."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from sip_plugin.cam import CAM, KINDS, Reshape, class_activation_maps, layer_name
from sip_plugin.checks import check_choice
from sip_plugin.model_state import eval_mode
from sip_plugin.salience.selection import ScoreSalience


class CAMSalience(ScoreSalience):
    """Salience maps from a teacher's class activation maps (:mod:`sip_plugin.cam`): per pixel, the same for all channels.

    The map, scaled to ``[0, 1]`` and upsampled to the image, is made binary in one of two ways: the fewest pixels that hold
    ``mass`` of its sum (eq. 8 of SIP-AT), or the pixels above ``threshold``. A constant one gives an empty map.

    Args:
        teacher: A classifier, images ``(N, C, H, W)`` to logits ``(N, classes)``. Runs in eval mode, and is left as it was.
        cam: ``"gradcam"`` (Selvaraju et al. 2017), ``"xgradcam"`` (Fu et al. 2020) or ``"layercam"`` (Jiang et al. 2021).
        mass: The share of the map's sum that is salient, in ``(0, 1]``; 0.5 where there is no ``threshold``.
        threshold: Pixels above it are salient, in ``[0, 1)``. It does not fix the number of salient pixels.
        layer: The module whose output is used, or its name (as ``named_modules`` has it); None for the last module that
            contains convolutions or linear layers and whose output has channels and more than one position.
        reshape: From the output of the named layer to ``(N, K, h, w)``, where the network's operations do not say what its
            axes are, for instance for the tokens of a ViT: ``lambda t: t[:, 1:].unflatten(1, (14, 14)).movedim(3, 1)``.
        target: The class: the ``"predicted"`` one, or the ``"true"`` one, which needs labels.

    Raises:
        ValueError: If both ``mass`` and ``threshold`` are given, or an argument is not one of the above; when called, also
            if the teacher has no such layer.
    """

    def __init__(
        self,
        teacher: nn.Module,
        cam: CAM = "gradcam",
        *,
        mass: float | None = None,
        threshold: float | None = None,
        layer: str | nn.Module | None = None,
        reshape: Reshape | None = None,
        target: Literal["predicted", "true"] = "predicted",
    ) -> None:
        check_choice("cam", cam, *KINDS)
        check_choice("target", target, "predicted", "true")
        if threshold is not None and (mass is not None or not 0 <= threshold < 1):
            raise ValueError(f"Give mass, or a threshold in [0, 1), not both; got {mass=} and {threshold=}.")
        self.teacher = teacher
        self.cam: CAM = cam
        self.threshold = None if threshold is None else float(threshold)
        super().__init__(0.5 if mass is None and threshold is None else mass, target)
        self.layer = layer_name(teacher, layer)
        self.reshape = reshape

    def _scores(self, images: Tensor, labels: Tensor | None) -> Tensor:
        with eval_mode(self.teacher):
            return class_activation_maps(self.teacher, images, self.cam, self.layer, labels, self.reshape)
