"""Salience that people drew (SIP-H): masks in a folder tree, CUB-200-2011, COCO and Label Studio."""

from sip_plugin.salience.annotations.base import (
    HumanMasks,
    MissingAnnotationError,
    UnmarkedAnnotationError,
    UnreadableAnnotationError,
)
from sip_plugin.salience.annotations.coco import COCOMasks
from sip_plugin.salience.annotations.cub import CUB200
from sip_plugin.salience.annotations.folder import FolderMasks
from sip_plugin.salience.annotations.label_studio import LabelStudioMasks

__all__ = [
    "CUB200",
    "COCOMasks",
    "FolderMasks",
    "HumanMasks",
    "LabelStudioMasks",
    "MissingAnnotationError",
    "UnmarkedAnnotationError",
    "UnreadableAnnotationError",
]
