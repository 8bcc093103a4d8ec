"""Number of proposals of an image that the Square attack tries in one pass.

Most proposals are rejected, so the next ones can be tried together as if all of them were: the first improvement
counts, and later ones are discarded. The result is the same as one after the other. A pass with several proposals of
few images takes little longer than a pass with one of each.
"""

import math
from collections import deque

_NUMBERS = (1, 2, 3, 4, 6, 8, 12, 16)
# Required gain in useful proposals per second over one by one, which cannot waste any.
_CLEARLY = 1.03
# Rounds of similar size that are timed before their time is trusted; the first may include preparations.
_TRUSTED = 5
# Rounds after which all sizes are timed again, because other programs may have disturbed the first times.
_RENEWED = 400
# Initial estimate of the share of accepted proposals, and the number of proposals that it counts for.
_ACCEPTED, _WEIGHT = 0.15, 100.0
# Weight of earlier rounds in that share, per round.
_MEMORY = 0.97
# Forwards per useful proposal above which proposals are tried one by one.
MOST_FORWARDS = 1.5

_Size = tuple[int, int]


class Ahead:
    """Choose the number of proposals from the measured time of rounds and the share of accepted proposals.

    Args:
        limit: maximum number of points in one pass with several proposals per image.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        # By size: seconds per point of the last rounds, and their median once it is trusted.
        self._last: dict[_Size, deque[float]] = {}
        self._seconds: dict[_Size, float] = {}
        self._accepted, self._tried = _ACCEPTED * _WEIGHT, _WEIGHT
        self._forwards = self._useful = self._count = 0

    def choose(self, images: int) -> int:
        """Return the number of proposals per image with the most useful ones per second."""
        best, most = 1, 0.0
        if 2 * images > self._limit or self._forwards > MOST_FORWARDS * self._useful:
            return best
        for number in _NUMBERS:
            if number * images > self._limit:
                break
            seconds = self._seconds.get(_size(number, number * images))
            if seconds is None:
                return number
            rate = self._expected(number) / (seconds * number)
            if rate < most:
                break
            if rate > most * (_CLEARLY if best == 1 else 1):
                best, most = number, rate
        return best

    def learn(self, number: int, points: int, seconds: float, forwards: int, useful: int, accepted: int) -> None:
        """Learn from a round.

        Args:
            number: proposals per image.
            points: proposals of all images.
            seconds: time of the round.
            forwards: proposals that passed through the network.
            useful: proposals of all images up to the first accepted one.
            accepted: number of images that accepted one.
        """
        self._count += 1
        if self._count % _RENEWED == 0:
            self._last.clear()
            self._seconds.clear()
        size = _size(number, points)
        last = self._last.setdefault(size, deque(maxlen=_TRUSTED))
        last.append(seconds / points)
        if len(last) == _TRUSTED:
            self._seconds[size] = sorted(last)[_TRUSTED // 2]
        self._accepted = _MEMORY * self._accepted + accepted
        self._tried = _MEMORY * self._tried + useful
        self._forwards += forwards
        self._useful += useful

    def _expected(self, number: int) -> float:
        """Expected number of useful ones among `number` proposals of an image."""
        share = min(max(self._accepted / self._tried, 1e-3), 1.0)
        return (1 - (1 - share) ** number) / share


def _size(number: int, points: int) -> _Size:
    """Size class of a round; within a class (a factor of sqrt(2) in points) the time per point is similar."""
    return min(number, 2), round(2 * math.log2(points))
