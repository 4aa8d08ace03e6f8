"""The write-up: no number of it is typed, and none is older than the result files."""

import json
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

import experiments
import writeup
from colourization import MyConv2d, UNet
from load_data import InputError


def test_macros_are_what_the_result_files_give():
    assert writeup.NUMBERS.read_text('utf-8') == writeup.macros()


def test_pdf_was_made_from_these_files():
    """From this text, these macros and these figures; on failure: writeup.py --only macros."""
    keywords = re.findall(rb'sha256 ([0-9a-f]{64})', writeup.PDF.read_bytes())
    assert [key.decode() for key in keywords] == [writeup.checksum()]


def test_numbers_are_those_of_the_shipped_weights():
    """On failure: the weights are new, so outputs/writeup/writeup.py has to measure them."""
    measured = json.loads(writeup.MEASURED.read_text('utf-8'))['weights']
    assert measured == writeup.checksums_of_weights()


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
    '1,000', '500', '200', '50', '100', '255', '60', '0.1',  # pictures, steps; distances of colours
    '10', '11', '22', '37', '40', '0.001', '0.01', '0.03', '0.05', '0.38', '90', '95'}  # settings, shares


def test_no_measured_number_is_typed():
    numbers = re.findall(r'(?<![A-Za-z\d.])\d+(?:,\d{3})*(?:\.\d+)?', prose())
    assert set(numbers) <= DEFINITIONS
    percentages = re.findall(r'(\S+?)(?:\\,)?\\%', prose())
    assert {p for p in percentages if p[0].isdigit()} <= {'50', '90'}


def test_every_macro_of_the_text_is_a_number_and_every_figure_is_there():
    used = set(re.findall(r'\\([A-Z]\w+)', prose()))
    assert used and used <= set(writeup.all_numbers())
    figures = re.findall(r'\\includegraphics(?:\[.*?\])?{(.+?)}', writeup.TEX.read_text('utf-8'))
    assert figures and all((writeup.HERE / figure).stat().st_size > 5000 for figure in figures)


@pytest.mark.skipif(not shutil.which('pdftotext'), reason='pdftotext is not installed')
def test_pdf_says_the_numbers():
    text = subprocess.run(['pdftotext', '-layout', writeup.PDF, '-'], capture_output=True, text=True,
                          check=True).stdout
    used = set(re.findall(r'\\([A-Z]\w+)', prose()))
    values = {name: writeup.printed(value) for name, value in writeup.all_numbers().items()
              if name in used and not name.startswith('Table')}
    plain = {name: value for name, value in values.items() if re.fullmatch(r'[\d.,]+', value)}
    assert len(plain) > 50
    for name, value in plain.items():
        assert re.search(rf'(?<![\d.]){re.escape(value)}(?!\d)', text), name


@pytest.mark.parametrize('value, form, text', [
    (0.6034, '.1%', r'60.3\,\%'), (75156, ',d', '75,156'), (-0.25, '+.1f', '$-$0.2'),
    (1e-14, '.0e', r'$1\cdot10^{-14}$'), ([1.0, 2.0, 3.0], '+.1f', r'$+$2.0\,$\pm$\,1.0')])
def test_numbers_are_printed_as_latex(value, form, text):
    assert writeup.printed([value, form]) == text


def test_runs_are_those_that_were_planned_and_are_not_repeated(tmp_path, monkeypatch):
    runs = experiments.read_table(writeup.RUNS)
    planned = [(name, str(seed)) for name in writeup.PLANNED for seed in writeup.SEEDS]
    assert [(run['run'], run['seed']) for run in runs] == planned
    assert [record['epoch'] for record in experiments.read_table(writeup.HISTORY)] == [
        str(epoch) for epoch in range(1, 26)]

    again = []
    monkeypatch.setattr(writeup, 'RUNS', tmp_path / 'runs.csv')
    monkeypatch.setattr(writeup, 'ProcessPoolExecutor', lambda jobs, *_: ThreadPoolExecutor(jobs))
    monkeypatch.setattr(writeup, 'train_short', lambda name, seed, _: again.append((name, str(seed))) or {
        'run': name, 'seed': str(seed)})
    experiments.write_table([run for run in runs if run['run'] != 'DUNet'], writeup.RUNS)
    writeup.train_missing('nowhere')
    assert again == [('DUNet', str(seed)) for seed in writeup.SEEDS]
    assert len(experiments.read_table(writeup.RUNS)) == len(runs)


def test_missing_latex_is_said_in_one_line_and_leaves_the_pdf(monkeypatch):
    before = writeup.PDF.read_bytes()
    monkeypatch.setenv('PATH', '')
    with pytest.raises(InputError, match='--no-pdf'):
        writeup.typeset()
    assert writeup.PDF.read_bytes() == before


# Published: http://www.brucelindbloom.com, sRGB and D65.
@pytest.mark.parametrize('rgb, lab', [
    ((255, 255, 255), (100, 0, 0)), ((255, 0, 0), (53.24, 80.09, 67.20)),
    ((0, 255, 0), (87.73, -86.18, 83.18)), ((0, 0, 255), (32.30, 79.19, -107.86)), ((0, 0, 0), (0, 0, 0))])
def test_cielab_has_the_published_values(rgb, lab):
    assert writeup.rgb_to_lab(np.array(rgb) / 255) == pytest.approx(lab, abs=0.01)


