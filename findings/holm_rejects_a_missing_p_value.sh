#!/usr/bin/env bash
# A comparison that could not be tested has a p value of NaN. Expected: it is not rejected, or the call is refused.
# Seen with statsmodels 0.15.0: Holm's method rejects it wherever every finite hypothesis is rejected.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/env"
"$place/env/bin/pip" --quiet --disable-pip-version-check install statsmodels==0.15.0 numpy==2.4.6 scipy==1.17.1
"$place/env/bin/python" - <<'PY'
import numpy as np
import statsmodels
from statsmodels.stats.multitest import multipletests

print("statsmodels", statsmodels.__version__)
nan = float("nan")
cases = {
    "two clear differences and one that was not tested": ([0.01, 0.02, nan], "holm"),
    "the same with an unclear one": ([0.01, 0.6, nan], "holm"),
    "nothing was tested": ([nan], "holm"),
    "Benjamini and Hochberg": ([0.001, nan, 0.6], "fdr_bh"),
}
seen = {}
for name, (p_values, method) in cases.items():
    rejected, corrected = multipletests(p_values, 0.05, method=method)[:2]
    seen[name] = rejected.tolist(), [None if np.isnan(p) else round(float(p), 3) for p in corrected]
    print(f"{name}: p {p_values}, {method}")
    print(f"  expected: the hypothesis without a p value is not rejected, the others as if it were not there")
    print(f"  seen: rejected {seen[name][0]}, corrected {seen[name][1]}")
assert seen == {
    "two clear differences and one that was not tested": ([True, True, True], [0.03, 0.04, None]),
    "the same with an unclear one": ([True, False, False], [0.03, 1.0, None]),
    "nothing was tested": ([True], [None]),
    "Benjamini and Hochberg": ([True, False, False], [None, None, None]),
}, "this has changed"
PY
