"""What is counted: names as Prometheus wants them, labels that stand here, and buckets."""

import re

import pytest

from chatd.monitoring import metrics
from chatd.monitoring.metrics import REFUSED, SAMPLES, Histogram, LabelledNumbers, Number, names
from tests.rows import rows


def test_each_sample_is_there_once() -> None:
    told = [(each.name, *each.labels.items()) for each in SAMPLES]
    assert len(told) == len(set(told))


@rows("sample", SAMPLES)
def test_names_follow_the_conventions_of_prometheus(sample: metrics.Sample) -> None:
    assert re.fullmatch(r"chatd_[a-z][a-z_]*", sample.name)
    assert (sample.kind == "counter") == sample.name.endswith("_total")
    assert sample.name.startswith(sample.family)
    assert sample.text.endswith(".")


def test_no_label_can_grow() -> None:
    assert {name for each in SAMPLES for name in each.labels} == {"protocol", "from", "le", "reason"}


def test_all_is_told_within_what_is_set_aside_for_it() -> None:
    assert len(SAMPLES) < 250  # a worker's file holds them without growing, where a disk may be full


def test_a_histogram_counts_by_upper_bounds() -> None:
    times = Histogram([0.1, 1])
    for value in (0.05, 0.1, 0.5, 7):
        times.observe(value)
    assert times.counts == [2, 1, 1]
    assert times.total == pytest.approx(7.65)


def test_a_reason_of_which_nothing_is_known_is_another() -> None:
    other = Number()
    assert LabelledNumbers(other=other)["teapot"] is other
    assert REFUSED["teapot"] is REFUSED["other"]


def test_a_histogram_can_be_asked_for_by_its_count_too() -> None:
    assert {"chatd_delivery_seconds_bucket", "chatd_delivery_seconds_sum", "chatd_delivery_seconds_count"} <= {*names()}
