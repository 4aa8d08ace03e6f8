"""The same horses by the course's way and by the one that goes beyond it.

    python outputs/writeup/comparison.py --data data

Writes `figures/comparison.png`, and prints a table in Markdown: errors against the true pictures
and colourfulness, over the 1,000 test horses.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path.insert(0, str(ROOT))

from colourization import (ANNEALED, SHOWN, UNet, draw_pictures, judge, load_model, mosaic,  # noqa: E402
                           process, psnr, put_grey_back, run, scores_to_rgb)
from load_data import InputError, load_cifar10  # noqa: E402


@torch.no_grad()
def colour(name, grey, temperature):
    """What a shipped UNet makes of grey pictures [N, 1, H, W]."""
    model, colours = load_model(UNet, ROOT / 'weights' / name)
    return np.concatenate([scores_to_rgb(model(x), colours, temperature)
                           for x in torch.from_numpy(grey).split(100)])


def ways(grey):
    """Grey pictures [N, 1, H, W] coloured in each of the ways that are compared, by name."""
    course, ours = 'unet_k3_f32.pkl', 'unet_prior_k3_f32.pkl'
    pictures = {'grey picture': np.repeat(grey, 3, axis=1),
                'UNet, likeliest colours': colour(course, grey, 0),
                'UNet with prior, likeliest colours': colour(ours, grey, 0),
                'UNet, mean, grey put back': put_grey_back(colour(course, grey, 1), grey)}
    for name, temperature in (('annealed mean', ANNEALED), ('mean', 1)):
        painted = colour(ours, grey, temperature)
        pictures[f'UNet with prior, {name}, grey put back'] = put_grey_back(painted, grey)
    return pictures


def draw(pictures, rgb, outdir):
    rows = pictures | {'truth': rgb}
    shown = 'grey picture', 'UNet, likeliest colours', 'UNet with prior, mean, grey put back', 'truth'
    draw_pictures([(name, mosaic(rows[name][:SHOWN], SHOWN)) for name in shown],
                  outdir / 'comparison.png', '', width=6.7)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--data', default=ROOT / 'data', help='where CIFAR-10 is (default: data/)')
    parser.add_argument('--outdir', type=Path, default=HERE / 'figures', help='where the picture goes')
    args = parser.parse_args()
    if args.data == 'sample':
        raise InputError('--data sample will not do: name a folder with the horses of CIFAR-10')
    rgb, grey = process(*load_cifar10(args.data)[1])
    pictures = ways(grey)

    print('| | mean squared error | PSNR | colourfulness |\n|---|---|---|---|')
    for name, measured in judge(pictures | {'truth': rgb}, rgb).items():
        error = measured['mean_squared_error']
        distance = f'{error:.5f} | {psnr(error):.2f} dB' if error else '|'
        print(f'| {name} | {distance} | {measured["colourfulness"]:.1f} |')
    draw(pictures, rgb, args.outdir)


if __name__ == '__main__':
    run(main)
