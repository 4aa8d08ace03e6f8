"""The write-up: measure what it needs, draw its figures, and typeset it.

    python outputs/writeup/writeup.py --data data        # make what is missing, and typeset
    python outputs/writeup/writeup.py --only macros      # typeset again, from the result files alone

Writes `a2-writeup.pdf`, with pdflatex. No number in `a2-writeup.tex` is typed: they are the macros of
`results/numbers.tex`, made of what `measuring.py` and `experiments.py` wrote into `results/`, where
`course.json` has the course's own weights. What is there of today's weights is not made again.
"""

import argparse
import hashlib
import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from scipy.stats import ttest_1samp

sys.path.append(str(Path(__file__).resolve().parent))  # which `python -P` leaves out
import comparison  # which finds the modules of the root
import drawing
import experiments
import measuring
from colourization import MODELS, STAGES, run
from comparison import HERE, ROOT
from experiments import read_table, spread
from load_data import InputError, whole_file
from measuring import PLANNED, RESULTS

MACROS, COURSE = RESULTS / 'numbers.tex', RESULTS / 'course.json'
TEX, PDF = HERE / 'a2-writeup.tex', HERE / 'a2-writeup.pdf'

# ---- The results ------------------------------------------------------------------------------------------


def all_results():
    """All that was measured, by name, and what trainings reached, as `experiments.measures`."""
    m = json.loads(measuring.MEASURED.read_text()) | {'course': json.loads(COURSE.read_text())}
    m['seeds'] = len(measuring.SEEDS)
    m['history'] = {row['epoch']: {name: float(number) for name, number in row.items()}
                    for row in read_table(measuring.HISTORY)}
    trained, part_f = read_table(measuring.RUNS), read_table(experiments.RUNS)
    for name, names in ('runs', dict(zip(PLANNED, PLANNED))), ('cuts', CUTS), ('prior cuts', PRIOR_CUTS):
        m[name] = experiments.measures(names, measuring.SEEDS, trained)
    for name, (first, rows, seeds) in zip(('short', 'long', 'once', 'tuning', 'prior'),
                                           experiments.TABLES.values()):
        m[name] = experiments.measures(experiments.commands(first, rows), seeds, part_f)
    m['dilation'] = {label: {measure: value(m, f'runs/DUNet{end}/{measure} - runs/UNet{end}/{measure}')
                             for measure in ('val_loss', 'val_accuracy', 'val_error_back')}
                     for label, end in ENDS.items()}
    whole, none = m['dilation']['the whole UNet'], m['dilation']['without any skip connection']
    m['dilation']['\\midrule difference of the first and the last'] = {
        measure: [a - b for a, b in zip(whole[measure], none[measure])] for measure in whole}
    m['growth'] = {label: 2 * ttest_1samp(value(m, f'long/{label}/gain - short/{label}/gain'), 0).pvalue
                   for label in ('(e) classes', '(b), (c) and (d)')}  # the chance that there is none
    m['best'] = m['beyond']['ways'][f'UNet with prior, {comparison.BEST}']
    whole, without = (np.mean(m['runs'][name]['val_error_back']) for name in ('UNet', 'UNet without all'))
    lost, left = (np.mean(value(m, f'runs/UNet/val_accuracy - runs/{name}/val_accuracy'))
                  for name in ('UNet without upconv2', 'UNet, pixels for upconv2'))
    m['shares'] = {'places': 1 - left / lost, 'chroma': 1 - whole / without,
                   'best': m['best']['error'] / m['networks']['grey picture']['error']}
    return m


def value(results, path):
    """What stands at a path like 'a/b' in nested results, if anything; at 'a/b - c/d' the difference."""
    if ' - ' in path:
        first, second = (value(results, part) for part in path.split(' - '))
        return [a - b for a, b in zip(first, second)] if isinstance(first, list) else first - second
    for name in path.split('/'):
        results = results.get(name, {})
    return None if results == {} else results


def found(results, path):
    """What stands at a path that ends in a format, as text: mean and standard deviation over seeds."""
    path, _, form = path.rpartition(' ')
    content = value(results, path)
    if isinstance(content, list):
        return spread(content, form)
    return '' if content is None else f'{content:{form}}'


