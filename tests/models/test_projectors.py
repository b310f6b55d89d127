import pytest
import torch
from torch import nn

from torchtune_speech.errors import InputError
from torchtune_speech.models import (
    conformer_projector,
    mlp_projector,
    speechmapper_projector,
    transformer_projector,
)


def small_speechmapper(stack=1, out_stack=1, num_layers=2, **kw):
    """SpeechMapper shortens by strides: before the CTC head in block 1, behind it in block 2."""
    return speechmapper_projector(
        8,
        12,
        block_dims=[16, 20],
        kernel_sizes=[6, 5],
        strides=[stack, out_stack],
        num_layers=num_layers,
        num_heads=2,
        ffn_dims=24,
        **kw,
    )


BUILDERS = {
    "transformer": lambda **kw: transformer_projector(8, 12, embed_dim=16, num_heads=2, **kw),
    "transformer-learned": lambda **kw: transformer_projector(
        8, 12, embed_dim=16, num_heads=2, positions="learned", max_positions=400, **kw
    ),
    "transformer-swiglu": lambda **kw: transformer_projector(
        8, 12, embed_dim=16, num_heads=2, activation="swiglu", **kw
    ),
    "conformer": lambda **kw: conformer_projector(
        8, 12, embed_dim=16, num_heads=2, kernel_size=7, **kw
    ),
    "mlp": lambda **kw: mlp_projector(8, 12, hidden_dim=16, **kw),
    "speechmapper": small_speechmapper,
    "speechmapper-ctc-compress": lambda **kw: small_speechmapper(
        **{"ctc_vocab_size": 5, "ctc_compress": True} | kw
    ),
}
LENGTHS = torch.tensor([9, 31, 2, 30, 0, 1, 57, 12])

each_projector = pytest.mark.parametrize("build", BUILDERS.values(), ids=BUILDERS)
each_stack = pytest.mark.parametrize(("stack", "out_stack"), [(1, 1), (3, 1), (1, 2), (2, 3)])


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def random_frames(lengths):
    return torch.randn(int(lengths.sum()), 8)


@pytest.mark.parametrize("name", ["transformer", "conformer", "mlp", "speechmapper"])
@each_stack
def test_output_length_is_what_comes_out(name, stack, out_stack):
    num_layers = 2 if name == "mlp" else 1
    projector = BUILDERS[name](
        num_layers=num_layers, stack=stack, out_stack=out_stack, ctc_vocab_size=5
    )
    lengths = torch.arange(1, 401)
    expected, expected_ctc = projector.output_length(lengths), projector.ctc_length(lengths)
    frames = torch.randn(400, 8)
    with torch.no_grad():
        for n in range(1, 401):
            vectors, logits = projector(frames[:n], torch.tensor([n]), return_ctc=True)
            assert vectors.shape == (projector.output_length(n), 12)
            assert vectors.shape[0] == expected[n - 1] > 0
            assert logits.shape == (expected_ctc[n - 1], 5)
    assert isinstance(projector.output_length(7), int) and projector.output_length(0) == 0


