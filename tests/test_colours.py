"""Colours: k-means, the nearest one of a pixel, and the files that they are read from."""

import pickle
import re
from pathlib import Path

import numpy as np
import pytest
from sklearn.cluster import KMeans

import colourization
from colourization import get_rgb_cat, kmeans_colours, process
from conftest import ROOT, read_once
from files import HOSTILE_PICKLES, npy, npy_header, npy_of_objects, others_than, python2_colours
from load_data import InputError, load_colours

COLOURS = np.random.default_rng(0).random((24, 3), dtype=np.float32)


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


def test_kmeans_finds_as_many_colours_as_there_are_and_refuses_more():
    pixels = np.array([[0, 0, 0], [0, 64, 0], [192, 64, 192]], np.float32) / 256
    pictures = pixels[np.arange(16).reshape(1, 4, 4) % 3].transpose(0, 3, 1, 2)
    assert np.array_equal(kmeans_colours(pictures, 3), pixels)
    with pytest.raises(InputError, match='have 3 colours, fewer than 4'):
        kmeans_colours(pictures, 4)


@pytest.mark.parametrize('category, places', [
    (7, [5, 106, 207, 4000]), (3, [5, 106, 207, 4000]), ('all', range(0, 10_000, 2))], ids=str)
def test_kmeans_counts_the_training_pictures_of_the_category(category, places, run_script, monkeypatch,
                                                             tmp_path):
    """Black and a dark cyan share one of two colours; green is in no picture that counts, red in the test's.

    Pictures have one pixel. All of a class count, but only every other of all 10,000.
    """
    xs, ys = np.full((10_000, 3, 1, 1), [[[0]], [[250]], [[0]]], np.uint8), np.zeros((10_000, 1), int)
    four = [[0, 0, 0], [0, 48, 48], [255, 0, 255], [255, 0, 255]]
    xs[places, :, 0, 0] = np.resize(four, (len(places), 3))
    ys[places] = 7 if category == 'all' else category
    red = np.full((4, 3, 1, 1), [[[250]], [[0]], [[0]]], np.uint8)
    monkeypatch.setattr(colourization, 'load_cifar10', lambda where: ((xs, ys), (red, ys[places[:4]])))
    done = run_script('colourization.py', '--kmeans', 2, '--category', category)
    found = np.load(tmp_path / f'colour/colour_kmeans2_cat{category}.npy')
    assert found * 256 == pytest.approx(np.array([[0, 24, 24], [255, 0, 255]]))
    distance = (2 * 24**2 + 2 * 24**2 + 0 + 0) / 4 / 256**2
    assert done.output.endswith(f' of a pixel to its colour is {distance:.5f}\n')


def test_kmeans_takes_the_best_of_ten_runs_of_scikit_learn(run_script, monkeypatch, tmp_path):
    """Of pixels without clusters, where every run ends elsewhere; of seeds 30 to 39 the last is the best."""
    xs, ys = np.random.default_rng(0).integers(0, 256, (1, 3, 32, 32), np.uint8), np.array([[7]])
    monkeypatch.setattr(colourization, 'load_cifar10', lambda where: ((xs, ys), None))
    run_script('colourization.py', '--kmeans', 5, '-s', 30)
    pixels = xs.reshape(3, -1).T / np.float32(256)
    runs = [KMeans(5, n_init=1, random_state=seed).fit(pixels) for seed in range(30, 40)]
    distances = [run.inertia_ for run in runs]
    assert distances[-1] < 0.99 * min(distances[:-1])
    expected = np.array(sorted(runs[-1].cluster_centers_.tolist(), key=sum))
    assert np.load(tmp_path / 'colour/colour_kmeans5_cat7.npy') == pytest.approx(expected, abs=1e-5)


def test_kmeans_of_the_sample_leaves_the_colours_of_the_horses_alone(run_script, tmp_path):
    done = run_script('colourization.py', '--kmeans', 3, '--data', 'sample')
    assert done.status == 0 and done.output.endswith('(sample)\n')
    assert [p.name for p in (tmp_path / 'colour').iterdir()] == ['colour_kmeans3_sample.npy']
    assert np.load(tmp_path / 'colour/colour_kmeans3_sample.npy').shape == (3, 3)


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


def test_nearest_colour_equals_brute_force():
    rng = np.random.default_rng(1)
    xs = rng.random((6, 3, 8, 9), dtype=np.float32)[::-1]
    colours = rng.random((256, 3), dtype=np.float32)  # as many as there may be
    cats = get_rgb_cat(xs, colours)
    assert cats.shape == (6, 1, 8, 9) and cats.dtype == np.int64
    for n, row, column in np.ndindex(6, 8, 9):
        distances = [sum((float(xs[n, c, row, column]) - float(colour[c]))**2 for c in range(3))
                     for colour in colours]
        assert cats[n, 0, row, column] == np.argmin(distances)


# ---- Files of colours ----


def test_colours_of_the_course_are_read(tmp_path):
    old, new = tmp_path / 'python2.npy', tmp_path / 'today.npy'
    old.write_bytes(python2_colours(COLOURS))
    np.save(new, np.array([COLOURS.astype(float), 0.07], object), allow_pickle=True)
    for path in (old, new):
        theirs = np.load(path, allow_pickle=True, encoding='latin1')  # numpy itself takes it for such a file
        assert theirs.shape == (2,) and theirs[1] == 0.07 and np.array_equal(theirs[0], COLOURS)
        assert np.array_equal(load_colours(path), COLOURS) and load_colours(path).dtype == np.float32