def printed(text):
    """As LaTeX."""
    text = re.sub(r'(?<![\w.$^{])([-+])(?=\d)', r'$\1$', text)
    text = re.sub(r'(\d)x(?=\d)', r'\1$\\times$', text)
    text = text.replace(' *', r'\rlap{\,*}')  # a star takes no room, so that columns stay centred
    return text.replace('%', r'\,\%').replace(' ± ', r'\,$\pm$\,').replace('_', r'\_')


# ---- The macros -------------------------------------------------------------------------------------------

CUTS = {  # what is taken from the UNet, and the run
    'nothing': 'UNet', 'no \\texttt{downconv2} to \\texttt{upconv1}': 'UNet without upconv1',
    'no \\texttt{downconv1} to \\texttt{upconv2}': 'UNet without upconv2',
    'instead, grey pixels to \\texttt{upconv2}': 'UNet, pixels for upconv2',
    'no input to \\texttt{finalconv}': 'UNet without finalconv', 'none of the three': 'UNet without all',
    'no middle (\\texttt{rfconv} to \\texttt{upconv1})': 'UNet without middle'}
PRIOR_CUTS = {'nothing': 'UNet with prior', 'none of the three': 'UNet with prior without all'}
ENDS = {'the whole UNet': '', 'without the way around the middle': ' without upconv1',
        'without any skip connection': ' without all'}
