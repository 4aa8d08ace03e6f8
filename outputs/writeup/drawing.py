"""The figures of the write-up, by the names of their files: `FIGURES`."""

import numpy as np
from matplotlib.patches import Rectangle

import measuring  # which finds the modules of the root
from activations import record_activations
from colourization import (MODELS, STAGES, MyDilatedConv2d, architecture, draw_curves, draw_pictures,
                           figure_file, mosaic)
from comparison import PAPER
from experiments import HERE, read_table
from measuring import (EXPECTED, HISTORY, HORSE_OR_GRASS, REACH, SHIPPED, SHOWN_PAIRS, distant_pairs,
                       gradient_energy, paint)


def draw_networks(h, path):
    """A.2, B.2, C.3, G.2: what the commands of the handout draw, side by side."""
    rows = {'grey': h.grey, 'truth': h.rgb} | {name: paint(h.scores[name][:10]) for name in SHIPPED}
    with figure_file(path, PAPER, 3.5, dpi=160) as figure:
        for axes, (name, pictures) in zip(figure.subplots(len(rows)), rows.items()):
            axes.imshow(mosaic(pictures[:10], 10), cmap='gray', vmin=0, vmax=1, interpolation='nearest')
            axes.set_ylabel(name, fontsize=9, rotation=0, ha='right', va='center')
            axes.set(xticks=[], yticks=[], frame_on=False)


def draw_colours(h, path):
    """A.3, A.4: pairs of colours equally far apart in RGB; the expected error between two colours."""
    pairs, seen, _ = distant_pairs(h.rgb)
    first, second = HORSE_OR_GRASS
    places = np.linspace(0, 1, 101)
    line = first + places[:, None] * (second - first)
    loss = (np.square(line - first).mean(axis=1) + np.square(line - second).mean(axis=1)) / 2
    with figure_file(path, PAPER, 1.9, dpi=160) as figure:
        *small, axes = figure.subplots(1, 5, width_ratios=[1, 1, 1, 1, 3.6])
        for i, patch in enumerate(small):
            patch.imshow(pairs[i, :, None], extent=(0, 1, 0, 1), interpolation='nearest')
            patch.set(xticks=[], yticks=[])
            patch.set_title(f'{SHOWN_PAIRS[i]}th: {seen[i]:.0f}', fontsize=9)
        axes.imshow(line[None], extent=(0, 1, 0, 0.002), aspect='auto')
        axes.plot(places, loss, 'k')
        for i, label in ((0, 'brown'), (50, 'their mean'), (100, 'green')):
            axes.plot(places[i], loss[i], 'o', color=line[i], markersize=13, markeredgecolor='k')
            axes.text(places[i], loss[i] + 0.002, label, ha='center')
        axes.set(xlim=(-0.1, 1.1), ylim=(0, 0.018), xticks=[], ylabel='expected error',
                 xlabel='predicted colour')


def draw_training(_, path):
    """C.2: the course's training, 25 epochs, of which the first 5 are the run of -e 5."""
    history = [{name: float(value) for name, value in record.items()} for record in read_table(HISTORY)]
    with figure_file(path, 9, 3.4, dpi=130) as figure:
        draw_curves(history, figure, '')
        for axes in figure.axes:
            axes.axvline(5, color='grey', linewidth=1, linestyle=':', label='-e 5 ends here')
            axes.legend()