def with_one(value):
    colours = COLOURS.astype(float)
    colours[5, 1] = value
    return colours


def shaped(shape):
    return npy_header(f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}")


def pair(*values):
    both = np.empty(2, object)
    both[:] = values
    return npy(both)


BAD_COLOURS = others_than('colours') | {
    '1 colour': npy(COLOURS[:1]), '257 colours': npy(np.full((257, 3), 0.5)), 'no colour': npy(COLOURS[:0]),
    'one NaN': npy(with_one(np.nan)), 'one infinite': npy(with_one(np.inf)),
    'one just above 1': npy(with_one(1.000001)), 'one just below 0': npy(with_one(-1e-9)),
    'bytes': npy(np.zeros((24, 3), np.uint8)), 'complex': npy(COLOURS.astype(complex)),
    'words in it': npy(np.array([['a', 'b', 'c']] * 2)), 'records': npy(np.zeros(24, [('r', 'f4')])),
    'transposed': npy(COLOURS.T), 'a dimension more': npy(COLOURS[..., None]), 'a row': npy(COLOURS[:, 0]),
    'cut off': npy(COLOURS)[:-1], 'header cut off': shaped('(24, 3)')[:30],
    'version 9': npy_header('{}', (9, 0)),
    'shape of 112 GiB': shaped('(10000000000, 3)'), 'shape beyond all': shaped(f'({10**30}, 3)'),
    'negative shape': shaped('(-1, 3)'), 'nested brackets': npy_header('(' * 9000),
    'header that is code': npy_header("__import__('os').system('touch victim')"),
    'objects': npy_of_objects(pickle.dumps(np.array([1, 2], object))),
    'one object': npy_of_objects(pickle.dumps(1)), 'pair of a list': pair(COLOURS.tolist(), 0.1),
    'pair swapped': pair(0.1, COLOURS), 'pair with NaN': pair(with_one(np.nan), 0.1),
    'pair of objects': pair(COLOURS.astype(object), 0.1), 'pair cut off': pair(COLOURS, 0.1)[:-20]}
HOSTILE = {name: npy_of_objects(content) for name, content in HOSTILE_PICKLES.items() if name in (
    'REDUCE', 'OBJ', 'numpy that writes')}


@pytest.mark.parametrize('content', [
    pytest.param(content, id=name) for name, content in (BAD_COLOURS | HOSTILE).items()])
def test_what_is_no_file_of_colours_is_told_what_is_wanted_and_runs_nothing(content, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path('c.npy').write_bytes(content)
    with pytest.raises(InputError) as refusal:
        load_colours('c.npy')
    line = str(refusal.value)
    assert line.isprintable() and len(line) < 320 and re.fullmatch(
        r'c.npy: no file of colours \(.*\): an .npy file of floats \[K, 3\] from 0 to 1, with K from 2 to '
        '256, is needed: colourization.py --kmeans K --category C makes one', line)
    assert [path.name for path in tmp_path.iterdir()] == ['c.npy']
    if content in HOSTILE.values():  # it would have run otherwise
        np.load('c.npy', allow_pickle=True)
        assert Path('victim').exists()


@pytest.mark.parametrize('count', [2, 256])
def test_colours_may_be_2_to_256(count, tmp_path):
    colours = np.linspace(0, 1, 3 * count).reshape(count, 3)  # 0 and 1 themselves too
    np.save(tmp_path / 'c.npy', colours)
    assert np.array_equal(load_colours(tmp_path / 'c.npy'), colours.astype(np.float32))


def test_colour_that_is_nearer_by_less_than_single_precision_can_tell_is_chosen():
    colours = np.float32([[0.75, 0.75, 0.5 + 2**-8], [0.75, 0.75, 0.5 + 2**-8 - 2**-24]])
    distances = np.square(colours.astype(float) - 0.5).sum(axis=1)
    assert distances[1] < distances[0] and np.float32(distances[0]) == np.float32(distances[1])
    assert get_rgb_cat(np.full((1, 3, 1, 1), 0.5, np.float32), colours).item() == 1


def test_colours_of_all_categories_may_be_those_of_few_pictures(run_script, monkeypatch, tmp_path):
    xs = np.arange(24, dtype=np.uint8).reshape(2, 3, 2, 2)
    monkeypatch.setattr(colourization, 'load_cifar10', lambda where: ((xs, np.array([[0], [9]])), None))
    assert run_script('colourization.py', '--kmeans', 8, '--category', 'all').status == 0
    found = np.load(tmp_path / 'colour/colour_kmeans8_catall.npy')
    assert np.allclose(found, np.moveaxis(xs, 1, -1).reshape(-1, 3) / 256)


def test_part_of_many_pixels_has_some_of_every_column(monkeypatch):
    """A step that divides the width would see one column of the pictures only."""
    fitted = []

    class KMeans:
        def __init__(self, *_, **__):
            self.cluster_centers_, self.inertia_ = np.zeros((2, 3)), 0

        def fit(self, pixels, sample_weight=None):
            fitted.append(pixels)
            return self

    monkeypatch.setattr('sklearn.cluster.KMeans', KMeans)
    kmeans_colours(np.broadcast_to(np.arange(32, dtype=np.float32) / 256, (1000, 3, 32, 32)), 2)
    assert len(fitted[0]) < 10**5 and len(np.unique(fitted[0])) == 32