# Published: Sharma, Wu and Dalal (2005), table 1, its pairs 1 to 4, 7, 9, 17 to 20.
@pytest.mark.parametrize('first, second, difference', [
    ((50, 2.6772, -79.7751), (50, 0, -82.7485), 2.0425), ((50, 3.1571, -77.2803), (50, 0, -82.7485), 2.8615),
    ((50, 2.8361, -74.02), (50, 0, -82.7485), 3.4412), ((50, -1.3802, -84.2814), (50, 0, -82.7485), 1),
    ((50, 0, 0), (50, -1, 2), 2.3669), ((50, 2.49, -0.001), (50, -2.49, 0.0009), 7.1792),
    ((50, 2.5, 0), (73, 25, -18), 27.1492), ((50, 2.5, 0), (61, -5, 29), 22.8977),
    ((50, 2.5, 0), (56, -27, -3), 31.9030), ((50, 2.5, 0), (58, 24, 15), 19.4535)])
def test_ciede2000_has_the_published_values(first, second, difference):
    first, second = np.array(first, float), np.array(second, float)
    assert writeup.ciede2000(first, second) == pytest.approx(difference, abs=1e-4)
    assert writeup.ciede2000(second, first) == pytest.approx(difference, abs=1e-4)


def test_moved_pixels_are_equally_far_apart_and_can_be_shown():
    rgb = np.random.default_rng(1).random((2, 3, 8, 8))
    pairs, outside = writeup.moved_pixels(rgb)
    assert np.linalg.norm(pairs[:, 0] - pairs[:, 1], axis=1) == pytest.approx(60 / 255)
    assert 0 <= pairs.min() and pairs.max() <= 1 and 0 < outside < 0.5
    assert len(pairs) == round(100_000 * (1 - outside))


def test_lone_pixels_differ_in_chroma_from_all_four_neighbours():
    cats = torch.randint(24, (3, 7, 9), generator=torch.Generator().manual_seed(0))
    chroma = writeup.COLOURS - writeup.COLOURS.mean(axis=1, keepdims=True)
    lone = [all(np.linalg.norm(chroma[cats[n, i, j]] - chroma[cats[n, k, m]]) > 0.1
                for k, m in ((i - 1, j), (i + 1, j), (i, j - 1), (i, j + 1)))
            for n in range(3) for i in range(1, 6) for j in range(1, 8)]
    assert 0 < sum(lone) and writeup.lone_pixels(cats) == pytest.approx(np.mean(lone))


@pytest.mark.parametrize('what, layer, maps', [
    ('upconv1', 'upconv1.0', slice(8, None)), ('upconv2', 'upconv2.0', slice(4, None)),
    ('finalconv', 'finalconv', slice(5, None)), ('middle', 'upconv1.0', slice(8))])
def test_cut_equals_weights_of_zero_and_can_be_mended(what, layer, maps):
    torch.manual_seed(0)
    model, x = UNet(3, 4, 5).eval(), torch.rand(2, 1, 32, 32)
    whole = model(x)
    hook = writeup.cut(model, what)
    without = model(x)
    hook.remove()
    assert torch.equal(model(x), whole) and not torch.allclose(without, whole)
    with torch.no_grad():
        model.get_submodule(layer).weight[:, maps] = 0
    torch.testing.assert_close(model(x), without)


def test_gradient_energy_of_a_filter_is_its_squared_weights():
    layer = MyConv2d(1, 1, 3)
    for power in (1, 2):
        energy = writeup.gradient_energy(layer, torch.rand(2, 1, 32, 32), power=power)
        taps = layer.weight.detach()[0, 0].abs() ** power
        centre = slice(writeup.REACH - 1, writeup.REACH + 2)
        assert energy.sum() == pytest.approx(1)
        assert energy[centre, centre] == pytest.approx((taps / taps.sum()).numpy())


def test_expected_chroma_is_the_weighted_mean_of_the_colours_less_its_brightness():
    scores = torch.randn(2, 24, 3, 3)
    weights = np.exp(scores.numpy())
    mean = np.einsum('nkhw, kc -> nchw', weights / weights.sum(axis=1, keepdims=True), writeup.COLOURS)
    expected = mean - mean.mean(axis=1, keepdims=True)
    assert writeup.expected_chroma(scores).numpy() == pytest.approx(expected, abs=1e-6)


def test_radius_holds_the_share_of_the_energy():
    energy = np.zeros((2 * writeup.REACH + 1,) * 2)
    energy[writeup.REACH, writeup.REACH], energy[writeup.REACH + 3, writeup.REACH - 4] = 0.6, 0.4
    assert writeup.radius(energy, 0.5) == 0 and writeup.radius(energy, 0.9) == 5


@pytest.mark.slow
def test_numbers_are_measured_again(cifar10):
    """Those that cost little; another machine rounds otherwise."""
    horses = writeup.test_horses(cifar10)
    committed = json.loads(writeup.MEASURED.read_text('utf-8'))
    for section in (writeup.describe_regression, writeup.judge_networks, writeup.compare_edges,
                    writeup.cut_at_evaluation, writeup.compare_with_dilation):
        before = committed[section.__name__]
        for name, value in section(horses).items():
            if not name.startswith('Table'):
                assert value[0] == pytest.approx(before[name][0], rel=0.01, abs=1e-6), name
