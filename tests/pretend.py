"""A pretend accelerator, for machines without one: it computes on the CPU, but mixes no devices.

    with accelerator() as pretended:               # torch.accelerator finds it in here, and only in here
        y = 2 * torch.ones(3).to('pretend')        # with a tensor of the CPU instead of 2 this raises
        y.sum().item(), pretended.waited           # 6.0, and 2: for the way there, and the number
"""

from collections import Counter
from contextlib import contextmanager

import torch
from torch._utils import _rebuild_device_tensor_from_cpu_tensor
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

NAME = 'pretend'
TRANSFERS = {'_to_copy', 'copy_'}  # which alone may have tensors of both devices; the source is the last
INDEXING = {'index', 'index_put', 'index_put_', '_index_put_impl_'}  # where masks are looked through first
WAITING = {'_local_scalar_dense', 'equal', 'nonzero', 'masked_select', 'bincount', '_unique2', 'unique_dim',
           'unique_consecutive'}  # the CPU needs a number, or the size of the result


class PretendTensor(torch.Tensor):
    """A tensor on the accelerator; its numbers are in `numbers`, a tensor on the CPU."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, numbers):
        tensor = cls._make_wrapper_subclass(cls, numbers.shape, numbers.stride(), numbers.storage_offset(),
                                            dtype=numbers.dtype, device=torch.device(NAME, 0))
        tensor.numbers = numbers
        return tensor

    @classmethod
    def __torch_dispatch__(cls, operation, types, args=(), kwargs=None):
        raise RuntimeError(f'{operation}: the accelerator is gone')

    # What PyTorch does below what a subclass can tell it.
    data = property(torch.Tensor.detach, lambda self, other: setattr(self, 'numbers', other.numbers))

    def __reduce_ex__(self, protocol):  # a file says where its tensors were
        return _rebuild_device_tensor_from_cpu_tensor, (self.numbers, self.dtype, NAME, self.requires_grad)

    def __repr__(self):
        return f'PretendTensor({self.numbers})'


class Pretended(TorchDispatchMode):
    """Has the CPU do what the accelerator is asked for; raises RuntimeError where devices are mixed.

    `ran` counts each (device, operation), `waited` how often the CPU had to wait for the accelerator.
    """

    def __init__(self):
        super().__init__()
        self.ran, self.waited = Counter(), 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        name, kwargs = operation.overloadpacket.__name__, dict(kwargs or {})
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        wrappers = {id(x.numbers): x for x in tensors if isinstance(x, PretendTensor)}
        target = args[0].device.type if name == 'copy_' else NAME if wrappers else 'cpu'
        if kwargs.get('device') is not None:
            target, kwargs['device'] = torch.device(kwargs['device']).type, torch.device('cpu')

        if name in TRANSFERS:
            asynchronous = target == NAME and (kwargs.get('non_blocking') or args[2:] == (True,))
            self.waited += tensors[-1].device.type != target and not asynchronous
        elif wrappers:
            if any(x.dim() and x.device.type != NAME for x in tensors):
                raise RuntimeError(f'{name} mixes devices: '
                                   + ', '.join(f'{x.device} {list(x.shape)}' for x in tensors))
            self.waited += name in WAITING or name in INDEXING and any(
                x.dtype in (torch.bool, torch.uint8) for x in tree_leaves(args[1]) if x is not None)
        self.ran[target, name] += 1

        args, kwargs = tree_map_only(PretendTensor, lambda x: x.numbers, (args, kwargs))
        result = operation(*args, **kwargs)
        return result if target == 'cpu' else tree_map_only(
            torch.Tensor, lambda x: wrappers[id(x)] if id(x) in wrappers else PretendTensor(x), result)


class Backend(getattr(backend_registration, '_DummyBackendModule', object)):
    available = False  # it cannot be taken back from PyTorch, but be switched off

    def is_available(self):
        return self.available

    def device_count(self):
        return int(self.available)

    def get_amp_supported_dtype(self):
        return [torch.bfloat16]


@contextmanager
def accelerator():
    """Have an accelerator that computes; it must be none that another test has, and no real one."""
    if torch._C._get_privateuse1_backend_name() != NAME:
        backend_registration._setup_privateuseone_for_python_backend(NAME, Backend())
    backend = torch.get_device_module(NAME)
    backend.available = True
    try:  # backward in this thread: PyTorch counts devices, and begins theirs, once
        with torch.autograd.set_multithreading_enabled(False), Pretended() as pretended:
            yield pretended
    finally:
        backend.available = False
