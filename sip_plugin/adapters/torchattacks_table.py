"""Every attack of torchattacks 3.5 and how it is projected. This file needs no torchattacks."""

from __future__ import annotations

import dataclasses

from sip_plugin.adapters.projection import Mechanism

QUERY, ITERATE, MEMBERS = Mechanism.QUERY, Mechanism.ITERATE, Mechanism.MEMBERS


@dataclasses.dataclass(frozen=True)
class Entry:
    """How one attack is projected.

    Attributes:
        mechanism: Where its steps are projected.
        reason: Why not its queries, or another remark for the documentation.
        alone: Whether it works on one image after the other anyhow, so that handing it one at a time changes nothing but
            that each query's image is known.
        selects: Whether it goes on with part of its batch, which it selects by an index.
        tiled: Whether it queries the whole batch several times in one query.
        offset: Whether its variable is the perturbation and not the image.
    """

    mechanism: Mechanism
    reason: str = ""
    alone: bool = False
    selects: bool = False
    tiled: bool = False
    offset: bool = False


TABLE: dict[str, Entry] = {
    "VANILA": Entry(QUERY, "makes no query"),
    "GN": Entry(QUERY, "makes no query: its noise is projected"),
    "FGSM": Entry(QUERY),
    "BIM": Entry(QUERY),
    "RFGSM": Entry(QUERY),
    "PGD": Entry(QUERY),
    "EOTPGD": Entry(QUERY),
    "FFGSM": Entry(QUERY),
    "TPGD": Entry(QUERY),
    "MIFGSM": Entry(QUERY),
    "UPGD": Entry(QUERY),
    "APGD": Entry(ITERATE, "a random start on salient elements would eat the L2 budget", selects=True),
    "APGDT": Entry(ITERATE, "a random start on salient elements would eat the L2 budget", selects=True),
    "DIFGSM": Entry(ITERATE, "the network sees a transform of the iterate"),
    "TIFGSM": Entry(ITERATE, "the network sees a transform of the iterate"),
    "Jitter": Entry(ITERATE, "its loss measures the perturbation"),
    "NIFGSM": Entry(QUERY),
    "PGDRS": Entry(ITERATE, "smoothing noise stays on all elements, the perturbation does not", offset=True),
    "SINIFGSM": Entry(ITERATE, "the network sees a transform of the iterate"),
    "VMIFGSM": Entry(QUERY),
    "VNIFGSM": Entry(QUERY),
    "SPSA": Entry(QUERY, tiled=True),
    "JSMA": Entry(QUERY, alone=True),
    "EADL1": Entry(QUERY),
    "EADEN": Entry(QUERY),
    "PIFGSM": Entry(QUERY),
    "PIFGSMPP": Entry(QUERY),
    "CW": Entry(QUERY, "its variable lives in tanh space and is no image"),
    "PGDL2": Entry(ITERATE, "a random start on salient elements would eat the norm budget"),
    "DeepFool": Entry(QUERY, alone=True),
    "PGDRSL2": Entry(ITERATE, "smoothing noise stays on all elements, the perturbation does not", offset=True),
    "SparseFool": Entry(QUERY, alone=True),
    "OnePixel": Entry(QUERY, alone=True),
    "Pixle": Entry(QUERY, alone=True),
    "FAB": Entry(QUERY, selects=True),
    "Square": Entry(QUERY, selects=True),
    "AutoAttack": Entry(MEMBERS, "each of its members as in its own row", selects=True),
    "MultiAttack": Entry(MEMBERS, "each of its members as in its own row", selects=True),
    "LGV": Entry(MEMBERS, "its attack on the collected networks as in its own row", selects=True),
}
"""Every attack of torchattacks by the name of its class; query projection is the default for one of the user's own."""


def known_name(attack: object) -> str | None:
    """The torchattacks class that ``attack`` is, or is derived from."""
    kinds = (kind for kind in type(attack).__mro__ if kind.__module__.startswith("torchattacks."))
    return next((kind.__name__ for kind in kinds if kind.__name__ in TABLE), None)


def entry_of(attack: object) -> Entry:
    """How an attack is projected: at its queries, if it is no attack of torchattacks nor derived from one."""
    name = known_name(attack)
    return Entry(QUERY) if name is None else TABLE[name]
