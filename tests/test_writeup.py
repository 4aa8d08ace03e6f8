"""The write-up: no number of it is typed, and none is older than the result files."""

import json
import re
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import ciede2000
import drawing
import experiments
import measuring
import writeup
from colourization import UNet
from load_data import InputError


def test_macros_are_what_the_result_files_give():
    assert writeup.MACROS.read_text('utf-8') == writeup.macro_file()


def test_pdf_was_made_from_these_files():
    """From this text, these macros and these figures; on failure: writeup.py --only macros."""
    keywords = re.findall(rb'sha256 ([0-9a-f]{64})', writeup.PDF.read_bytes())
    assert [key.decode() for key in keywords] == [writeup.checksum()]


def test_all_sections_were_measured_of_the_shipped_weights():
    """On failure: the weights or sections are new, so outputs/writeup/writeup.py has to measure them."""
    measured = json.loads(measuring.MEASURED.read_text('utf-8'))
    assert measured.pop('weights') == measuring.checksums_of_weights()
    assert measured.keys() == measuring.SECTIONS.keys()


def prose():
    """The text without comments, preamble, drawing, references, commands and their arguments."""
    text = re.sub(r'(?<!\\)%.*', '', writeup.TEX.read_text('utf-8'))
    text = text[text.index(r'\maketitle'):text.index(r'\begin{thebibliography}')]
    text = re.sub(r'\\begin{tikzpicture}.*?\\end{tikzpicture}', '', text, flags=re.DOTALL)
    text = re.sub(r'\\(cmd|texttt|ref|label|cite|includegraphics|cmidrule)(\[[^]]*\])?{[^{}]*}', '', text)
    text = re.sub(r'\\begin{(tabular|minipage)}(\[[^]]*\])?{.*}', '', text)
    return re.sub(r'\\setlength{[^{}]*}{[^{}]*}|\\multicolumn{\d}', '', text)


# What is defined by the handout, by the course, or by how something was measured.
DEFINITIONS = {
    *'0 1 2 3 4 5 6 7 8 9'.split(), '16', '24', '25', '32', '64',  # sizes of filters, maps and networks
    '1,000', '500', '200', '50', '100', '60', '255',  # pictures, steps, distances
    '10', '11', '22', '37', '40', '0.001', '0.01', '0.03', '0.05', '90', '95'}  # settings, shares


def test_no_measured_number_is_typed():
    numbers = re.findall(r'(?<![A-Za-z\d.])\d+(?:,\d{3})*(?:\.\d+)?', prose())
    assert set(numbers) <= DEFINITIONS
    percentages = re.findall(r'(\S+?)(?:\\,)?\\%', prose())
    assert {p for p in percentages if p[0].isdigit()} <= {'50', '90'}


def test_every_macro_is_in_the_text_and_every_figure_is_there():
    used = re.findall(r'\\([A-Z]\w+)', prose())
    assert set(used) == set(writeup.macros())
    figures = re.findall(r'\\includegraphics(?:\[.*?\])?{(.+?)}', writeup.TEX.read_text('utf-8'))
    assert figures and all((writeup.HERE / figure).stat().st_size > 5000 for figure in figures)
    assert {f'figures/{name}' for name in drawing.FIGURES} <= set(figures)


@pytest.mark.parametrize('content, form, text', [
    (0.6034, '.1%', r'60.3\,\%'), (75156, ',d', '75,156'), (-0.25, '+.1f', '$-$0.2'),
    ([1.0, 2.0, 3.0], '+.1f', r'$+$2.0\,$\pm$\,1.0'), ([1.03, 1.04, 1.05], '+.1f', r'$+$1.04\,$\pm$\,0.01'),
    ('4x8x8 *', '', r'4$\times$8$\times$8\rlap{\,*}')])
def test_numbers_and_differences_are_found_and_printed_as_latex(content, form, text):
    assert writeup.printed(writeup.found({'a': {'b': content}}, f'a/b {form}')) == text
    results = {'a': {'b': [3, 5], 'c': 3}, 'd': {'b': [1, 2], 'c': 1}}
    assert writeup.value(results, 'a/b - d/b') == [2, 3] and writeup.value(results, 'a/c - d/c') == 2
    assert writeup.found(results, f'a/e {form}') == ''


