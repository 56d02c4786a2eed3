"""An embedded Kafka: the mock cluster inside librdkafka, which confluent-kafka's wheel carries. No Java, no files.

It speaks the real protocol to any client; what it lacks (transactions' isolation, TLS) nothing here uses.
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Self

_LONG = ctypes.c_void_p


class EmbeddedBroker:
    """A one-broker cluster on loopback between ``start`` and ``stop``."""

    def __init__(self) -> None:
        self._lib: ctypes.CDLL | None = None
        self._client = _LONG()
        self._cluster = _LONG()
        self.bootstrap = ""

    def start(self) -> Self:
        """Listen; raises RuntimeError naming the extra when the wheel is absent."""
        try:
            import confluent_kafka
        except ImportError as error:
            raise RuntimeError("the embedded Kafka needs confluent-kafka: pip install 'serinus[lab]'") from error
        folder = Path(confluent_kafka.__file__).parent.parent / "confluent_kafka.libs"
        found = sorted(folder.glob("librdkafka*.so*"))
        if not found:
            raise RuntimeError(f"no librdkafka in {folder}; this platform's wheel has another layout")
        lib = ctypes.CDLL(str(found[0]))
        for name in ("rd_kafka_conf_new", "rd_kafka_new", "rd_kafka_mock_cluster_new"):
            getattr(lib, name).restype = _LONG
        lib.rd_kafka_mock_cluster_bootstraps.restype = ctypes.c_char_p
        lib.rd_kafka_new.argtypes = [ctypes.c_int, _LONG, ctypes.c_char_p, ctypes.c_size_t]
        lib.rd_kafka_mock_cluster_new.argtypes = [_LONG, ctypes.c_int]
        for name in ("rd_kafka_mock_cluster_bootstraps", "rd_kafka_mock_cluster_destroy", "rd_kafka_destroy"):
            getattr(lib, name).argtypes = [_LONG]
        lib.rd_kafka_mock_topic_create.argtypes = [_LONG, ctypes.c_char_p, ctypes.c_int, ctypes.c_int]
        lib.rd_kafka_mock_group_initial_rebalance_delay_ms.argtypes = [_LONG, ctypes.c_int32]
        for name in ("rd_kafka_mock_broker_set_down", "rd_kafka_mock_broker_set_up"):
            getattr(lib, name).argtypes = [_LONG, ctypes.c_int32]
        lib.rd_kafka_mock_push_request_errors_array.argtypes = [
            _LONG, ctypes.c_int16, ctypes.c_size_t, ctypes.POINTER(ctypes.c_int),
        ]  # fmt: skip
        lib.rd_kafka_conf_set.argtypes = [_LONG, *[ctypes.c_char_p] * 3, ctypes.c_size_t]
        why = ctypes.create_string_buffer(512)
        conf = _LONG(lib.rd_kafka_conf_new())
        # The client only carries the mock cluster; its warning that it has no brokers to go to is noise.
        lib.rd_kafka_conf_set(conf, b"log_level", b"0", why, 512)
        self._client = _LONG(lib.rd_kafka_new(0, conf, why, 512))
        if not self._client:
            raise RuntimeError(f"librdkafka does not start: {why.value.decode()}")
        self._cluster = _LONG(lib.rd_kafka_mock_cluster_new(self._client, 1))
        lib.rd_kafka_mock_group_initial_rebalance_delay_ms(self._cluster, 0)
        self.bootstrap = lib.rd_kafka_mock_cluster_bootstraps(self._cluster).decode()
        self._lib = lib
        return self

    def create_topic(self, name: str, partitions: int = 1) -> None:
        """Make a topic."""
        assert self._lib is not None
        if self._lib.rd_kafka_mock_topic_create(self._cluster, name.encode(), partitions, 1):
            raise RuntimeError(f"cannot create topic {name!r}")

    def down(self) -> None:
        """Refuse connections, keep the data."""
        assert self._lib is not None
        self._lib.rd_kafka_mock_broker_set_down(self._cluster, 1)

    def up(self) -> None:
        """Accept connections again."""
        assert self._lib is not None
        self._lib.rd_kafka_mock_broker_set_up(self._cluster, 1)

    def answer_next(self, api_key: int, *error_codes: int) -> None:
        """Answer the next requests of a kind with these errors of the protocol instead of carrying them out."""
        assert self._lib is not None
        codes = (ctypes.c_int * len(error_codes))(*error_codes)
        self._lib.rd_kafka_mock_push_request_errors_array(self._cluster, api_key, len(error_codes), codes)

    def stop(self) -> None:
        """End it; the data is gone."""
        lib, self._lib = self._lib, None
        if lib is not None:
            lib.rd_kafka_mock_cluster_destroy(self._cluster)
            lib.rd_kafka_destroy(self._client)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()
