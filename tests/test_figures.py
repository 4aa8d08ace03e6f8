"""Figures: what they show, and that nothing in the user's surroundings changes them."""

import os
import subprocess
import sys

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

import activations
import colourization
from colourization import draw_curves, draw_pictures, mosaic
from conftest import ROOT, fails, in_namespace


def test_mosaic_shows_every_picture_whole():
    pictures = np.random.default_rng(6).random((7, 3, 4, 5), dtype=np.float32)
    picture = mosaic(pictures, columns=3)
    assert picture.shape == (3 * 5 - 1, 3 * 6 - 1, 3)
    for i in range(7):
        top, left = 5 * (i // 3), 6 * (i % 3)
        assert np.array_equal(picture[top:top + 4, left:left + 5], pictures[i].transpose(1, 2, 0))
    assert (picture[4] == 1).all() and (picture[:, 5] == 1).all() and (picture[10:, 6:] == 1).all()


def test_pictures_are_drawn_with_their_own_pixels(tmp_path):
    stripes, grey = np.zeros((8, 8, 3)), np.full((8, 8, 1), 0.5)
    stripes[::2, :, 0] = stripes[1::2, :, 1] = 1
    draw_pictures([('stripes', stripes), ('grey', grey)], tmp_path / 'a' / 'p.png', 'title', columns=2)
    shown = imread(tmp_path / 'a' / 'p.png')[..., :3].reshape(-1, 3)
    assert (shown == [1, 0, 0]).all(axis=1).sum() > 10_000 and (shown == [0, 1, 0]).all(axis=1).sum() > 10_000
    assert not ((shown[:, 2] == 0) & (shown[:, :2] > 0).all(axis=1)).any()  # nothing between red and green
    assert (np.abs(shown - 0.5) < 0.01).all(axis=1).sum() > 10_000


def test_curves_show_the_history():
    history = [{'epoch': e, 'seconds': e, 'train_loss': 3 - e, 'train_accuracy': e / 10,
                'val_loss': 4 - e, 'val_accuracy': e / 20} for e in (1, 2, 3)]
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
    loss, accuracy = figure.axes
    assert loss.get_xlim() == accuracy.get_xlim() == (0.5, 3.5)  # room at both ends
    assert accuracy.yaxis.get_major_formatter()(0.5) == '50.0%' != loss.yaxis.get_major_formatter()(0.5)


def test_figures_are_the_same_whatever_the_settings_and_leave_them_alone(tmp_path):
    panels = [('a label', np.random.default_rng(0).random((8, 26, 3)))]
    draw_pictures(panels, tmp_path / 'a.png', 'a title')
    settings = {'font.size': 30, 'text.usetex': True, 'axes.titlecolor': 'red', 'savefig.dpi': 10,
                'savefig.bbox': 'tight', 'savefig.format': 'pdf', 'backend': 'pdf'}
    with matplotlib.rc_context(settings):
        draw_pictures(panels, tmp_path / 'b.png', 'a title')
        assert matplotlib.rcParams['font.size'] == 30 and matplotlib.rcParams['text.usetex']
    assert (tmp_path / 'a.png').read_bytes() == (tmp_path / 'b.png').read_bytes()


NOTEBOOK = 'module://matplotlib_inline.backend_inline'  # what every kernel sets
DRAWS = 'colourization.draw_pictures([("a", colourization.np.ones((8, 8, 3)))], "a.png", "title")\n'


@pytest.mark.parametrize('backend, code', [
    (NOTEBOOK, f'sys.modules["matplotlib_inline"] = None; {DRAWS}print(os.environ["MPLBACKEND"])'),
    ('svg', 'colourization.import_matplotlib(); import matplotlib; print(matplotlib.get_backend())')])
def test_backend_of_who_imports_us_stays_and_is_no_obstacle(backend, code, tmp_path):
    """Even if it cannot be imported; nor are settings that need a program which may not be there, LaTeX."""
    (tmp_path / 'matplotlibrc').write_text('text.usetex: True\n')
    done = subprocess.run([sys.executable, '-c', f'import os, sys, colourization\n{code}'], cwd=tmp_path,
                          capture_output=True, text=True,
                          env=os.environ | {'MPLBACKEND': backend, 'PYTHONPATH': str(ROOT)})
    assert (done.stdout, done.stderr) == (backend + '\n', '')
    if backend == NOTEBOOK:
        assert (tmp_path / 'a.png').stat().st_size > 1000


@pytest.mark.parametrize('command', [
    'colourization.py -m CNN -e 1', 'colour_regression.py',
    'activations.py --checkpoint weights/cnn_k3_f16.pkl', 'colourization.py --image a.jpg'])
def test_library_that_the_end_of_a_run_needs_is_missed_at_its_beginning(command, run_script, monkeypatch,
                                                                        tmp_path):
    library = 'PIL' if '--image' in command else 'matplotlib'
    monkeypatch.setitem(sys.modules, 'PIL' if library == 'PIL' else 'matplotlib.figure', None)
    for module in activations, colourization:
        monkeypatch.setattr(module, 'load_cifar10', None)  # nothing is read before
    done = run_script(*command.split())
    assert fails(done, 1, library, 'pip install -r requirements.txt') and not list(tmp_path.rglob('*.*'))


def test_matplotlib_without_a_cache_is_not_missing(tmp_path):
    """Where neither the folder of the user nor one for temporary files can be written."""
    nowhere = dict.fromkeys(['HOME', 'XDG_CACHE_HOME', 'XDG_CONFIG_HOME'], '/proc/none')
    mount = 'for x in /tmp /var/tmp "$PWD"; do mount --bind "$x" "$x"; mount -o remount,bind,ro "$x"; done'
    done = in_namespace(mount, 'import colourization\ncolourization.run(colourization.import_matplotlib)',
                        tmp_path, **nowhere)
    line = done.stderr.splitlines()[-1]  # matplotlib has its own say before it
    assert line.startswith('error: matplotlib cannot be imported') and 'or set MPLCONFIGDIR' in line
    assert done.returncode == 1 and 'pip' not in line
