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
    '4,096', '1,024', '1,000', '500', '200', '50', '100', '255', '60', '0.1',  # pictures, steps, distances
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
    (1e-14, '.0e', r'$1\cdot10^{-14}$'), ([1.0, 2.0, 3.0], '+.1f', r'$+$2.0\,$\pm$\,1.0'),
    ([1.03, 1.04, 1.05], '+.1f', r'$+$1.04\,$\pm$\,0.01'), (0.0003, '#.2g', '0.00030')])
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


def test_pictures_of_a_training_are_judged_by_the_mean_of_the_colours_and_the_grey_put_back(monkeypatch):
    """As an untrained network paints them: the probabilities come from its scores by hand."""
    rgb = np.random.default_rng(2).random((2, 3, 32, 32)).astype(np.float32)
    grey = rgb.mean(axis=1, keepdims=True)
    pictures = torch.from_numpy(grey), torch.zeros(2, 1, 32, 32, dtype=torch.int16)
    monkeypatch.setitem(writeup.PLANNED, 'tiny', (UNet, (), 2, 1, 1))
    monkeypatch.setattr(writeup, 'training_pictures', lambda *_: (pictures, pictures, rgb))
    monkeypatch.setattr(writeup, 'train', lambda model, objective, train_set, valid_set, settings, *_: [
        {'epoch': settings.epochs}])
    run = writeup.train_short('tiny', 5, 'nowhere')

    torch.manual_seed(5)
    with torch.no_grad():
        weights = np.exp(UNet(3, 2, 24).eval()(pictures[0]).numpy())
    mean = np.einsum('nkhw, kc -> nchw', weights / weights.sum(axis=1, keepdims=True), writeup.COLOURS)
    back = np.clip(mean + grey - mean.mean(axis=1, keepdims=True), 0, 1)
    assert run['val_error'] == pytest.approx(np.square(mean - rgb).mean(), rel=1e-4)
    assert run['val_error_back'] == pytest.approx(np.square(back - rgb).mean(), rel=1e-4)
    assert run['run'] == 'tiny' and run['seed'] == '5' and run['epoch'] == 1 and run['val_colourfulness'] > 0


def made_up_runs(values):
    """Runs of three seeds, by name: their losses; accuracies are a tenth of them, errors a hundredth."""
    return [{'run': name, 'seed': str(seed), 'val_loss': str(value), 'val_accuracy': str(value / 10),
             'val_error_back': str(value / 100), 'val_colourfulness': '20'}
            for name, losses in values.items() for seed, value in enumerate(losses)]


def test_gains_losses_and_errors_of_networks_without_a_part_are_starred(monkeypatch):
    """With three seeds the t-test has a closed form: p = 1 - t / sqrt(t^2 + 2)."""
    monkeypatch.setattr(writeup, 'SEEDS', range(3))
    monkeypatch.setattr(writeup, 'PAINTED_SEEDS', range(3))
    runs = made_up_runs({
        'UNet': (2, 2.1, 2.2), 'UNet without upconv1': (2.07, 2.2, 2.33),  # p = 0.029, one of five
        'UNet without upconv2': (3, 3.11, 3.22),  # t = 175, p = 0.00003
        'UNet without finalconv': (2.2, 2.2, 2.5), 'UNet without all': (1, 1.11, 1.22),
        'UNet without middle': (2.2, 2.32, 2.45)})  # t = 15, p = 0.004, times 5: 0.022
    measured = {f'{cut}{measure}{part}': [0.5, '.1f'] for cut, parts in (
        ('', ['UNet']), ('Cut', ['UpOne', 'UpTwo', 'Final', 'All', 'Middle'])) for part in parts
        for measure in ('Accuracy', 'ErrorBack', 'ErrorMeanBack', 'Colourful')}
    table = writeup.trained_without(runs, measured)['TableCuts']
    assert [[*map(writeup.printed, row[1:5])] for row in (table[0], table[2], table[5])] == [
        [r'2.100\,$\pm$\,0.100', r'21.0\,$\pm$\,1.0', '', r'0.021000\,$\pm$\,0.001000'],
        [r'3.110\,$\pm$\,0.110\rlap{\,*}', r'31.1\,$\pm$\,1.1', r'$+$10.1\,$\pm$\,0.1\rlap{\,*}',
         r'0.031100\,$\pm$\,0.001100\rlap{\,*}'],
        [r'2.323\,$\pm$\,0.125\rlap{\,*}', r'23.2\,$\pm$\,1.3', r'$+$2.2\,$\pm$\,0.3\rlap{\,*}',
         r'0.023233\,$\pm$\,0.001250\rlap{\,*}']]
    assert [''.join(map(writeup.printed, row[1:5])).count('*') for row in table] == [0, 0, 3, 0, 3, 3]
    with pytest.raises(InputError, match='UNet was not run with seed 2'):
        writeup.column(runs[:2], 'UNet', 'val_loss')


