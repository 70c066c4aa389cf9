"""The promises of the repository as a whole: scripts stand alone, copies do not drift, README commands run."""

import ast
import importlib
import re
import resource
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
NAMES = ("toy_bandit.py", "dapo.py", "grpo_n.py", "delta_logp.py", "replace.py", "extrapolate.py")
SCRIPTS = [ROOT / name for name in NAMES if (ROOT / name).exists()]
SHARED = "parse_args group_advantages sample_tokens rollout token_logprobs pack read_problems extract_answer canonical"
SHARED = {*SHARED.split(), "is_correct", "next_logits"}  # identical wherever they stand; the rest is a script's own


def trees():
    return {path.stem: ast.parse(path.read_text()) for path in [*SCRIPTS, ROOT / "data" / "prepare.py"]}


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_a_script_imports_nothing_of_ours_and_no_heavy_peers(path):
    allowed = set(sys.stdlib_module_names) | {"torch", "transformers", "safetensors", "numpy", "matplotlib", "tqdm"}
    tree = ast.parse(path.read_text())
    for function in (node for node in tree.body if getattr(node, "name", "") == "is_correct"):
        found = [x for x in ast.walk(function) if isinstance(x, ast.ImportFrom)]
        assert [x.module for x in found] == ["math_verify"]  # optional
        found[0].module = "torch"
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


@pytest.mark.parametrize("path", [SCRIPTS[0], SCRIPTS[1]], ids=lambda path: path.name)
def test_help_names_every_flag_and_comes_at_once(path):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    found = subprocess.run([sys.executable, path.name, "--help"], cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 0 and "Paper" in found.stdout and "--seed" in found.stdout
    after = resource.getrusage(resource.RUSAGE_CHILDREN)  # seconds of the CPU: a busy machine changes little
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert seconds < (2 if path.name == "toy_bandit.py" else 9), f"start-up took {seconds:.1f} s"  # torch takes 3


def test_shared_functions_are_identical():
    """A copy that drifts is two functions under one name; what is not in SHARED says only what its script needs."""
    seen = {}
    for script, tree in trees().items():
        source = (ROOT / f"{script}.py").read_text().splitlines() if script != "prepare" else []
        for node in tree.body if source else []:
            if isinstance(node, ast.FunctionDef) and node.name in SHARED:
                text = source[node.lineno - 1 : node.end_lineno]
                if node.name == "group_advantages":  # its comments hold the paper's tags
                    text = ast.unparse(node)
                first, code = seen.setdefault(node.name, (script, text))
                same = code == text  # compared here, so that pytest does not print both
                assert same, f"{node.name} differs between {first}.py and {script}.py"
    assert {"sample_tokens", "rollout", "token_logprobs", "read_problems", "is_correct"} <= seen.keys()


def test_public_functions_have_docstrings():
    for script, tree in trees().items():
        for node in tree.body:
            if isinstance(node, ast.FunctionDef) and node.name != "main":
                assert ast.get_docstring(node), f"{script}.py: {node.name}"


def commands(page):
    """Every "python FILE FLAGS" of a page as a list of words: in fences, with lines that go on, and in backticks."""
    text = page.read_text().replace("\\\n", " ")
    fences = re.findall(r"```(?:sh|bash)?\n(.*?)```", text, re.S)
    lines = [part.split("#")[0] for fence in fences for line in fence.splitlines() for part in line.split("&&")]
    lines += [
        part
        for code in re.findall(r"`([^`]+)`", re.sub(r"```.*?```", "", text, flags=re.S))
        for part in code.split("&&")
    ]
    words = [shlex.split(line) for line in lines if re.match(r"\s*python [a-z_/]+\.py\b", line)]
    return [command[1:] for command in words if not {"...", "NAME", "--help"} & {*command}]


PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "tiny/README.md",
    ROOT / "benchmarks/README.md",
]
COMMANDS = sorted({(page.relative_to(ROOT), *command) for page in PAGES for command in commands(page)})


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: " ".join(map(str, command))[:80])
def test_every_command_of_every_page_is_one(command):
    """Flags of the six scripts are parsed; those of other files must at least stand in their source."""
    _, name, *flags = command
    if name in NAMES:
        importlib.import_module(name.removesuffix(".py")).parse_args(flags)
    else:
        source = (ROOT / name).read_text()
        assert all(f'"{flag.split("=")[0]}"' in source for flag in flags if flag.startswith("--"))


SHORT = {  # flags that make a README command take seconds, without changing what it does
    "dapo.py": "--steps 1 --prompts-per-step 4 --mini-batch 2 --gen-batch 8 --eval-problems 10",
    "grpo_n.py": "--steps 1 --prompts-per-step 4 --mini-batch 2 --eval-problems 10 --passk-samples 2",
    "delta_logp.py": "--problems 2 --samples 2 --bootstrap 10",
    "extrapolate.py": "--problems 2 --train-problems 2 --samples 1 --gammas 0.5 --taus=-1 --bootstrap 20",
    "replace.py": "--problems 2 --samples 1 --ratios 0.1 --calibration-problems 2 --calibration-passes 1"
    " --criteria dlogp --bootstrap 20",
    "toy_bandit.py": "--runs 5 --steps 100",
}


@pytest.mark.parametrize("name", NAMES)
def test_the_readme_command_of_each_script_runs(name, tmp_path, monkeypatch, capsys):
    """As written, plus flags that make it short."""
    monkeypatch.chdir(ROOT)
    assert [name] in commands(ROOT / "README.md")
    script = importlib.import_module(name.removesuffix(".py"))
    script.main(script.parse_args([*SHORT[name].split(), "--out", str(tmp_path / "run")]))
    assert list((tmp_path / "run").glob("*.png"))


def test_gpu_commands_are_for_real_models():
    """The first of them stands in the README as well."""
    found = [command for command in commands(ROOT / "docs" / "gpu.md") if command[0] in NAMES]
    assert len(found) >= 7 and found[0] in commands(ROOT / "README.md")
    for name, *flags in found:
        args = importlib.import_module(name.removesuffix(".py")).parse_args(flags)
        assert args.max_response > 128 and args.out.startswith("runs/")


def test_ci_runs_the_readme_test_command():
    tests = re.findall(r"^.*python -m pytest.*$", (ROOT / "README.md").read_text(), re.M)
    assert len(tests) == 1
    assert ".ci/run" not in tests[0] and "README.md" in (ROOT / ".ci" / "run").read_text()


def test_files_the_readme_and_docs_point_to_exist():
    for page in PAGES:
        for target in re.findall(r"\]\((?!http)([^)#]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
