"""Golden values of the statistics of an evaluation, from the libraries that others use.

Python 3.11, numpy 2.4.6, scipy 1.17.1, statsmodels 0.15.0, pandas 3.1.1, scikit-learn 1.9.1, lm-eval 0.4.13. Seed 20240426. All inputs are made up here.
Writes crates/aloe-eval/tests/golden/statistics.json: per quantity a list of inputs with the answer, floats in full.
Run: python oracles/evaluation_statistics.py            (a minute or two)
"""

import hashlib
import itertools
import json
import math
import pathlib
import warnings

import numpy as np
import pandas as pd
import scipy.optimize
import scipy.stats
import statsmodels.api as sm
from lm_eval.api.metrics import mean_stderr, pooled_sample_stderr, unweighted_mean_stderr
from sklearn.metrics import brier_score_loss
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

OUT = pathlib.Path(__file__).resolve().parent.parent / "crates/aloe-eval/tests/golden/statistics.json"
RNG = np.random.default_rng(20240426)
N_RESAMPLES = 200_000


def mcnemar_exact():
    pairs = [(0, 0), (0, 1), (1, 0), (0, 5), (0, 6), (1, 1), (3, 9), (9, 3), (10, 10), (10, 11), (25, 40), (61, 40), (120, 161), (300, 380), (1200, 1100), (2000, 2500)]
    rows = []
    for first, second in pairs:
        table = [[50, first], [second, 70]]
        p = float(mcnemar(table, exact=True).pvalue) if first + second else 1.0
        if first + second:
            assert math.isclose(p, scipy.stats.binomtest(first, first + second, 0.5).pvalue, rel_tol=1e-9)
        rows.append({"first": first, "second": second, "p": p})
    return rows


