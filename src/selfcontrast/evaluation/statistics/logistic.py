"""One logistic regression fitted to many weightings of the same observations at once: what a bootstrap refits."""

import numpy as np
from scipy.special import expit

from selfcontrast.evaluation.statistics.clusters import Floats

RIDGE = 0.01
"""Half of it times each squared coefficient is taken from the log-likelihood: a normal prior of standard deviation 10
on log-odds. Too weak to move what the data determine; it keeps the fit finite where they do not."""

_STEPS, _TOLERANCE = 200, 1e-9  # of a coefficient, in log-odds


def fit_logistic(design: Floats, outcomes: Floats, weights: Floats, start: Floats) -> Floats:
    """Coefficients [B, k] that maximise the weighted log-likelihood less the ridge, for each row of weights.

    Newton's method, each step shortened to log(1 + d) / d of itself, with d its length times that of the longest row of
    `design`: so shortened it converges from any start (Sun & Tran-Dinh 2019, arXiv 1703.04599, generalized
    self-concordance of order 2), and quadratically at the end.

    Args:
        design: [n, k].
        outcomes: in [0, 1], fractions included, [n].
        weights: not negative, [B, n].
        start: [k].
    """
    squares = _squares(design)
    longest = np.sqrt((design**2).sum(axis=1).max())
    fitted = np.tile(start, (len(weights), 1))
    active = np.arange(len(weights))
    for _ in range(_STEPS):
        rows, weigh = fitted[active], weights[active]
        chance = expit(rows @ design.T)
        slope = (weigh * (outcomes - chance)) @ design - RIDGE * rows
        step = np.linalg.solve(_curvature(weigh, chance, squares, ridge=RIDGE), slope[:, :, None])[:, :, 0]
        far = longest * np.linalg.norm(step, axis=1, keepdims=True)
        fitted[active] += step * np.divide(np.log1p(far), far, out=np.ones_like(far), where=far > 0)
        active = active[np.abs(step).max(axis=1) > _TOLERANCE]
        if len(active) == 0:
            return fitted
    raise ArithmeticError(f"{len(active)} of {len(weights)} logistic fits did not converge in {_STEPS} steps")


def least_information(design: Floats, weights: Floats, fitted: Floats) -> Floats:
    """The smallest eigenvalue of the data's own Fisher information, without the ridge, of each fit [B].

    A judgment at even odds adds a quarter. Near 0 the data leave some combination of coefficients undetermined.
    """
    information = _curvature(weights, expit(fitted @ design.T), _squares(design), ridge=0.0)
    return np.linalg.eigvalsh(information)[:, 0].astype(np.float64)


def coefficient_covariance(design: Floats, fitted: Floats) -> Floats:
    """Return the inverse curvature at a fit to all observations, the ridge's prior included, [k, k].

    design: [n, k]; fitted: [k].
    """
    chance = expit(design @ fitted)
    covariance: Floats = np.linalg.inv(
        _curvature(np.ones((1, len(design))), chance[None], _squares(design), ridge=RIDGE)[0]
    )
    return covariance


def coefficient_influence(design: Floats, outcomes: Floats, fitted: Floats) -> Floats:
    """The derivative of the coefficients with respect to each observation's weight, all weights being 1, [n, k].

    design: [n, k]; outcomes: [n]; fitted: [k].
    """
    chance = expit(design @ fitted)
    curvature = _curvature(np.ones((1, len(design))), chance[None], _squares(design), ridge=RIDGE)[0]
    influence: Floats = np.linalg.solve(curvature, (design * (outcomes - chance)[:, None]).T).T
    return influence


def _squares(design: Floats) -> Floats:
    """Every row's outer product with itself, [n, k * k]."""
    n, k = design.shape
    return (design[:, :, None] * design[:, None, :]).reshape(n, k * k)


def _curvature(weights: Floats, chance: Floats, squares: Floats, ridge: float) -> Floats:
    """Minus the second derivative of the log-likelihood less the ridge, [B, k, k]. weights, chance: [B, n]."""
    k = round(np.sqrt(squares.shape[1]))
    return (weights * chance * (1 - chance) @ squares).reshape(-1, k, k) + ridge * np.eye(k)
