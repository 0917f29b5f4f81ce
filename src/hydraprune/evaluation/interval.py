"""What a sample says about the whole: the exact binomial interval."""

from scipy.special import betaincinv  # scipy.stats takes a second to import

from hydraprune.errors import UserError


def clopper_pearson(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return the Clopper–Pearson interval of a share: it holds the true one with at least this probability.

    low = Beta⁻¹(α/2; k, n − k + 1), high = Beta⁻¹(1 − α/2; k + 1, n − k), α = 1 − confidence; low is 0 for k = 0 and
    high is 1 for k = n. Clopper & Pearson 1934.

    Raises:
        UserError: unless 0 ≤ successes ≤ n, n ≥ 1 and 0 < confidence < 1.
    """
    if not (0 <= successes <= n and n >= 1 and 0.0 < confidence < 1.0):
        raise UserError(f"no interval for {successes} of {n} at confidence {confidence}")
    tail = (1.0 - confidence) / 2.0
    low = 0.0 if successes == 0 else float(betaincinv(successes, n - successes + 1, tail))
    high = 1.0 if successes == n else float(betaincinv(successes + 1, n - successes, 1.0 - tail))
    return low, high
