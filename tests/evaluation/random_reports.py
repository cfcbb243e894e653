"""Reports of evaluations that never were, but could have been: simulated image by image, as the contract says."""

import numpy as np
import torch

from sip_plugin.evaluation.report import ASSUMED, CARRIED, MISCLASSIFIED, ROBUST, RobustnessReport

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
    """An image breaks under each attack from some radius on, ``scale`` times the largest ε or so.

    The balls are attacked from the smallest on, with ``assume_survivors`` from the largest on. An attack stops anywhere
    between the radius and ε; some find an example outside of the ball (as FAB does), which may lie in a larger one.
    """
    rng = np.random.default_rng(seed)
    labels = torch.arange(count) % 5 if labels is None else labels
    radius = np.maximum(rng.exponential(scale * eps[-1], (len(attacks), count)), eps[0] / 50)
    outcome = np.full((len(eps), count), ROBUST)
    by, smallest = np.full(count, -1), np.full(count, np.inf)
    for image in range(count):
        if rng.random() >= clean:
            outcome[:, image], smallest[image] = MISCLASSIFIED, 0.0
            continue
        smallest_by, survived = -1, False
        for row in reversed(range(len(eps))) if assume_survivors else range(len(eps)):
            if smallest[image] <= eps[row]:
                outcome[row, image], by[image] = CARRIED, smallest_by
                continue
            if survived:
                outcome[row, image] = ASSUMED
                continue
            for attack in range(len(attacks)):
                needed = radius[attack, image]
                if needed <= eps[row]:
                    outcome[row, image] = by[image] = smallest_by = attack
                    smallest[image] = rng.uniform(needed, eps[row])
                    break
                if needed < smallest[image] and rng.random() < 0.3:
                    smallest[image], smallest_by = needed, attack
            survived = assume_survivors and outcome[row, image] == ROBUST
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
