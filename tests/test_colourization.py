"""Colours, pictures, checkpoints and training, against closed forms and brute force."""

import gc
import dataclasses
import io
import math
import pickle
import re
import struct
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.ndimage import affine_transform
from torch.optim.lr_scheduler import ConstantLR, StepLR

import colourization
from colour_regression import RegressionCNN
from colourization import (CNN, DUNet, NUM_LEVELS, UNet, AverageOfWeights, MyConv2d, add_prior, baselines,
                           classification, colour_counts, draw_curves, draw_pictures, find_shipped,
                           get_cat_rgb, get_rgb_cat, grey_levels, kmeans_colours, load_model,
                           log_frequencies, mosaic, parse_args, process, psnr, put_grey_back,
                           run_validation_step, save_checkpoint, save_history, scores_to_rgb, train_epoch)
from conftest import ROOT, Runs, python2_string, read_once, training, unix_only
from load_data import MOVES, InputError, augment, batches, hold_out, load_colours, whole_file

HANDOUT = MOVES[:4]  # of which there is a test by hand


# ---------------------------------------------------------------------------
# Colours
# ---------------------------------------------------------------------------

def test_kmeans_finds_the_means_of_well_separated_groups():
    rng = np.random.default_rng(0)
    centres = np.array([[25, 25, 25], [25, 205, 51], [230, 25, 77], [230, 230, 230]])
    group = rng.integers(4, size=(6, 32, 32))
    pixels = (centres[group] + rng.integers(-13, 14, (6, 32, 32, 3))) / 256
    pixels[0, :8] = pixels[0, 0, 0]  # one colour that counts 256 times
    group[0, :8] = group[0, 0, 0]
    closed_form = np.stack([pixels[group == i].mean(axis=0) for i in range(4)])
    ours = kmeans_colours(np.moveaxis(pixels, -1, 1), 4)
    assert ours.shape == (4, 3) and ours.dtype == np.float32
    assert ours == pytest.approx(closed_form[closed_form.sum(axis=1).argsort()], abs=1e-6)


def test_kmeans_refuses_more_colours_than_there_are():
    with pytest.raises(InputError, match='fewer than 3'):
        kmeans_colours(np.zeros((1, 3, 4, 4), np.float32), 3)


def test_nearest_colour_equals_brute_force():
    rng = np.random.default_rng(1)
    xs = rng.random((40, 3, 8, 9), dtype=np.float32)[::-1]  # more than it takes at a time, and a view
    colours = rng.random((24, 3), dtype=np.float32)
    cats = get_rgb_cat(xs, colours)
    assert cats.shape == (40, 1, 8, 9) and cats.dtype == np.int64
    for n, row, column in np.ndindex(40, 8, 9):
        distances = [sum((float(xs[n, c, row, column]) - float(colour[c]))**2 for c in range(3))
                     for colour in colours]
        assert cats[n, 0, row, column] == np.argmin(distances)


def test_cat_rgb_is_the_way_back():
    colours = np.random.default_rng(2).random((16, 3), dtype=np.float32)
    cats = np.random.default_rng(3).integers(16, size=(2, 1, 4, 5))
    rgb = get_cat_rgb(cats, colours)
    assert rgb.shape == (2, 3, 4, 5)
    assert np.array_equal(rgb[1, :, 2, 3], colours[cats[1, 0, 2, 3]])
    assert np.array_equal(get_rgb_cat(rgb, colours), cats)


def course_colour_file(colours):
    """An .npy file as numpy of Python 2 wrote the pair (centres, distortion)."""
    def dtype(code, order, flags):
        return (b'cnumpy\ndtype\n' + python2_string(code) + b'K\x00K\x01\x87R(K\x03'
                + python2_string(order) + b'NNN' + b'J\xff\xff\xff\xff' * 2 + flags + b'tb')

    new = b'cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85' \
        + python2_string(b'b') + b'\x87R'
    centres = (new + b'(K\x01K' + bytes([len(colours)]) + b'K\x03\x86' + dtype(b'f4', b'<', b'K\x00')
               + b'\x89' + python2_string(colours.astype('<f4').tobytes()) + b'tb')
    distortion = (b'cnumpy.core.multiarray\nscalar\n' + dtype(b'f8', b'<', b'K\x00')
                  + python2_string(struct.pack('<d', 0.07)) + b'\x86R')
    pair = (b'\x80\x02' + new + b'(K\x01K\x02\x85' + dtype(b'O8', b'|', b'K\x3f')
            + b'\x89](' + centres + distortion + b'etb.')
    header = b"{'descr': '|O', 'fortran_order': False, 'shape': (2,), }"
    header += b' ' * (-(len(header) + 11) % 16) + b'\n'
    return b'\x93NUMPY\x01\x00' + struct.pack('<H', len(header)) + header + pair


def test_colours_of_the_course_are_read(tmp_path):
    colours = np.random.default_rng(4).random((24, 3), dtype=np.float32)
    old = tmp_path / 'python2.npy'
    old.write_bytes(course_colour_file(colours))
    # The fixture itself is what numpy takes for such a file.
    theirs = np.load(old, allow_pickle=True, encoding='latin1')
    assert theirs.shape == (2,) and theirs[1] == 0.07 and np.array_equal(theirs[0], colours)
    assert np.array_equal(load_colours(old), colours)

    new = tmp_path / 'today.npy'
    np.save(new, np.array([colours.astype(np.float64), 0.07], dtype=object), allow_pickle=True)
    assert np.array_equal(load_colours(new), colours)
    assert load_colours(new).dtype == np.float32


