"""Files are written whole or not at all, and what cannot be is told in a line."""

import errno
import os
import platform
import shutil
import stat
from contextlib import nullcontext

import numpy as np
import pytest

import load_data
from colourization import CNN, draw_pictures, parse_args, report, save_checkpoint
from conftest import ROOT, fails, full_disk, in_namespace, unix_only
from files import image
from load_data import InputError, check_writable, whole_file


def write(path):
    with whole_file(path) as file:
        file.write(b'new')


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_file_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / 'new folder' / 'file'
    write(path)
    with pytest.raises(ZeroDivisionError), whole_file(path) as file:
        file.write(b'newer')
        raise ZeroDivisionError
    assert contents(path.parent) == {'file': b'new'}


def test_file_is_on_the_disk_before_it_replaces_another(tmp_path, monkeypatch):
    """Otherwise a computer that loses power can be left with neither."""
    path, synced = tmp_path / 'w.pkl', []
    path.write_bytes(b'old')
    monkeypatch.setattr(os, 'fsync', lambda file: synced.append((os.fstat(file).st_size, path.read_bytes())))
    write(path)
    assert synced == [(3, b'old')] and path.read_bytes() == b'new'


@unix_only
def test_file_behind_a_link_is_written_and_what_is_no_file_is_not(tmp_path):
    (tmp_path / 'link').symlink_to(tmp_path / 'file')
    write(tmp_path / 'link')
    assert (tmp_path / 'link').is_symlink() and (tmp_path / 'file').read_bytes() == b'new'
    for path, words in ((tmp_path, 'not a file'), (tmp_path / 'file' / 'below', 'below cannot be written')):
        with pytest.raises(InputError, match=words):
            write(path)


# The kernel answers system call 74, which is fsync, with EINVAL: see prctl(2) and seccomp(2).
WITHOUT_FSYNC = """import ctypes, struct
rules = struct.pack("HBBI" * 4, 32, 0, 0, 0, 21, 0, 1, 74, 6, 0, 0, 0x50000 + 22, 6, 0, 0, 0x7fff0000)
buffer, libc = ctypes.create_string_buffer(rules), ctypes.CDLL(None)
assert libc.prctl(38, 1, 0, 0, 0) == 0
assert libc.prctl(22, 2, struct.pack("HxxxxxxQ", 4, ctypes.addressof(buffer))) == 0
"""


@pytest.mark.skipif(platform.machine() != 'x86_64', reason='the numbers of system calls are those of x86-64')
@pytest.mark.parametrize('mount, code', [('mount --bind w.pkl w.pkl', ''), ('true', WITHOUT_FSYNC)],
                         ids=['mounted by itself', 'no fsync'])
def test_file_is_written_wherever_it_lies(mount, code, tmp_path):
    """A file that docker run -v mounts cannot be replaced; some file systems cannot synchronize."""
    (tmp_path / 'w.pkl').write_bytes(b'old content')
    code += 'import load_data\nwith load_data.whole_file("w.pkl") as file: file.write(b"new")'
    assert in_namespace(mount, code, tmp_path).stderr == ''
    assert (tmp_path / 'w.pkl').read_bytes() == b'new' and len(list(tmp_path.iterdir())) == 1


def test_content_that_a_disk_loses_is_no_file(tmp_path, monkeypatch):
    def fsync(file):
        raise OSError(errno.EIO, 'Input/output error')
    monkeypatch.setattr(os, 'fsync', fsync)
    with pytest.raises(InputError, match='Input/output error'):
        write(tmp_path / 'a')
    assert contents(tmp_path) == {}


def test_file_that_is_not_ours_to_write_is_refused(tmp_path, monkeypatch):
    (tmp_path / 'a').write_bytes(b'old')
    monkeypatch.setattr(os, 'access', lambda path, mode: False)
    with pytest.raises(InputError, match='read-only'):
        write(tmp_path / 'a')
    assert contents(tmp_path) == {'a': b'old'}


@unix_only
def test_file_keeps_its_mode(tmp_path):
    (tmp_path / 'w.pkl').touch(mode=0o600)
    with whole_file(tmp_path / 'w.pkl') as file:
        assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o600}  # no one else may look
        file.write(b'new')
    assert (tmp_path / 'w.pkl').stat().st_mode & 0o777 == 0o600


