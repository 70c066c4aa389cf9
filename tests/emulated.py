"""A pretended GPU: `with emulated.cuda():` runs code that says device="cuda" on a machine that has none.

Every tensor lives on the CPU, and its storage carries a mark that says whether it would be on the GPU: views, in-place
writes and what autograd keeps share it. A dispatch mode sees every operation, those of the backward pass too: results
of marked tensors are marked, and mixing devices raises what CUDA raises. A function mode sees what Python asks for:
`device=`, `.to`, `.device`, `.numpy()`, generators. Ids out of range fail by themselves, as on any CPU.

Not emulated: kernels with their rounding, speed and memory; streams; a second GPU.
"""

import contextlib
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from transformers.utils import import_utils

CUDA, aten = torch.device("cuda", 0), torch.ops.aten
ANSWERS = {Tensor.device.__get__: CUDA, Tensor.is_cuda.__get__: True, Tensor.is_cpu.__get__: False}
MOVES = {Tensor.to: None, Tensor.type_as: None, Tensor.cpu: "cpu", Tensor.cuda: CUDA}
COPIES = {aten.copy_, aten._foreach_copy_}  # may read from another device
INDEXING = {
    aten.index,
    aten.index_put,
    aten.index_put_,
    aten._unsafe_index,
    aten._index_put_impl_,
}  # indices on the CPU
NO_SCALARS = {aten.cat, aten.stack}  # a tensor of no dimensions on the CPU goes with everything but these
OTHER = "Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu! (in %s)"


def on_gpu(x):
    return getattr(x.untyped_storage(), "pretends", False)


def place(x, gpu):
    x.untyped_storage().pretends = gpu
    return x


def is_cuda(device):
    return isinstance(device, (str, torch.device)) and torch.device(device).type == "cuda"


def tensors(*values):
    """The tensors among values and in lists of them."""
    out = []
    for x in values:
        if isinstance(x, Tensor):
            out.append(x)
        elif isinstance(x, (tuple, list)):
            out += tensors(*x)
    return out


class Operations(TorchDispatchMode):
    factories_on_gpu = False  # where PyTorch's own code makes tensors from nothing, as in a backward pass

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs, op = kwargs or {}, func.overloadpacket
        with torch._C.DisableTorchFunction():
            inputs = tensors(args, *kwargs.values())
            gpu = any(map(on_gpu, inputs)) if inputs else self.factories_on_gpu
            if gpu and op not in COPIES:
                for x in tensors(args[0], args[2:]) if op in INDEXING else inputs:
                    written = x is args[0] and func._schema.is_mutable
                    if not on_gpu(x) and (x.ndim or op in NO_SCALARS or written):
                        raise RuntimeError(OTHER % func)
            out = func(*args, **kwargs)
            for x in tensors(out) if gpu and op not in COPIES else ():
                if not hasattr(x.untyped_storage(), "pretends"):
                    place(x, True)
        return out


class Requests(TorchFunctionMode):
    def __init__(self, operations):
        super().__init__()
        self.operations = operations

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs, before = kwargs or {}, self.operations.factories_on_gpu
        gpu, device = any(map(on_gpu, tensors(args, *kwargs.values()))), kwargs.get("device")
        if gpu and func in ANSWERS:
            return ANSWERS[func]
        if gpu and func in (Tensor.numpy, Tensor.__array__):
            raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first.")
        if func in MOVES:
            return self.move(func, *args, **kwargs)
        if device is not None and torch.device(device).type in ("cpu", "cuda"):
            gpu, kwargs = is_cuda(device), kwargs | {"device": "cpu"}
        if kwargs.get("generator") is not None and is_cuda(kwargs["generator"].device) != gpu:
            raise RuntimeError(f"Expected a {'cuda' if gpu else 'cpu'} generator, found {kwargs['generator'].device}")
        self.operations.factories_on_gpu = gpu
        try:
            out = func(*args, **kwargs)
        finally:
            self.operations.factories_on_gpu = before
        if (device is None and func is not Tensor.new_tensor) or out.is_meta or on_gpu(out) == gpu:
            return out
        return place(out.clone() if tensors(args) else out, gpu)  # torch.tensor passes the dispatch mode by

    def move(self, func, x, *args, **kwargs):
        device, dtype = torch._C._nn._parse_to(*args, **kwargs)[:2] if MOVES[func] is None else (MOVES[func], None)
        if tensors(args, *kwargs.values()):  # to(other)
            device = CUDA if any(map(on_gpu, tensors(args, *kwargs.values()))) else device
        if device is None or x.is_meta or torch.device(device).type not in ("cpu", "cuda"):
            return func(x, *args, **kwargs)
        if is_cuda(device) == on_gpu(x):
            return x.to(dtype or x.dtype, copy=kwargs.get("copy", False))
        return place(x.to("cpu", dtype or x.dtype, copy=True), is_cuda(device))


class Generator(torch.Generator):
    def __new__(cls, device="cpu"):
        self = super().__new__(cls)
        self.gpu = is_cuda(device)
        return self

    device = property(lambda self: CUDA if self.gpu else torch.device("cpu"))

    def set_state(self, state):
        if on_gpu(state) or state.dtype != torch.uint8:
            raise TypeError("RNG state must be a torch.ByteTensor")
        return super().set_state(state)


class Autocast(torch.autocast):
    def __init__(self, device_type, *args, **kwargs):
        super().__init__("cpu" if is_cuda(device_type) else device_type, *args, **kwargs)


def load(file, map_location=None, *, real=torch.load, **kwargs):
    out = real(file, map_location="cpu" if is_cuda(map_location) else map_location, **kwargs)
    return tree_map_only(Tensor, lambda x: place(x, True), out) if is_cuda(map_location) else out


@contextlib.contextmanager
def cuda():
    answers = {"is_available": True, "device_count": 1, "current_device": 0, "is_current_stream_capturing": False}
    answers |= dict.fromkeys("_lazy_init synchronize empty_cache reset_peak_memory_stats".split())
    answers |= {"max_memory_allocated": 3 * 2**29, "get_device_name": "a pretended GPU", "is_bf16_supported": True}
    patches = [mock.patch.object(torch.cuda, name, mock.Mock(return_value=value)) for name, value in answers.items()]
    patches += [mock.patch.object(torch, "Generator", Generator), mock.patch.object(torch, "load", load)]
    patches += [mock.patch.object(owner, "autocast", Autocast) for owner in (torch, torch.amp)]
    for name, real in {name: getattr(torch, name) for name in ("is_autocast_enabled", "get_autocast_dtype")}.items():
        wrapper = mock.Mock(side_effect=lambda device="cuda", real=real: real("cpu" if is_cuda(device) else device))
        patches.append(mock.patch.object(torch, name, wrapper))
    operations = Operations()
    with contextlib.ExitStack() as stack:
        for context in (*patches, operations, Requests(operations)):
            stack.enter_context(context)
        yield
    for function in vars(import_utils).values():  # transformers remembers whether there is a GPU
        getattr(function, "cache_clear", lambda: None)()