def object_file(value):
    """An .npy file whose pickle is that of `value`."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        file, {'descr': '|O', 'fortran_order': False, 'shape': (2,)})
    return file.getvalue() + pickle.dumps(value, 2)


def npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


@pytest.mark.parametrize('content', [
    b'', b'no colours', npy(np.zeros((24, 4))), npy(np.zeros(24)), npy(np.zeros((0, 3))),
    npy(np.zeros((1, 3))), npy(np.zeros((24, 3), int)), npy(np.full((24, 3), np.nan)),
    npy(np.full((24, 3), 255.0)), npy(np.full((24, 3), -0.1)), npy(np.full((24, 3), 0.5))[:-1],
    npy(np.array([['a', 'b', 'c']] * 2)), npy(np.zeros((24, 3))).replace(b'(24', b'(((')
    , object_file(1), object_file([1, 2]),
    object_file(np.array([1, 2], object))])
def test_wrong_colour_files_are_refused(content, tmp_path):
    path = tmp_path / 'colours.npy'
    path.write_bytes(content)
    with pytest.raises(InputError, match='colours.npy'):
        load_colours(path)


def test_colour_file_runs_no_code(tmp_path):
    path = tmp_path / 'colours.npy'
    path.write_bytes(object_file(Runs(open, str(tmp_path / 'victim'), 'w')))
    with pytest.raises(InputError, match='colours.npy: no file of colours'):
        load_colours(path)
    assert not (tmp_path / 'victim').exists()


@pytest.mark.parametrize('num_colours, distance', [(16, 0.00894), (24, 0.00663), (32, 0.00545)])
def test_shipped_colours_are_near_to_the_horses(num_colours, distance, cifar10):
    rgb, _ = process(*read_once(cifar10)[0])
    pixels = rgb.transpose(0, 2, 3, 1).reshape(-1, 3)
    colours = np.load(ROOT / f'colour/colour_kmeans{num_colours}_cat7.npy')
    assert colours.shape == (num_colours, 3) and colours.dtype == np.float32
    nearest = []  # (p - c)^2 = p^2 - (2 p c - c^2)
    for part in np.array_split(pixels, 100):
        products = 2 * colours @ part.T - np.square(colours).sum(axis=1, keepdims=True)
        nearest.append(np.square(part).sum(axis=1) - products.max(axis=0))
    assert np.concatenate(nearest).mean(dtype=float) <= distance


# ---------------------------------------------------------------------------
# Pictures
# ---------------------------------------------------------------------------

def test_process_selects_a_category_and_makes_it_grey():
    xs = np.random.default_rng(5).integers(0, 256, (6, 3, 32, 32), np.uint8)
    ys = np.array([[7], [1], [7], [0], [7], [9]])
    rgb, grey = process(xs, ys)
    assert rgb.shape == (3, 3, 32, 32) and grey.shape == (3, 1, 32, 32)
    assert rgb.dtype == grey.dtype == np.float32
    assert rgb[1, 2, 3, 4] == xs[2, 2, 3, 4] / 256
    assert grey[1, 0, 3, 4] == pytest.approx(sum(int(v) for v in xs[2, :, 3, 4]) / 3 / 256)
    assert 0 <= rgb.min() and rgb.max() < 1 and grey.max() < 1
    assert process(xs, ys, max_pixel=512.0)[0].max() < 0.5
    assert len(process(xs, ys, category=9)[0]) == 1
    assert np.array_equal(process(xs, ys, category='all')[0], xs / np.float32(256))


def test_process_says_so_where_no_picture_is_of_the_category():
    with pytest.raises(InputError, match='no picture is of category 7'):
        process(np.zeros((2, 3, 32, 32), np.uint8), np.array([[1], [2]]))


@pytest.mark.parametrize('batch_size', [1, 3, 7, 10, 100])
def test_every_picture_is_in_one_batch(batch_size):
    a, b = torch.arange(10), torch.arange(10) * 2
    generator = torch.Generator().manual_seed(0)
    first, second = ([torch.cat(part) for part in zip(*batches((a, b), batch_size, generator))]
                     for _ in range(2))
    assert sorted(first[0].tolist()) == list(range(10))
    assert torch.equal(first[1], first[0] * 2)  # what belongs together stays together
    assert not torch.equal(first[0], second[0])  # shuffled anew
    assert torch.equal(torch.cat([x for x, _ in batches((a, b), batch_size)]), a)
    assert all(len(x) <= batch_size for x, _ in batches((a, b), batch_size))


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
    ['flip_ud'], ['flip_lr'], ['shift_lr'], ['shift_ud'], ['shift_ud', 'flip_lr'], HANDOUT,
    [*HANDOUT, 'classes']])
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
    assert torch.equal(height, width) and 11 <= height.min() and height.max() <= 19


def test_training_batches_are_augmented_and_still_belong_together():
    grey = torch.rand(10, 1, 4, 4)
    plain, moved = (list(batches((grey, grey * 2), 4, torch.Generator().manual_seed(0), moves))
                    for moves in (['classes'], ['flip_ud']))
    for (x, _), (moved_x, moved_y) in zip(plain, moved, strict=True):
        assert torch.equal(x.sort(dim=2).values, moved_x.sort(dim=2).values)  # the same rows, but elsewhere
        assert torch.equal(2 * moved_x, moved_y)
    assert not all(torch.equal(a[0], b[0]) for a, b in zip(plain, moved))


def test_horses_are_held_out_of_the_training_pictures():
    xs, ys = np.arange(8).reshape(8, 1, 1, 1), np.array([[7], [1], [7], [7], [0], [7], [2], [7]])
    (train_xs, train_ys), (held_xs, held_ys) = hold_out((xs, ys), 2)
    assert held_xs.ravel().tolist() == [5, 7] and held_ys.ravel().tolist() == [7, 7]
    assert train_xs.ravel().tolist() == [0, 1, 2, 3, 4, 6]
    assert train_ys.ravel().tolist() == [7, 1, 7, 7, 0, 2]
    for count in (5, 6):
        with pytest.raises(InputError, match='none of 5 training pictures'):
            hold_out((xs, ys), count)


def test_grey_put_back_has_the_brightness_of_the_input():
    rgb = np.random.default_rng(0).uniform(0.3, 0.6, (2, 3, 4, 5)).astype(np.float32)
    grey = np.random.default_rng(1).uniform(0.4, 0.6, (2, 1, 4, 5)).astype(np.float32)
    ours = put_grey_back(rgb, grey)
    assert ours.mean(axis=1, keepdims=True) == pytest.approx(grey, abs=1e-6)
    for n, row, column in np.ndindex(2, 4, 5):  # the differences between the channels stay
        pixel, old = ours[n, :, row, column], rgb[n, :, row, column]
        assert pixel - pixel[0] == pytest.approx(old - old[0], abs=1e-6)
    white = put_grey_back(rgb, np.ones_like(grey))
    assert white.max() == 1 and put_grey_back(rgb, np.zeros_like(grey)).min() == 0


def test_temperature_goes_from_the_likeliest_colour_over_the_annealed_mean_to_the_mean():
    colours = np.random.default_rng(3).random((5, 3), dtype=np.float32)
    scores = torch.randn(2, 5, 3, 4)
    for n, row, column in np.ndindex(2, 3, 4):
        p = np.exp(scores[n, :, row, column].double().numpy())
        p /= p.sum()
        for temperature in (0.38, 1, 5):  # equation 5: exp(log(z) / T), normalised
            annealed = np.exp(np.log(p) / temperature)
            expected = annealed / annealed.sum() @ colours
            ours = scores_to_rgb(scores, colours, temperature)
            assert ours[n, :, row, column] == pytest.approx(expected, abs=1e-5)
        assert np.array_equal(scores_to_rgb(scores, colours)[n, :, row, column], colours[p.argmax()])
    assert scores_to_rgb(scores, colours, 1e-4) == pytest.approx(scores_to_rgb(scores, colours), abs=1e-3)


def test_outputs_without_colours_are_rgb_brought_into_its_range():
    rgb = scores_to_rgb(torch.tensor([-0.5, 0.25, 1.5]).reshape(1, 3, 1, 1), None)
    assert rgb.ravel().tolist() == [0, 0.25, 1]


def test_grey_levels_are_the_sums_of_the_bytes():
    xs = np.random.default_rng(4).integers(0, 256, (50, 3, 32, 32), np.uint8)
    xs[0, :, 0, :2] = [[0, 255]] * 3
    _, grey = process(xs, np.full((50, 1), 7))
    levels = grey_levels(torch.from_numpy(grey))
    assert np.array_equal(levels, xs.astype(int).sum(axis=1, keepdims=True))
    assert levels.min() == 0 and levels.max() == NUM_LEVELS - 1


def test_baselines_equal_counting_by_hand():
    levels = torch.randint(0, 6, (4, 1, 8, 8)) * 100
    cats = (levels // 150 + (torch.rand(levels.shape) < 0.3)).short()
    grey = levels / 3 / 256
    train, valid = slice(0, 3), slice(3, 4)
    counts = colour_counts(grey[train], cats[train], 5)
    seen = {}
    for level, cat in zip(levels[train].flatten().tolist(), cats[train].flatten().tolist()):
        seen.setdefault(level, []).append(cat)
    for level, of_level in seen.items():
        assert counts[level].tolist() == [of_level.count(cat) for cat in range(5)]
    assert counts.shape == (766, 5) and counts.sum() == 3 * 64
    everywhere = sum(seen.values(), [])
    most = max(range(5), key=everywhere.count)
    right = [(cat == most, cat == max(range(5), key=seen[level].count))
             for level, cat in zip(levels[valid].flatten().tolist(), cats[valid].flatten().tolist())]
    assert list(baselines(counts, grey[valid], cats[valid]).values()) == pytest.approx(np.mean(right, axis=0))


def test_pictures_are_judged_in_batches_as_all_at_once():
    rng = np.random.default_rng(8)
    xs, colours = rng.integers(0, 256, (130, 3, 8, 8), np.uint8), rng.random((5, 3), np.float32)
    rgb = xs / np.float32(256)
    grey = torch.from_numpy(rgb.mean(axis=1, keepdims=True))
    torch.manual_seed(8)
    model, numbers = UNet(3, 2, 5).eval(), torch.randint(5, grey.shape)
    metrics, errors = colourization.evaluate(model, classification, (grey, numbers), xs, colours, 0.38)
    with torch.no_grad():
        scores = model(grey)
    prediction = scores_to_rgb(scores, colours, 0.38)
    expected = {'grey': grey.numpy(), 'prediction': prediction,
                'grey_put_back': put_grey_back(prediction, grey.numpy())}
    expected = {name: np.square(pictures - rgb).mean() for name, pictures in expected.items()}
    assert errors == pytest.approx(expected, rel=1e-5)
    assert metrics['loss'] == pytest.approx(brute_force_metrics(scores, numbers)[0], rel=1e-4)


def test_mosaic_shows_every_picture_whole():
    pictures = np.random.default_rng(6).random((7, 3, 4, 5), dtype=np.float32)
    picture = mosaic(pictures, columns=3)
    assert picture.shape == (3 * 5 - 1, 3 * 6 - 1, 3)
    for i in range(7):
        top, left = 5 * (i // 3), 6 * (i % 3)
        assert np.array_equal(picture[top:top + 4, left:left + 5], pictures[i].transpose(1, 2, 0))
    assert (picture[4] == 1).all() and (picture[:, 5] == 1).all() and (picture[10:, 6:] == 1).all()


def test_pictures_are_drawn_with_their_own_pixels(tmp_path):
    from matplotlib.image import imread

    stripes, grey = np.zeros((8, 8, 3)), np.full((8, 8, 1), 0.5)
    stripes[::2, :, 0] = stripes[1::2, :, 1] = 1
    draw_pictures([('stripes', stripes), ('grey', grey)], tmp_path / 'a' / 'p.png', 'title', columns=2)
    shown = imread(tmp_path / 'a' / 'p.png')[..., :3].reshape(-1, 3)
    assert (shown == [1, 0, 0]).all(axis=1).sum() > 10_000 and (shown == [0, 1, 0]).all(axis=1).sum() > 10_000
    assert not ((shown[:, 2] == 0) & (shown[:, :2] > 0).all(axis=1)).any()  # nothing between red and green
    assert (np.abs(shown - 0.5) < 0.01).all(axis=1).sum() > 10_000


# ---------------------------------------------------------------------------
# Files and checkpoints
# ---------------------------------------------------------------------------

def test_file_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / 'new folder' / 'file'
    with whole_file(path) as file:
        file.write(b'old')
    with pytest.raises(ZeroDivisionError):
        with whole_file(path) as file:
            file.write(b'ne')
            1 / 0
    assert path.read_bytes() == b'old'
    assert list(path.parent.iterdir()) == [path]


MODELS = {'CNN': CNN, 'UNet': UNet, 'DUNet': DUNet}


@pytest.mark.parametrize('make', MODELS.values())
def test_checkpoint_is_a_plain_state_dict_that_tells_its_size(make, tmp_path):
    model = make(5, 8, 11).to(memory_format=torch.channels_last)
    model(torch.rand(2, 1, 32, 32))  # in training mode, so that running statistics differ
    save_checkpoint(model, tmp_path / 'w.pkl')
    state = torch.load(tmp_path / 'w.pkl', weights_only=True)
    assert state.keys() == model.state_dict().keys()
    assert all(t.is_contiguous() and t.device.type == 'cpu' for t in state.values())
    loaded, colours = load_model(make, tmp_path / 'w.pkl')
    assert colours is None
    assert not loaded.training
    for name, tensor in loaded.state_dict().items():
        assert 'num_batches_tracked' in name or torch.equal(tensor, model.state_dict()[name])
    make(5, 8, 11).load_state_dict(state)  # for users who do it by hand


def test_checkpoint_tells_its_colours(tmp_path):
    colours = np.random.default_rng(7).random((5, 3), dtype=np.float32)
    save_checkpoint(CNN(3, 4, 5), tmp_path / 'w.pkl', colours)
    assert np.array_equal(load_model(CNN, tmp_path / 'w.pkl')[1], colours)


@pytest.mark.parametrize('make', MODELS.values())
@pytest.mark.parametrize('entries', [766, 10])
def test_prior_adds_the_entry_of_the_grey_level_to_the_scores(make, entries, tmp_path):
    model, grey = make(3, 4, 5).eval(), torch.rand(2, 1, 8, 8)
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
    assert torch.equal(load_model(make, tmp_path / 'w.pkl')[0](grey), scores)
    white_and_beyond = load_model(make, tmp_path / 'w.pkl')[0](torch.full((1, 1, 4, 4), 1.5))
    assert white_and_beyond.isfinite().all()


@pytest.mark.parametrize('shape', [(), (7,), (7, 4), (7, 5, 1)])
def test_prior_of_a_wrong_shape_is_refused(shape, tmp_path):
    model = CNN(3, 4, 5)
    torch.save(model.state_dict() | {'prior': torch.ones(shape)}, tmp_path / 'w.pkl')
    with pytest.raises(InputError, match='w.pkl'):
        load_model(CNN, tmp_path / 'w.pkl')


@pytest.mark.parametrize('entries', [766, 100, 3])
def test_log_frequencies_equal_counting_pixels(entries):
    rng = np.random.default_rng(0)
    levels, cats = rng.integers(0, 700, 20_000), rng.integers(4, size=20_000)
    cats[levels < 300] //= 2
    counts = torch.zeros(766, 4, dtype=torch.int64)
    for level, cat in zip(levels, cats):
        counts[level, cat] += 1
    table = log_frequencies(counts, entries)
    assert table.shape == (entries, 4) and table.exp().sum(dim=1).numpy() == pytest.approx(1)
    overall = (np.bincount(cats) + 1) / 20_004
    for entry in {0, entries // 3, entries - 1}:
        here = cats[levels * entries // 766 == entry]
        smoothed = np.bincount(here, minlength=4) + 100 * overall
        assert table[entry].numpy() == pytest.approx(np.log(smoothed / smoothed.sum()), abs=1e-5)


@pytest.mark.parametrize('saved, asked', [
    (a, b) for a in [*MODELS, 'RegressionCNN'] for b in MODELS if a != b])
def test_checkpoint_of_another_model_is_refused_by_name(saved, asked, tmp_path):
    model = RegressionCNN(3, 8) if saved == 'RegressionCNN' else MODELS[saved](3, 8, 24)
    save_checkpoint(model, tmp_path / 'w.pkl')
    names = {'DUNet': 'DilatedUNet'}
    with pytest.raises(InputError, match=f'w.pkl is a {names.get(saved, saved)}, not a '
                                         f'{names.get(asked, asked)}: .*colour_regression.py.* --model'):
        load_model(MODELS[asked], tmp_path / 'w.pkl')


def test_checkpoint_of_other_sizes_is_refused(tmp_path):
    save_checkpoint(CNN(3, 8, 24), tmp_path / 'w.pkl')
    with pytest.raises(InputError, match='-f 8.*-f 16'):
        load_model(CNN, tmp_path / 'w.pkl', num_filters=16)
    with pytest.raises(InputError, match='-k 3.*-k 5'):
        load_model(CNN, tmp_path / 'w.pkl', kernel=5)
    load_model(CNN, tmp_path / 'w.pkl', kernel=3, num_filters=8)


def tensor_2018(key, tensor):
    """Opcodes of Python 2 for a tensor of PyTorch 0.3 that lived on a GPU."""
    def integers(values):
        return b'(' + b''.join(b'J' + struct.pack('<i', v) for v in values) + b't'

    storage = (b'(' + python2_string(b'storage') + b'ctorch.cuda\nFloatStorage\n'
               + python2_string(key) + python2_string(b'cuda:0')
               + b'J' + struct.pack('<i', tensor.numel()) + b'NtQ')
    return (b'ctorch._utils\n_rebuild_tensor\n(' + storage + b'K\x00'
            + integers(tensor.shape) + integers(tensor.stride()) + b'tR')


def checkpoint_2018(state):
    """A state dict as torch.save of PyTorch 0.3 and Python 2 wrote it: four pickles, raw data."""
    keys = [str(94_000_000 + i).encode() for i in range(len(state))]
    items = b''.join(b'](' + python2_string(name.encode()) + tensor_2018(key, tensor) + b'e'
                     for key, (name, tensor) in zip(keys, state.items()))
    content = pickle.dumps(0x1950a86a20f9469cfc6c, 2) + pickle.dumps(1001, 2)
    sizes = {'short': 2, 'int': 4, 'long': 4}
    content += pickle.dumps({'protocol_version': 1001, 'little_endian': True, 'type_sizes': sizes}, 2)
    content += b'\x80\x02ccollections\nOrderedDict\n](' + items + b'e\x85R.'
    content += b'\x80\x02](' + b''.join(python2_string(key) for key in keys) + b'e.'
    for tensor in state.values():
        content += struct.pack('<q', tensor.numel()) + tensor.numpy().astype('<f4').tobytes()
    return content


@pytest.mark.parametrize('make', MODELS.values())
def test_checkpoint_of_2018_loads_on_the_cpu(make, tmp_path):
    model = make(3, 8, 24).eval()
    state = OrderedDict((name, torch.rand_like(t) + 0.1) for name, t in model.state_dict().items()
                        if 'num_batches_tracked' not in name)
    model.load_state_dict(state, strict=False)
    (tmp_path / 'gpu.pkl').write_bytes(checkpoint_2018(state))
    x = torch.rand(2, 1, 32, 32)
    assert torch.equal(load_model(make, tmp_path / 'gpu.pkl')[0](x), model(x))


def test_checkpoint_runs_no_code(tmp_path):
    victim = tmp_path / 'victim'
    for old_format in (True, False):
        torch.save({'w': Runs(open, str(victim), 'w')}, tmp_path / 'w.pkl',
                   _use_new_zipfile_serialization=not old_format)
        with pytest.raises(InputError, match='w.pkl: no weights of this assignment'):
            load_model(CNN, tmp_path / 'w.pkl')
        assert not victim.exists()


def test_broken_checkpoints_are_refused(tmp_path):
    path = tmp_path / 'w.pkl'
    save_checkpoint(CNN(3, 4, 5), path)
    whole = path.read_bytes()
    state = torch.load(path, weights_only=True)
    for size in (0, 10, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(InputError, match='w.pkl: no weights of this assignment .* .it starts with '):
            load_model(CNN, path)
    for wrong in (1, [state], {}, {'w': torch.zeros(3)}, state | {'more': 1},
                  {name: t * np.nan for name, t in state.items()},
                  {name: t for name, t in state.items() if name != 'rfconv.0.bias'},
                  state | {'finalconv.weight': torch.zeros(5, 5, 5, 5)}, state | {7: torch.zeros(1)},
                  state | {'finalconv.bias': torch.zeros(5).to_sparse()},
                  {name: t[..., :2, :2] if t.ndim == 4 else t for name, t in state.items()}):
        torch.save(wrong, path)
        with pytest.raises(InputError, match='w.pkl'):
            load_model(CNN, path)
    for notes in (5, {'': None}, {'': {'colours': [[1, 2], 3]}}, {'': {'colours': [[2., 0., 0.]] * 5}}):
        state._metadata = notes
        torch.save(state, path)
        with pytest.raises(InputError, match='w.pkl'):
            load_model(CNN, path)


# ---------------------------------------------------------------------------
# Training
# ---------------------------------------------------------------------------

def brute_force_metrics(scores, cats):
    loss = correct = 0
    n, _, height, width = scores.shape
    for i, row, column in np.ndindex(n, height, width):
        s = scores[i, :, row, column].double().numpy()
        right = cats[i, 0, row, column].item()
        loss += np.log(np.exp(s).sum()) - s[right]
        correct += s.argmax() == right
    return loss / (n * height * width), correct / (n * height * width)


def test_classification_is_pixelwise_cross_entropy_and_accuracy():
    scores = torch.randn(3, 5, 4, 6)
    cats = torch.randint(5, (3, 1, 4, 6))
    loss, accuracy = brute_force_metrics(scores, cats)
    metrics = classification(scores, cats)
    assert metrics['loss'].item() == pytest.approx(loss, rel=1e-5)
    assert metrics['accuracy'].item() == pytest.approx(accuracy)


@pytest.mark.parametrize('batch_size', [1, 4, 7, 100])
def test_validation_does_not_depend_on_the_batch_size(batch_size):
    model = UNet(3, 4, 5)
    grey, cats = torch.rand(7, 1, 8, 8), torch.randint(5, (7, 1, 8, 8))
    metrics = run_validation_step(model, classification, grey, cats, batch_size)
    with torch.no_grad():
        loss, accuracy = brute_force_metrics(model.eval()(grey), cats)
    assert metrics == pytest.approx({'loss': loss, 'accuracy': accuracy}, rel=1e-5)


def test_training_step_equals_one_written_by_hand():
    """Two epochs of Adam, in the order of the same generator, with batches of 4, 4 and 2.

    The learning rate is halved after every other step.
    """
    grey, cats = torch.rand(10, 1, 8, 8), torch.randint(5, (10, 1, 8, 8))
    ours, reference = UNet(3, 4, 5).eval(), UNet(3, 4, 5)  # eval, as if it had been validated
    reference.load_state_dict(ours.state_dict())
    average, losses = AverageOfWeights(UNet(3, 4, 5), ours), []
    optimizer = torch.optim.Adam(ours.parameters(), lr=0.01)
    scheduler = StepLR(optimizer, step_size=2, gamma=0.5)
    generator = torch.Generator().manual_seed(3)
    for _ in range(2):
        losses.append(train_epoch(ours, average, optimizer, scheduler, classification,
                                  batches((grey, cats), 4, generator))['loss'])

    expected = []
    optimizer = torch.optim.Adam(reference.parameters(), lr=0.01)
    generator, steps = torch.Generator().manual_seed(3), 0
    reference.train()
    for _ in range(2):
        order, total = torch.randperm(10, generator=generator), 0
        for part in (order[:4], order[4:8], order[8:]):
            loss = F.cross_entropy(reference(grey[part]), cats[part].squeeze(1))
            optimizer.zero_grad()
            loss.backward()
            optimizer.param_groups[0]['lr'] = 0.01 / 2**(steps // 2)
            optimizer.step()
            steps += 1
            total += loss.item() * len(part)
        expected.append(total / 10)
    assert losses == pytest.approx(expected, rel=1e-5)
    assert average.step == steps == 6
    for a, b in zip(ours.state_dict().values(), reference.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize('step', ['training', 'validation'])
def test_metrics_are_averaged_over_the_pictures_and_not_kept(step, request):
    """Batches of 4, 4, 4, 4 and 2: after the second, no tensor more may be alive than before it."""
    model, grey, alive = CNN(1, 1, 2), torch.rand(18, 1, 4, 4), []

    def objective(outputs, targets):
        gc.collect()
        alive.append(sum(type(thing) is torch.Tensor for thing in gc.get_objects()))
        return {'loss': 0 * outputs.sum() + len(outputs), 'accuracy': torch.tensor(len(alive) / 5)}

    gc.collect()
    gc.freeze()  # what is there already is not looked through
    request.addfinalizer(gc.unfreeze)
    if step == 'validation':
        metrics = run_validation_step(model, objective, grey, grey, batch_size=4)
    else:
        optimizer = torch.optim.SGD(model.parameters())
        metrics = train_epoch(model, AverageOfWeights(CNN(1, 1, 2), model), optimizer,
                              ConstantLR(optimizer, factor=1), objective, batches((grey, grey), 4))
    assert metrics == pytest.approx({'loss': (4 * 16 + 4) / 18,
                                     'accuracy': (4 * (0.2 + 0.4 + 0.6 + 0.8) + 2) / 18})
    assert len(alive) == 5 and len(set(alive[1:])) == 1


@pytest.mark.parametrize('bfloat16', [False, True])
def test_every_convolution_of_the_unet_gets_the_fast_memory_format(bfloat16):
    model = UNet(3, 4, 5).to(memory_format=torch.channels_last)
    formats = []
    for layer in model.modules():
        if isinstance(layer, MyConv2d):
            layer.register_forward_pre_hook(lambda layer, inputs: formats.append(
                inputs[0].is_contiguous(memory_format=torch.channels_last)))
    with torch.autocast('cpu', torch.bfloat16, enabled=bfloat16):
        model(torch.rand(2, 1, 8, 8))
    assert formats == [True] * 6


def test_average_of_weights_has_the_closed_form_of_polynomial_decay():
    """Weight t of T counts in proportion to t (t + 1) ... (t + 31), Shamir and Zhang 2013."""
    mean, learner = CNN(1, 1, 2), CNN(1, 1, 2)
    weights = AverageOfWeights(mean, learner)
    values, counts = [], []
    for t in range(1, 60):
        values.append(float(np.sin(t)))
        counts.append(np.exp(sum(np.log(t + i) for i in range(32))))
        for tensor in learner.state_dict().values():  # BatchNorm's statistics too
            tensor.fill_(values[-1])
        weights.update()
    expected = np.average(values, weights=counts)
    for name, tensor in mean.state_dict().items():
        if 'num_batches_tracked' not in name:
            assert tensor.numpy() == pytest.approx(expected, abs=1e-6)


def test_psnr_of_a_tenth_is_twenty_decibels():
    assert psnr(0.1**2) == pytest.approx(20)
    assert psnr(0) == np.inf


def test_same_seed_gives_the_same_bits_and_another_seed_others(tmp_path):
    first, second, third = training(tmp_path), training(tmp_path), training(tmp_path, seed=1)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first['finalconv.weight'], third['finalconv.weight'])


@pytest.mark.parametrize('schedule, weight_decay, augment', [
    ('constant', 0.5, []), ('onecycle', 0., ['flip_lr', 'classes']), ('onecycle', 0.5, [])])
def test_training_equals_one_written_by_hand(schedule, weight_decay, augment, tmp_path):
    """Six steps of Adam, each after the weights shrink by rate * decay; the rate in closed form.

    What is saved is their average: the weights after step t count in proportion to t (t + 1) ... (t + 31).
    """
    saved = training(tmp_path, schedule=schedule, weight_decay=weight_decay, learn_rate=0.02,
                     augment=augment, seed=5)

    torch.manual_seed(5)
    grey, cats = torch.rand(10, 1, 8, 8), torch.randint(5, (10, 1, 8, 8))
    model, generator, step = UNet(3, 4, 5).train(), torch.Generator().manual_seed(5), 0
    expected, counts = {name: 0 for name in model.state_dict()}, [math.comb(t + 31, 32) for t in range(1, 7)]
    optimizer = torch.optim.Adam(model.parameters())
    for _ in range(2):
        for part in torch.randperm(10, generator=generator).split(4):
            rate = 0.02
            if schedule == 'onecycle':  # up until step 0.3 * 6 - 1 of 0 to 5, then down
                low, middle = (0.02 / 25, 0.8)
                up = low + (0.02 - low) * (1 - np.cos(np.pi * step / middle)) / 2
                low /= 10**4
                down = low + (0.02 - low) * (1 + np.cos(np.pi * (step - middle) / (5 - middle))) / 2
                rate = up if step < middle else down
            optimizer.param_groups[0]['lr'] = rate
            x, y = grey[part], cats[part]
            if augment:
                for i, mirrored in enumerate(torch.randint(2, (len(part),), generator=generator)):
                    if mirrored:
                        x[i], y[i] = x[i].flip(2), y[i].flip(2)
            loss = F.cross_entropy(model(x), y.squeeze(1))
            optimizer.zero_grad()
            loss.backward()
            with torch.no_grad():
                for weight in model.parameters():
                    weight *= 1 - rate * weight_decay
            optimizer.step()
            for name, tensor in model.state_dict().items():
                expected[name] = expected[name] + tensor * (counts[step] / sum(counts))
            step += 1
    # Batch norm takes the bias before it away again, so Adam moves that by rounding errors alone.
    rounding_errors = re.compile(r'conv\d?\.0\.bias|running_mean|num_batches_tracked')
    for name, tensor in expected.items():
        if not rounding_errors.search(name):
            torch.testing.assert_close(saved[name], tensor, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('features, float32, expected', [
    ({'avx512_bf16': True}, False, torch.bfloat16), ({'amx_bf16': True}, False, torch.bfloat16),
    ({'avx512_bf16': True, 'amx_bf16': True}, True, torch.float32),
    ({'avx512_f': True}, False, torch.float32)])
def test_network_multiplies_in_bfloat16_where_the_hardware_does(features, float32, expected, tmp_path,
                                                                monkeypatch):
    """Only in training; the loss, the weights and the validation are in float32."""
    monkeypatch.setattr(torch.cpu, 'get_capabilities', lambda: features, raising=False)
    products, real = {True: set(), False: set()}, F.conv2d

    def convolve(x, *args, **kwargs):
        y = real(x, *args, **kwargs)
        products[torch.is_grad_enabled()].add(y.dtype)
        return y

    losses, real_loss = set(), F.cross_entropy
    monkeypatch.setattr(F, 'conv2d', convolve)
    monkeypatch.setattr(F, 'cross_entropy', lambda s, c: losses.add(s.dtype) or real_loss(s, c))
    saved = training(tmp_path, float32=float32)
    assert products == {True: {expected}, False: {torch.float32}} and losses == {torch.float32}
    assert all(t.dtype == torch.float32 for t in saved.values() if t.is_floating_point())
    monkeypatch.undo()
    plain = training(tmp_path)
    assert all(torch.allclose(saved[name], plain[name], atol=0.02) for name in saved)


@pytest.mark.parametrize('step', [5, 8])
def test_loss_that_is_not_finite_stops_and_keeps_the_last_good_weights(step, tmp_path, monkeypatch):
    """In the training, or only in the validation, of the second epoch; it cannot be resumed."""
    (tmp_path / 'one').mkdir()
    good = training(tmp_path / 'one', epochs=1)
    real, calls = F.cross_entropy, []

    def breaks(scores, cats):
        calls.append(1)
        return real(scores, cats) + (np.inf if len(calls) == step else 0)

    monkeypatch.setattr(F, 'cross_entropy', breaks)
    with pytest.raises(InputError, match='not finite in epoch 2.*--learn_rate'):
        training(tmp_path)
    saved = torch.load(tmp_path / 'w.pkl', weights_only=True)
    assert all(torch.equal(saved[name], good[name]) for name in good)
    assert (tmp_path / 'history_UNet.csv').read_text('utf-8').count('\n') == 2
    assert not (tmp_path / 'w.pkl.resume').exists()


def test_weights_that_are_not_finite_are_not_saved_when_they_are_interrupted(tmp_path, monkeypatch, capsys):
    real, calls = F.cross_entropy, []

    def breaks(scores, cats):
        calls.append(1)
        if len(calls) == 6:  # the second step of the second epoch
            raise KeyboardInterrupt
        return real(scores, cats) * (np.nan if len(calls) == 5 else 1)

    monkeypatch.setattr(F, 'cross_entropy', breaks)
    with pytest.raises(KeyboardInterrupt):
        training(tmp_path)
    saved = torch.load(tmp_path / 'w.pkl', weights_only=True)
    assert all(tensor.isfinite().all() for tensor in saved.values())
    assert capsys.readouterr().err == ''


@pytest.mark.parametrize('steps', [1, 2, 5])
def test_interrupted_training_is_saved(steps, tmp_path, monkeypatch):
    """After steps of the first epoch, of three steps, and of the second; the average and its colours."""
    colours = np.random.default_rng(9).random((5, 3), np.float32)
    real, averages = AverageOfWeights.update, []

    def interrupt(self):
        real(self)
        averages.append([mean.clone() for mean in self.means])
        if len(averages) == steps:
            raise KeyboardInterrupt

    monkeypatch.setattr(AverageOfWeights, 'update', interrupt)
    with pytest.raises(KeyboardInterrupt):
        training(tmp_path, colours=colours)
    saved, its_colours = load_model(UNet, tmp_path / 'w.pkl')
    assert np.array_equal(its_colours, colours)
    saved = [t for t in saved.state_dict().values() if t.is_floating_point()]
    assert all(torch.equal(a, b) for a, b in zip(saved, averages[-1], strict=True))
    history = tmp_path / 'history_UNet.csv'
    assert (history.read_text('utf-8').count('\n') if history.exists() else 1) == 1 + steps // 3
    assert (tmp_path / 'training_curve_UNet.png').exists() == (steps > 3)


@pytest.mark.parametrize('older', ['older', None])
def test_interruption_before_the_first_step_leaves_what_is_there(older, tmp_path, monkeypatch):
    path = tmp_path / 'w.pkl'
    if older:
        path.write_text(older)
    monkeypatch.setattr(torch, 'randperm', lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        training(tmp_path)
    assert (path.read_text('utf-8') if path.exists() else None) == older


def test_curves_show_the_history(tmp_path):
    from matplotlib.figure import Figure

    history = [{'epoch': e, 'seconds': e, 'train_loss': 3 - e, 'train_accuracy': e / 10,
                'val_loss': 4 - e, 'val_accuracy': e / 20} for e in (1, 2, 3)]
    save_history(history, tmp_path / 'history_UNet.csv')
    figure = Figure()
    draw_curves(history, figure, 'what the figure says above')
    for axes, measure in zip(figure.axes, ('loss', 'accuracy'), strict=True):
        for line, part in zip(axes.lines, ('train', 'val'), strict=True):
            assert list(line.get_xdata()) == [1, 2, 3]
            assert list(line.get_ydata()) == [record[f'{part}_{measure}'] for record in history]
    assert [line.get_label() for axes in figure.axes for line in axes.lines] == [
        'training, while it learns (last: 0.0000)', 'validation, averaged weights (last: 1.0000)',
        'training, while it learns (last: 30.0%)', 'validation, averaged weights (last: 15.0%)']
    assert [axes.get_title() for axes in figure.axes] == ['loss', 'accuracy']
    assert figure.get_suptitle() == 'what the figure says above'
    rows = (tmp_path / 'history_UNet.csv').read_text('utf-8').splitlines()
    assert rows[0].split(',') == list(history[0])
    assert [[float(v) for v in row.split(',')] for row in rows[1:]] == [[*r.values()] for r in history]


@pytest.mark.parametrize('augment, more', [
    ([], ''), (['zoom'], ''), (['classes', 'zoom'], ' and the other classes')])
def test_curves_say_what_was_trained_on(augment, more, tmp_path):
    training(tmp_path, augment=augment)
    title = (tmp_path / 'training_curve_UNet.png').read_text()  # which is all that `training` writes there
    assert title == f'UNet, trained on sample pictures{more}'


def test_training_returns_its_history_and_prints_and_draws_what_it_says(tmp_path, capsys):
    data, drawn = (torch.rand(10, 1, 8, 8), torch.randint(5, (10, 1, 8, 8))), []
    history = colourization.train(
        UNet(3, 4, 5), classification, data, data, colourization.Settings('U', 'noise', epochs=2),
        tmp_path / 'w.pkl', tmp_path, draw=lambda metrics, suffix: drawn.append((suffix, metrics)))
    printed = re.sub(r'Time ?\(s\): \d+', '', capsys.readouterr().out)
    assert printed == ''.join(
        f'Epoch [{h["epoch"]}/2], Loss: {h["train_loss"]:.4f}, \n'
        f'Epoch [{h["epoch"]}/2], Val Loss: {h["val_loss"]:.4f}, Val Acc: {h["val_accuracy"]:.1%}, \n'
        for h in history)
    assert drawn == [(f'_epoch0{h["epoch"]}', {'loss': h['val_loss'], 'accuracy': h['val_accuracy']})
                     for h in history]
    rows = (tmp_path / 'history_U.csv').read_text('utf-8').splitlines()
    assert rows == [','.join(map(str, row)) for row in (history[0], *(record.values() for record in history))]
    assert [record['epoch'] for record in history] == [1, 2]




def test_flags_have_the_defaults_of_the_course():
    args = vars(parse_args(['-m', 'UNet']))
    assert args.items() >= {'model': 'UNet', 'checkpoint': Path('outputs/unet_k3_f32.pkl'), 'valid': False,
                            'batch_size': 100, 'epochs': 25, 'learn_rate': 0.001, 'seed': 0, 'gpu': False,
                            'plot': False,
                            'data': None, 'kmeans': None, 'outdir': Path('outputs'), 'augment': [],
                            'schedule': 'constant', 'weight_decay': 0, 'hold_out': 0, 'float32': False,
                            'resume': False, 'category': 7, 'entries': 0, 'temperature': 0}.items()
    assert parse_args(['-m', 'UNet', '--prior']).entries == 766
    assert vars(parse_args(['--image', 'a.jpg'])).items() >= {
        'model': 'UNet', 'checkpoint': Path('weights/unet_prior_all_k3_f64.pkl'), 'temperature': 1,
        'image_size': 224, 'saturation': 1.4}.items()


def test_training_by_hand_has_the_defaults_of_the_course():
    assert dataclasses.asdict(colourization.Settings('UNet', 'noise')) == {
        'network': 'UNet', 'pictures': 'noise', 'batch_size': 100, 'epochs': 25, 'learn_rate': 0.001,
        'schedule': 'constant', 'weight_decay': 0, 'augment': (), 'hold_out': 0, 'seed': 0, 'float32': False,
        'colours': None}


def test_files_of_the_user_come_before_the_shipped_ones(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = 'colour/colour_kmeans24_cat7.npy'
    assert find_shipped(name) == ROOT / name
    (tmp_path / 'colour').mkdir()
    (tmp_path / name).write_bytes(b'mine')
    assert find_shipped(name).read_bytes() == b'mine'


@unix_only
def test_file_behind_a_link_is_written_and_what_is_no_file_is_not(tmp_path):
    (tmp_path / 'link').symlink_to(tmp_path / 'file')
    with whole_file(tmp_path / 'link') as file:
        file.write(b'new')
    assert (tmp_path / 'link').is_symlink() and (tmp_path / 'file').read_bytes() == b'new'
    with pytest.raises(InputError, match='not a file'):
        with whole_file(tmp_path):
            pass
    with pytest.raises(InputError, match='below cannot be written'):
        with whole_file(tmp_path / 'file' / 'below'):
            pass