def test_dilation_is_compared_by_the_differences_of_its_effects(monkeypatch):
    """With three seeds the t-test has a closed form: p = 1 - t / sqrt(t^2 + 2)."""
    monkeypatch.setattr(writeup, 'SEEDS', range(3))
    ends = '', ' without all', ', 8 filters', ', 8 filters, 2 epochs', ', 8 filters, 64x64'
    effects = dict(zip(ends, ((.1, .1, .4), (1.1, 1.2, 1.6), (.1, .2, .3), (.1, .1, .2), (.2, .3, .3))))
    runs = made_up_runs({f'UNet{end}': (1, 2, 3) for end in ends} | {
        f'DUNet{end}': [loss + change for loss, change in zip((1, 2, 3), changes)]
        for end, changes in effects.items()})
    found = writeup.trained_with_dilation(runs)
    label, (changes, _), (chance, _), *_ = found['TableDilation'][1]
    assert label == '32 filters, no skip connections' and changes == pytest.approx([1.1, 1.2, 1.6])
    t = 1.3 / (0.07 / 3) ** 0.5  # the variance of 1.1, 1.2 and 1.6 is 0.07
    assert chance == pytest.approx(5 * (1 - t / (t ** 2 + 2) ** 0.5))
    skips, enlarged, filters = found['TableContrasts']
    assert skips[1][0] == pytest.approx([-1, -1.1, -1.2])
    t = 1.1 / (0.01 / 3) ** 0.5
    assert skips[2][0] == pytest.approx(3 * (1 - t / (t ** 2 + 2) ** 0.5))
    assert skips[3][0] == pytest.approx([-10, -11, -12]) and skips[4][0] == pytest.approx(skips[2][0])
    assert enlarged[1][0] == pytest.approx([0.1, 0.2, 0.1])
    assert filters[1][0] == pytest.approx([0, 0.1, -0.1]) and filters[2][0] == 1


def test_numbers_of_the_text_agree_with_the_tables_that_they_are_from():
    numbers, page = writeup.all_numbers(), experiments.PAGE.read_text()
    rows = dict(re.findall(r'\| (.+?) \| (\d\.\d{3}) ± .*', page.split('## F.2')[1].split('## ')[0]))
    first, *_ = rows.values()
    steps, _ = numbers['LossOfBatchesSteps']
    assert np.mean(steps) == pytest.approx(
        float(rows['batches of 100, as many steps']) - float(first), abs=0.0011)
    rates = {'GainOfConstant': 'constant 0.001, as in the course', 'GainOfPeak': 'peak of 0.001'}
    for name, label in rates.items():
        gain = re.search(rf'^\| {label} \|.*\| (.+?) \* \|', page, re.MULTILINE)[1]
        assert numbers[name] == gain.replace('-', '$-$').replace(' ± ', r'\,$\pm$\,')
    assert numbers['CutColourfulLost'][0] == pytest.approx(
        1 - numbers['CutColourfulMiddle'][0] / numbers['ColourfulUNet'][0])


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


def test_maps_are_drawn_that_vary_inside_and_their_gaps_are_of_a_colour_of_their_own():
    maps = torch.zeros(10, 8, 8)
    maps[:2, 0] = 9.0  # black but for the rim
    maps[2:, 3, 4] = torch.arange(1.0, 9.0)
    maps[9, :, 0] = 100.0
    picture = writeup.liveliest_maps(maps)
    assert picture.shape == (8, 8 * 9 - 1, 3)
    tiles = [picture[:, 9 * i:9 * i + 8] for i in range(8)]
    assert all((tile[3, 4] == 1).all() and tile.min() == 0 for tile in tiles)
    assert all(tile[:, 1:].sum() == 3 for tile in tiles) and (tiles[7][:, 0] == 1).all()
    assert (picture[:, 8::9] == writeup.GAP).all() and len(set(writeup.GAP)) == 3


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
