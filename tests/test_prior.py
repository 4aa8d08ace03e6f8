"""The prior: how probable each colour is at each grey level, added to a network's scores."""

import numpy as np
import pytest
import torch

from colourization import CNN, MODELS, add_prior, load_model, log_frequencies, save_checkpoint
from conftest import fails


@pytest.mark.parametrize('make', MODELS.values())
@pytest.mark.parametrize('entries', [766, 10])
def test_prior_adds_the_entry_of_the_grey_level_to_the_scores(make, entries, tmp_path):
    model, grey = make(3, 4, 5).eval(), torch.randint(766, (2, 1, 8, 8)) / 768
    table = torch.randn(entries, 5)
    plain = model(grey).detach()
    add_prior(model, table)
    scores = model(grey)
    for n, row, column in np.ndindex(2, 8, 8):
        level = round(grey[n, 0, row, column].item() * 768)
        expected = plain[n, :, row, column] + table[min(level * entries // 766, entries - 1)]
        torch.testing.assert_close(scores[n, :, row, column].detach(), expected)
    scores.sum().backward()
    assert model.prior.grad.sum() == pytest.approx(2 * 64 * 5)  # it is learned with the rest

    save_checkpoint(model, tmp_path / 'w.pkl')
    assert torch.load(tmp_path / 'w.pkl', weights_only=True)['prior'].shape == (entries, 5)
    loaded = load_model(make, tmp_path / 'w.pkl')[0]
    assert torch.equal(loaded(grey), scores)
    assert loaded(torch.full((1, 1, 4, 4), 1.5)).isfinite().all()  # beyond white


@pytest.mark.parametrize('entries', [766, 100, 3])
def test_log_frequencies_equal_counting_pixels(entries):
    rng = np.random.default_rng(0)
    levels, cats = rng.integers(0, 700, 20_000), rng.integers(4, size=20_000)
    cats[levels < 300] //= 2
    counts = np.zeros((766, 4), int)
    np.add.at(counts, (levels, cats), 1)
    table = log_frequencies(torch.from_numpy(counts), entries)
    assert table.shape == (entries, 4) and table.exp().sum(dim=1).numpy() == pytest.approx(1)
    overall = (np.bincount(cats) + 1) / 20_004
    for entry in {0, entries // 3, entries - 1}:
        here = cats[levels * entries // 766 == entry]
        smoothed = np.bincount(here, minlength=4) + 100 * overall
        assert table[entry].numpy() == pytest.approx(np.log(smoothed / smoothed.sum()), abs=1e-5)


def test_prior_is_recognised_in_its_checkpoint(run_script, tmp_path):
    trained = run_script('colourization.py', '-m', 'UNet', '--prior', 50, '--data', 'sample',
                         '-e', 1, '-f', 2)
    saved = torch.load(tmp_path / 'outputs/unet_prior_k3_f2.pkl', weights_only=True)
    assert saved['prior'].shape == (50, 24)
    flags = ['-m', 'UNet', '--data', 'sample', '--checkpoint', 'outputs/unet_prior_k3_f2.pkl']
    again = run_script('colourization.py', *flags, '--valid')
    assert again.output == trained.output[trained.output.index('The results'):] and not again.errors
    assert again.figures.keys() == {'eval_UNet_prior.png'}
    assert run_script('activations.py', 0, *flags).output.startswith('Wrote outputs/act_UNet_prior_0')
    assert run_script('colourization.py', *flags, '--summary').output.splitlines()[-2].split() == [
        'prior', 'table', str(50 * 24)]
    for what in ('--valid', '--summary'):
        assert fails(run_script('colourization.py', *flags, what, '--prior', 60), 1, '50 entries', '--prior')
    assert fails(run_script('colourization.py', '-m', 'DUNet', *flags[2:], '--valid'), 1, 'UNet')


@pytest.mark.parametrize('grey, entry', [(-0.5, 0), (0.0, 0), (765 / 768, 9), (1.5, 9)])
def test_what_is_darker_than_black_or_brighter_than_white_has_their_entry(grey, entry):
    model, table, x = CNN(3, 2, 5).eval(), torch.randn(10, 5), torch.full((1, 1, 4, 4), grey)
    plain = model(x)
    add_prior(model, table)
    torch.testing.assert_close(model(x) - plain, table[entry][:, None, None].expand(1, 5, 4, 4))
