"""The promises of the repository as a whole: scripts stand alone, copies do not drift, README commands run."""

import ast
import importlib
import os
import re
import resource
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

ROOT = Path(__file__).resolve().parent.parent
NAMES = ("toy_bandit.py", "dapo.py", "grpo_n.py", "delta_logp.py", "replace.py", "extrapolate.py")
SCRIPTS = [ROOT / name for name in NAMES if (ROOT / name).exists()]
MAY_DIFFER = {"main", "Args", "__post_init__", "draw_curves"}  # what makes each script itself


def trees():
    return {path.stem: ast.parse(path.read_text()) for path in [*SCRIPTS, ROOT / "data" / "prepare.py"]}


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_a_script_imports_nothing_of_ours_and_no_heavy_peers(path):
    allowed = set(sys.stdlib_module_names) | {"torch", "transformers", "safetensors", "numpy", "matplotlib", "tqdm"}
    tree = ast.parse(path.read_text())
    for function in (node for node in tree.body if getattr(node, "name", "") == "check_answers"):
        function.body = [
            node for node in function.body if not isinstance(node, ast.Import | ast.ImportFrom)
        ]  # optional
    for node in ast.walk(tree):
        found = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        found += [node.module] if isinstance(node, ast.ImportFrom) else []
        assert {name.split(".")[0] for name in found} <= allowed
        assert not (isinstance(node, ast.Name) and node.id in ("eval", "exec", "pickle"))
        assert not (isinstance(node, ast.ExceptHandler) and node.type is None)


def test_importing_a_script_does_nothing(tmp_path):
    code = f"import sys, os; sys.path.insert(0, {str(ROOT)!r})\n"
    code += "".join(f"import {path.stem}; assert not os.listdir(), '{path.name}'\n" for path in SCRIPTS)
    found = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert found.returncode == 0 and found.stdout == "" and not list(tmp_path.iterdir()), found.stdout + found.stderr


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_help_names_every_flag_and_comes_at_once(path):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    found = subprocess.run([sys.executable, path.name, "--help"], cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 0 and "Paper" in found.stdout and "--seed" in found.stdout
    after = resource.getrusage(resource.RUSAGE_CHILDREN)  # seconds of the CPU: a busy machine changes little
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert seconds < (1 if path.name == "toy_bandit.py" else 6), f"start-up took {seconds:.1f} s"


def test_same_named_functions_and_classes_are_identical():
    seen = {}
    for script, tree in trees().items():
        for node in tree.body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name not in MAY_DIFFER:
                if ast.get_docstring(node):
                    node.body = node.body[1:]
                first, code = seen.setdefault(node.name, (script, ast.dump(node)))
                same = code == ast.dump(node)  # compared here, so that pytest does not print two trees
                assert same, f"{node.name} differs between {first}.py and {script}.py"


def test_public_functions_have_docstrings_and_maths_is_short():
    for script, tree in trees().items():
        for node in tree.body:
            if isinstance(node, ast.FunctionDef) and node.name not in ("arg", "main", "append_row"):
                assert ast.get_docstring(node), f"{script}.py: {node.name}"


def readme_commands():
    """Every line of the README's sh blocks."""
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    return [line.split("#")[0].strip() for block in blocks for line in block.splitlines() if line.split("#")[0].strip()]


SHORT = {  # flags that make a README command take seconds, without changing what it does
    "dapo.py": "--steps 2 --prompts-per-step 4 --mini-batch 2 --gen-batch 8 --eval-problems 10 --out {tmp}/run",
    "grpo_n.py": "--steps 2 --prompts-per-step 4 --mini-batch 2 --gen-batch 4 --eval-problems 10 --passk-samples 2"
    " --out {tmp}/run",
    "delta_logp.py": "--problems 4 --samples 2 --batch-prompts 2 --bootstrap 10 --out {tmp}/run",
    "extrapolate.py": "--problems 3 --train-problems 3 --samples 2 --gammas 0.5 --taus=-1 --bootstrap 20"
    " --theorem-problems 70 --out {tmp}/run",
    "replace.py": "--problems 4 --samples 2 --ratios 0.1,0.3 --calibration-problems 4 --calibration-passes 1"
    " --criteria dlogp,random --bootstrap 20 --out {tmp}/run",
    "toy_bandit.py": "--runs 20 --steps 200 --out {tmp}/run",
}


def test_readme_commands_run_in_a_short_form(tmp_path):
    """Installing and the tests themselves aside, each command of the README is run as written, plus SHORT's flags."""
    parts = [part.strip() for line in readme_commands() for part in line.split("&&")]
    python = [shlex.split(part) for part in parts if part.startswith("python ")]
    scripts = {command[1] for command in python if command[1].endswith(".py")}
    assert {"dapo.py"} <= scripts
    for i, command in enumerate(python):
        name = command[1]
        if name in SHORT and "--model" not in command:
            flags = SHORT[name].format(tmp=tmp_path / str(i)).split()
            found = subprocess.run(
                [sys.executable, *command[1:], *flags], cwd=ROOT, capture_output=True, text=True, env=os.environ
            )
            assert found.returncode == 0, found.stderr


BYTES = {"24 GB": 24e9, "48 GB": 48e9, "80 GB": 80e9}
SHAPES = {  # the public configs, on a device without memory
    "0.5B": {"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14},
    "1.5B": {"hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28, "num_attention_heads": 12},
}


def gpu_commands():
    """(GPU that the comment above names, script, arguments) of each command of "On one GPU"."""
    text = (ROOT / "README.md").read_text()
    block = re.search(r"## On one GPU.*?```bash\n(.*?)```", text, re.S)[1]
    size = None
    for line in block.splitlines():
        size = next((name for name in BYTES if name in line), size) if line.startswith("#") else size
        if size and line.startswith("python ") and not line.startswith("python data/"):
            _, script, *flags = shlex.split(line)
            yield pytest.param(size, script, flags, id=f"{script} {size}")


@pytest.mark.parametrize(("size", "script", "flags"), list(gpu_commands()))
def test_gpu_commands_parse_and_fit(size, script, flags):
    module = importlib.import_module(script.removesuffix(".py"))
    args = module.parse_args(module.Args, "", flags)
    names = [args.model] if hasattr(args, "model") else [args.base, args.rlvr]
    with torch.device("meta"):
        shapes = [SHAPES[re.search(r"[0-9.]+B", name)[0]] for name in names]
        more = {"vocab_size": 151_936, "num_key_value_heads": 2, "tie_word_embeddings": True}
        models = [Qwen2ForCausalLM(Qwen2Config(**shape, **more)) for shape in shapes]
    context = args.max_response + 512  # a long prompt
    if hasattr(args, "model"):
        how = {"train_rows": args.micro_batch, "checkpointing": args.gradient_checkpointing}
        how["idle"] = int(getattr(args, "kl_coef", 0) > 0)
        need = module.estimate_memory(models, True, args.gen_batch * args.group_size, context, **how)
    else:
        rows = args.rows if hasattr(args, "rows") else args.gen_batch * args.samples
        need = module.estimate_memory(models, True, rows, context)
    assert 0.25 * BYTES[size] < need["at most"] < 0.9 * BYTES[size]


def test_ci_runs_the_readme_test_command():
    tests = [line for line in readme_commands() if "pytest" in line]
    assert len(tests) == 1
    assert ".ci/run" not in tests[0] and "README.md" in (ROOT / ".ci" / "run").read_text()


def test_files_the_readme_and_docs_point_to_exist():
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), ROOT / "tiny" / "README.md"]:
        for target in re.findall(r"\]\((?!http)([^)#]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
