"""What is estimated from a study's answers, with intervals from a bootstrap over participants."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from sip_plugin.evaluation.statistics import wilson_interval

Array = NDArray[np.float64]
_Z = 1.959964


def names(levels: Sequence[float]) -> list[tuple[str, float | None]]:
    """What :func:`estimates` gives, in its order: the quantity and its level; the last two are of all levels together."""
    of_levels = [("rate", level) for level in levels]
    of_levels += [(quantity, level) for quantity in ("d'", "criterion") for level in levels[1:]]
    return [*of_levels, ("slope", None), ("threshold", None)]


def estimates(rates: Array, trials: int, levels: Sequence[float]) -> tuple[Array, Array]:
    """All quantities from rates of the answer "perturbed", and their gradients with respect to these.

    For each level above 0, ``d' = z(H) − z(F)`` and the criterion ``−(z(H) + z(F)) / 2``, where H is its rate and F that at
    level 0, both as ``(n·rate + ½) / (n + 1)``, which rates of 0 and 1 need (Hautus 1995). The slope is that of
    ``logit(rate) = a + b·log₂(level)`` over the levels above 0, fitted by maximum likelihood, and the threshold the log₂ of
    the level where it is ½: ``−a/b``.

    Args:
        rates: ``(…, L)``, at each level.
        trials: n, behind each rate.
        levels: The L levels, the first of them 0.

    Returns:
        Values ``(…, K)`` in the order of :func:`names`, and gradients ``(…, K, L)``; NaN where there is none.
    """
    rates, count = np.asarray(rates, np.float64), len(levels)
    corrected = (trials * rates + 0.5) / (trials + 1)
    z = norm.ppf(corrected)
    dz = trials / (trials + 1) / norm.pdf(z)
    intercept, slope, of_intercept, of_slope = _logistic(rates[..., 1:], np.log2(np.asarray(levels[1:], np.float64)))
    with np.errstate(divide="ignore", invalid="ignore"):
        threshold = -intercept / slope
        of_threshold = -(of_intercept + threshold[..., None] * of_slope) / slope[..., None]
    hits, alarms = z[..., 1:], z[..., :1]
    values = np.concatenate(
        [rates, hits - alarms, -(hits + alarms) / 2, slope[..., None], threshold[..., None]], axis=-1
    )
    gradients = np.zeros((*rates.shape[:-1], values.shape[-1], count))
    each = np.arange(count)
    gradients[..., each, each] = 1
    for start, of_hits, of_alarms in ((count, 1, -1), (2 * count - 1, -0.5, -0.5)):
        gradients[..., start + each[:-1], each[1:]] = of_hits * dz[..., 1:]
        gradients[..., start : start + count - 1, 0] = of_alarms * dz[..., :1]
    gradients[..., -2, 1:], gradients[..., -1, 1:] = of_slope, of_threshold
    return values, gradients


def _logistic(rates: Array, x: Array) -> tuple[Array, Array, Array, Array]:
    """Intercept and slope of ``logit(rate) = a + b·x`` by Newton's method, and their gradients with respect to the rates."""
    a, b = np.zeros(rates.shape[:-1]), np.zeros(rates.shape[:-1])
    with np.errstate(all="ignore"):  # what has no maximum ends as NaN
        for _ in range(30):
            p = 1 / (1 + np.exp(-(a[..., None] + b[..., None] * x)))
            w = p * (1 - p)
            s0, s1, s2 = w.sum(-1), (w * x).sum(-1), (w * x * x).sum(-1)
            determinant = s0 * s2 - s1 * s1
            of_a = (s2[..., None] - s1[..., None] * x) / determinant[..., None]
            of_b = (s0[..., None] * x - s1[..., None]) / determinant[..., None]
            step_a, step_b = (of_a * (rates - p)).sum(-1), (of_b * (rates - p)).sum(-1)
            a, b = a + step_a, b + step_b
            settled = (np.abs(step_a) < 1e-8) & (np.abs(step_b) < 1e-8) & (len(x) > 1)
            if settled.all():
                break
    return np.where(settled, a, np.nan), np.where(settled, b, np.nan), of_a, of_b