@unix_only
@pytest.mark.parametrize('link, name', [('there', 'there/w.pkl'), ('w.pkl', 'w.pkl')])
def test_nothing_is_made_where_a_link_leads_to_what_is_gone(link, name, tmp_path):
    (tmp_path / link).symlink_to(tmp_path / 'unplugged/disk')
    with pytest.raises(InputError, match='unplugged/disk.* cannot be written .No such file or directory'):
        check_writable(tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == [link]


@pytest.mark.parametrize('refusals, words', [
    (2, None), (100, 'a cannot be written .Permission denied.: choose')])
def test_file_that_another_program_has_open_is_tried_for_a_second(refusals, words, tmp_path, monkeypatch):
    """Windows refuses to replace it."""
    real, slept = os.replace, []

    def replace(old, new):
        if len(slept) < refusals:
            raise PermissionError(13, 'Permission denied')
        real(old, new)
    monkeypatch.setattr(os, 'replace', replace)
    monkeypatch.setattr(load_data.shutil, 'copyfile', replace)
    monkeypatch.setattr(load_data.time, 'sleep', slept.append)
    with pytest.raises(InputError, match=words) if words else nullcontext():
        write(tmp_path / 'a')
    assert contents(tmp_path) == ({} if words else {'a': b'new'})
    assert sum(slept) == pytest.approx(1 if words else 0.2)


@pytest.mark.parametrize('name', ['w.pkl', 'w.pkl.resume'])
def test_read_only_file_is_refused_before_training(name, run_script, tmp_path):
    shutil.copy(ROOT / 'weights/cnn_k3_f16.pkl', tmp_path / name)
    (tmp_path / name).chmod(stat.S_IREAD)
    before = contents(tmp_path)
    done = run_script('colourization.py', '-m', 'CNN', '--data', 'nowhere', '--checkpoint', 'w.pkl')
    assert fails(done, 1, f'{name} ', 'read-only') and contents(tmp_path) == before


@pytest.mark.parametrize('length, fits', [(243, True), (248, True), (249, False), (256, False)])
def test_long_name_of_a_checkpoint_is_written_or_refused_at_once(length, fits, run_script, tmp_path):
    name = 'n' * (length - 4) + '.pkl'
    done = run_script('colourization.py', '-m', 'CNN', '-f', 2, '-e', 1, '--data', 'sample',
                      '--checkpoint', name)
    assert ('.partial' in done.errors, (tmp_path / name[:255]).exists()) == (False, fits)
    assert (done.status == 0) if fits else fails(done, 1, name, 'too long') and done.output == ''


def write_json(path):
    args = parse_args(['-m', 'CNN', '--outdir', str(path.parent)])
    report(args, CNN(3, 4, 24), {'network': 'CNN', 'pictures': 'sample pictures', 'colours': None},
           {'loss': 1.0}, {}, {})


def save_colours(path):
    with whole_file(path) as file:
        np.save(file, NOISE)


NOISE = np.random.default_rng(0).random((64, 64, 3))


@pytest.mark.parametrize('name, writes', {
    'w.pkl': lambda path: save_checkpoint(CNN(3, 4, 24), path),
    'eval.png': lambda path: draw_pictures([('noise', NOISE)], path, 'noise'),
    'metrics_CNN.json': write_json, 'c.npy': save_colours}.items())
def test_full_disk_leaves_the_old_file(name, writes, tmp_path):
    (tmp_path / name).write_bytes(b'old')
    with full_disk(100), pytest.raises(InputError, match=f'{name} cannot be written'):
        writes(tmp_path / name)  # less than a file, so the last write may be it
    assert contents(tmp_path) == {name: b'old'}


def test_full_disk_leaves_the_old_coloured_picture(run_script, tmp_path):
    (tmp_path / 'a.png').write_bytes(image((255 * NOISE).astype(np.uint8), 'PNG'))
    (tmp_path / 'a_colour.png').write_bytes(b'old')
    before = contents(tmp_path)
    with full_disk(100):
        done = run_script('colourization.py', '--image', 'a.png', '--outdir', '.')
    assert fails(done, 1, 'a_colour.png cannot be written') and contents(tmp_path) == before
