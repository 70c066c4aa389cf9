"""Checks the functions that you wrote for exercises.py, and says what is wrong with them.

    python lab/check.py                            # all exercises
    python lab/check.py 4                          # one; python lab/check.py 2 3 checks two
    python lab/check.py --file lab/solutions.py    # the functions of another file

For each exercise it prints "ok", "not written yet", or one sentence. Exit status 0 only if all are ok.
How it works: mistakes.py has inputs with the right answers. At the first wrong answer, your output is compared with the
outputs of known wrong versions. If one returns the same, you made that mistake. (mistakes.py spoils the exercises.)
"""

import argparse
import linecache
import sys
import traceback
import types
import warnings
from pathlib import Path

import torch
from mistakes import EXERCISES

TOLERANCE = 2e-4  # absolute, and relative to the right answer
NOT_WRITTEN = "not written yet"


# --------------------------------------------------------------------------------------------------- the student's file
def load(path):
    """The module of a Python file. Raises ValueError, in one sentence, where there is none or it does not run."""
    path = Path(path).resolve()
    if not path.is_file():
        raise ValueError(f"{path.name}: there is no such file")
    linecache.checkcache(str(path))
    module = types.ModuleType("student")
    module.__file__ = str(path)
    try:
        # Not import: within the same second that would run an old compiled copy of a file that was just changed.
        exec(compile(path.read_bytes(), str(path), "exec"), vars(module))
    except SyntaxError as error:
        name = Path(error.filename or path).name
        text = (error.text or "").strip()
        raise ValueError(f"{name}, line {error.lineno}: Python cannot read `{text}` ({error.msg})") from None
    except (Exception, SystemExit) as error:
        raise ValueError(f"{path.name} {describe_error(error, path)}") from None
    return module


def describe_error(error, path):
    """What stopped the student's code, and at which of its lines: "stops with ..."."""
    message = str(error).strip().split("\n")[0]
    text = f"stops with {type(error).__name__}"
    if message:
        text += f": {message}"
    lines = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    if lines:
        text += f" (line {lines[-1].lineno}: `{lines[-1].line}`)"
    if "size of tensor" in message:
        text += "; two shapes do not fit each other, perhaps because keepdim=True is missing"
    return text


# ------------------------------------------------------------------------------------------------------------ comparing
def copy_inputs(case):
    """The values of a case's inputs, in order, in new tensors."""
    return [value.clone() if isinstance(value, torch.Tensor) else value for value in case.inputs.values()]


def show(value):
    """A short text for a number or a tensor: tensor([[1.0, 0.5]]) -> [[1, 0.5]]. Of a long list it has the start."""
    if isinstance(value, torch.Tensor):
        return show(value.tolist())
    if isinstance(value, list):
        entries = [show(entry) for entry in value[:6]]
        if len(value) > 6:
            entries.append(f"... {len(value)} in all")
        return "[" + ", ".join(entries) + "]"
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value)


def same(output, expected, exact=False):
    """Whether two tensors have one shape, are both floats or of one dtype, and have equal values but for rounding."""
    if not isinstance(output, torch.Tensor) or output.shape != expected.shape:
        return False
    both_floats = output.is_floating_point() and expected.is_floating_point()
    if not both_floats and output.dtype != expected.dtype:
        return False
    if exact or not both_floats:
        return torch.equal(output.to(expected.dtype), expected)
    return torch.allclose(output.double(), expected.double(), rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True)


def find_mistake(exercise, outputs, failed):
    """The sentence of the known mistake that gives the student's output for case `failed` and all before it, or "".

    If several do, the one that gives the student's output for most of the other cases.
    """
    found = ""
    most = 0
    for mistake, sentence in exercise.sentences.items():
        hits = []
        for case, output in zip(exercise.cases, outputs, strict=True):
            hits.append(same(output, exercise.wrong(mistake, *copy_inputs(case))))
        if all(hits[: failed + 1]) and sum(hits) > most:
            found = sentence
            most = sum(hits)
    return found


