"""What the variables of a launcher mean, and which values are refused."""

from __future__ import annotations

import pytest

from loadmaster.errors import ConfigError
from loadmaster.workers.launch import Launch

KEY = "0123456789abcdef"
PLAIN = {"RANK": "3", "WORLD_SIZE": "8", "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500", "LOADMASTER_KEY": KEY}
TORCHRUN = {**PLAIN, "LOCAL_RANK": "3", "LOCAL_WORLD_SIZE": "4", "TORCHELASTIC_RUN_ID": "none"}


def test_plain_variables_say_that_each_host_has_one_rank() -> None:
    assert Launch.of(PLAIN) == Launch(3, 8, 0, 1, "10.0.0.1", 29500, KEY.encode())


def test_torchrun_listens_at_its_own_port_so_the_next_one_is_used() -> None:
    launch = Launch.of(TORCHRUN)
    assert launch == Launch(3, 8, 3, 4, "10.0.0.1", 29501, KEY.encode())
    assert launch is not None
    assert launch.rendezvous == "10.0.0.1:29501"
    other = Launch.of({**TORCHRUN, "LOADMASTER_PORT": "7000"})
    assert other is not None
    assert other.port == 7000


def test_the_key_is_shown_nowhere() -> None:
    assert KEY not in repr(Launch.of(PLAIN))


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"RANK": "0", "WORLD_SIZE": "2"},
        {**PLAIN, "RANK": "0", "WORLD_SIZE": "1"},
    ],
)
def test_one_process_has_no_launcher(environment: dict[str, str]) -> None:
    assert Launch.of(environment) is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"RANK": "8"}, "RANK is '8', expected a number from 0 to 7"),
        ({"RANK": "-1"}, "RANK is '-1'"),
        ({"WORLD_SIZE": "many"}, "WORLD_SIZE is 'many'"),
        ({"LOCAL_RANK": "4"}, "LOCAL_RANK is '4', expected a number from 0 to 3"),
        ({"LOCAL_WORLD_SIZE": "9"}, "LOCAL_WORLD_SIZE is '9'"),
        ({"MASTER_PORT": None}, "MASTER_PORT is missing"),
        ({"LOADMASTER_PORT": "0"}, "LOADMASTER_PORT is '0'"),
        ({"LOADMASTER_KEY": None}, "rank 3 of 8, and LOADMASTER_KEY is not set"),
        ({"LOADMASTER_KEY": "short"}, "LOADMASTER_KEY has 5 characters, expected at least 16"),
    ],
)
def test_values_that_are_not_valid_are_refused(changes: dict[str, str | None], message: str) -> None:
    environment = {name: value for name, value in {**TORCHRUN, **changes}.items() if value is not None}
    with pytest.raises(ConfigError, match=message):
        Launch.of(environment)
