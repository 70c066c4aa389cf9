"""A pretended GPU: `with emulated.cuda():` runs code that says device="cuda" on a machine that has none.

Every tensor lives on the CPU. A mark on its storage says whether it would be on the GPU; views, in-place writes and
what autograd keeps share the storage. Two modes of PyTorch watch:
- Operations sees every operation, those of a backward pass too. Results of marked tensors are marked, and an operation
  on tensors of both devices raises what CUDA raises.
- Requests sees what Python asks for: `device=`, `.to`, `.device`, `.numpy()`, generators.

The scripts are fp32 on every device. So these raise, too: a tensor of 16 bits on this GPU, autocast, and a module with
parameters or inputs that are not fp32. What is computed outside of a model may be fp64.

Not emulated: kernels with their rounding, speed and memory; streams; a second GPU. Ids out of range fail by themselves.
"""

import contextlib
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.utils import import_utils

CPU = torch.device("cpu")
CUDA = torch.device("cuda", 0)
aten = torch.ops.aten
COPIES = [aten.copy_, aten._foreach_copy_]  # may read from another device
INDEXING = [aten.index, aten.index_put, aten.index_put_, aten._unsafe_index, aten._index_put_impl_]
NO_SCALARS = [aten.cat, aten.stack]  # all others take a tensor of no dimensions from the CPU


def on_gpu(x):
    return getattr(x.untyped_storage(), "pretends", False)


def place(x, gpu):
    """Mark x as a tensor of the GPU or of the CPU."""
    if gpu and x.dtype in (torch.bfloat16, torch.float16):
        raise TypeError(f"a tensor of {x.dtype} on the GPU: want fp32")
    x.untyped_storage().pretends = gpu
    return x


def is_cuda(device):
    return isinstance(device, (str, torch.device)) and torch.device(device).type == "cuda"


def tensors(values):
    """The tensors among values, and in lists of them."""
    found = []
    for x in values:
        if isinstance(x, Tensor):
            found.append(x)
        elif isinstance(x, (tuple, list)):
            found.extend(tensors(x))
    return found


def want_fp32(module, inputs):
    """For every module, before its forward pass."""
    for x in tensors([*inputs, *module.parameters(recurse=False)]):
        if x.is_floating_point() and x.dtype != torch.float32:
            raise TypeError(f"{type(module).__name__} runs in {x.dtype}: want fp32")


class Operations(TorchDispatchMode):
    factories_on_gpu = False  # where PyTorch's own code makes tensors from nothing, as in a backward pass

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        operation = func.overloadpacket
        with torch._C.DisableTorchFunction():
            inputs = tensors([*args, *kwargs.values()])
            gpu = any(on_gpu(x) for x in inputs) if inputs else self.factories_on_gpu
            if not gpu or operation in COPIES:
                return func(*args, **kwargs)
            if operation in INDEXING:  # the indices, args[1], may be on the CPU
                inputs = tensors([args[0], *args[2:]])
            for x in inputs:
                written = x is args[0] and func._schema.is_mutable
                if not on_gpu(x) and (x.ndim > 0 or operation in NO_SCALARS or written):
                    raise RuntimeError(f"{func}: expected all tensors on the same device, found cuda:0 and cpu")
            out = func(*args, **kwargs)
            for x in tensors([out]):
                if not hasattr(x.untyped_storage(), "pretends"):
                    place(x, True)
            return out


class Requests(TorchFunctionMode):
    def __init__(self, operations):
        super().__init__()
        self.operations = operations

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        inputs = tensors([*args, *kwargs.values()])
        gpu = any(on_gpu(x) for x in inputs)
        device = kwargs.get("device")
        if gpu and (torch.is_autocast_enabled("cuda") or torch.is_autocast_enabled("cpu")):
            raise TypeError("autocast on the GPU: want fp32")
        if gpu and func == Tensor.device.__get__:
            return CUDA
        if func in (Tensor.is_cuda.__get__, Tensor.is_cpu.__get__):
            return gpu == (func == Tensor.is_cuda.__get__)
        if gpu and func in (Tensor.numpy, Tensor.__array__):
            raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first.")
        if func == Tensor.cpu:
            return self.move(args[0], CPU, None)
        if func == Tensor.cuda:
            return self.move(args[0], CUDA, None)
        if func == Tensor.to and len(inputs) == 1:
            device, dtype = torch._C._nn._parse_to(*args[1:], **kwargs)[:2]
            return self.move(args[0], device, dtype, kwargs.get("copy", False))
        if func in (Tensor.to, Tensor.type_as):  # x.to(other)
            return self.move(args[0], CUDA if on_gpu(inputs[1]) else CPU, inputs[1].dtype)

        if device is not None and torch.device(device).type in ("cpu", "cuda"):
            gpu = is_cuda(device)
            kwargs = {**kwargs, "device": "cpu"}
        generator = kwargs.get("generator")
        if generator is not None and is_cuda(generator.device) != gpu:
            raise RuntimeError(f"Expected a {'cuda' if gpu else 'cpu'} generator, found {generator.device}")
        before = self.operations.factories_on_gpu
        self.operations.factories_on_gpu = gpu
        try:
            out = func(*args, **kwargs)
        finally:
            self.operations.factories_on_gpu = before
        makes_a_tensor = device is not None or func == Tensor.new_tensor
        if not makes_a_tensor or out.is_meta or on_gpu(out) == gpu:
            return out
        return place(out.clone() if inputs else out, gpu)  # torch.tensor passes Operations by

    def move(self, x, device, dtype, copy=False):
        dtype = dtype or x.dtype
        if x.is_meta or (device is not None and torch.device(device).type not in ("cpu", "cuda")):
            return x.to(device, dtype)
        if device is None or is_cuda(device) == on_gpu(x):
            return x.to(dtype, copy=copy)
        return place(x.to("cpu", dtype, copy=True), is_cuda(device))


class Generator(torch.Generator):
    def __new__(cls, device="cpu"):
        self = super().__new__(cls)
        self.gpu = is_cuda(device)
        return self

    device = property(lambda self: CUDA if self.gpu else CPU)

    def set_state(self, state):
        if on_gpu(state) or state.dtype != torch.uint8:
            raise TypeError("RNG state must be a torch.ByteTensor")
        return super().set_state(state)


@contextlib.contextmanager
def cuda():
    answers = {
        "is_available": True,
        "device_count": 1,
        "current_device": 0,
        "is_current_stream_capturing": False,
        "is_bf16_supported": True,
        "max_memory_allocated": 3 * 2**29,
        "_lazy_init": None,
    }
    operations = Operations()
    with contextlib.ExitStack() as stack:
        for name, value in answers.items():
            stack.enter_context(mock.patch.object(torch.cuda, name, mock.Mock(return_value=value)))
        stack.enter_context(mock.patch.object(torch, "Generator", Generator))
        stack.callback(torch.nn.modules.module.register_module_forward_pre_hook(want_fp32).remove)
        stack.enter_context(operations)
        stack.enter_context(Requests(operations))
        yield
    for function in vars(import_utils).values():  # transformers remembers whether there is a GPU
        if hasattr(function, "cache_clear"):
            function.cache_clear()