NUMBERS = {  # by macro: where it stands in the results, and its format
    'Weights': 'layers/sum/weights ,d', 'Biases': 'layers/sum/biases d', 'WeightsMiddle': 'layers/middle ,d',
    'ParametersUNet': 'layers/UNet/parameters ,d', 'ParametersWider': 'layers/CNN, 37 filters/parameters ,d',
    'ErrorGrey': 'networks/grey picture/error .5f', 'ErrorRegression': 'networks/RegressionCNN/error .5f',
    'ErrorCNN': 'networks/CNN/error .5f', 'ErrorMeanCNN': 'networks/CNN/mean/error .5f',
    'ErrorBackRegression': 'networks/RegressionCNN/error_back .5f',
    'ErrorBackCNN': 'networks/CNN/error_back .5f', 'ErrorBackUNet': 'networks/UNet/error_back .5f',
    'ErrorBackTable': 'networks/table of grey levels/error_back .5f',
    'ColourfulTruth': 'networks/truth/colourfulness .1f',
    'ColourfulRegression': 'networks/RegressionCNN/colourfulness .1f',
    'ColourfulCNN': 'networks/CNN/colourfulness .1f',
    'ColourfulMeanCNN': 'networks/CNN/mean/colourfulness .1f',
    'ColourfulUNet': 'networks/UNet/colourfulness .1f',
    'ColourfulTable': 'networks/table of grey levels/colourfulness .1f',
    'BrightnessRegression': 'networks/brightness in the error .0%',
    'BrightnessOfSpread': 'networks/brightness in the variance .0%', 'LossCNN': 'networks/CNN/loss .4f',
    'AccuracyCNN': 'networks/CNN/accuracy .1%', 'LossUNet': 'networks/UNet/loss .4f',
    'AccuracyUNet': 'networks/UNet/accuracy .1%', 'LossDUNet': 'networks/DUNet/loss .4f',
    'AccuracyDUNet': 'networks/DUNet/accuracy .1%', 'GainOfSkipsInChroma': 'shares/chroma .1%',
    'AccuracyTable': 'networks/table of grey levels/accuracy .1%', 'SeenLow': 'distances/low .0f',
    'SeenHigh': 'distances/high .0f', 'OutsideGamut': 'distances/outside .0%',
    'LossOfEither': 'distances/error of either .3f', 'LossOfMean': 'distances/error of the mean .3f',
    'AtEdgesCNN': 'edges/CNN/at edges .1%', 'OffEdgesCNN': 'edges/CNN/elsewhere .1%',
    'AtEdgesUNet': 'edges/UNet/at edges .1%', 'OffEdgesUNet': 'edges/UNet/elsewhere .1%',
    'AtEdgesTable': 'edges/table of grey levels/at edges .1%',
    'ChromaOfSkips': 'chroma/UNet minus CNN/mean .6f',
    'ChromaOfSkipsError': 'chroma/UNet minus CNN/error .6f',
    'ChromaOfSkipsSmall': 'chroma/UNet minus CNN, 16 filters/mean .6f',
    'ChromaOfSkipsSmallError': 'chroma/UNet minus CNN, 16 filters/error .6f',
    'ChromaOfDilation': 'chroma/DUNet minus UNet/mean +.6f',
    'ChromaOfDilationError': 'chroma/DUNet minus UNet/error .6f',
    'ChromaOfDilationPrior': 'chroma/DUNet minus UNet, with prior/mean .6f',
    'ChromaOfDilationPriorError': 'chroma/DUNet minus UNet, with prior/error .6f',
    'RadiusBrightnessCNN': 'fields/CNN/brightness/90% .1f',
    'RadiusBrightnessUNet': 'fields/UNet/brightness/90% .1f',
    'RadiusBrightnessDUNet': 'fields/DUNet/brightness/90% .1f',
    'RadiusChromaCNN': 'fields/CNN/chroma/90% .1f', 'RadiusChromaUNet': 'fields/UNet/chroma/90% .1f',
    'RadiusChromaDUNet': 'fields/DUNet/chroma/90% .1f',
    'LikeGreyCNNDownOne': 'maps/downconv1/CNN/like grey .2f',
    'LikeGreyCNNMiddle': 'maps/rfconv/CNN/like grey .2f',
    'LikeGreyCNNUpOne': 'maps/upconv1/CNN/like grey .2f',
    'LikeGreyCNNUpTwo': 'maps/upconv2/CNN/like grey .2f',
    'LikeGreyUNetMiddle': 'maps/rfconv/UNet/like grey .2f',
    'LikeGreyUNetUpTwo': 'maps/upconv2/UNet/like grey .2f', 'DeadCNNUpTwo': 'maps/upconv2/CNN/dead d',
    'ActiveCNNMiddle': 'maps/rfconv/CNN/active .0%', 'ActiveUNetMiddle': 'maps/rfconv/UNet/active .0%',
    'PriorLossUNet': 'beyond/UNet/loss .4f', 'PriorAccuracyUNet': 'beyond/UNet/accuracy .1%',
    'ErrorBest': 'best/error .5f',
    'ErrorBestDUNet': 'beyond/ways/DUNet with prior, mean, grey put back/error .5f',
    'CourseErrorRegression': 'course/RegressionCNN/error .5f', 'CurveLossFive': 'history/5/val_loss .4f',
    'CurveAccuracyFive': 'history/5/val_accuracy .1%', 'CurveLossLate': 'history/23/val_loss .4f',
    'CurveLossAll': 'history/25/val_loss .4f', 'CurveAccuracyAll': 'history/25/val_accuracy .1%',
    'GainUNet': 'runs/UNet/val_accuracy - runs/CNN/val_accuracy .1f',
    'GainWider': 'runs/CNN, 37 filters/val_accuracy - runs/CNN/val_accuracy .1f',
    'GainOfSkips': 'runs/UNet/val_accuracy - runs/UNet without all/val_accuracy .1f',
    'GainOfSkipsWithPrior': 'prior cuts/nothing/val_accuracy - prior cuts/none of the three/val_accuracy .2f',
    'TrainedCutUpTwo': 'runs/UNet without upconv2/val_accuracy - runs/UNet/val_accuracy +.1f',
    'TrainedPixels': 'runs/UNet, pixels for upconv2/val_accuracy - runs/UNet/val_accuracy +.1f',
    'ShareOfPlaces': 'shares/places .0%', 'ChromaWhole': 'runs/UNet/val_error_back .6f',
    'ChromaPixels': 'runs/UNet, pixels for upconv2/val_error_back .6f',
    'ChromaCutUpTwo': 'runs/UNet without upconv2/val_error_back .6f',
    'MiddleActive': 'runs/UNet/middle_active .0f', 'MiddleLikeGrey': 'runs/UNet/middle_like_grey .2f',
    'MiddleActiveWithout': 'runs/UNet without all/middle_active .0f',
    'MiddleLikeGreyWithout': 'runs/UNet without all/middle_like_grey .2f',
    'DilatedAccuracy': 'dilation/the whole UNet/val_accuracy +.2f',
    'DilatedWithoutWay': 'dilation/without the way around the middle/val_accuracy +.2f',
    'DilatedWithoutSkips': 'dilation/without any skip connection/val_accuracy +.2f',
    'GainOfMoves': 'long/(b), (c) and (d)/gain .1f', 'ChanceMovesGrow': 'growth/(b), (c) and (d) .1g',
    'ChanceClassesShrink': 'growth/(e) classes .1g', 'TrainLossPlain': 'long/none/train_loss .3f',
    'ValidLossPlain': 'long/none/val_loss .3f', 'AccuracyOfNone': 'short/none/val_accuracy .1f',
    'AccuracyOfClasses': 'short/(e) classes/val_accuracy .1f', 'AccuracyOfOnce': 'once/none/val_accuracy .1f',
    'GainOfConstant': 'tuning/constant 0.001, as in the course/gain +.1f',
    'GainOfPeak': 'tuning/peak of 0.001/gain +.1f', 'GainOfBatches': 'tuning/batches of 100/gain +.1f',
    'LossOfBatchesSteps': 'tuning/batches of 100, as many steps/val_loss .3f',
    'TrainLossOfBatchesSteps': 'tuning/batches of 100, as many steps/train_loss .3f',
    'GainOfEpochs': 'tuning/22 epochs/gain .1f', 'GainOfFilters': 'tuning/64 filters/gain .1f',
    'GainPrior': 'prior/766 entries/gain +.1f', 'ErrorBestShare': 'shares/best .0%',
    'ByAll': 'beyond/ways/UNet, likeliest colours/error - best/error .5f',
    'ByPrior': 'beyond/ways/UNet, mean, grey put back/error - best/error .5f',
    'FieldUNet': 'fields/UNet/theory ', 'DilatedChroma': 'dilation/the whole UNet/val_error_back +.6f',
    'MiddleActivePrior': 'runs/UNet with prior/middle_active .0f', 'Seeds': 'seeds d',
    'MiddleActivePriorWithout': 'runs/UNet with prior without all/middle_active .0f',
    'MiddleLikeGreyPrior': 'runs/UNet with prior/middle_like_grey .2f',
    'MiddleLikeGreyPriorWithout': 'runs/UNet with prior without all/middle_like_grey .2f',
}


