"""Whether a series of measurements grows: for the soak, which must end as flat as it began.

The trend is Theil's and Sen's: the median of the slopes between all pairs of values, which single peaks do not
move. (The difference between the last and the first third says the same of a line, but half of one odd third is
enough to turn it; least squares follow every peak.) A series grows where all three hold:

* along the trend it gains more than 2 % of its median;
* Sen's lower bound of that gain is no loss: noise alone shows such a trend in one of a hundred flat series;
* the gain is more than the grain of what is measured: below it a measurement says nothing.

Sen, P. K.: Estimates of the regression coefficient based on Kendall's tau. JASA 63 (1968).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

MOST = 0.02
"""Of its median: the most that a series may gain."""
FEWEST = 8
"""Values below which nothing is said of a series."""
_DEVIATIONS = 2.326  # of a normal distribution, beyond which one in a hundred lies on one side


@dataclass(frozen=True)
class Growth:
    """What a series gains from its first value to its last."""

    level: float
    """Its median."""
    gain: float
    """Along its trend, in its own unit."""
    at_least: float
    """What it surely gains."""

    @property
    def share(self) -> float:
        """Give the gain as a part of the level."""
        return self.gain / self.level if self.level else math.copysign(math.inf, self.gain) if self.gain else 0.0

    def too_much(self, grain: float = 0.0) -> bool:
        """Say whether the series grows; take the smallest gain that is one."""
        return self.share > MOST and self.at_least >= 0 and self.gain > grain


def growth(values: Sequence[float]) -> Growth:
    """Give the growth of a series at even distances. Raises ValueError where it is too short to tell."""
    count = len(values)
    if count < FEWEST:
        raise ValueError(f"{count} values say nothing of growth; it takes {FEWEST}")
    slopes = sorted(
        (values[later] - values[sooner]) / (later - sooner) for later in range(count) for sooner in range(later)
    )
    spread = _DEVIATIONS * math.sqrt(count * (count - 1) * (2 * count + 5) / 18)
    lower = slopes[max(0, math.floor((len(slopes) - spread) / 2))]
    return Growth(median(values), median(slopes) * (count - 1), lower * (count - 1))