@each_projector
@each_stack
def test_batch_equals_one_by_one(build, stack, out_stack):
    projector = build(stack=stack, out_stack=out_stack, ctc_vocab_size=5)
    frames = random_frames(LENGTHS)
    vectors, logits = projector(frames, LENGTHS, return_ctc=True)
    weights, ctc_weights = torch.randn_like(vectors), torch.randn_like(logits)
    ((vectors * weights).sum() + (logits * ctc_weights).sum()).backward()
    gradients = {name: p.grad for name, p in projector.named_parameters()}
    projector.zero_grad()
    ones = [
        projector(part, torch.tensor([len(part)]), return_ctc=True)
        for part in frames.split(LENGTHS.tolist())
    ]
    one_vectors, one_logits = (torch.cat(parts) for parts in zip(*ones, strict=True))
    torch.testing.assert_close(vectors, one_vectors, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(logits, one_logits, atol=1e-5, rtol=1e-5)
    ((one_vectors * weights).sum() + (one_logits * ctc_weights).sum()).backward()
    norm = torch.cat([g.flatten() for g in gradients.values()]).norm()
    for name, parameter in projector.named_parameters():
        assert (gradients[name] - parameter.grad).norm() <= 1e-5 * norm, name


@each_projector
def test_no_utterance_reaches_another(build):
    projector = build(stack=2).eval()
    frames = random_frames(LENGTHS)
    before = projector(frames, LENGTHS)
    start, length = int(LENGTHS[:3].sum()), int(LENGTHS[3])
    frames[start : start + length] = 100 * torch.randn(length, 8)
    after = projector(frames, LENGTHS)
    lengths = projector.output_length(LENGTHS).tolist()
    for u, (a, b) in enumerate(zip(before.split(lengths), after.split(lengths), strict=True)):
        assert torch.equal(a, b) if u != 3 else not torch.allclose(a, b)


@each_projector
@each_stack
def test_no_utterances_give_an_empty_output_in_the_graph(build, stack, out_stack):
    projector = build(stack=stack, out_stack=out_stack, ctc_vocab_size=5)
    vectors, logits = projector(
        torch.zeros(0, 8), torch.zeros(0, dtype=torch.long), return_ctc=True
    )
    assert vectors.shape == (0, 12) and logits.shape == (0, 5)
    (vectors.sum() + logits.sum()).backward()
    for name, parameter in projector.named_parameters():
        assert parameter.grad is not None and not parameter.grad.any(), name
    projector.zero_grad()
    projector(torch.zeros(0, 8), torch.zeros(0, dtype=torch.long)).sum().backward()
    for name, parameter in projector.named_parameters():
        assert name.startswith("ctc_") or parameter.grad is not None, name


@each_projector
def test_bf16(build):
    projector = build(ctc_vocab_size=5)
    frames = random_frames(LENGTHS)
    full = projector(frames, LENGTHS)
    projector.bfloat16()
    vectors, logits = projector(frames, LENGTHS, return_ctc=True)  # cast to the parameters' dtype
    assert vectors.dtype == logits.dtype == torch.bfloat16
    assert (vectors - full).norm() < 0.03 * full.norm()
    vectors.sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in projector.parameters())


@each_projector
def test_built_on_meta_then_filled_equals_built(build):
    with torch.device("meta"):
        projector = build(output_scale=0.1)
    projector.to_empty(device="cpu")
    projector.reset_parameters()
    vectors = projector(random_frames(LENGTHS), LENGTHS)
    torch.manual_seed(0)
    reference = build(output_scale=0.1)
    for (name, a), b in zip(projector.named_parameters(), reference.parameters(), strict=True):
        assert a.abs().max().item() == pytest.approx(b.abs().max().item(), rel=0.5), name
    assert vectors.isfinite().all()
    projector.load_state_dict(reference.state_dict())
    assert torch.equal(
        projector(random_frames(LENGTHS) * 0 + 1, LENGTHS),
        reference(random_frames(LENGTHS) * 0 + 1, LENGTHS),
    )


@each_projector
def test_names_and_attributes(build):
    projector = build(ctc_vocab_size=5)
    assert (projector.in_dim, projector.out_dim) == (8, 12)
    assert isinstance(projector.layers, nn.ModuleList)
    assert not any("lora" in name for name in projector.state_dict())  # LoRA filters match it
    assert not list(projector.buffers())  # nothing to restore after the meta device


def test_output_scale_sets_the_size_of_the_first_vectors():
    frames = random_frames(LENGTHS)
    full, small = (
        transformer_projector(8, 256, embed_dim=16, num_heads=2, output_scale=scale)(
            frames, LENGTHS
        )
        for scale in (1.0, 0.02)
    )
    assert full.std().item() == pytest.approx(3**-0.5, rel=0.1)
    assert small.std().item() == pytest.approx(0.02 * 3**-0.5, rel=0.1)


@pytest.mark.parametrize("ctc_layer", [0, 1, 3])
def test_ctc_head_sits_after_its_layer(ctc_layer):
    projector = transformer_projector(
        8, 12, num_layers=3, num_heads=2, ctc_vocab_size=5, ctc_layer=ctc_layer
    )
    frames = random_frames(LENGTHS)
    _, logits = projector(frames, LENGTHS, return_ctc=True)
    logits.sum().backward()
    reached = [layer.mlp.w1.weight.grad is not None for layer in projector.layers]
    assert reached == [number <= ctc_layer for number in (1, 2, 3)]