def test_runs_are_those_that_were_planned():
    runs = experiments.read_table(measuring.RUNS)
    planned = [(name, str(seed)) for name in measuring.PLANNED for seed in measuring.SEEDS]
    assert [(run['run'], run['seed']) for run in runs] == planned
    assert [record['epoch'] for record in experiments.read_table(measuring.HISTORY)] == [
        str(epoch) for epoch in range(1, 26)]


def test_nothing_is_made_again_that_is_there(monkeypatch):
    """Nothing is trained, measured or drawn, and no picture is read."""
    for module, name in ((measuring, 'train_short'), (measuring, 'load_cifar10'), (measuring, 'paint'),
                         (experiments, 'write_table'), (drawing, 'figure_file')):
        monkeypatch.setattr(module, name, None)
    measuring.train_missing('nowhere')
    drawing.draw_missing(measuring.measure('nowhere'), 'nowhere')


def test_what_is_missing_is_measured_and_all_of_other_weights_and_then_drawn(tmp_path, monkeypatch, capsys):
    def section(_):
        """Measured."""
        return {'number': 1}
    before = json.loads(measuring.MEASURED.read_text('utf-8'))
    monkeypatch.setattr(measuring, 'MEASURED', tmp_path / 'writeup.json')
    monkeypatch.setattr(measuring, 'test_horses', lambda data: 'horses')
    monkeypatch.setattr(measuring, 'SECTIONS', dict.fromkeys(measuring.SECTIONS, section))
    monkeypatch.setattr(drawing, 'FIGURES', {'networks.png': lambda horses, path: print('Drawn.')})
    for change, count in (({'edges': 'gone'}, 1), ({}, 0), ({'weights': {}}, len(measuring.SECTIONS))):
        kept = {name: value for name, value in (before | change).items() if value != 'gone'}
        measuring.MEASURED.write_text(json.dumps(kept))
        drawing.draw_missing(measuring.measure('nowhere'), 'nowhere')
        printed = capsys.readouterr().out
        assert printed.count('Measured.') == count and printed.count('Drawn.') == bool(count)
        after = json.loads(measuring.MEASURED.read_text('utf-8'))
        assert sum(after[name] == {'number': 1} for name in measuring.SECTIONS) == count


def test_pictures_of_a_training_are_judged_by_the_mean_of_the_colours_and_the_grey_put_back(monkeypatch):
    """As an untrained network paints them: the probabilities come from its scores by hand."""
    rgb = np.random.default_rng(2).random((2, 3, 32, 32)).astype(np.float32)
    grey = rgb.mean(axis=1, keepdims=True)
    pictures = torch.from_numpy(grey), torch.zeros(2, 1, 32, 32, dtype=torch.int64)
    monkeypatch.setitem(measuring.PLANNED, 'tiny', (UNet, (), 2))
    monkeypatch.setattr(measuring, 'training_pictures', lambda _: (pictures, pictures, rgb))
    monkeypatch.setattr(measuring, 'train', lambda model, objective, train_set, valid_set, settings, *_: [
        {'epoch': settings.epochs}])
    run = measuring.train_short('tiny', 5, 'nowhere')

    torch.manual_seed(5)
    model = UNet(3, 2, 24).eval()
    with torch.no_grad():
        weights = np.exp(model(pictures[0]).numpy())
        middle = model.rfconv(model.downconv2(model.downconv1(pictures[0]))).numpy()
    mean = np.einsum('nkhw, kc -> nchw', weights / weights.sum(axis=1, keepdims=True), measuring.COLOURS)
    back = np.clip(mean + grey - mean.mean(axis=1, keepdims=True), 0, 1)
    assert run['val_error'] == pytest.approx(np.square(mean - rgb).mean(), rel=1e-4)
    assert run['val_error_back'] == pytest.approx(np.square(back - rgb).mean(), rel=1e-4)
    assert run['epoch'] == 3 and run['val_colourfulness'] > 0
    assert run['middle_active'] == pytest.approx((middle > 0).mean())
    small = grey.reshape(2, 8, 4, 8, 4).mean(axis=(2, 4)).ravel()
    alike = [abs(np.corrcoef(small, one.ravel())[0, 1]) for one in np.moveaxis(middle, 1, 0) if one.max() > 0]
    assert run['middle_like_grey'] == pytest.approx(np.mean(alike), abs=1e-5)