def draw_receptive_fields(h, path):
    """D.2: the share of each input pixel in the squared gradient."""
    with figure_file(path, PAPER, 4.4, dpi=160) as figure:
        panels = figure.subplots(2, 3, sharex=True, sharey=True)
        for column, (name, make) in zip(panels.T, MODELS.items()):
            side = int(architecture(make(3, 32, 24))[-1]['receptive field'].split()[-1])
            for axes, (what, values) in zip(column, EXPECTED.items()):
                energy = gradient_energy(h.networks[name], h.x[:50], values)
                image = axes.imshow(np.log10(energy + 1e-12), extent=(-REACH - .5, REACH + .5) * 2, vmin=-6,
                                    vmax=-1)
                axes.add_patch(Rectangle((-side / 2, -side / 2), side, side, fill=False, edgecolor='w',
                                         linestyle=':'))
                axes.set_title(f'{name}, {what}', fontsize=9)
                axes.set(xticks=(-15, 0, 15), yticks=(-15, 0, 15))
        figure.supxlabel('pixels to the right', fontsize=9)
        figure.supylabel('pixels up', fontsize=9)
        figure.colorbar(image, ax=panels, shrink=0.8).set_label('log10 of the share', fontsize=9)


def draw_dilation(_, path):
    """G.1: the places of the taps, as in Figure 1 of the handout."""
    with figure_file(path, 4.2, 1.7, dpi=160) as figure:
        for axes, dilation in zip(figure.subplots(1, 3), (0, 1, 3)):
            taps = (MyDilatedConv2d(1, 1, 3, dilation).spread_weight()[0, 0] != 0).numpy()
            axes.imshow(np.pad(taps, 6 - len(taps) // 2), cmap='Blues', vmax=1.4)
            axes.set_title(f'dilation {dilation}:\n{taps.sum()} taps in {len(taps)}x{len(taps)}', fontsize=9)
            axes.set(xticks=np.arange(14) - .5, yticks=np.arange(14) - .5)
            axes.tick_params(length=0, labelbottom=False, labelleft=False)
            axes.grid(color='lightgrey', linewidth=0.6)


SHOWN_HORSE, SHOWN_MAPS = 6, 8  # of the test horses: brown, on a meadow; and of each stage
GAP = 0.35, 0.55, 0.9  # a colour that no map has


def liveliest_maps(maps):
    """Some of the maps [C, H, W] as one picture, whose gaps are blue: those that vary most.

    They are chosen and scaled by what they show within a rim of an eighth, where no padding is seen.
    """
    rim = maps.shape[1] // 8
    inner = maps[:, rim:-rim, rim:-rim]
    chosen = inner.std(dim=(1, 2)).topk(SHOWN_MAPS).indices.sort().values
    shown = (maps[chosen] / inner[chosen].amax(dim=(1, 2), keepdim=True)).clamp(max=1)
    picture = mosaic(shown[:, None].numpy(), SHOWN_MAPS)
    gaps = mosaic(np.zeros_like(shown[:, None]), SHOWN_MAPS)
    return np.where(gaps == 1, GAP, picture)


def draw_activations(h, path):
    """E.1, E.2: one horse on its way through two networks."""
    panels = []
    for name in ('CNN', 'UNet'):
        _, maps = record_activations(h.networks[name], h.x[SHOWN_HORSE:][:1])
        grey, output = h.grey[SHOWN_HORSE].repeat(3, axis=0), paint(h.scores[name][SHOWN_HORSE:][:1])[0]
        pictures = mosaic(np.stack([grey, h.rgb[SHOWN_HORSE], output]), SHOWN_MAPS)
        panels.append([(f'{name}: input, truth, output', pictures),
                       *((f'{name}: {stage}', liveliest_maps(maps[stage][0])) for stage in STAGES)])
    draw_pictures([panel for row in zip(*panels) for panel in row], path, '', columns=2, width=PAPER)


FIGURES = {'networks.png': draw_networks, 'colours.png': draw_colours, 'curves.png': draw_training,
           'receptive_fields.png': draw_receptive_fields, 'dilation.png': draw_dilation,
           'activations.png': draw_activations}


def draw_missing(horses, data):
    """Draw the figures that are not there, and all of them if there are horses that were just measured."""
    for name, draw in FIGURES.items():
        if horses or not (HERE / 'figures' / name).exists():
            horses = horses or measuring.test_horses(data)
            draw(horses, HERE / 'figures' / name)
