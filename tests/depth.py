"""How deep the searches go: a little of each with every ``make test``, all of it with ``make soak`` (``DEEP=1``)."""

import os
import sys
import unicodedata

DEEP = bool(os.environ.get("DEEP"))


def depth(full: int) -> int:
    """Return how many cases of a random search are tried, of those tried at full depth."""
    return full if DEEP else full // 10


def code_points() -> list[int]:
    """Return all code points, or those at which the category changes and every 61st."""
    points = range(sys.maxunicode + 1)
    if DEEP:
        return list(points)
    categories = [unicodedata.category(chr(point)) for point in points]
    edges = {at for point in points[1:] if categories[point] != categories[point - 1] for at in (point - 1, point)}
    return sorted(edges.union(points[::61]))
