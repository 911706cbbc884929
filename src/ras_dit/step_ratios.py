"""A plan that is listed share by share, stretched or shrunk to runs of another length."""

from __future__ import annotations

from collections.abc import Iterator


def listed_shares(ratios: tuple[float, ...], num_steps: int) -> list[float]:
    """The shares of `RASConfig.step_ratios`, for a run of ``num_steps`` evaluations: as large a share of it is dense,
    at the places where the list is dense or between them; every other step takes the share of the nearest one that is
    not. Where region steps stand among skipped ones, they are placed like dense steps instead, and as many."""
    last, others = len(ratios) - 1, [place for place, ratio in enumerate(ratios) if ratio < 1]
    if len(ratios) == num_steps or not others:
        return [float(ratio) for ratio in ratios] if others else [1.0] * num_steps
    regions = [place for place in others if ratios[place]]
    if regions and 0 in ratios[regions[0] :]:
        return _spread_shares(ratios, regions, num_steps)
    scale = last / max(1, num_steps - 1)
    nearest = (min(others, key=lambda place: abs(place - index * scale)) for index in range(num_steps))
    shares = [float(ratios[place]) for place in nearest]
    dense = [place for place, ratio in enumerate(ratios) if ratio == 1]
    for index, _ in _placed(dense, last, num_steps, _num_dense(ratios, num_steps)):
        shares[index] = 1.0
    return shares


def _num_dense(ratios: tuple[float, ...], num_steps: int) -> int:
    """Dense steps of a run of ``num_steps`` by this list: as large a share of it, rounded up."""
    return -(-ratios.count(1) * num_steps // len(ratios))


def _spread_shares(ratios: tuple[float, ...], regions: list[int], num_steps: int) -> list[float]:
    """Shares of a run of ``num_steps`` by a list with region steps at ``regions`` and skipped ones among them: its
    computed steps are placed in the run, and its dense ones among those."""
    places = [place for place, ratio in enumerate(ratios) if ratio]
    ranks = [rank for rank, place in enumerate(places) if ratios[place] == 1]
    num_dense = _num_dense(ratios, num_steps)
    count = min(num_steps, num_dense + round(len(regions) * num_steps / len(ratios)))
    is_dense = {number for number, _ in _placed(ranks, len(places) - 1, count, num_dense)}
    shares = [0.0] * num_steps
    for number, (index, place) in enumerate(_placed(places, len(ratios) - 1, num_steps, count)):
        nearest = min(regions, key=lambda region: abs(region - place))
        shares[index] = 1.0 if number in is_dense else float(ratios[nearest])
    return shares


def _placed(places: list[int], last: int, num_steps: int, count: int) -> Iterator[tuple[int, float]]:
    """Where ``count`` steps of a run of ``num_steps`` stand, if those of one of ``last + 1`` are at ``places`` (the
    first of them 0); each with its place there, which may lie between two."""
    index = -1
    for number in range(count):
        rank = number * (len(places) - 1) / max(1, count - 1)
        low = min(int(rank), len(places) - 2) if len(places) > 1 else 0
        high = min(low + 1, len(places) - 1)
        place = places[low] + (places[high] - places[low]) * (rank - low)
        wanted = int(place * (num_steps - 1) / last + 0.5)
        index = min(max(index + 1, wanted), num_steps - count + number)
        yield index, place
