"""Reports of evaluations that never were, but could have been: simulated image by image, as the contract says."""

import numpy as np
import torch

from sip_plugin.evaluation.codes import ASSUMED, CARRIED, MISCLASSIFIED, ROBUST
from sip_plugin.evaluation.report import RobustnessReport

LINF = (1 / 255, 2 / 255, 4 / 255, 8 / 255)
STAGES = ("apgd-ce", "apgd-t", "fab-t", "square")


def random_report(
    seed=0,
    count=40,
    *,
    eps=LINF,
    norm="Linf",
    attacks=STAGES,
    clean=0.8,
    scale=1.0,
    assume_survivors=False,
    labels=None,
    **fields,
):
    """An image breaks under an attack from a radius of its own on; each ε is attacked from the smallest on.

    ``scale`` is the typical radius, in units of the largest ε. With ``assume_survivors`` the order is the other way round.
    """
    rng = np.random.default_rng(seed)
    labels = torch.arange(count) % 5 if labels is None else labels
    wrong = rng.random(count) >= clean
    radius = np.maximum(rng.exponential(scale * eps[-1], (len(attacks), count)), eps[0] / 50)
    outcome = np.full((len(eps), count), ROBUST)
    by, smallest = np.full(count, -1), np.full(count, np.inf)
    order = range(len(eps))[::-1] if assume_survivors else range(len(eps))
    for image in range(count):
        for row in order:
            if wrong[image]:
                outcome[row, image], smallest[image] = MISCLASSIFIED, 0.0
            elif smallest[image] <= eps[row]:
                outcome[row, image] = CARRIED
            elif assume_survivors and (outcome[row + 1 :, image] == ROBUST).any():
                outcome[row, image] = ASSUMED
            else:
                breaks = [attack for attack in range(len(attacks)) if radius[attack, image] <= eps[row]]
                if breaks:
                    found = rng.uniform(radius[breaks[0], image], eps[row])
                    outcome[row, image], by[image], smallest[image] = breaks[0], breaks[0], found
    settings = {"attack": "AutoAttack", "version": "standard", "seed": 0, "assume_survivors": assume_survivors}
    return RobustnessReport(
        **{
            "eps": eps,
            "norm": norm,
            "attacks": attacks,
            "labels": labels,
            "outcome": torch.from_numpy(outcome),
            "broken_by": torch.from_numpy(by),
            "smallest_norm": torch.from_numpy(smallest),
            "settings": settings,
            "seconds": 12.5,
        }
        | fields
    )
