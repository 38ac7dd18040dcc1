"""links.sampler: a share of the vCons."""

import hashlib
import uuid as uuids

import pytest
from pydantic import ValidationError

from conserver import telemetry
from conserver.testing import try_link, two_party_call
from links import sampler
from links.sampler import Options, Spacing

UUIDS = [str(uuids.UUID(int=number * 2**90 + number)) for number in range(2000)]


def kept(link_name="sampler", **options):
    opts = Options(**options)
    return [uuid for uuid in UUIDS if sampler.run(uuid, link_name, opts)]


def test_percentage_keeps_about_that_share():
    """Of 2,000 vCons at 25 percent, about 500 go on."""
    assert 430 < len(kept(value=25)) < 570


def test_percentage_decides_again_as_before():
    """The same vCon meets the same fate in every run, with and without a seed."""
    assert kept(value=25) == kept(value=25)
    assert kept(value=25, seed=42) == kept(value=25, seed=42)


def test_a_seed_decides_for_each_vcon():
    """A seed does not give every vCon the same verdict."""
    assert 900 < len(kept(value=50, seed=42)) < 1100


def test_seeds_choose_differently_and_names_count_only_without_one():
    """Another seed, or without one another link, is another choice."""
    assert kept(seed=1) != kept(seed=2)
    assert kept("one") != kept("two")
    assert kept("one", seed=1) == kept("two", seed=1)


def test_a_larger_percentage_keeps_what_a_smaller_one_keeps():
    """Raising the share only adds vCons."""
    assert set(kept(value=10)) < set(kept(value=30))


@pytest.mark.parametrize(("value", "count"), [(0, 0), (100, 2000)])
def test_nothing_and_everything_are_possible(value, count):
    """0 percent is none and 100 is all."""
    assert count == len(kept(value=value))


@pytest.mark.parametrize("value", [1, 2, 7, 16])
def test_modulo_takes_the_first_digits_of_the_hash(value):
    """One of `value` by sha256 of the UUID: the choice that existing configs make, whatever the link is called."""
    chosen = [uuid for uuid in UUIDS if int(hashlib.sha256(uuid.encode()).hexdigest()[:8], 16) % value == 0]

    assert chosen == kept("any", method="modulo", value=value)


def test_rate_keeps_one_in_each_span(monkeypatch):
    """However many come, one every `value` seconds goes on."""
    clock = iter(number / 100 for number in range(2000))
    monkeypatch.setattr(sampler.time, "monotonic", lambda: next(clock))

    assert len(kept("rate-test", method="rate", value=2)) == 10


def test_rate_admits_the_last_one_again():
    """A run that is repeated after a failure meets the same fate."""
    spacing = Spacing(10)

    answers = [spacing.admits(*visit) for visit in [("a", 0), ("b", 1), ("a", 2), ("b", 10), ("a", 11), ("b", 11)]]

    assert answers == [True, False, True, True, False, True]


def test_rates_of_two_links_are_apart(monkeypatch):
    """Each link has a span of its own."""
    monkeypatch.setattr(sampler.time, "monotonic", lambda: 5.0)
    opts = Options(method="rate", value=3)

    results = [sampler.run(uuid, name, opts) for name in ("apart-1", "apart-2") for uuid in UUIDS[:2]]

    assert [UUIDS[0], None, UUIDS[0], None] == results


@pytest.mark.parametrize(("now", "count"), [(120.9, 2000), (121.0, 0), (119.999, 0)])
def test_time_based_keeps_all_of_some_seconds(monkeypatch, now, count):
    """Everything in a second that `value` divides goes on, nothing in the others."""
    monkeypatch.setattr(sampler.time, "time", lambda: now)

    assert count == len(kept(method="time_based", value=60))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "random"}, "'percentage', 'rate', 'modulo' or 'time_based'"),
        ({"value": 101}, "value must be from 0 to 100, not 101"),
        ({"value": -1}, "greater than or equal to 0"),
        ({"method": "rate", "value": 0}, "value is the seconds between two vCons, so it must be more than 0"),
        ({"method": "modulo", "value": 0}, "method modulo: value must be a whole number from 1 on, not 0"),
        ({"method": "modulo", "value": 2.5}, "method modulo: value must be a whole number from 1 on, not 2.5"),
        ({"method": "time_based", "value": 0.5}, "method time_based: value must be a whole number from 1 on"),
        ({"value": float("nan")}, "finite number"),
    ],
)
def test_a_value_that_makes_no_sense_is_refused(options, message):
    """Method and value are checked before the first vCon."""
    with pytest.raises(ValidationError, match=message):
        Options(**options)


def test_a_stopped_vcon_is_left_as_it_is():
    """The link changes nothing, whichever way it decides."""
    call = two_party_call()

    stopped = try_link("links.sampler", {"value": 0}, on=call, times=2)
    passed = try_link("links.sampler", {"value": 100}, on=call, times=2)

    assert (None, call.uuid) == (stopped.result, passed.result)
    assert call == stopped.vcon == passed.vcon


def test_decisions_are_counted_by_method():
    """The metrics have link and method as labels, never the vCon."""
    kept("counted", value=100)
    kept("counted", method="modulo", value=10**9)

    counters = telemetry.metrics.snapshot()["counters"]
    labels = {"link": "counted"}
    assert counters[telemetry.key("conserver.link.sampler.sampled_in", **labels, method="percentage")] == 2000
    assert counters[telemetry.key("conserver.link.sampler.sampled_out", **labels, method="modulo")] == 2000
