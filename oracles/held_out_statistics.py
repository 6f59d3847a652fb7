"""Golden values of the errors of held-out figures in training, from the libraries that others use.

Python 3.11, numpy, scipy, statsmodels (versions stand in the file). Seed 4. All inputs are made up here. A token-weighted mean over rows is
an ordinary regression of the tokens' values on a constant, with errors clustered by row; the paired difference is that of the tokens'
differences. Tests are scipy's binomtest, intervals of shares statsmodels' Wilson intervals.
Writes crates/aloe-train/tests/golden/held_out_statistics.json. Run: python oracles/held_out_statistics.py     (a second)
"""

import json
import pathlib

import numpy as np
import scipy
import scipy.stats
import statsmodels
import statsmodels.api as sm
from statsmodels.stats.proportion import proportion_confint

OUT = pathlib.Path(__file__).resolve().parent.parent / "crates/aloe-train/tests/golden/held_out_statistics.json"
RNG = np.random.default_rng(4)


def clustered(tokens, rows):
    fit = sm.OLS(tokens, np.ones(len(tokens))).fit(cov_type="cluster", cov_kwds={"groups": rows, "use_correction": True, "df_correction": True}, use_t=True)
    return {"mean": float(fit.params[0]), "se": float(fit.bse[0]), "interval": [float(end) for end in fit.conf_int(0.05)[0]]}


def ratio(n_rows, longest, gain):
    n_tokens = RNG.integers(1, longest + 1, n_rows)
    rows = np.repeat(np.arange(n_rows), n_tokens)
    before = RNG.gamma(1.0, 2.5, len(rows)) * np.repeat(RNG.lognormal(0, 0.4, n_rows), n_tokens)
    after = before * (1 - gain) + RNG.normal(0, 0.3, len(rows)) + np.repeat(RNG.normal(0, 0.2, n_rows), n_tokens)
    sums = lambda tokens: [float(tokens[rows == row].sum()) for row in range(n_rows)]
    return {"n_tokens": n_tokens.tolist(), "before": sums(before), "after": sums(after),
            "expected": {"before": clustered(before, rows), "after": clustered(after, rows), "change": clustered(after - before, rows)}}


def main():
    splits = [(0, 1), (1, 0), (0, 5), (0, 6), (3, 9), (9, 3), (10, 10), (25, 40), (120, 161), (1200, 1100)]
    shares = [(0, 1), (1, 1), (0, 6), (3, 6), (29, 29), (17, 29), (201, 294), (0, 2000), (1013, 2000)]
    out = {
        "versions": {"numpy": np.__version__, "scipy": scipy.__version__, "statsmodels": statsmodels.__version__},
        "ratios": [ratio(2, 4, 0.1), ratio(3, 50, 0.0), ratio(11, 9, 0.3), ratio(40, 30, 0.05), ratio(150, 12, 0.0)],
        "even_splits": [{"first": a, "second": b, "p": float(scipy.stats.binomtest(a, a + b, 0.5).pvalue)} for a, b in splits],
        "wilson": [{"right": k, "n": n, "interval": [float(end) for end in proportion_confint(k, n, alpha=0.05, method="wilson")]} for k, n in shares],
    }
    OUT.write_text(json.dumps(out))


main()
