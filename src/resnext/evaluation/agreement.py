"""Two classifiers on the same images: who is right where, and whether that can be chance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Labels = NDArray[np.int64]
LEVEL = 0.05


@dataclass(frozen=True)
class Agreement:
    """How many images both, one or none have right. `p_value` is McNemar's, exact; None where they never differ."""

    both: int
    first_alone: int
    second_alone: int
    neither: int
    agree: float
    p_value: float | None

    def in_words(self) -> str:
        """Say which is better here, and whether that may be chance."""
        if self.p_value is None:
            return "both have the same images right."
        more, less = sorted((self.first_alone, self.second_alone), reverse=True)
        who = "the first" if self.first_alone >= self.second_alone else "the second"
        verdict = "which chance alone seldom does" if self.p_value < LEVEL else "which may be chance"
        test = f"McNemar's test, p = {self.p_value:.3g}"
        return (
            f"{who} alone has {more} images right, the other {less}, {verdict} ({test}); they say the same of "
            f"{self.agree:.1%}."
        )

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON holds it."""
        return dict(vars(self))


def compare(labels: Labels, first: Labels, second: Labels) -> Agreement:
    """Compare two columns of predicted classes with the labels (Q. McNemar 1947; the binomial test is scipy's)."""
    from scipy.stats import binomtest

    one, other = first == labels, second == labels
    first_alone, second_alone = int((one & ~other).sum()), int((~one & other).sum())
    differ = first_alone + second_alone
    return Agreement(
        both=int((one & other).sum()),
        first_alone=first_alone,
        second_alone=second_alone,
        neither=int((~one & ~other).sum()),
        agree=float(np.mean(first == second)),
        p_value=float(binomtest(first_alone, differ, 0.5).pvalue) if differ else None,
    )
