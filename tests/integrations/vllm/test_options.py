"""``--model-loader-extra-config``: what it may say."""

from __future__ import annotations

import pytest

from loadmaster.errors import UsageError
from loadmaster.integrations.vllm.options import Options, read_options
from loadmaster.plan import WaiverRequest


def test_nothing_said_is_the_defaults() -> None:
    assert read_options({}) == Options()
    assert Options().verify
    assert Options().staging_bytes == 256 * 2**20


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"enable_multithread_load": True}, "no option enable_multithread_load"),
        ({"verify": 1}, "verify is 1, expected true or false"),
        ({"num_readers": 0}, "num_readers is 0, expected a whole number of at least 1"),
        ({"num_readers": True}, "num_readers is True"),
        ({"staging_bytes": "1 GiB"}, "staging_bytes is '1 GiB'"),
        ({"direct": "yes"}, "direct is 'yes', expected \"auto\", true or false"),
        (["verify"], "expected a JSON object"),
        ({"waive": "x=y"}, "waive is 'x=y', expected a list of texts"),
        ({"waive": ["x"]}, "'x' has no reason"),
        ({"waive": ["x=y"], "direct": False}, "waive needs a plan"),
    ],
)
def test_an_unknown_option_or_an_impossible_value_is_refused(given: object, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        read_options(given)


def test_waivers_are_read_as_on_the_command_line() -> None:
    assert read_options({"waive": ["*.z=a=b"]}).waive == (WaiverRequest("*.z", "a=b"),)
