"""A colour and a shape for each method: one colour for a loss, one shape for its options.

The first colours are Okabe and Ito's, the light ones darkened until each has a contrast of at least
3 to white and to the dark page (WCAG 2.2, criterion 1.4.11). Shapes tell apart what colours do not.
"""

from collections.abc import Sequence
from itertools import product
from typing import NamedTuple

from prefopt.compare.results import MethodResult

__all__ = ["BASELINE", "COLOURS", "SHAPES", "Look", "looks"]

COLOURS = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#C46F9F",
    "#A67C00",
    # Okabe and Ito's light blue would look as the first, so darkened: these tell more losses apart.
    "#8A63D2",
    "#B8405E",
    "#4E8098",
)
BASELINE = "#7F7F7F"
# Name in Vega, and as a path in a box from -1 to 1.
SHAPES = {
    "circle": "M1,0A1,1,0,1,1,-1,0A1,1,0,1,1,1,0Z",
    "square": "M-.9,-.9H.9V.9H-.9Z",
    "triangle-up": "M0,-1L1,.8H-1Z",
    "diamond": "M0,-1.1L.9,0L0,1.1L-.9,0Z",
    "cross": "M-1,-.35H-.35V-1H.35V-.35H1V.35H.35V1H-.35V.35H-1Z",
    "triangle-down": "M0,1L1,-.8H-1Z",
    "triangle-right": "M1,0L-.8,1V-1Z",
}


class Look(NamedTuple):
    """How a method is drawn.

    Attributes:
        colour: As #RRGGBB.
        shape: A key of ``SHAPES``.
    """

    colour: str
    shape: str


def looks(methods: Sequence[MethodResult]) -> dict[str, Look]:
    """Return a look for each method; no two share one while there are enough.

    Args:
        methods: In the order of the report.
    """
    losses = list(dict.fromkeys(it.loss for it in methods if not it.is_baseline))
    found: dict[str, Look] = {}
    for method in methods:
        wanted = BASELINE
        if not method.is_baseline:
            wanted = COLOURS[losses.index(method.loss) % len(COLOURS)]
        found[method.name] = _free(wanted, set(found.values()))
    return found


def _free(wanted: str, taken: set[Look]) -> Look:
    """Return the first look of a colour that is free, else of any colour, else the first."""
    own = [Look(wanted, shape) for shape in SHAPES]
    others = [Look(colour, shape) for shape, colour in product(SHAPES, COLOURS)]
    return next((look for look in (*own, *others) if look not in taken), own[0])
