"""Reports of evaluations that never were, but could have been: simulated image by image, as the contract says."""

import numpy as np
import torch

from sip_plugin.evaluation import RobustnessReport

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
    radius = np.maximum(rng.exponential(scale * eps[-1], (len(attacks), count)), eps[0] / 50)
    norms, assumed = np.full((len(attacks), count), np.inf), np.zeros(count, dtype=bool)
    for image in range(count):
        if rng.random() >= clean:
            norms[:, image] = 0
            continue
        for row in reversed(range(len(eps))) if assume_survivors else range(len(eps)):
            if norms[:, image].min() <= eps[row] or assumed[image]:
                continue
            for attack in range(len(attacks)):
                needed = radius[attack, image]
                if needed <= eps[row]:
                    norms[attack, image] = rng.uniform(needed, eps[row])
                    break
                if rng.random() < 0.3:
                    norms[attack, image] = needed
            assumed[image] = assume_survivors and row > 0 and norms[:, image].min() > eps[row]
    attack = {"AutoAttack": {"version": "standard"}}
    settings = {"attack": attack, "seed": 0, "assume_survivors": assume_survivors}
    return RobustnessReport(
        **{
            "eps": eps,
            "norm": norm,
            "attacks": attacks,
            "labels": torch.arange(count) % 5 if labels is None else labels,
            "norms": torch.from_numpy(norms),
            "assumed": torch.from_numpy(assumed),
            "settings": settings,
            "seconds": 12.5,
        }
        | fields
    )
