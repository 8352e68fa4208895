"""Values nobody thought of together render to sound objects, or are refused in the chart's own words."""

from __future__ import annotations

import helm_python
import kubernetes_validate
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.chart.chart import Release, Tree, render
from tests.chart.standards import breaches

LISTENERS = st.fixed_dictionaries(
    {
        "address": st.sampled_from(["0.0.0.0:2525", ":2526", "[::]:2527", "127.0.0.1:2525", "unix:/tmp/x.sock", ":25"]),
        "protocol": st.sampled_from(["smtp", "lmtp"]),
    }
)
CONFIGS = st.fixed_dictionaries(
    {},
    optional={
        "acceptance": st.sampled_from(["hold", "spool"]),
        "listeners": st.dictionaries(st.sampled_from(["smtp", "lmtp", "a_name_of_more_than_15", "24"]), LISTENERS, max_size=3),
        "drain_timeout_s": st.sampled_from([1, 30.5, 600]),
        "sidecar": st.fixed_dictionaries({"address": st.sampled_from([":8080", "[::]:9090", "0.0.0.0:2525"])}),
    },
)
SERVICES = st.fixed_dictionaries(
    {},
    optional={
        "type": st.sampled_from(["ClusterIP", "NodePort", "LoadBalancer"]),
        "ports": st.dictionaries(st.sampled_from(["smtp", "lmtp", "a_name_of_more_than_15"]), st.sampled_from([24, 25, 2525]), max_size=2),
        "externalTrafficPolicy": st.sampled_from(["Local", "Cluster"]),
        "loadBalancerSourceRanges": st.sampled_from([[], ["192.0.2.0/24"]]),
    },
)
VALUES = st.fixed_dictionaries(
    {},
    optional={
        "replicas": st.integers(0, 3),
        "config": CONFIGS,
        "service": SERVICES,
        "persistence": st.fixed_dictionaries({"enabled": st.booleans(), "size": st.sampled_from(["1Gi", "10Gi", "5e3", "20000000000"])}),
        "ephemeralSpool": st.fixed_dictionaries({"acceptLoss": st.booleans()}),
        "onConfigChange": st.sampled_from(["live", "restart"]),
        "tls": st.fixed_dictionaries({"existingSecret": st.sampled_from(["", "mx"])}),
        "secrets": st.sampled_from([{}, {"a": {"existingSecret": "b"}}]),
        "preStopSleepSeconds": st.sampled_from([0, 10]),
        "terminationGracePeriodSeconds": st.sampled_from([None, 145, 3600]),
        "networkPolicy": st.fixed_dictionaries({"enabled": st.booleans()}),
        "serviceAccount": st.fixed_dictionaries({"create": st.booleans(), "name": st.sampled_from(["", "mail"])}),
        "topologySpread": st.sampled_from([[], ["zone"]]),
        "podLabels": st.sampled_from([{}, {"a": "b"}]),
    },
)


def rendered(values: Tree) -> Release | None:
    """Return what *values* render to, or nothing when schema or cross-checks refuse them in so many words."""
    try:
        return render(values)
    except helm_python.HelmValuesError:
        return None
    except helm_python.HelmRenderError as refusal:
        if "value(s) to correct" not in str(refusal):
            raise
        return None


@given(VALUES)
@settings(max_examples=100, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
def test_any_combination_is_sound_or_refused(values: Tree) -> None:
    """Schema and cross-checks are the only ones to refuse; whatever they let pass is valid and meets the restricted standard."""
    release = rendered(values)
    if release is not None:
        for document in release.documents:
            kubernetes_validate.validate(document, "1.37", strict=True)
        assert [] == breaches(release.pod()["spec"])
