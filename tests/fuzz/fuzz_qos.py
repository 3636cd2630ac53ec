# SPDX-License-Identifier: Apache-2.0
"""QoS classes as a person writes them: `--qos`, and the same in configurations."""

from libqos import policy
from libqos.policy import PolicyError


def test_one_input(data: bytes) -> None:
    try:
        qos = policy.parse(data.decode(errors="surrogateescape"))
    except PolicyError:
        return
    assert policy.parse(qos.to_text()) == qos
    assert qos.as_record()
