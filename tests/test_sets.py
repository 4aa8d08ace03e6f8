"""Pictures, and the sets that are made of them: grey, batches, augmentation, what is held out."""

import numpy as np
import pytest
import torch
from scipy.ndimage import affine_transform

import colourization
from colourization import get_rgb_cat, load_sets, parse_args, process
from conftest import ROOT
from load_data import MOVES, InputError, augment, batches, hold_out, load_colours

HANDOUT = MOVES[:4]  # of which there is a test by hand


def test_process_selects_a_category_and_makes_it_grey():
    xs = np.random.default_rng(5).integers(0, 256, (6, 3, 32, 32), np.uint8)
    ys = np.array([[7], [1], [7], [0], [7], [9]])
    rgb, grey = process(xs, ys)
    assert rgb.shape == (3, 3, 32, 32) and grey.shape == (3, 1, 32, 32)
    assert rgb.dtype == grey.dtype == np.float32
    assert rgb[1, 2, 3, 4] == xs[2, 2, 3, 4] / 256
    assert grey[1, 0, 3, 4] == pytest.approx(sum(int(v) for v in xs[2, :, 3, 4]) / 3 / 256)
    assert rgb.min() >= 0 and rgb.max() < 1 and grey.max() < 1
    assert process(xs, ys, max_pixel=512.0)[0].max() < 0.5
    assert len(process(xs, ys, category=9)[0]) == 1
    assert np.array_equal(process(xs, ys, category='all')[0], xs / np.float32(256))
    with pytest.raises(InputError, match='no picture is of category 8'):
        process(xs, ys, category=8)


@pytest.mark.parametrize('batch_size', [1, 3, 5, 10, 100])
def test_every_picture_is_in_one_batch(batch_size):
    a, b = torch.arange(10), torch.arange(10) * 2
    generator = torch.Generator().manual_seed(0)
    first, second = ([torch.cat(part) for part in zip(*batches((a, b), batch_size, generator))]
                     for _ in range(2))
    assert sorted(first[0].tolist()) == list(range(10))
    assert torch.equal(first[1], first[0] * 2)  # what belongs together stays together
    assert not torch.equal(first[0], second[0])  # shuffled anew
    assert torch.equal(torch.cat([x for x, _ in batches((a, b), batch_size)]), a)
    assert [len(x) for x, _ in batches((a, b), batch_size)] == [len(x) for x in a.split(batch_size)]


def moved_by_hand(picture, moves, generator):
    """One picture [C, H, W], with the coins that `augment` tosses for a batch of one."""
    for axis, flip, shift in ((1, 'flip_ud', 'shift_ud'), (2, 'flip_lr', 'shift_lr')):
        step = torch.randint(-1, 2, (1, 1), generator=generator).item() if shift in moves else 0
        mirror = flip in moves and torch.randint(2, (1, 1), generator=generator).item()
        if mirror:
            picture = np.flip(picture, axis)
        size, pad = picture.shape[axis], [(1, 1) if a == axis else (0, 0) for a in range(3)]
        picture = np.pad(picture, pad, mode='reflect').take(range(1 + step, size + 1 + step), axis)
    return picture


@pytest.mark.parametrize('moves', [
    ['flip_ud'], ['flip_lr'], ['shift_lr'], ['shift_ud'], HANDOUT, [*HANDOUT, 'classes']])
def test_augmenting_equals_moving_each_picture_by_hand(moves):
    grey, cats = torch.rand(1, 1, 6, 8), torch.randint(24, (1, 1, 6, 8)).short()
    seen = set()
    for seed in range(200):
        ours = augment((grey, cats), moves, torch.Generator().manual_seed(seed))
        for tensor, moved in zip((grey, cats), ours):
            by_hand = moved_by_hand(tensor[0].numpy(), moves, torch.Generator().manual_seed(seed))
            assert np.array_equal(moved[0], by_hand) and moved.dtype == tensor.dtype
        seen.add(ours[0].numpy().tobytes())
    assert len(seen) == np.prod([2 if move.startswith('flip') else 3 for move in HANDOUT if move in moves])