def test_change_with_dilation_is_starred_where_its_t_test_says_so():
    """With three seeds the t-test has a closed form: p = 1 - t / sqrt(t^2 + 2)."""
    surely, hardly = [1.1, 1.2, 1.15], [1.1, 1.2, 1.6]  # p = 0.0006 and 0.013, each one of four
    dilation = {label: dict.fromkeys(('val_loss', 'val_accuracy', 'val_error_back'), changes)
                for label, changes in (('a', surely), ('b', hardly), ('c', surely), ('d', hardly))}
    rows = writeup.table_of_changes(dilation).split('\\\\\n')
    assert [row.count('*') for row in rows] == [3, 0, 3, 0]
    assert rows[1].startswith(r'b & $+$1.3000\,$\pm$\,0.2646 & $+$1.30\,$\pm$\,0.26 & $+$1.300000')


def test_missing_latex_is_said_before_anything_is_measured_and_leaves_the_pdf(monkeypatch):
    before = writeup.PDF.read_bytes()
    monkeypatch.setenv('PATH', '')
    monkeypatch.setattr(sys, 'argv', ['writeup.py'])
    monkeypatch.setattr(measuring, 'train_missing', None)
    with pytest.raises(InputError, match='pdflatex.*--no-pdf'):
        writeup.main()
    assert writeup.PDF.read_bytes() == before


# Published: http://www.brucelindbloom.com, sRGB and D65.
@pytest.mark.parametrize('rgb, lab', [
    ((255, 255, 255), (100, 0, 0)), ((255, 0, 0), (53.24, 80.09, 67.20)),
    ((0, 255, 0), (87.73, -86.18, 83.18)), ((0, 0, 255), (32.30, 79.19, -107.86)), ((0, 0, 0), (0, 0, 0))])
def test_cielab_has_the_published_values(rgb, lab):
    assert ciede2000.rgb_to_lab(np.array(rgb) / 255) == pytest.approx(lab, abs=0.01)


# Published: Sharma, Wu and Dalal (2005), table 1, its pairs 1 to 4, 7, 9, 17 to 20.
@pytest.mark.parametrize('first, second, difference', [
    ((50, 2.6772, -79.7751), (50, 0, -82.7485), 2.0425), ((50, 3.1571, -77.2803), (50, 0, -82.7485), 2.8615),
    ((50, 2.8361, -74.02), (50, 0, -82.7485), 3.4412), ((50, -1.3802, -84.2814), (50, 0, -82.7485), 1),
    ((50, 0, 0), (50, -1, 2), 2.3669), ((50, 2.49, -0.001), (50, -2.49, 0.0009), 7.1792),
    ((50, 2.5, 0), (73, 25, -18), 27.1492), ((50, 2.5, 0), (61, -5, 29), 22.8977),
    ((50, 2.5, 0), (56, -27, -3), 31.9030), ((50, 2.5, 0), (58, 24, 15), 19.4535)])
def test_ciede2000_has_the_published_values(first, second, difference):
    first, second = np.array(first, float), np.array(second, float)
    assert ciede2000.ciede2000(first, second) == pytest.approx(difference, abs=1e-4)
    assert ciede2000.ciede2000(second, first) == pytest.approx(difference, abs=1e-4)


def test_distant_pairs_are_equally_far_apart_and_can_be_shown():
    pairs, seen, outside = measuring.distant_pairs(np.random.default_rng(1).random((2, 3, 8, 8)))
    assert np.linalg.norm(pairs[:, 0] - pairs[:, 1], axis=1) == pytest.approx(60 / 255)
    assert 0 <= pairs.min() and pairs.max() <= 1 and 0 < outside < 0.5 and (np.diff(seen) > 0).all()


