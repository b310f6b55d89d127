import pytest
import torch

from torchtune_speech.modules import spec_augment


def masked(output):
    """Masked times and dimensions of an augmented tensor of ones."""
    return (output == 0).all(1), (output == 0).all(0)


def runs(mask):
    edges = torch.diff(torch.cat([torch.zeros(1), mask.float(), torch.zeros(1)]))
    return ((edges == -1).nonzero() - (edges == 1).nonzero()).flatten().tolist()


def test_same_seed_same_masks_and_the_input_is_untouched():
    frames = torch.randn(50, 16)
    before = frames.clone()
    first = spec_augment(frames, freq_width=6, seed=3)
    assert torch.equal(first, spec_augment(frames, freq_width=6, seed=3))
    assert torch.equal(frames, before) and first.data_ptr() != frames.data_ptr()
    assert len({spec_augment(frames, freq_width=6, seed=s).sum().item() for s in range(9)}) > 5


def test_masks_do_not_depend_on_the_global_generator():
    frames = torch.ones(50, 16)
    torch.manual_seed(1)
    first = spec_augment(frames, seed=3)
    state = torch.get_rng_state()
    assert torch.equal(first, spec_augment(frames, seed=3))
    assert torch.equal(state, torch.get_rng_state())


def test_widths_are_bounded():
    for seed in range(200):
        output = spec_augment(
            torch.ones(60, 20), time_masks=1, time_width=50, freq_masks=1, freq_width=7, seed=seed
        )
        times, dims = masked(output)
        assert len(runs(times)) <= 1 and sum(runs(times)) <= 12  # a fifth of 60
        assert len(runs(dims)) <= 1 and sum(runs(dims)) <= 7


def test_time_width_bounds_long_utterances():
    for seed in range(50):
        output = spec_augment(
            torch.ones(400, 4), time_masks=1, time_width=10, freq_masks=0, seed=seed
        )
        assert sum(runs(masked(output)[0])) <= 10


@pytest.mark.parametrize("length", [1, 2, 4])
def test_very_short_utterances_keep_their_frames(length):
    output = spec_augment(torch.ones(length, 8), freq_masks=0, seed=0)
    assert torch.equal(output, torch.ones(length, 8))


def test_mean_share_and_every_place_are_reached():
    times, dims = torch.zeros(100), torch.zeros(40)
    for seed in range(800):
        output = spec_augment(
            torch.ones(100, 40), time_masks=1, time_width=20, freq_masks=1, freq_width=10, seed=seed
        )
        t, d = masked(output)
        times, dims = times + t, dims + d
    assert times.mean() / 800 == pytest.approx(0.1, abs=0.01)  # mean width 10 of 100
    assert dims.mean() / 800 == pytest.approx(0.125, abs=0.01)  # mean width 5 of 40
    assert times.min() > 0 and dims.min() > 0  # first and last included


def test_stacked_frames_lose_the_same_bins_in_every_copy():
    seen = False
    for seed in range(20):
        _, dims = masked(spec_augment(torch.ones(30, 160), stack=2, freq_width=20, seed=seed))
        assert torch.equal(dims[:80], dims[80:])
        seen |= bool(dims.any())
    assert seen


def test_fill_with_a_number_and_with_the_mean():
    frames = torch.randn(40, 8) + 5
    zeros, means, sevens = (
        spec_augment(frames, freq_width=3, seed=2, fill=fill) for fill in (0.0, "mean", 7)
    )
    hidden = zeros == 0
    assert hidden.any() and torch.equal(hidden, sevens == 7)
    assert torch.equal(means[hidden], frames.mean(0).expand(40, 8)[hidden])
    assert torch.equal(means[~hidden], frames[~hidden])


def test_dtype_is_kept_and_bad_stack_refused():
    frames = torch.ones(20, 9, dtype=torch.bfloat16)
    assert spec_augment(frames, seed=0, fill="mean").dtype == torch.bfloat16
    with pytest.raises(ValueError, match="stack"):
        spec_augment(frames, stack=2, seed=0)


@pytest.mark.parametrize(
    "settings",
    [{"time_masks": -1}, {"time_width": -5}, {"freq_width": -3}, {"max_time_fraction": -1.0},
     {"fill": "mena"}],
)  # fmt: skip
def test_odd_settings_are_named(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        spec_augment(torch.ones(20, 8), seed=0, **settings)
