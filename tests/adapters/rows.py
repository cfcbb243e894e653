"""What the tables of attacks have in common. It imports no attack library."""

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class CommonRow:
    """How one attack behaves in the tests, whichever library it is of.

    Attributes:
        loop: Whether a plain loop in the tests says what it must compute, bit for bit.
        plain: Arguments under which the network sees the iterate itself, and not a transform of it.
        finds: Whether it changes the images of the tests at all, with half of each salient.
        bounded: Whether the bare attack keeps to [0, 1]: EADL1's and EADEN's variable shares its memory with the images,
            so that their first step moves the images themselves.
        images: How many of the tests' images it is run on.
        universal: Whether it takes one map for all images only.
        grouped: Whether the wrapper asks the network in the same groups of rows as the bare attack. Where it does not, ART's
            ``predict`` is called more often, whose data loader draws a number from torch's generator each time.
        guided: Whether the network sees other images than queries about the batch's.
        noisy: Whether it works on a network whose answers are random (one in train mode).
    """

    loop: bool = False
    plain: dict[str, Any] = dataclasses.field(default_factory=dict)
    finds: bool = True
    bounded: bool = True
    images: int = 6
    universal: bool = False
    grouped: bool = True
    guided: bool = False
    noisy: bool = True
