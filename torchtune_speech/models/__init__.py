"""Builders of projectors and of SpeechLLM, and weights in and out of Hugging Face folders."""

from torchtune_speech.models._attention_mask import (
    SampleAttention,
    block_causal_mask,
    dense_causal_mask,
    sample_attention,
)
from torchtune_speech.models._decoding_cache import DecodingCache, cached_layer
from torchtune_speech.models._embedding_table import (
    ProjectorWithTable,
    embedding_digest,
    embedding_mean_square,
    load_embedding_table,
)
from torchtune_speech.models._hf_config import FAMILIES, Family, family_of, read_hf_config
from torchtune_speech.models._hf_weights import (
    check_hf_settings,
    check_shapes,
    export_merged,
    load_hf_weights,
    load_peft_adapter,
    peft_config,
    read_adapter_config,
    read_safetensors,
    to_peft,
)
from torchtune_speech.models._llama3_1 import (
    LLAMA3_1_8B,
    llama_shape_from_hf,
    lora_speech_llama3_1,
    lora_speech_llama3_1_8b,
    lora_speech_llama3_1_from_hf,
    speech_llama3_1,
    speech_llama3_1_8b,
    speech_llama3_1_from_hf,
)
from torchtune_speech.models._nearest_embeddings import NearestEmbeddings
from torchtune_speech.models._norm_first_attention import HalvesRotary, NormFirstAttention
from torchtune_speech.models._projectors import (
    conformer_projector,
    mlp_projector,
    transformer_projector,
)
from torchtune_speech.models._quantize import (
    QUANTIZATIONS,
    Float8Weight,
    check_quantize,
    is_quantized,
    quantize_frozen,
    quantize_weight,
    weight_bytes,
)
from torchtune_speech.models._qwen3 import (
    lora_speech_qwen3,
    lora_speech_qwen3_4b,
    lora_speech_qwen3_from_hf,
    qwen3_shape_from_hf,
    speech_qwen3,
    speech_qwen3_4b,
    speech_qwen3_from_hf,
)
from torchtune_speech.models._qwen3_decoder import QWEN3_4B, lora_qwen3, qwen3, qwen3_4b
from torchtune_speech.models._speech_llm import SpeechLLM, splice_speech
from torchtune_speech.models._speechmapper import speechmapper_projector

__all__ = [
    "FAMILIES",
    "LLAMA3_1_8B",
    "QUANTIZATIONS",
    "QWEN3_4B",
    "DecodingCache",
    "Family",
    "ProjectorWithTable",
    "Float8Weight",
    "HalvesRotary",
    "NearestEmbeddings",
    "NormFirstAttention",
    "SampleAttention",
    "SpeechLLM",
    "block_causal_mask",
    "cached_layer",
    "check_quantize",
    "check_hf_settings",
    "check_shapes",
    "conformer_projector",
    "dense_causal_mask",
    "embedding_digest",
    "embedding_mean_square",
    "export_merged",
    "family_of",
    "is_quantized",
    "llama_shape_from_hf",
    "load_embedding_table",
    "load_hf_weights",
    "load_peft_adapter",
    "lora_qwen3",
    "lora_speech_llama3_1",
    "lora_speech_llama3_1_8b",
    "lora_speech_llama3_1_from_hf",
    "lora_speech_qwen3",
    "lora_speech_qwen3_4b",
    "lora_speech_qwen3_from_hf",
    "mlp_projector",
    "peft_config",
    "quantize_frozen",
    "quantize_weight",
    "qwen3",
    "qwen3_4b",
    "qwen3_shape_from_hf",
    "read_adapter_config",
    "read_hf_config",
    "read_safetensors",
    "sample_attention",
    "speech_llama3_1",
    "speech_llama3_1_8b",
    "speech_llama3_1_from_hf",
    "speech_qwen3",
    "speech_qwen3_4b",
    "speech_qwen3_from_hf",
    "speechmapper_projector",
    "splice_speech",
    "to_peft",
    "transformer_projector",
    "weight_bytes",
]