def table(rows):
    """The body of a table from rows of texts."""
    return ' \\\\\n'.join(' & '.join(map(printed, row)) for row in rows) + ' \\\\'


def measured_table(rows, *paths, name='{}'):
    """The body of a table from the dicts among the rows; their names are put into `name`."""
    return table([[name.format(label), *(found(row, path) for path in paths)]
                  for label, row in rows.items() if isinstance(row, dict)])


def table_of_changes(dilation):
    """G.2: what dilation changes, with a star where that is significant."""
    rows = [[label] for label in dilation]
    for measure, form in (('val_loss', '+.4f'), ('val_accuracy', '+.2f'), ('val_error_back', '+.6f')):
        for row, changes in zip(rows, dilation.values()):
            is_significant = len(rows) * ttest_1samp(changes[measure], 0).pvalue < 0.05
            row.append(spread(changes[measure], form) + (' *' if is_significant else ''))
    return table(rows)


def macros():
    """The text of every number and table, by the name of its macro."""
    m, code = all_results(), '\\texttt{{{}}}'
    layers = {name: row for name, row in m['layers'].items() if name in (*STAGES, 'finalconv')}
    ways = m['beyond']['ways'] | {'truth': m['networks']['truth']}
    course = {name: {'course': m['course'][name], 'ours': m['networks'][name], 'prior': m['beyond'][name]}
              for name in MODELS}
    pictures = 'error .5f', 'error_back .5f', 'colourfulness .1f'
    with_error = experiments.FORMS | {'val_error_back': '.6f'}
    maps = 'active .0%', 'like grey .2f', 'dead d'
    return {name: printed(found(m, path)) for name, path in NUMBERS.items()} | {
        'TableLayers': measured_table(layers, 'filter ', 'inputs d', 'filters d', 'output ', 'weights ,d',
                                      'biases d', 'receptive field ', 'then ', name=code),
        'TableNetworks': measured_table(m['networks'], 'loss .4f', 'accuracy .1%', *pictures,
                                        *(f'mean/{path}' for path in pictures)),
        'TableEdges': measured_table(m['edges'], 'at edges .1%', 'elsewhere .1%'),
        'TableCuts': table(experiments.table(m['cuts'], with_error)),
        'TableCutsWithPrior': table(experiments.table(m['prior cuts'], with_error)),
        'TableFields': measured_table(m['fields'], 'theory ', 'brightness/50% .1f', 'brightness/90% .1f',
                                      'chroma/50% .1f', 'chroma/90% .1f'),
        'TableActivations': measured_table(m['maps'], 'maps d', *(f'CNN/{path}' for path in maps),
                                           *(f'UNet/{path}' for path in maps), name=code),
        'TableAugmentShort': table(experiments.table(m['short'], experiments.FORMS)),
        'TableAugmentLong': table(experiments.table(m['long'], experiments.FORMS)),
        'TableAugmentOnce': table(experiments.table(m['once'], experiments.FORMS)),
        'TableTuning': table(experiments.table(m['tuning'], experiments.FORMS)),
        'TableDilation': table_of_changes(m['dilation']),
        'TableCourse': measured_table(course, *(f'{whose}/{path}' for whose in ('course', 'ours', 'prior')
                                                for path in ('loss .4f', 'accuracy .1%'))),
        'TableWays': measured_table(ways, 'error .5f', 'psnr .2f', 'colourfulness .1f')}


