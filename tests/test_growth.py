"""What grows is told from what is flat, however noisy."""

import random

import pytest

from tests.growth import FEWEST, growth
from tests.rows import rows

LENGTH = 30


def noisy(seed: int, noise: float, rise: float = 0.0) -> list[float]:
    """Give a series around 100 that rises evenly by some percent, with so much noise."""
    chance = random.Random(seed)
    return [100 + rise * at / (LENGTH - 1) + chance.gauss(0, noise) for at in range(LENGTH)]


@rows("noise", [0.0, 0.5, 5.0])
def test_what_is_flat_is_not_said_to_grow_more_often_than_one_in_a_hundred_times(noise: float) -> None:
    assert sum(growth(noisy(seed, noise)).too_much() for seed in range(200)) <= 4


@rows(("noise", "rise"), [(0.0, 3.0), (0.5, 3.0), (1.0, 4.0), (5.0, 20.0)])
def test_what_grows_is_seen_through_the_noise(noise: float, rise: float) -> None:
    assert all(growth(noisy(seed, noise, rise)).too_much() for seed in range(100))


def test_two_percent_may_be_gained_and_no_more() -> None:
    assert not growth(noisy(1, 0, rise=1.9)).too_much()
    assert growth(noisy(1, 0, rise=2.1)).too_much()


def test_what_shrinks_does_not_grow() -> None:
    found = growth(noisy(1, 0.5, rise=-10))
    assert not found.too_much()
    assert found.share == pytest.approx(-0.1, abs=0.02)


def test_peaks_are_no_growth_wherever_they_are() -> None:
    for at in (0, LENGTH // 2, LENGTH - 3):
        values = noisy(1, 0.3)
        values[at : at + 3] = [400, 500, 300]
        assert not growth(values).too_much()


def test_a_warm_up_before_a_long_flat_stretch_is_no_growth() -> None:
    values = noisy(1, 0.3)
    values[:3] = [80, 90, 95]
    assert not growth(values).too_much()


def test_steps_that_never_go_back_are_growth() -> None:
    assert growth([100.0] * 15 + [105.0] * 15).too_much()
    assert growth([100 + at // 6 for at in range(LENGTH)]).too_much()


def test_a_gain_below_the_grain_is_none() -> None:
    descriptors = [20.0] * 15 + [21.0] * 15
    assert not growth(descriptors).too_much(grain=2)
    assert growth(descriptors).too_much()


def test_what_was_nothing_and_is_something_grows() -> None:
    assert growth([0.0] * 16 + [float(each) for each in range(14)]).too_much()


def test_the_numbers_are_those_of_a_line() -> None:
    found = growth([float(each) for each in range(100, 110)])
    assert (found.level, found.gain, found.at_least) == (104.5, 9, 9)
    assert growth([7.0] * FEWEST).share == 0


def test_a_short_series_says_nothing() -> None:
    with pytest.raises(ValueError, match="it takes 8"):
        growth([1.0] * (FEWEST - 1))