def wilson():
    rows = []
    for n in (1, 2, 5, 10, 37, 100, 350, 500, 1273, 4183, 7045):
        for right in sorted({0, 1, n // 4, n // 2, (2 * n) // 3, n - 1, n}):
            low, high = proportion_confint(right, n, alpha=0.05, method="wilson")
            rows.append({"right": right, "n": n, "low": float(low), "high": float(high)})
    return rows


def stderrs():
    """The harness's standard error of an accuracy."""
    rows = []
    for n in (2, 5, 100, 350, 500, 1273, 4183):
        for right in sorted({0, 1, n // 3, n // 2, n - 1, n}):
            rows.append({"right": right, "n": n, "stderr": mean_stderr([1.0] * right + [0.0] * (n - right))})
    return rows


def grouped_stderrs():
    """Pooled (weighted by size) and unweighted standard errors of a group, as the harness takes them."""
    rows = []
    for sizes in ([135, 265, 144, 173, 100, 272], [500, 4183, 1273, 1089], [95, 173, 101, 106, 70, 190], [2, 3], [100, 100, 100], [7]):
        right = [int(RNG.binomial(n, 0.55)) for n in sizes]
        each = [mean_stderr([1.0] * k + [0.0] * (n - k)) for k, n in zip(right, sizes)]
        rows.append({"sizes": sizes, "right": right, "stderrs": each, "pooled": float(pooled_sample_stderr(each, sizes)), "unweighted": float(unweighted_mean_stderr(each))})
    return rows


def bands(distribution):
    """The interval's ends and, for a number of draws, where an end falls but for a chance of 1 in 16,000 (4 sigma of the order statistic)."""
    ordered = np.sort(distribution)
    at = lambda share: float(ordered[min(len(ordered) - 1, max(0, int(share * len(ordered))))])
    found = {}
    for n_draws in (1000, 2000, 10000):
        width = 4 * math.sqrt(0.025 * 0.975 * (1 / n_draws + 1 / len(ordered)))
        found[str(n_draws)] = {"low": [at(0.025 - width), at(0.025 + width)], "high": [at(0.975 - width), at(0.975 + width)]}
    return found


def bootstrap():
    """Percentile bootstrap of a mean: of 0/1 values the exact ends too (a resampled mean is binomial), of clusters a ratio of sums."""
    rows = []
    for n, right in ((20, 7), (100, 62), (350, 233), (1273, 801)):
        values = np.array([1.0] * right + [0.0] * (n - right))
        result = scipy.stats.bootstrap((values,), np.mean, n_resamples=N_RESAMPLES, confidence_level=0.95, method="percentile", batch=2000, rng=RNG)
        exact = [float(scipy.stats.binom.ppf(q, n, right / n) / n) for q in (0.025, 0.975)]
        rows.append({"clusters": [[1.0, 1]] * right + [[0.0, 1]] * (n - right) if n <= 20 else None, "n": n, "right": right, "exact": exact,
                     "scipy": [float(result.confidence_interval.low), float(result.confidence_interval.high)], "bands": bands(result.bootstrap_distribution)})
    for n_clusters, most in ((12, 4), (60, 9)):
        counts = RNG.integers(1, most + 1, n_clusters)
        sums = np.array([RNG.binomial(c, RNG.beta(2, 1.5)) for c in counts])
        ratio = lambda s, c, axis: np.sum(s, axis=axis) / np.sum(c, axis=axis)
        result = scipy.stats.bootstrap((sums, counts), ratio, paired=True, n_resamples=N_RESAMPLES, confidence_level=0.95, method="percentile", batch=2000, rng=RNG)
        rows.append({"clusters": [[float(s), int(c)] for s, c in zip(sums, counts)], "n": int(counts.sum()), "right": int(sums.sum()), "exact": None,
                     "scipy": [float(result.confidence_interval.low), float(result.confidence_interval.high)], "bands": bands(result.bootstrap_distribution)})
    return rows


def philox(counter, key):
    """Philox 4x32-10, as crates/aloe-record/src/rng.rs."""
    c0, c1, c2, c3 = counter
    for _ in range(10):
        first, second = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1, c2, c3 = second >> 32 ^ c1 ^ key[0], second & 0xFFFFFFFF, first >> 32 ^ c3 ^ key[1], first & 0xFFFFFFFF
        key = ((key[0] + 0x9E3779B9) & 0xFFFFFFFF, (key[1] + 0xBB67AE85) & 0xFFFFFFFF)
    return c0, c1, c2, c3


def uniforms(seed, purpose, item):
    """The stream of 53-bit numbers of aloe's generator."""
    digest = hashlib.sha256(f"{seed}/{purpose}".encode()).hexdigest()
    key = (int(digest[:8], 16), int(digest[8:16], 16))
    for block in itertools.count():
        a, b, c, d = philox((block, 0, item, 0), key)
        yield (a << 21 | b >> 11) / 2**53
        yield (c << 21 | d >> 11) / 2**53


def binomial(n, part, whole, stream):
    """A binomial count from one uniform number, turned over from the mode outwards, as crates/aloe-eval/src/bootstrap.rs. The probabilities are scipy's."""
    if n == 0 or part == whole:
        return n
    p = part / whole
    mode = min(int((n + 1) * p), n)
    pmf = scipy.stats.binom(n, p).pmf(np.arange(n + 1)) if (n, part, whole) not in PMFS else PMFS[n, part, whole]
    PMFS[n, part, whole] = pmf
    left = next(stream) - pmf[mode]
    if left < 0:
        return mode
    for step in range(1, n + 1):
        for k in (mode + step, mode - step):
            if 0 <= k <= n:
                left -= pmf[k]
                if left < 0:
                    return k
    return mode


PMFS = {}


class Drawn(np.random.Generator):
    """A generator whose integers are the clusters that aloe draws: scipy's bootstrap takes them as its own."""

    def __init__(self, kinds, places, seed, purpose):
        super().__init__(np.random.PCG64(0))
        self.kinds, self.places, self.seed, self.purpose, self.item = kinds, places, seed, purpose, 0

    def integers(self, low, high=None, size=None, dtype=np.int64, endpoint=False):
        n_draws, n = size
        assert (low, high, n) == (0, n, sum(count for *_, count in self.kinds)), (low, high, size)
        rows = np.empty(size, dtype=np.int64)
        for row in rows:
            stream, left, whole, at = uniforms(self.seed, self.purpose, self.item), n, n, 0
            for place, (*_, count) in zip(self.places, self.kinds):
                k = binomial(left, count, whole, stream)
                row[at : at + k] = place
                at, left, whole = at + k, left - k, whole - count
            self.item += 1
        return rows


def bootstrap_drawn():
    """scipy's percentile bootstrap on the very draws of aloe: of right answers, of paired differences, of abstracts with several questions."""
    random = np.random.default_rng(7)
    clustered = [(float(random.integers(-c, c + 1)), float(c)) for c in random.integers(1, 5, 150)]
    cases = [("golden", 3, [(1.0, 1.0)] * 7 + [(0.0, 1.0)] * 13), ("golden", 3, [(1.0, 1.0)] * 801 + [(0.0, 1.0)] * 472)]
    for both, first, second in ((65, 5, 30), (91, 4, 5), (60, 0, 40), (800, 161, 312), (350, 0, 0)):
        cases.append(("paired-bootstrap", 1, [(0.0, 1.0)] * both + [(-1.0, 1.0)] * first + [(1.0, 1.0)] * second))
    cases.append(("paired-bootstrap", 0, clustered))
    rows = []
    for purpose, seed, clusters in cases:
        clusters = sorted(clusters)
        kinds = [(s, c, len(list(same))) for (s, c), same in itertools.groupby(clusters)]
        places = np.cumsum([0] + [n for *_, n in kinds])[:-1]
        sums, counts = (np.array(x) for x in zip(*clusters))
        ratio = lambda s, c, axis: np.sum(s, axis=axis) / np.sum(c, axis=axis)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            result = scipy.stats.bootstrap((sums, counts), ratio, paired=True, vectorized=True, n_resamples=10_000, confidence_level=0.95, method="percentile", rng=Drawn(kinds, places, seed, purpose))
        low, high = np.percentile(result.bootstrap_distribution, [2.5, 97.5])
        assert math.isclose(low, result.confidence_interval.low, abs_tol=1e-12) and math.isclose(high, result.confidence_interval.high, abs_tol=1e-12)
        rows.append({"purpose": purpose, "seed": seed, "n_draws": 10_000, "kinds": [[s, c, n] for s, c, n in kinds], "low": float(low), "high": float(high)})
    return rows


def calibration():
    """ECE with bins (i/10, (i+1)/10], 0 in the first; confidence is the largest probability, the prediction its first option. Brier over all options."""
    rows = []
    for kind, n, options in (("softmax", 40, 4), ("softmax", 120, 5), ("softmax", 60, 3), ("votes of 5", 30, 4), ("votes of 10", 50, 3), ("votes of 20", 40, 5), ("binary", 30, 2)):
        if kind.startswith("votes"):
            of = int(kind.split()[-1])
            p = RNG.multinomial(of, RNG.dirichlet(np.ones(options)), n) / of
        else:
            logits = RNG.normal(0, 1.5, (n, options))
            p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        p = np.round(p, 6)
        if not kind.startswith("votes"):
            p[:, -1] = np.round(1 - p[:, :-1].sum(1), 6)
        key = np.array([RNG.choice(options, p=row / row.sum()) for row in p])
        confidence, right = p.max(1), p.argmax(1) == key
        frame = pd.DataFrame({"c": confidence, "r": right.astype(float)})
        groups = frame.groupby(pd.cut(frame.c, [i / 10 for i in range(11)], right=True, include_lowest=True), observed=False)
        filled = [(i, len(g), float(g.c.mean()), float(g.r.mean())) for i, (_, g) in enumerate(groups) if len(g)]
        ece = sum(m / n * abs(r - c) for _, m, c, r in filled)
        edges = np.array([i / 10 for i in range(1, 10)])
        again = np.digitize(confidence, edges, right=True)
        assert math.isclose(ece, sum(abs((right[again == b] - confidence[again == b]).sum()) for b in range(10)) / n, rel_tol=1e-9, abs_tol=1e-15)
        hot = np.eye(options)[key]
        brier = float(((p - hot) ** 2).sum(1).mean())
        assert math.isclose(brier, 2 * float(np.mean((p[:, 1] - hot[:, 1]) ** 2)), rel_tol=1e-9) if options == 2 else True
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            other = brier_score_loss(key, p / p.sum(1, keepdims=True), labels=list(range(options)), scale_by_half=False)
        assert math.isclose(brier, other, rel_tol=1e-5), (brier, other)
        rows.append({"kind": kind, "probabilities": p.tolist(), "key": key.tolist(), "right": right.tolist(), "ece": float(ece), "brier": brier,
                     "bins": [{"bin": i, "n": m, "confidence": c, "accuracy": r} for i, m, c, r in filled]})
    return rows


def clustered():
    """statsmodels' OLS on a constant. With its correction (G/(G-1)) (n-1)/(n-1) it equals sqrt(G/(G-1) sum_g (sum_i (y_i - mean))^2) / n."""
    rows = []
    for n_clusters, most in ((2, 3), (8, 1), (15, 6), (40, 12), (120, 3)):
        counts = RNG.integers(1, most + 1, n_clusters)
        groups = np.repeat(np.arange(n_clusters), counts)
        y = (RNG.random(len(groups)) < np.repeat(RNG.beta(2, 1.5, n_clusters), counts)).astype(float)
        ones = np.ones(len(y))
        errors = {name: float(sm.OLS(y, ones).fit(cov_type="cluster", cov_kwds={"groups": groups, "use_correction": used}).bse[0])
                  for name, used in (("corrected", True), ("uncorrected", False))}
        sums = np.array([y[groups == g].sum() for g in range(n_clusters)])
        squares = ((sums - y.mean() * counts) ** 2).sum()
        by_hand = math.sqrt(n_clusters / (n_clusters - 1) * squares) / len(y)
        assert math.isclose(errors["corrected"], by_hand, rel_tol=1e-9, abs_tol=1e-15)
        assert math.isclose(errors["uncorrected"], math.sqrt(squares) / len(y), rel_tol=1e-9, abs_tol=1e-15)
        rows.append({"clusters": [[float(s), int(c)] for s, c in zip(sums, counts)], "mean": float(y.mean())} | errors)
    return rows


def holm():
    lists = [[0.01], [0.04, 0.01], [0.02, 0.5, 0.01, 0.03], [0.4, 0.4, 0.9], [0.05] * 6, [1.0, 0.0, 1e-12]]
    lists += [np.round(RNG.beta(0.5, 3, m), 6).tolist() for m in (7, 20, 55)]
    return [{"p": p, "adjusted": [float(x) for x in multipletests(p, method="holm")[1]], "rejected_at_0.05": [bool(x) for x in multipletests(p, alpha=0.05, method="holm")[0]]} for p in lists]


def smallest_difference():
    """Connor 1987: n = (z_0.975 sqrt(psi) + z_0.8 sqrt(psi - d^2))^2 / d^2 solved for d; null where even d = psi is not found."""
    z_alpha, z_power = scipy.stats.norm.ppf(0.975), scipy.stats.norm.ppf(0.8)
    rows = []
    for n in (50, 100, 200, 350, 500, 1273, 4183, 7045):
        for discordant in sorted({8, 10, n // 20, n // 10, n // 5, (3 * n) // 10, n // 2}):
            psi = discordant / n
            short = lambda d: (z_alpha * math.sqrt(psi) + z_power * math.sqrt(max(0.0, psi - d * d))) ** 2 / (d * d) - n
            d = scipy.optimize.brentq(short, 1e-9, psi, xtol=1e-15, rtol=1e-14) if short(psi) < 0 else None
            rows.append({"n": n, "discordant": discordant, "d": d})
    return rows


def student():
    return [{"freedom": k, "t": float(scipy.stats.t.ppf(0.975, k))} for k in (1, 2, 3, 4, 5, 7, 10, 15, 29, 30, 59, 100, 199, 350, 1000, 5000)]


def main():
    parts = [mcnemar_exact, wilson, stderrs, grouped_stderrs, bootstrap, calibration, clustered, holm, smallest_difference, student, bootstrap_drawn]
    header = "numpy 2.4.6, scipy 1.17.1, statsmodels 0.15.0, pandas 3.1.1, scikit-learn 1.9.1, lm-eval 0.4.13; seed 20240426"
    text = '{"versions":' + json.dumps(header)
    for part in parts:
        rows = ",\n".join(json.dumps(row, separators=(",", ":")) for row in part())
        text += f',\n"{part.__name__}":[\n{rows}\n]'
    OUT.write_text(text + "}\n")
    json.loads(OUT.read_text())
    print(OUT, OUT.stat().st_size)


if __name__ == "__main__":
    main()