@pytest.mark.parametrize('what, layer, maps', [
    ('upconv1', 'upconv1.0', slice(8, None)), ('upconv2', 'upconv2.0', slice(4, None)),
    ('finalconv', 'finalconv', slice(5, None)), ('middle', 'upconv1.0', slice(8))])
def test_cut_equals_weights_of_zero(what, layer, maps):
    torch.manual_seed(0)
    model, x = UNet(3, 4, 5).eval(), torch.rand(2, 1, 32, 32)
    whole = model(x)
    measuring.cut(model, what)
    without = model(x)
    assert not torch.allclose(without, whole)
    with torch.no_grad():
        model.get_submodule(layer).weight[:, maps] = 0
    torch.testing.assert_close(model(x), without)


def test_pixels_take_the_place_of_the_maps_of_downconv1():
    torch.manual_seed(0)
    model, x, seen = UNet(3, 6, 5).eval(), torch.rand(2, 1, 32, 32), []
    measuring.cut(model, 'pixels')
    model.upconv2[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    model(x)
    assert torch.equal(seen[0][:, 6:10].reshape(2, 4, 256).transpose(1, 2), F.unfold(x, 2, stride=2).mT)
    assert seen[0][:, 10:].count_nonzero() == 0 and seen[0][:, :6].count_nonzero() > 0


def test_gradient_energy_and_its_radius_are_those_of_a_filter_of_known_weights():
    """A network whose one score is 1, and whose other is three pixels away: the share of either is known."""
    def model(x):
        far = F.pad(x, (3, 0, 0, 0))[..., :-3]
        return torch.cat([torch.log(1 + x), torch.log(1 + 2 * far)], dim=1)
    values = np.float32([[1, 0], [0, 0]])  # p = (1 + x) / (2 + x + 2 far), and a channel without gradient
    x = torch.full((2, 1, 32, 32), 0.5)
    energy = measuring.gradient_energy(model, x, values)
    near, away = (1 + 2 * 0.5) ** 2, (2 * (1 + 0.5)) ** 2  # the squares of the two numerators of dp
    middle = measuring.REACH
    assert energy.sum() == pytest.approx(1)
    assert energy[middle, middle] == pytest.approx(near / (near + away))
    assert energy[middle, middle - 3] == pytest.approx(away / (near + away))
    assert measuring.radius(energy, 0.2) == 0 and measuring.radius(energy, 0.9) == 3


def test_maps_are_drawn_that_vary_inside_and_their_gaps_are_of_a_colour_of_their_own():
    maps = torch.zeros(10, 8, 8)
    maps[:2, 0] = 9.0  # black but for the rim
    maps[2:, 3, 4] = torch.arange(1.0, 9.0)
    maps[9, :, 0] = 100.0
    picture = drawing.liveliest_maps(maps)
    assert picture.shape == (8, 8 * 9 - 1, 3)
    tiles = [picture[:, 9 * i:9 * i + 8] for i in range(8)]
    assert all((tile[3, 4] == 1).all() and tile.min() == 0 for tile in tiles)
    assert all(tile[:, 1:].sum() == 3 for tile in tiles) and (tiles[7][:, 0] == 1).all()
    assert (picture[:, 8::9] == drawing.GAP).all() and len(set(drawing.GAP)) == 3


@pytest.mark.slow
def test_numbers_are_measured_again(cifar10):
    """Those that cost little; another machine rounds otherwise."""
    horses = measuring.test_horses(cifar10)
    committed = json.loads(measuring.MEASURED.read_text('utf-8'))
    for name in 'layers', 'networks', 'distances', 'edges', 'chroma', 'maps':
        assert [*leaves(measuring.SECTIONS[name](horses))] == [
            (place, number if isinstance(number, str) else pytest.approx(number, rel=0.01, abs=2e-6))
            for place, number in leaves(committed[name])]


def leaves(results, *place):
    if isinstance(results, dict):
        for name in results:
            yield from leaves(results[name], *place, name)
    else:
        yield place, results