def test_zooming_equals_an_affine_transform_of_scipy():
    picture, seen = torch.rand(2, 16, 32), set()
    for seed in range(100):
        zoomed, = augment([picture[None]], ['zoom'], torch.Generator().manual_seed(seed))
        generator = torch.Generator().manual_seed(seed)
        scale = torch.rand((), generator=generator).item() / 2 + 0.75
        shifts = [torch.randint(-size // 8, size // 8 + 1, (), generator=generator).item()
                  for size in (16, 32)]
        expected = [affine_transform(channel, [scale, scale], order=0, mode='mirror', offset=[
            (size - 1) / 2 * (1 - scale) + shift for size, shift in zip((16, 32), shifts)])
            for channel in picture.numpy()]
        assert np.array_equal(zoomed[0], expected)
        seen.add(zoomed.numpy().tobytes())
    assert len(seen) > 90


def test_each_picture_of_a_batch_moves_on_its_own():
    """Every picture is one of the few that its moves allow, and all of those come about as often."""
    picture = torch.rand(3, 6, 8)
    batch, = augment([picture.expand(3600, 3, 6, 8)], ['shift_lr', 'flip_ud'],
                     torch.Generator().manual_seed(0))
    left = torch.cat([picture[..., 1:], picture[..., -2:-1]], dim=-1)
    right = torch.cat([picture[..., 1:2], picture[..., :-1]], dim=-1)
    counts = [(batch == kind).all(dim=(1, 2, 3)).sum().item()
              for side in (picture, left, right) for kind in (side, side.flip(1))]
    assert sum(counts) == 3600 and min(counts) > 500 and max(counts) < 700


def test_each_picture_of_a_batch_is_zoomed_on_its_own():
    """By every shift and scale that there is; the pixels of the picture are their own row and column."""
    picture = torch.stack(torch.meshgrid(torch.arange(32), torch.arange(32), indexing='ij'))
    batch, = augment([picture.expand(2000, 2, 32, 32)], ['zoom'], torch.Generator().manual_seed(0))
    down, right = batch[:, 0, 15, 15] - 15, batch[:, 1, 15, 15] - 15  # which no scale moves
    height, width = batch[:, 0, 23, 15] - batch[:, 0, 8, 15], batch[:, 1, 15, 23] - batch[:, 1, 15, 8]
    assert set(zip(down.tolist(), right.tolist())) == {(y, x) for y in range(-4, 5) for x in range(-4, 5)}
    assert set(zip(down.tolist(), height.tolist())) >= {(y, h) for y in range(-4, 5) for h in (13, 15, 17)}
    assert torch.equal(height, width) and height.min() >= 11 and height.max() <= 19


def test_all_horses_but_one_may_be_held_out():
    pictures = np.arange(8), np.array([[7], [1], [7], [7], [0], [7], [2], [7]])
    (train, _), (held_out, _) = hold_out(pictures, 4)
    assert train.tolist() == [0, 1, 4, 6] and held_out.tolist() == [2, 3, 5, 7]
    for count in (5, 6):
        with pytest.raises(InputError, match='none of 5 training pictures'):
            hold_out(pictures, count)


@pytest.mark.parametrize('script', ['colourization.py -m CNN', 'colour_regression.py --train'])
@pytest.mark.parametrize('flags, trained_on, validated_on', [
    ('', 'horses', 'test'), ('--augment flip_lr', 'horses', 'test'),
    ('--augment classes shift_ud', 'all', 'test'), ('--hold_out 10 --augment classes', 'all but ten', 'ten'),
    ('--category all', 'all', 'test all'), ('--hold_out 9 --category 3', 'cats but nine', 'nine cats'),
    ('--hold_out 9 --category 3 --augment classes', 'all but nine cats', 'nine cats'),
    ('--hold_out 9 --category all', 'all but nine', 'nine')])
def test_pictures_that_a_network_is_trained_and_validated_on(script, flags, trained_on, validated_on,
                                                             run_script, monkeypatch, tmp_path):
    rng = np.random.default_rng(0)
    xs, ys = rng.integers(0, 256, (200, 3, 32, 32), np.uint8), rng.integers(10, size=(200, 1))
    test = rng.integers(0, 256, (30, 3, 32, 32), np.uint8), np.repeat([0, 3, 7], [4, 6, 20])[:, None]
    horses, cats = np.flatnonzero(ys == 7), np.flatnonzero(ys == 3)
    sets = {'horses': xs[horses], 'all': xs, 'test': test[0][10:], 'test all': test[0],
            'all but ten': np.delete(xs, horses[-10:], axis=0), 'ten': xs[horses[-10:]],
            'cats but nine': xs[cats[:-9]], 'all but nine cats': np.delete(xs, cats[-9:], axis=0),
            'nine cats': xs[cats[-9:]], 'all but nine': xs[:-9], 'nine': xs[-9:]}
    used = []
    monkeypatch.setattr(colourization, 'load_cifar10', lambda where: ((xs, ys), test))
    monkeypatch.setattr(colourization, 'train', lambda model, objective, *sets, **_: used.extend(sets[:2]))
    colours = ROOT / 'colour/colour_kmeans24_catall.npy'
    is_regression = 'regression' in script
    run_script(*script.split(), '-f', 1, *flags.split(), *([] if is_regression else ['-c', colours]))
    for (grey, target), name in zip(used, (trained_on, validated_on), strict=True):
        rgb = sets[name].astype(np.float32) / 256
        torch.testing.assert_close(grey, torch.from_numpy(rgb.mean(axis=1, keepdims=True)))
        assert np.array_equal(target, rgb if is_regression else get_rgb_cat(rgb, load_colours(colours)))


@pytest.mark.parametrize('category', [7, 'all'])
def test_colours_are_counted_in_the_category_whatever_a_network_is_trained_on(category, monkeypatch):
    """Of the largest number of colours that there may be."""
    rng = np.random.default_rng(0)
    xs, ys = rng.integers(0, 256, (250, 3, 32, 32), np.uint8), rng.integers(6, 8, size=(250, 1))
    monkeypatch.setattr(colourization, 'load_cifar10', lambda where: ((xs, ys), (xs[:9], ys[:9])))
    colours = rng.random((256, 3), np.float32)
    rgb = (xs if category == 'all' else xs[ys[:, 0] == 7]) / np.float32(256)
    pairs = np.stack([rgb.sum(axis=1, keepdims=True) * 256, get_rgb_cat(rgb, colours)]).astype(int)
    expected = np.zeros((766, 256), int)
    np.add.at(expected, tuple(pairs), 1)
    for flags in (['--valid', '--checkpoint', 'w.pkl'], [], ['--augment', 'classes']):
        args = parse_args(['-m', 'CNN', '--category', str(category), *flags])
        train_set, _, _, counts = load_sets(args, colours, torch.device('cpu'))
        assert np.array_equal(counts, expected)
        assert (train_set is None) == args.valid
