# SPDX-License-Identifier: Apache-2.0
"""Which technology a stream gets: every policy against every set of usable technologies."""

from __future__ import annotations

import errno
import itertools
import json

import pytest
from selened.mapping import (
    BUILT_IN,
    NOT_BUILT,
    Capabilities,
    Order,
    StreamPolicy,
    Technology,
    decide,
    default_order,
)
from selened.wire import RefusedError

from libqos.policy import Acceleration, Resources

SUBSETS = [
    frozenset(subset) for size in range(len(Technology) + 1) for subset in itertools.combinations(Technology, size)
]
# Thesis 5.3.2.
ORDER = {
    ("slow", "low"): ["udp"],
    ("slow", "any"): ["udp"],
    ("fast", "low"): ["rdma", "xdp", "udp"],
    ("fast", "any"): ["rdma", "dpdk", "xdp", "udp"],
}


def policy(acceleration: str, resources: str) -> StreamPolicy:
    return StreamPolicy(acceleration=Acceleration(acceleration), resources=Resources(resources))


@pytest.mark.parametrize(("acceleration", "resources"), ORDER)
def test_default_order_is_that_of_the_thesis(acceleration: str, resources: str) -> None:
    chosen = default_order(policy(acceleration, resources))
    assert [item.label for item in chosen] == ORDER[acceleration, resources]


@pytest.mark.parametrize("usable", SUBSETS, ids=lambda subset: "+".join(item.label for item in subset) or "none")
@pytest.mark.parametrize(("acceleration", "resources"), ORDER)
def test_first_usable_candidate_wins(acceleration: str, resources: str, usable: frozenset[Technology]) -> None:
    capabilities = Capabilities({item: "" if item in usable else f"no {item.label} here" for item in Technology})
    order = ORDER[acceleration, resources]
    expected = next((label for label in order if label in {item.label for item in usable}), None)
    if expected is None:
        with pytest.raises(RefusedError) as refusal:
            decide(policy(acceleration, resources), capabilities)
        assert refusal.value.error == errno.EOPNOTSUPP
        assert all(f"no {label} here" in str(refusal.value) for label in order)
        return
    decision = decide(policy(acceleration, resources), capabilities)
    assert decision.chosen.label == expected
    assert [item.technology.label for item in decision.candidates] == order
    for item in decision.candidates:
        assert item.usable == (item.technology in usable)
        assert item.reason
    downgraded = acceleration == "fast" and expected == "udp"
    assert bool(decision.warning) == downgraded
    if downgraded:
        assert all(f"no {label} here" in decision.warning for label in order[:-1])


def test_what_is_not_built_is_refused_with_a_reason() -> None:
    assert BUILT_IN.usable == ["udp"]
    decision = decide(policy("fast", "any"))
    assert {item.technology.label: item.reason for item in decision.candidates if not item.usable} == {
        "rdma": NOT_BUILT, "dpdk": NOT_BUILT, "xdp": NOT_BUILT,
    }  # fmt: skip
    assert "ask for slow" in decision.warning


def test_the_order_of_another_strategy_is_followed_and_named() -> None:
    everything = Capabilities(dict.fromkeys(Technology, ""))
    order = Order((Technology.XDP, Technology.UDP), "mine", "because")
    decision = decide(policy("slow", "low"), everything, order)
    assert decision.chosen is Technology.XDP
    assert decision.reason == "the first choice for slow with low resource use"
    assert decision.record()["strategy"] == "mine"
    assert decision.record()["strategy_reason"] == "because"
    assert decision.candidates[1].reason == "xdp comes first"


def test_time_sensitive_streams_are_refused_with_a_remedy() -> None:
    with pytest.raises(RefusedError, match="time_sensitive = 0") as refusal:
        decide(StreamPolicy(time_sensitive=1, traffic_class=5))
    assert refusal.value.error == errno.EOPNOTSUPP


def test_the_record_is_json_and_complete() -> None:
    record = json.loads(json.dumps(decide(policy("fast", "low")).record()))
    assert record["technology"] == "udp"
    assert record["strategy"] == "default"
    assert record["acceleration"] == "fast"
    assert record["resources"] == "low"
    assert record["traffic_class"] == 0
    assert record["marking"].startswith("not applied")
    assert [item["technology"] for item in record["candidates"]] == ["rdma", "xdp", "udp"]
