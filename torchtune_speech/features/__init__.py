"""Feature store: encoder frames on disk, written once and read by every stage."""

from torchtune_speech.features._average import average_frames, averaged_length
from torchtune_speech.features._store import (
    FORMAT_VERSION,
    FeatureStore,
    check_fingerprint,
    read_store_info,
)
from torchtune_speech.features._verify import verify_store
from torchtune_speech.features._writer import (
    FeatureWriter,
    check_store,
    finalize_store,
    stored_seconds,
)

__all__ = [
    "FORMAT_VERSION",
    "FeatureStore",
    "FeatureWriter",
    "average_frames",
    "averaged_length",
    "check_fingerprint",
    "check_store",
    "finalize_store",
    "read_store_info",
    "stored_seconds",
    "verify_store",
]
