"""Token buckets, and the rate limits of one client."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatd.access.address_usage import AddressUsage
from chatd.access.token_bucket import ClientRate, SlowedClients, TokenBucket

STEPS = st.lists(st.tuples(st.floats(0, 20), st.integers(1, 20)), max_size=100)


@given(rate=st.floats(0.1, 100), burst=st.integers(1, 50), steps=STEPS)
def test_a_bucket_gives_at_most_its_burst_and_its_rate(rate: float, burst: int, steps: list[tuple[float, int]]) -> None:
    bucket, now = TokenBucket(rate, burst, 0.0), 0.0
    taken: list[tuple[float, int]] = []
    for step, count in steps:
        now += step
        if bucket.take(count, now):
            taken.append((now, count))
    for place, (start, _) in enumerate(taken):
        total = 0
        for end, count in taken[place:]:
            total += count
            assert total <= burst + rate * (end - start) + 1e-6


@given(rate=st.floats(0.1, 100), burst=st.integers(1, 50), steps=STEPS)
def test_after_the_wait_the_tokens_are_there(rate: float, burst: int, steps: list[tuple[float, int]]) -> None:
    bucket, now = TokenBucket(rate, burst, 0.0), 0.0
    for step, count in steps:
        now += step
        wanted = min(count, burst)
        if not bucket.take(wanted, now):
            now += bucket.wait(wanted, now) + 1e-6
            assert bucket.take(wanted, now)


def test_a_debt_is_bounded_and_paid_by_time() -> None:
    bucket = TokenBucket(2, 10, 0.0)
    bucket.spend(1000, 0.0)
    assert bucket.wait(1, 0.0) == 5.5
    assert not bucket.full(9.9)
    assert bucket.full(10.0)


def test_a_bucket_may_owe_more_than_it_holds() -> None:
    bucket = TokenBucket(5, 10, 0.0, 150)
    bucket.spend(110, 0.0)
    assert bucket.wait(1, 0.0) == pytest.approx(20.2)
    bucket.spend(1000, 0.0)
    assert bucket.wait(1, 0.0) == pytest.approx(30.2)
    assert bucket.wait(-75, 0.0) == pytest.approx(15)


def test_usage_elsewhere_is_not_reported_again() -> None:
    bucket = TokenBucket(5, 10, 0.0)
    bucket.spend(3, 0.0)
    bucket.take(2, 0.0)
    bucket.take(9, 0.0)
    bucket.spend_elsewhere(4, 0.0)
    assert (bucket.unreported, bucket.wait(1, 0.0)) == (5, 0)
    assert bucket.wait(2, 0.0) > 0


class Clock:
    now = 0.0

    def seconds(self) -> float:
        return self.now


def rate_of(clock: Clock, *, messages: float = 5, size: float = 0, shared: AddressUsage | None = None) -> ClientRate:
    return ClientRate(
        TokenBucket(messages, 10, 0.0, 30 * messages) if messages else None,
        TokenBucket(size, 2 * size, 0.0) if size else None,
        TokenBucket(messages, 3, 0.0) if messages else None,
        clock.seconds,
        SlowedClients(100),
        shared=shared,
        read_bytes=1000,
    )


def after(rate: ClientRate, sizes: list[int]) -> tuple[int, float]:
    count, wait = rate.take_some(sizes)
    return count, round(wait, 6)


def test_ten_messages_at_once_then_five_a_second() -> None:
    clock = Clock()
    rate = rate_of(clock)
    assert after(rate, [1] * 30) == (10, 0.2)
    clock.now = 0.9
    assert after(rate, [1] * 30) == (4, 0.1)
    assert rate.messages_per_second == 5


def test_bytes_count_too() -> None:
    clock = Clock()
    rate = rate_of(clock, messages=0, size=100)
    assert after(rate, [150, 51]) == (1, 0.01)
    assert rate.messages_per_second is None
    clock.now = 1.0
    assert rate.take(150) == 0
    both = rate_of(Clock(), messages=5, size=1000)
    assert both.take_some([1] * 11)[0] == 10


def test_a_message_that_waits_takes_from_no_bucket() -> None:
    clock = Clock()
    rate = rate_of(clock, messages=5, size=10)
    assert rate.take(20) == 0
    for _ in range(20):
        assert rate.take(20) > 0
    clock.now = 2.0
    assert rate.take_some([0] * 11)[0] == 10


def test_refusals_in_a_row_are_counted() -> None:
    clock = Clock()
    rate = rate_of(clock)
    rate.take_some([1] * 10)
    for _ in range(3):
        rate.take(1)
    assert rate.refused == 3
    clock.now = 1.0
    rate.take(1)
    assert rate.refused == 0


def test_joins_have_a_bucket_of_their_own() -> None:
    rate = rate_of(Clock())
    assert [rate.join() for _ in range(4)] == [0, 0, 0, pytest.approx(0.2)]
    assert rate.take(1) == 0
    assert rate_of(Clock(), messages=0, size=1).join() == 0


def test_a_message_that_costs_many_tokens_goes_into_debt() -> None:
    clock = Clock()
    rate = rate_of(clock)
    assert rate.take(0, 100) == 0
    assert rate.take(0, 100) == pytest.approx(18.2)
    clock.now = 18.3
    assert rate.take(0) == 0


def usage_of(**buckets: TokenBucket) -> AddressUsage:
    usage = AddressUsage("192.0.2.1", {})
    for name, bucket in buckets.items():
        setattr(usage, name, bucket)
    return usage


def test_the_clients_of_an_address_share_its_buckets() -> None:
    clock, usage = Clock(), usage_of(messages=TokenBucket(10, 15, 0.0))
    one, other = rate_of(clock, shared=usage), rate_of(clock, shared=usage)
    assert after(one, [1] * 30)[0] == 10
    assert after(other, [1] * 30) == (5, 0.1)
    assert usage.messages is not None
    assert usage.messages.unreported == 15


def test_small_messages_of_other_clients_do_not_starve_a_large_one() -> None:
    clock, usage = Clock(), usage_of(bytes=TokenBucket(100, 200, 0.0))
    small, large = rate_of(clock, messages=0, shared=usage), rate_of(clock, messages=0, shared=usage)
    while not small.take(1):
        pass
    clock.now = 0.02
    assert large.take(150) == 0
    assert small.take(1) > 1


def test_a_client_is_told_the_slowest_limit() -> None:
    usage = usage_of(messages=TokenBucket(2, 4, 0.0))
    assert rate_of(Clock(), shared=usage).messages_per_second == 2
    assert rate_of(Clock(), messages=1, shared=usage).messages_per_second == 1
    assert rate_of(Clock(), messages=0, shared=usage).messages_per_second == 2


def test_reads_delay_the_next_request() -> None:
    clock, usage = Clock(), usage_of(requests=TokenBucket(2, 4, 0.0, 60))
    rate = rate_of(clock, shared=usage)
    assert rate.ask() == 0
    rate.read(13_000)
    assert rate.ask() == pytest.approx(5.5)
    assert rate.refused == 1
    assert rate.ask(recovers=True) == 0
    rate.read(21_000)
    assert rate.ask(recovers=True) == pytest.approx(1.0), "it owes more than half of what it may"
    clock.now = 1.0
    assert rate.ask(0, recovers=True) == 0


def test_reads_do_not_reset_the_count_of_refused_messages() -> None:
    clock, usage = Clock(), usage_of(requests=TokenBucket(2, 4, 0.0, 60))
    rate = rate_of(clock, shared=usage)
    rate.take_some([1] * 10)
    for _ in range(3):
        assert rate.take(1) > 0
        assert rate.ask() == 0
    assert rate.refused == 3
    rate.ask()
    rate.ask()
    assert rate.ask(0, recovers=True) == 0
    assert rate.refused == 4, "what costs nothing changes nothing"
    clock.now = 1.0
    assert [rate.take(1), rate.ask()] == [0, 0]
    assert rate.refused == 0


def test_without_a_limit_of_requests_reads_are_free() -> None:
    for rate in (rate_of(Clock()), rate_of(Clock(), shared=usage_of())):
        rate.read(10**9)
        assert [rate.ask() for _ in range(1000)] == [0] * 1000


class Client:
    def __init__(self, slowed: SlowedClients) -> None:
        self.slowed = slowed
        self.published = 0

    def publish_now(self) -> None:
        self.published += 1
        self.slowed.discard(self)


def test_waiting_messages_are_published_once() -> None:
    slowed = SlowedClients(100)
    one, other = Client(slowed), Client(slowed)
    slowed.add(one)
    slowed.add(other)
    slowed.discard(other)
    slowed.publish_now()
    slowed.publish_now()
    assert (one.published, other.published) == (1, 0)


def test_the_messages_of_closed_clients_are_bounded() -> None:
    slowed = SlowedClients(100)
    clients = [Client(slowed) for _ in range(3)]
    assert [slowed.reserve(client, 50) for client in clients] == [True, True, False]
    slowed.discard(clients[0])
    assert slowed.reserve(clients[2], 50)


def test_the_sum_of_reserved_sizes_is_kept() -> None:
    added = 0

    class Size(int):
        def __radd__(self, other: int) -> int:
            nonlocal added
            added += 1
            return int(self) + other

    slowed = SlowedClients(10**6)
    clients = [Client(slowed) for _ in range(100)]
    assert all(slowed.reserve(client, Size(1)) for client in clients)
    assert added <= len(clients)


def test_the_reservation_of_a_client_counts_once() -> None:
    slowed = SlowedClients(100)
    one, other = Client(slowed), Client(slowed)
    for size in (80, 60, 40):
        assert slowed.reserve(one, size)
    assert slowed.reserve(other, 60)
    slowed.add(one)
    assert not slowed.reserve(other, 61)


def test_a_refused_reservation_does_not_count() -> None:
    slowed = SlowedClients(100)
    one, refused, last = (Client(slowed) for _ in range(3))
    assert slowed.reserve(one, 90)
    assert not slowed.reserve(refused, 50)
    slowed.discard(one)
    assert slowed.reserve(last, 60)
    assert not slowed.reserve(last, 101)  # it is given up, with all that it left before
    assert slowed.reserve(one, 100)
