"""What a metric store has, for the doctor: which of the series that presets name are there at all.

This is a question for people, asked once, so the ready client does it; the hot path needs POST, exact times, byte
limits and warnings, which that client has not.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from pydantic import SecretStr

from service.ring.ports import Unavailable


async def absent_series(url: str, names: Iterable[str], *, token: SecretStr | None, timeout_s: float) -> list[str]:
    """Those of ``names`` that the store has no series of, sorted; raises Unavailable when it cannot be asked."""
    headers = {"Authorization": f"Bearer {token.get_secret_value()}"} if token else None

    def ask() -> set[str]:
        # Imported here: the client brings requests, which the service itself never needs.
        from prometheus_api_client import PrometheusApiClientException, PrometheusConnect
        from requests import RequestException

        try:
            return set(PrometheusConnect(url=url, headers=headers, timeout=max(1, round(timeout_s))).all_metrics())
        except (RequestException, PrometheusApiClientException, ValueError, KeyError) as error:
            # The client puts whole answers into its messages; the kind of the error is enough.
            raise Unavailable(f"the metric store at {url} cannot list its series: {type(error).__name__}") from None

    present = await asyncio.to_thread(ask)
    return sorted(set(names) - present)
