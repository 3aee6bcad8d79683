"""Power laws of error against compute, error = a C^-b (+ c), with intervals."""

import math
from typing import NamedTuple

import numpy as np
from scipy import optimize, stats

CONFIDENCE = 0.95
WITH_FLOOR = 5  # so many different computes are needed before a floor c is tried


class Fit(NamedTuple):
    """error = a C^-b + c; b_low, b_high and c_high: the ends of 95 % intervals."""

    a: float
    b: float
    b_low: float
    b_high: float
    c: float
    c_high: float

    def __call__(self, compute):
        return self.a * np.asarray(compute) ** -self.b + self.c


def fit_power_law(compute, error) -> Fit | None:
    """Least squares of log error; each point counts alike. compute: (P,) above 0; error: (P,) in (0, 1].

    Without a floor that is a straight line in logarithms, its interval Student's. With at least WITH_FLOOR different
    computes a floor is tried too, and taken where it explains more than its parameter costs (AICc), its interval from
    the curvature. None where there are fewer than three points, or two different computes or errors.
    """
    x, y = np.log(np.asarray(compute, float)), np.log(np.asarray(error, float))
    distinct = len(np.unique(np.round(x, 9)))
    if len(x) < 3 or distinct < 2 or len(np.unique(y)) < 2:
        return None
    line = stats.linregress(x, y)
    reach = stats.t.ppf((1 + CONFIDENCE) / 2, len(x) - 2) * line.stderr
    b = -line.slope
    straight = Fit(math.exp(line.intercept), b, b - reach, b + reach, 0.0, 0.0)
    if distinct < WITH_FLOOR or len(x) < 6:
        return straight
    bent = _with_floor(x, y, straight)
    if bent is None or _aicc(x, y, bent, 3) >= _aicc(x, y, straight, 2):
        return straight
    return bent


def _with_floor(x, y, straight: Fit) -> Fit | None:
    """From the straight line on, with log a at the mean of x, so that it hangs less on b."""
    centre, least = x.mean(), math.exp(y.min())

    def model(x, log_a, b, c):
        return np.log(np.exp(log_a - b * (x - centre)) + c)

    bounds = ([-np.inf, 0.0, 0.0], [np.inf, np.inf, least])
    for floor in (0.5, 0.9, 0.1):
        start = (math.log(max(float(straight(math.exp(centre))) - floor * least, 1e-9)), 2 * abs(straight.b) + 0.01,
                 floor * least)  # fmt: skip
        try:
            (log_a, b, c), covariance = optimize.curve_fit(model, x, y, start, bounds=bounds)
        except RuntimeError:  # not converged from here
            continue
        reach = stats.t.ppf((1 + CONFIDENCE) / 2, len(x) - 3) * np.sqrt(np.diag(covariance))
        if np.all(np.isfinite(reach)):
            return Fit(math.exp(log_a + b * centre), b, b - reach[1], b + reach[1], c, c + reach[2])
    return None


def _aicc(x, y, fit: Fit, parameters: int) -> float:
    """Akaike's criterion for few points; the variance is a parameter too."""
    n, k = len(x), parameters + 1
    spread = max(float(np.mean((y - np.log(fit(np.exp(x)))) ** 2)), 1e-24)
    return n * math.log(spread) + 2 * k + 2 * k * (k + 1) / (n - k - 1)
