from hypothesis import given
from hypothesis import strategies as st

from chatd.config.settings import Config
from chatd.supervisor.child_process import Backoff

CONFIG = Config(restart_min_delay=0.1, restart_max_delay=30.0, restart_reset_time=60.0)


def test_the_waits_double_from_a_tenth_of_a_second_to_thirty_and_do_not_end() -> None:
    backoff = Backoff(CONFIG)
    waits = [backoff.wait(lived=0.0) for _ in range(3000)]
    assert waits == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, *[30.0] * 2991]


def test_only_a_child_that_lived_for_a_minute_starts_again_with_the_first_wait() -> None:
    backoff = Backoff(CONFIG)
    assert [backoff.wait(lived) for lived in (1.0, 1.0, 59.9, 60.0, 1.0)] == [0.1, 0.2, 0.4, 0.1, 0.2]


@given(st.lists(st.floats(min_value=0, max_value=1e6)))
def test_every_wait_is_between_the_first_and_the_longest(lives: list[float]) -> None:
    backoff = Backoff(CONFIG)
    assert all(0.1 <= backoff.wait(lived) <= 30.0 for lived in lives)