# ---- The text ---------------------------------------------------------------------------------------------


def macro_file():
    """The text of numbers.tex."""
    lines = ['% Made by outputs/writeup/writeup.py from the result files; not to be edited.']
    lines += [f'\\newcommand{{\\{name}}}{{{text}}}' for name, text in macros().items()]
    return '\n'.join(lines) + '\n'


def checksum():
    """Of everything that the PDF is made from: it stands among the PDF's keywords."""
    figures = re.findall(r'\\includegraphics(?:\[.*?\])?{(.+?)}', TEX.read_text())
    digest = hashlib.sha256()
    for path in [TEX, MACROS, *(HERE / name for name in figures)]:
        digest.update(path.read_bytes())
    return digest.hexdigest()


def typeset():
    """Make the PDF; twice, for the references. The same files give the same bytes."""
    with tempfile.TemporaryDirectory() as folder:
        command = ['pdflatex', '-halt-on-error', '-interaction=nonstopmode', f'-output-directory={folder}',
                   '-jobname=a2-writeup', f'\\def\\checksum{{{checksum()}}}\\input{{{TEX.name}}}']
        for _ in range(2):
            done = subprocess.run(command, cwd=HERE, capture_output=True, text=True, errors='replace')
            if done.returncode:
                complaints = re.findall(r'^! .*|^l\.\d+.*', done.stdout, re.MULTILINE)
                raise InputError(f'pdflatex: {" ".join(complaints)}')
        with whole_file(PDF) as file:
            file.write((Path(folder) / 'a2-writeup.pdf').read_bytes())


def main():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--data', default=ROOT / 'data', help='where CIFAR-10 is (default: data/)')
    parser.add_argument('--only', choices=['macros'],
                        help='do not measure: make the macros and the PDF from the result files')
    parser.add_argument('--no-pdf', action='store_true', help='do without LaTeX')
    args = parser.parse_args()
    if args.data == 'sample':
        raise InputError('--data sample will not do: name a folder with the horses of CIFAR-10')
    if not (args.no_pdf or shutil.which('pdflatex')):
        raise InputError('pdflatex is missing: install TeX Live with lmodern and pictures, or give --no-pdf')
    if args.only is None:
        measuring.train_missing(args.data)
        drawing.draw_missing(measuring.measure(args.data), args.data)
    with whole_file(MACROS) as file:
        file.write(macro_file().encode())
    if not args.no_pdf:
        typeset()


if __name__ == '__main__':
    run(main)
