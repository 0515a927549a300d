"""The options and bounds themselves."""

import dataclasses
import os

import msgspec
import pytest

from chatd.config.renamed import RENAMED
from chatd.config.settings import SECTIONS, Config, bounds, options


def test_every_default_is_accepted_by_its_own_parser() -> None:
    given = [option for option in (*options(), *bounds()) if option.default not in ("", False, ())]
    assert [option.name for option in given if option.parse(str(option.default)) != option.default] == []


def test_every_option_has_a_place_of_its_own() -> None:
    places = [option.place for option in (*options(), *bounds())]
    assert len(places) == len(set(places))
    assert {option.section for option in options()} <= SECTIONS.keys()
    assert len({option.flag for option in options()} | RENAMED.keys()) == len(options()) + len(RENAMED)


def test_every_bound_is_a_number_over_zero_or_a_limit_except_two_that_are_off() -> None:
    numbers = [bound for bound in bounds() if bound.value != "LIMIT"]
    assert {bound.default for bound in bounds() if bound not in numbers} == {"auto"}
    off = [bound.name for bound in numbers if bound.is_list or bound.default <= 0]
    assert off == ["auth_require", "hsts_max_age"]


def test_a_configuration_reaches_a_worker_as_it_is() -> None:
    config = Config(workers=3, listen=("tcp:3000",), message_rate="5", client_header_timeout=1.5)
    assert msgspec.json.decode(msgspec.json.encode(config), type=Config) == config


def test_default_bounds_keep_the_promises_of_the_documentation() -> None:
    config = Config()
    silent = config.redis_ping_interval * (config.redis_missed_pings + 1)
    assert silent <= 5.0, "a broker that falls silent is noticed within 5 seconds"
    assert config.republish_window >= silent + 2.0, "its last answers are still known then"
    assert config.chat_log_check_interval <= 1.0, "a renamed log is noticed within a second"
    assert config.batch_id_ttl == 300, "a batch whose answer got lost is known for 5 minutes"
    assert config.offset_check_interval <= 10.0, "a lost message without a successor is noticed within 10 seconds"
    assert config.resume_position_write_interval == 1.0, "resume positions are written once a second"
    assert config.takeover_timeout < config.subscribe_timeout, "a takeover ends before the handshake's time does"


def test_default_bounds_stop_the_server_within_ten_seconds() -> None:
    config = Config()
    assert config.stop_publish_timeout + config.stop_timeout + config.private_broker_stop_timeout <= 10.0
    assert 0 < config.stop_probe_share < config.stop_close_share < config.stop_save_share
    assert config.stop_save_share + config.stop_chat_log_share <= 0.9
    assert (config.stop_close_share - config.stop_probe_share) * config.stop_timeout > config.close_timeout
    assert config.chat_log_lock_timeout < config.stop_publish_timeout / 2


def test_the_timers_of_clients_are_exact_enough_for_the_shortest_wait() -> None:
    config = Config()
    waits = (config.subscribe_timeout, config.ping_interval, config.pong_timeout, config.close_timeout)
    assert config.client_timer_resolution * 10 <= min(*waits, config.client_report_interval)


@pytest.mark.parametrize(
    ("config", "kept"),
    [(Config(), True), (Config(history_size=0), False), (Config(history_ttl=0), False), (Config(history_size=1), True)],
)
def test_a_history_of_no_messages_or_no_time_is_off(config: Config, kept: bool) -> None:
    assert config.keeps_history == kept


@pytest.mark.parametrize(("ttl", "whole"), [(86_400.0, 86_400), (0.2, 1), (0.0, 1), (1.6, 2)])
def test_history_seconds_are_whole_and_at_least_one(ttl: float, whole: int) -> None:
    assert Config(history_ttl=ttl).history_seconds == whole


def test_a_room_is_remembered_at_least_as_long_as_its_history() -> None:
    assert Config(history_ttl=60, room_offset_ttl=600).room_seconds == 600
    assert Config(history_ttl=6000, room_offset_ttl=600).room_seconds == 6000


def test_a_config_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().workers = 3  # type: ignore[misc]


def test_the_default_log_lies_under_the_working_folder() -> None:
    assert not os.path.isabs(Config().chat_log)
