"""Fit a logistic regression to many weightings of the same observations at once, for the bootstrap."""

import numpy as np
from scipy.special import expit

from selfcontrast.evaluation.statistics.clusters import Floats

RIDGE = 0.01
"""RIDGE / 2 times each squared coefficient is subtracted from the log-likelihood: a normal prior of standard deviation
10 on log-odds. It hardly changes coefficients that the data determine, and keeps all others finite."""

_STEPS, _TOLERANCE = 200, 1e-9  # tolerance of a coefficient, in log-odds


def fit_logistic(design: Floats, outcomes: Floats, weights: Floats, start: Floats) -> Floats:
    """Return the coefficients [B, k] that maximise the weighted log-likelihood minus the ridge, per row of weights.

    Newton's method takes damped steps: each is scaled by log(1 + d) / d, where d is the step's length times the length
    of the longest row of `design`. So it converges from any start (Sun & Tran-Dinh 2019, arXiv 1703.04599, generalized
    self-concordance of order 2), and quadratically at the end.

    Args:
        design: [n, k].
        outcomes: in [0, 1], fractions included, [n].
        weights: 0 or more, [B, n].
        start: [k].
    """
    squares = _squares(design)
    longest = np.sqrt((design**2).sum(axis=1).max())
    fitted = np.tile(start, (len(weights), 1))
    active = np.arange(len(weights))
    for _ in range(_STEPS):
        coefficients, active_weights = fitted[active], weights[active]
        probability = expit(coefficients @ design.T)
        slope = (active_weights * (outcomes - probability)) @ design - RIDGE * coefficients
        curvature = _curvature(active_weights, probability, squares, ridge=RIDGE)
        step = np.linalg.solve(curvature, slope[:, :, None])[:, :, 0]
        distance = longest * np.linalg.norm(step, axis=1, keepdims=True)
        fitted[active] += step * np.divide(np.log1p(distance), distance, out=np.ones_like(distance), where=distance > 0)
        active = active[np.abs(step).max(axis=1) > _TOLERANCE]
        if len(active) == 0:
            return fitted
    raise ArithmeticError(f"{len(active)} of {len(weights)} logistic fits did not converge in {_STEPS} steps")


def least_information(design: Floats, weights: Floats, fitted: Floats) -> Floats:
    """Return the smallest eigenvalue of the data's Fisher information, without the ridge, of each fit [B].

    A judgment at even odds adds 1/4 to the information. If the eigenvalue is near 0, the data do not determine some
    combination of the coefficients.
    """
    information = _curvature(weights, expit(fitted @ design.T), _squares(design), ridge=0.0)
    return np.linalg.eigvalsh(information)[:, 0].astype(np.float64)


def coefficient_covariance(design: Floats, fitted: Floats) -> Floats:
    """Return the inverse curvature at a fit to all observations, with the ridge, [k, k].

    design: [n, k]; fitted: [k].
    """
    probability = expit(design @ fitted)
    covariance: Floats = np.linalg.inv(
        _curvature(np.ones((1, len(design))), probability[None], _squares(design), ridge=RIDGE)[0]
    )
    return covariance


def coefficient_influence(design: Floats, outcomes: Floats, fitted: Floats) -> Floats:
    """Return the derivative of the coefficients by each observation's weight, at weights of 1, [n, k].

    design: [n, k]; outcomes: [n]; fitted: [k].
    """
    probability = expit(design @ fitted)
    curvature = _curvature(np.ones((1, len(design))), probability[None], _squares(design), ridge=RIDGE)[0]
    influence: Floats = np.linalg.solve(curvature, (design * (outcomes - probability)[:, None]).T).T
    return influence


def _squares(design: Floats) -> Floats:
    """Return every row's outer product with itself, [n, k * k]."""
    n, k = design.shape
    return (design[:, :, None] * design[:, None, :]).reshape(n, k * k)


def _curvature(weights: Floats, probability: Floats, squares: Floats, ridge: float) -> Floats:
    """Return the negative Hessian of the log-likelihood minus the ridge, [B, k, k]. weights, probability: [B, n]."""
    k = round(np.sqrt(squares.shape[1]))
    return (weights * probability * (1 - probability) @ squares).reshape(-1, k, k) + ridge * np.eye(k)
