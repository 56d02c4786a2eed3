"""`python -m tests.real.parts`: get every real part before the tests, so that their time is their own."""

import time
from functools import partial

from tests.real.parts import building, exporters, kserve, registry, tensorflow, triton

PARTS = {
    "kafka": building.kafka_jars,
    "kube-apiserver": building.apiserver,
    "kubelet": building.kubelet,
    "prometheus": building.prometheus,
    "postgres": building.postgres,
    "trivy's reports": building.trivy_reports,
    "docker-registry": registry.distribution,
    "registry with referrers": registry.with_referrers,
    "kube-state-metrics": exporters.kube_state_metrics,
    **{f"queue proxy {version}": partial(exporters.queue_proxy, version) for version in exporters.KNATIVE},
    "kserve": kserve.ENVIRONMENT.python,
    "triton": triton.ENVIRONMENT.python,
    **{f"tensorflow {name}": environment.python for name, environment in tensorflow.ENVIRONMENTS.items()},
}

for name, get in PARTS.items():
    began = time.monotonic()
    print(f"{name}: {get()} ({time.monotonic() - began:.0f} s)", flush=True)
