"""Layers and tensor functions for packed utterances: no weights of their own kind, no recipes."""

from torchtune_speech.modules._attention import (
    PackedSelfAttention,
    apply_rotary,
    packed_attention,
    rotary_angles,
)
from torchtune_speech.modules._ctc import ctc_greedy, ctc_loss_sum, ctc_possible
from torchtune_speech.modules._ctc_compress import ctc_compress
from torchtune_speech.modules._embedding_distance import embedding_distance_sum
from torchtune_speech.modules._embedding_losses import (
    absolute_error_sum,
    cosine_distance_sum,
    nearest_tokens,
    squared_error_sum,
    unit_rows,
    vocabulary_contrast_sum,
    word_and_pad_squared_error,
)
from torchtune_speech.modules._layers import (
    Activation,
    ConformerConvolution,
    ConformerEncoderLayer,
    FramewiseLayer,
    TransformerEncoderLayer,
    feed_forward,
)
from torchtune_speech.modules._linear_cross_entropy import linear_cross_entropy_sum
from torchtune_speech.modules._low_rank import lora_linear
from torchtune_speech.modules._packed_conv import PackedConv1d, packed_conv1d
from torchtune_speech.modules._packing import (
    Packing,
    length_groups,
    pad_packed,
    stack_packed,
    stacked_length,
)
from torchtune_speech.modules._pads import non_pads, read_as_pads
from torchtune_speech.modules._product_dtype import fast_autocast
from torchtune_speech.modules._rms_norm import rms_norm
from torchtune_speech.modules._rotate_pairs import rotate_pairs
from torchtune_speech.modules._spec_augment import spec_augment
from torchtune_speech.modules._swiglu import swiglu

__all__ = [
    "Activation",
    "ConformerConvolution",
    "ConformerEncoderLayer",
    "FramewiseLayer",
    "PackedConv1d",
    "PackedSelfAttention",
    "Packing",
    "TransformerEncoderLayer",
    "absolute_error_sum",
    "apply_rotary",
    "cosine_distance_sum",
    "ctc_compress",
    "ctc_greedy",
    "ctc_loss_sum",
    "ctc_possible",
    "embedding_distance_sum",
    "fast_autocast",
    "feed_forward",
    "length_groups",
    "linear_cross_entropy_sum",
    "lora_linear",
    "nearest_tokens",
    "non_pads",
    "packed_attention",
    "packed_conv1d",
    "pad_packed",
    "read_as_pads",
    "rms_norm",
    "rotary_angles",
    "rotate_pairs",
    "spec_augment",
    "squared_error_sum",
    "stack_packed",
    "stacked_length",
    "swiglu",
    "unit_rows",
    "vocabulary_contrast_sum",
    "word_and_pad_squared_error",
]