def bootstrap(
    shares: Array, trials: int, levels: Sequence[float], samples: int, random: np.random.Generator
) -> tuple[Array, Array, Array, NDArray[np.bool_]]:
    """All quantities with 95 % intervals from a bootstrap over participants.

    The intervals are studentised (bootstrap-t, Efron and Tibshirani 1993, chapter 12): each sample's distance from the
    estimate is taken in standard errors of that sample. Those follow from the participants' covariance and the gradients.
    With 60 participants, percentiles of the samples themselves are too narrow. Rates under 5 or over 95 %, or for which the
    bootstrap has no interval, have that of :func:`wilson_of_clusters`. The threshold has one only if that of the slope
    does not hold 0.

    Args:
        shares: ``(participants, L)``, each one's share of the answer "perturbed" at each level.
        trials: Of a participant at a level.
        levels: See :func:`estimates`.
        samples: Of the bootstrap.
        random: Source of randomness.

    Returns:
        Estimates, standard errors ``(K,)``, intervals ``(K, 2)``, and for which rates they are Wilson's ``(L,)``. NaN where
        there is none: where over 5 % of the samples have no estimate or no spread.
    """
    people = len(shares)
    weights = random.multinomial(people, np.full(people, 1 / people), size=samples) / people
    value, error = _with_error(np.full((1, people), 1 / people), shares, trials, levels)
    sampled, errors = _with_error(weights, shares, trials, levels)
    with np.errstate(all="ignore"):
        distance = (sampled - value) / errors
    none = 1e-6  # a standard error that rounding alone has made is below it, any other one above
    distance[~np.isfinite(distance) | ~(errors > none)] = np.nan
    empty = np.isnan(distance).mean(0) > 0.05  # too few samples left, and those the convenient ones
    distance[:, empty] = 0.0
    low, high = np.nanquantile(distance, [0.025, 0.975], axis=0)
    intervals = np.stack([value[0] - high * error[0], value[0] - low * error[0]], axis=-1)
    intervals[: len(levels)] = intervals[: len(levels)].clip(0, 1)
    intervals[empty | ~(error[0] > none)] = np.nan
    rates, wilson = value[0, : len(levels)], wilson_of_clusters(shares, trials)
    extreme = (np.abs(rates - 0.5) > 0.45) | np.isnan(intervals[: len(levels), 0])
    intervals[: len(levels)][extreme] = wilson[extreme]
    if not intervals[-2].prod() > 0:
        intervals[-1] = np.nan
    return value[0], error[0], intervals, extreme


def wilson_of_clusters(shares: Array, trials: int) -> Array:
    """Wilson's 95 % intervals of the rates, ``(L, 2)``, with the answers divided by their design effect in place of n.

    The design effect (Kish 1965) is the variance of the participants' shares over that of independent answers: the largest
    of that of the level, that of all levels together, and 1. If nobody's answers differ at any level, each participant
    counts as one answer.
    """
    rates = shares.mean(0)
    independent, found = rates * (1 - rates) / trials, shares.var(0, ddof=1)
    if independent.sum() > 0:
        own = np.divide(found, independent, out=np.zeros_like(rates), where=independent > 0)
        effect = np.maximum(np.maximum(own, found.sum() / independent.sum()), 1)
    else:
        effect = np.full(len(rates), float(trials))
    counts = len(shares) * trials / effect
    return np.array([wilson_interval(rate, n) for rate, n in zip(rates.tolist(), counts.tolist(), strict=True)])


def _with_error(weights: Array, shares: Array, trials: int, levels: Sequence[float]) -> tuple[Array, Array]:
    """Quantities and standard errors ``(B, K)`` under weights ``(B, participants)`` that sum to 1."""
    people, count = shares.shape
    rates = weights @ shares
    products = (shares[:, :, None] * shares[:, None, :]).reshape(people, -1)
    covariance = (weights @ products).reshape(-1, count, count) - rates[:, :, None] * rates[:, None, :]
    values, gradients = estimates(rates, people * trials, levels)
    with np.errstate(invalid="ignore"):  # where there is no threshold
        variance = ((gradients @ covariance) * gradients).sum(-1) / people
    return values, np.sqrt(np.maximum(variance, 0))


def normal_interval(value: Array, error: Array) -> Array:
    """``value ± 1.96·error``, ``(K, 2)``."""
    return np.stack([value - _Z * error, value + _Z * error], axis=-1)


def gee(formula: str, data: Any) -> Any:
    """A logistic model of the answers by generalised estimating equations (Liang and Zeger 1986), participants as clusters.

    Independence as the working correlation, so that the slope is that of :func:`estimates`; robust ("sandwich") standard
    errors, which take account of what the answers of one participant have in common, with Mancl and DeRouen's (2001)
    correction for few participants. If all have the same trials, it is the factor ``n / (n − 1)``.

    Returns:
        statsmodels' result.
    """
    import statsmodels.api as sm
    import statsmodels.formula.api as smf

    independent = sm.cov_struct.Independence()
    model = smf.gee(formula, "participant", data, cov_struct=independent, family=sm.families.Binomial())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return model.fit(cov_type="bias_reduced")
