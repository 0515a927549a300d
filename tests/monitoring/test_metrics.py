"""The metrics: their names, labels and buckets."""

import re

import pytest

from chatd.monitoring import metrics
from chatd.monitoring.metrics import REFUSED, SAMPLES, Histogram, LabelledNumbers, Number
from tests.rows import rows


def test_samples_are_unique_and_their_labels_and_number_are_fixed() -> None:
    assert len({(sample.name, *sample.labels.items()) for sample in SAMPLES}) == len(SAMPLES)
    assert {name for sample in SAMPLES for name in sample.labels} == {"protocol", "from", "le", "reason"}
    assert len(SAMPLES) < 250  # the file of a worker holds them without growing: the disk may be full later


@rows("sample", SAMPLES)
def test_names_follow_the_conventions_of_prometheus(sample: metrics.Sample) -> None:
    assert re.fullmatch(r"chatd_[a-z][a-z_]*", sample.name)
    assert (sample.kind == "counter") == sample.name.endswith("_total")
    assert sample.name.startswith(sample.family)
    assert sample.text.endswith(".")


def test_a_histogram_counts_by_upper_bounds() -> None:
    times = Histogram([0.1, 1])
    for value in (0.05, 0.1, 0.5, 7):
        times.observe(value)
    assert times.counts == [2, 1, 1]
    assert times.total == pytest.approx(7.65)


def test_an_unknown_label_counts_as_other() -> None:
    other = Number()
    assert LabelledNumbers(other=other)["teapot"] is other
    assert REFUSED["teapot"] is REFUSED["other"]
