import itertools

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from torchtune_speech.models import speech_llama3_1, transformer_projector
from torchtune_speech.modules import _product_dtype
from torchtune_speech.modules._linear_cross_entropy import _default_chunk_size
from torchtune_speech.modules._product_dtype import fast_autocast, product_dtype


@pytest.fixture
def slow(monkeypatch):
    """A CPU that is slow in bfloat16."""
    monkeypatch.setattr(_product_dtype, "_is_slow_in_bfloat16", lambda: True)


@pytest.mark.usefixtures("slow")
def test_only_bfloat16_on_a_cpu_is_widened():
    assert product_dtype("cpu", torch.bfloat16) == torch.float32
    for device, dtype in [
        ("cuda", torch.bfloat16),
        ("cpu", torch.float16),
        ("cpu", torch.float32),
        ("cpu", torch.float64),
    ]:
        assert product_dtype(device, dtype) == dtype


@pytest.mark.usefixtures("slow")
def test_nothing_is_widened_on_tensors_without_content():
    with FakeTensorMode():
        assert product_dtype("cpu", torch.bfloat16) == torch.bfloat16


@pytest.mark.parametrize(
    ("bfloat16_s", "slow"), [(2.0, True), (1.3, True), (1.2, False), (1.0, False), (0.5, False)]
)
def test_the_clearly_faster_dtype_is_found(monkeypatch, bfloat16_s, slow):
    now = 0.0
    taken = itertools.cycle([1.0, bfloat16_s])  # float32 first, then bfloat16

    def multiply(*operands):
        nonlocal now
        now += next(taken)

    monkeypatch.setattr(_product_dtype.torch, "mm", multiply)
    monkeypatch.setattr(_product_dtype.time, "perf_counter", lambda: now)
    assert _product_dtype._is_slow_in_bfloat16.__wrapped__() is slow


@pytest.mark.parametrize("is_slow", [True, False])
def test_autocast_narrows_where_that_is_fast(monkeypatch, is_slow):
    monkeypatch.setattr(_product_dtype, "_is_slow_in_bfloat16", lambda: is_slow)
    layer, x = torch.nn.Linear(3, 2), torch.randn(4, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with fast_autocast("cpu"):
            assert layer(x).dtype == (torch.float32 if is_slow else torch.bfloat16)
        assert layer(x).dtype == torch.bfloat16
    with fast_autocast("cpu"):
        assert layer(x).dtype == torch.float32


@pytest.mark.parametrize(("is_slow", "chunk"), [(True, 512), (False, 128)])
def test_where_weights_are_widened_it_is_for_more_positions(monkeypatch, is_slow, chunk):
    monkeypatch.setattr(_product_dtype, "_is_slow_in_bfloat16", lambda: is_slow)
    assert _default_chunk_size("cpu", torch.bfloat16) == chunk
    assert _default_chunk_size("cpu", torch.float32) == 128
    assert _default_chunk_size("cuda", torch.bfloat16) == 1024


@pytest.mark.usefixtures("slow")
def test_a_projector_is_not_narrowed():
    projector, dtypes = transformer_projector(4, 32, num_layers=1), []
    projector.register_forward_hook(lambda module, args, out: dtypes.append(out.dtype))
    shape = {"vocab_size": 9, "num_layers": 1, "num_heads": 2, "num_kv_heads": 2, "embed_dim": 32}
    model = speech_llama3_1(projector, max_seq_len=8, **shape).bfloat16()
    model.projector.float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model(
            torch.zeros(1, 3, dtype=torch.long),
            frames=torch.randn(2, 4),
            frame_lengths=torch.tensor([2]),
            speech_index=torch.tensor([0, 1]),
        )
    assert dtypes == [torch.float32]


def test_it_is_tried_once_a_process(monkeypatch):
    _product_dtype._is_slow_in_bfloat16.cache_clear()
    first = product_dtype("cpu", torch.bfloat16)
    monkeypatch.setattr(_product_dtype.torch, "mm", None)  # a second trial would fail
    assert product_dtype("cpu", torch.bfloat16) == first
