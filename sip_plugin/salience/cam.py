"""Salience from a teacher's class activation map."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from sip_plugin.cam import CAM, KINDS, class_activation_maps, named_layer
from sip_plugin.checks import check_images
from sip_plugin.model_state import eval_mode
from sip_plugin.salience.selection import check_finite, check_mass, require_labels, top_mass_mask

Target = Literal["predicted", "true"]


class CAMSalience:
    """Salience maps from a teacher's class activation maps: per pixel, the same for all channels.

    The class activation map of the last convolution stage (:func:`sip_plugin.cam.class_activation_maps`; PART uses it too),
    scaled to ``[0, 1]`` and upsampled to the image, is made binary in one of two ways: the fewest pixels that hold ``mass``
    of its sum (eq. 8 of SIP-AT), or the pixels above ``threshold``. One forward pass per batch, and a backward pass down to
    the layer.

    Args:
        teacher: A classifier, images ``(N, C, H, W)`` to logits ``(N, classes)``. Runs in eval mode, and is left as it was.
        cam: ``"gradcam"`` (Selvaraju et al. 2017), ``"xgradcam"`` (Fu et al. 2020) or ``"layercam"`` (Jiang et al. 2021).
        mass: The share of the map's sum that is salient, in ``(0, 1]``; 0.5 where there is no ``threshold``.
        threshold: Pixels above it are salient; in ``[0, 1)``, on the map after it was scaled to ``[0, 1]`` and upsampled. It
            is a share of the map's range, so it does not fix the number of salient pixels.
        layer: The name of the module whose output is used (as ``named_modules`` has it); None for the last module that
            contains convolutions and whose output has more than one position.
        target: The class: the ``"predicted"`` one, or the ``"true"`` one, which needs labels.

    Raises:
        TypeError: If ``teacher`` is not an ``nn.Module``.
        ValueError: If both ``mass`` and ``threshold`` are given, or an argument is not one of the above.

    Example:
        >>> mask_fn = CAMSalience(teacher, threshold=0.2)
        >>> salience = mask_fn(images)  # bool, the images' shape
    """

    def __init__(
        self,
        teacher: nn.Module,
        cam: CAM = "gradcam",
        *,
        mass: float | None = None,
        threshold: float | None = None,
        layer: str | None = None,
        target: Target = "predicted",
    ) -> None:
        if not isinstance(teacher, nn.Module):
            raise TypeError(f"teacher must be a torch.nn.Module, got {type(teacher).__name__}.")
        if cam not in KINDS:
            raise ValueError(f"cam must be one of {', '.join(map(repr, KINDS))}, got {cam!r}.")
        if mass is not None and threshold is not None:
            raise ValueError(f"Give mass or threshold, not both; got mass={mass!r} and threshold={threshold!r}.")
        if target not in ("predicted", "true"):
            raise ValueError(f'target must be "predicted" or "true", got {target!r}.')
        if threshold is not None and not 0 <= threshold < 1:
            raise ValueError(
                f"threshold is on a map that is scaled to [0, 1], so it must be in [0, 1), got {threshold!r}."
            )
        if layer is not None:
            named_layer(teacher, layer)
        self.teacher = teacher
        self.cam: CAM = cam
        self.threshold = None if threshold is None else float(threshold)
        self.mass = None if threshold is not None else check_mass(0.5 if mass is None else mass)
        self.layer = layer
        self.target: Target = target

    def __call__(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """Returns the maps of a batch.

        Args:
            images: ``(N, C, H, W)`` in ``[0, 1]``.
            labels: Class indices ``(N,)``; only used with ``target="true"``.

        Returns:
            ``bool``, ``(N, C, H, W)``, the same for all channels; 1 marks a salient element. An image whose class activation
            map is constant has an empty one.

        Raises:
            TypeError: If ``images`` or ``labels`` are of the wrong type, or the teacher gives no tensor.
            ValueError: If their shapes or values do not fit, labels are missing, the teacher has no such layer, or a class
                activation map is NaN or infinite.
        """
        check_images(images)
        classes = None if self.target == "predicted" else require_labels(self.target, labels, images)
        # A caller may be inside no_grad or inference_mode (a validation step); a map needs its gradient all the same.
        with torch.inference_mode(False), torch.enable_grad(), eval_mode(self.teacher):
            maps = class_activation_maps(self.teacher, images.detach().clone(), self.cam, self.layer, classes)
        check_finite(maps, "The teacher's class activation map")
        chosen = maps > self.threshold if self.mass is None else top_mass_mask(maps, self.mass)  # type: ignore[operator]
        return chosen.expand_as(images)

    def __repr__(self) -> str:
        choice = f"mass={self.mass:g}" if self.mass is not None else f"threshold={self.threshold:g}"
        return (
            f"CAMSalience({type(self.teacher).__name__}, {self.cam!r}, {choice}, layer={self.layer!r}, "
            f"target={self.target!r})"
        )