def test_rotary_positions_have_no_end_and_learned_ones_say_so():
    long = torch.tensor([500])
    frames = random_frames(long)
    assert BUILDERS["transformer"]()(frames, long).shape == (500, 12)
    with pytest.raises(InputError, match="500 vectors.*400.*max_positions"):
        BUILDERS["transformer-learned"]()(frames, long)
    assert BUILDERS["transformer-learned"](stack=2)(frames, long).shape == (250, 12)


def test_dropout_acts_in_training_alone():
    projector = transformer_projector(8, 12, num_heads=2, dropout=0.5)
    frames = random_frames(LENGTHS)
    assert not torch.equal(projector(frames, LENGTHS), projector(frames, LENGTHS))
    projector.eval()
    assert torch.equal(projector(frames, LENGTHS), projector(frames, LENGTHS))


def test_wrong_input_is_named():
    projector = transformer_projector(8, 12, num_heads=2)
    with pytest.raises(InputError, match="10 wide, in_dim is 8"):
        projector(torch.zeros(4, 10), torch.tensor([4]))
    with pytest.raises(ValueError, match="5 frames, but lengths of 4"):
        projector(torch.zeros(5, 8), torch.tensor([4]))
    with pytest.raises(ValueError, match="ctc_vocab_size"):
        projector(torch.zeros(4, 8), torch.tensor([4]), return_ctc=True)


def test_wrong_settings_are_named():
    with pytest.raises(ValueError, match="ctc_layer"):
        transformer_projector(8, 12, num_layers=2, ctc_layer=3)
    with pytest.raises(ValueError, match="positions"):
        transformer_projector(8, 12, positions="sinusoidal")
    with pytest.raises(ValueError, match="even width"):
        transformer_projector(9, 12, num_heads=3)
    with pytest.raises(ValueError, match="2 layers"):
        mlp_projector(8, 12, num_layers=1)
    for name in ("ctc_vocab_size", "num_heads"):
        with pytest.raises(InputError, match=f"projector.{name}: 0; give a whole number of 1"):
            transformer_projector(8, 12, **{name: 0})
    with pytest.raises(InputError, match="projector.max_positions: 0"):
        transformer_projector(8, 12, positions="learned", max_positions=0)


def test_defaults_of_the_eight_billion_system():
    with torch.device("meta"):
        projector = transformer_projector(1024, 4096)
    assert len(projector.layers) == 4 and projector.layers[0].attn.num_heads == 16
    layer = 4 * 1024 * 1024 + 4 * 1024 + 8 * 1024 * 1024 + 5 * 1024 + 4 * 1024
    ends = 1024 * 1024 + 1024 + 1024 * 4096 + 4096 + 2 * 2 * 1024
    assert sum(p.numel() for p in projector.parameters()) == 4 * layer + ends


@pytest.mark.parametrize(
    ("dim", "heads"), [(16, 1), (160, 2), (192, 3), (200, 2), (514, 1), (1016, 4), (1024, 16)]
)
def test_default_heads_fit_the_width(dim, heads):
    with torch.device("meta"):
        projector = transformer_projector(8, 12, embed_dim=dim, num_layers=1)
    assert projector.layers[0].attn.num_heads == heads


@pytest.mark.parametrize("build", [transformer_projector, conformer_projector])
def test_a_projector_learns_what_only_context_tells(build):
    """The label of each utterance is on its first frame alone; every vector must carry it."""
    projector = build(4, 2, num_layers=2, embed_dim=16, num_heads=2, input_norm=False)
    optimizer = torch.optim.AdamW(projector.parameters(), lr=1e-2)
    lengths = torch.tensor([5, 9, 7, 12])
    first = lengths.cumsum(0) - lengths
    for _ in range(100):
        frames, labels = torch.randn(33, 4), torch.randint(2, (4,))
        frames[first, 0] = 8.0 * (2.0 * labels - 1)
        loss = nn.functional.cross_entropy(
            projector(frames, lengths), labels.repeat_interleave(lengths)
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.1