def describe_output(exercise, outputs, failed):
    """One sentence about the wrong output of case `failed`."""
    case = exercise.cases[failed]
    output = outputs[failed]
    if output is None:
        return f"{exercise.name} returns nothing: is there a `return` at its end?"
    if not isinstance(output, torch.Tensor):
        return f"{exercise.name} returns a {type(output).__name__}; one torch tensor is wanted."
    sentence = find_mistake(exercise, outputs, failed)
    if sentence:
        return sentence
    call = f"{exercise.name}({', '.join(f'{name}={show(value)}' for name, value in case.inputs.items())})"
    if output.shape != case.expected.shape:
        return f"{call} returns the shape {tuple(output.shape)}; {tuple(case.expected.shape)} is wanted."
    if output.dtype != case.expected.dtype:
        return f"{exercise.name} returns numbers of dtype {output.dtype}; {case.expected.dtype} is wanted."
    return f"{call} returns {show(output)}, but {case.words}."


def run_case(function, exercise, case, path):
    """(output, complaint): what the student's function returns, and "", or a sentence if it stops or changes inputs."""
    inputs = copy_inputs(case)
    try:
        output = function(*inputs)
    except (Exception, SystemExit) as error:
        if isinstance(error, NotImplementedError) and str(error).startswith("exercise"):  # torch raises it, too
            return None, NOT_WRITTEN
        return None, f"{exercise.name} {describe_error(error, path)}."
    for name, before, after in zip(case.inputs, case.inputs.values(), inputs, strict=True):
        if isinstance(before, torch.Tensor) and not torch.equal(before, after):
            return output, f"{exercise.name} changes its input {name}: compute a new tensor instead."
    if isinstance(output, torch.Tensor):
        output = output.detach()
    return output, ""


def check_exercise(exercise, module):
    """What to print for an exercise: "ok", "not written yet", or what is wrong, in one sentence."""
    path = module.__file__
    function = getattr(module, exercise.name, None)
    if not callable(function):
        return f"There is no function {exercise.name} in the file: was it renamed?"
    outputs = []
    complaints = []
    for case in exercise.cases:
        output, complaint = run_case(function, exercise, case, path)
        outputs.append(output)
        complaints.append(complaint)
    for i, case in enumerate(exercise.cases):
        if complaints[i]:
            return complaints[i]
        if not same(outputs[i], case.expected, case.exact):
            return describe_output(exercise, outputs, i)
    if exercise.gradient is None:
        return "ok"
    try:
        return exercise.gradient(function) or "ok"
    except (Exception, SystemExit) as error:
        return f"{exercise.name} is right, but when gradients are computed it {describe_error(error, path)}."


# -------------------------------------------------------------------------------------------------------------- command
def main(args):
    """Prints a line for each exercise. Returns whether all are ok."""
    module = load(args.file)
    n_ok = 0
    for number in args.exercises:
        exercise = EXERCISES[number]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PyTorch warns of the std of one number; the sentences say it better
            verdict = check_exercise(exercise, module)
        if verdict == "ok":
            n_ok += 1
        print(f"{number} {exercise.name:<18} {verdict}")
    print(f"{n_ok} of {len(args.exercises)} ok")
    return n_ok == len(args.exercises)


def parse_args(argv=None):
    """Command line -> namespace: exercises, a list of numbers; file, a path."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("exercises", nargs="*", type=int, help="numbers of the exercises, 1 to 8; none means all")
    parser.add_argument("--file", default=Path(__file__).with_name("exercises.py"), help="file with your functions")
    args = parser.parse_args(argv)
    for number in args.exercises:
        if number not in EXERCISES:
            parser.error(f"there is no exercise {number}: they are 1 to {len(EXERCISES)}")
    if not args.exercises:
        args.exercises = list(EXERCISES)
    return args


if __name__ == "__main__":
    try:
        all_ok = main(parse_args())
    except ValueError as error:
        sys.exit(f"error: {error}")
    sys.exit(0 if all_ok else 1)
