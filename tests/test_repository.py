"""The promises of the repository as a whole: scripts stand alone, copies do not drift, the pages' commands run."""

import ast
import dataclasses
import importlib
import re
import shlex
import subprocess
import sys
import types
from pathlib import Path

import pytest
import recompute

ROOT = Path(__file__).resolve().parent.parent
NAMES = ["toy_bandit.py", "dapo.py", "grpo_n.py", "delta_logp.py", "replace.py", "extrapolate.py"]
TREES = {name: ast.parse((ROOT / name).read_text()) for name in NAMES}
each_script = pytest.mark.parametrize("name", NAMES)


def script(name):
    return importlib.import_module(name.removesuffix(".py"))


# -------------------------------------------------------------------------------------------------------- the scripts
@each_script
def test_a_script_imports_nothing_of_ours_and_no_heavy_peers(name):
    allowed = set(sys.stdlib_module_names) | {"torch", "transformers", "jinja2", "numpy", "matplotlib", "tqdm"}
    for node in ast.walk(TREES[name]):
        imported = []
        if isinstance(node, ast.Import):
            imported = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            imported = [node.module]
        for module in imported:
            optional = module == "math_verify" and node not in TREES[name].body
            assert module.split(".")[0] in allowed or optional, module
        assert not (isinstance(node, ast.Name) and node.id in ("eval", "exec", "pickle"))
        assert not (isinstance(node, ast.ExceptHandler) and node.type is None)


@each_script
def test_only_the_command_exits(name):
    """A notebook that calls a function gets an exception, which it can catch, and not the end of its process."""
    *body, command = TREES[name].body
    assert ast.unparse(command).startswith("if __name__ == '__main__':")
    for statement in body:
        assert "exit(" not in ast.unparse(statement) and "SystemExit" not in ast.unparse(statement)


def test_importing_a_script_does_nothing(tmp_path):
    imports = "".join(f"import {name.removesuffix('.py')}\n" for name in NAMES)
    code = f"import sys\nsys.path.insert(0, {str(ROOT)!r})\n{imports}assert 'math_verify' not in sys.modules"
    found = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert found.returncode == 0 and found.stdout == "" and not list(tmp_path.iterdir()), found.stdout + found.stderr


VERSIONS = {  # how many texts a name has over the scripts; what is not here has one, wherever it stands
    "Args": 5,  # toy_bandit.py has none
    "main": 6,
    "parse_args": 2,  # toy_bandit.py needs no transformers
    "Response": 3,
    "sample_and_check": 2,
    "group_advantages": 2,  # tagged (2) in the trainers
    "check_run": 3,
    "open_run": 3,
    "draw_curves": 2,
    "parse_numbers": 2,
    "decode_two": 2,
}


def test_copies_do_not_drift():
    texts = {}
    for name, tree in TREES.items():
        lines = (ROOT / name).read_text().splitlines()
        for node in tree.body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                texts.setdefault(node.name, []).append("\n".join(lines[node.lineno - 1 : node.end_lineno]))
    for name, found in texts.items():
        n_versions = len(set(found))
        assert n_versions == VERSIONS.get(name, 1), f"{name} has {n_versions} texts in the scripts"
    assert sum(len(found) > 1 for found in texts.values()) > 25


@each_script
def test_functions_have_docstrings(name):
    for node in TREES[name].body:
        if isinstance(node, ast.FunctionDef) and node.name != "main":
            assert ast.get_docstring(node), node.name


# ---------------------------------------------------------------------------------------------------------- the flags
@each_script
def test_help_has_the_first_line_of_the_docstring_and_explains_every_flag(name, capsys):
    with pytest.raises(SystemExit) as caught:
        script(name).parse_args(["--help"])
    assert caught.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert script(name).__doc__.splitlines()[0] in shown
    for flag in vars(script(name).parse_args([])):
        assert f"--{flag.replace('_', '-')}" in shown
    for field in dataclasses.fields(script(name).Args) if hasattr(script(name), "Args") else ():
        assert " ".join(field.metadata["help"].split()) in shown, field.name


@pytest.mark.parametrize("name", [name for name in NAMES if "HfArg(" in (ROOT / name).read_text()])
@pytest.mark.parametrize("field", ["my_coef: float = 0.0", 'my_coef: float = HfArg(default=0.0, help="my term")'])
def test_a_student_adds_a_flag_in_one_line(name, field, capsys):
    """Neither a list of names nor a comment has to follow; 0 and negative numbers are fine."""
    source = (ROOT / name).read_text()
    assert source.count("class Args:\n") == 1
    module = types.ModuleType("changed")
    module.__file__ = str(ROOT / name)
    sys.modules["changed"] = module  # dataclasses look there
    exec(
        compile(source.replace("class Args:\n", f"class Args:\n    {field}  # 5% of it\n"), name, "exec"), vars(module)
    )
    assert module.parse_args([]).my_coef == 0.0 and module.parse_args(["--my-coef", "-0.5"]).my_coef == -0.5
    with pytest.raises(SystemExit):
        module.parse_args(["--help"])
    assert "--my-coef" in capsys.readouterr().out


# ----------------------------------------------------------------------------------------------------------- the pages
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md")), ROOT / "tiny/README.md"]


def commands(page):
    """Every "python FILE FLAGS" of a page as a list of words: in fences, with lines that go on, and in backticks."""
    text = page.read_text().replace("\\\n", " ")
    fence = r"```(\w*)\n(.*?)```"
    lines = []
    for language, block in re.findall(fence, text, re.S):
        if language in ("", "sh", "bash"):
            lines += [line.split("#")[0] for line in block.splitlines()]
    lines += re.findall(r"`([^`]+)`", re.sub(fence, "", text, flags=re.S))
    found = []
    for line in lines:
        for part in line.split("&&"):
            if re.match(r"\s*python [a-z_/]+\.py\b", part):
                found.append(shlex.split(part)[1:])
    return [words for words in found if not {"...", "NAME", "--help"} & set(words)]


COMMANDS = sorted({(page.relative_to(ROOT), *words) for page in PAGES for words in commands(page)})


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: " ".join(map(str, command))[:80])
def test_every_command_of_every_page_is_one(command):
    """Flags of the six scripts are parsed; those of other files must at least stand in their source."""
    _, name, *flags = command
    if name in NAMES:
        script(name).parse_args(flags)
    else:
        source = (ROOT / name).read_text()
        assert all(f'"{flag.split("=")[0]}"' in source for flag in flags if flag.startswith("--"))


def test_every_flag_that_a_page_names_exists():
    known = {"--index-url", "--no-deps", "--num_processes", "--cpu"}  # of pip and of accelerate
    for name in NAMES:
        if hasattr(script(name), "Args"):
            known |= {f"--{field.name.replace('_', '-')}" for field in dataclasses.fields(script(name).Args)}
    for path in ROOT.glob("**/*.py"):
        known.update(re.findall(r'"(--[a-z][a-z-]*)"', path.read_text()))
    for page in PAGES:
        for flag in re.findall(r"(?<![\w-])--[a-z][\w-]*", page.read_text()):
            assert flag in known, f"{page.name}: {flag}"


SHORT = {  # flags that make a README command take a second or two, without changing what it does
    "dapo.py": "--steps 1 --prompts-per-step 1 --mini-batch 1 --gen-batch 8 --max-response 64 --eval-problems 2",
    "grpo_n.py": "--steps 1 --prompts-per-step 2 --mini-batch 2 --max-response 64 --eval-problems 2 --passk-samples 2"
    " --passk-problems 2",
    "delta_logp.py": "--problems 2 --samples 2 --max-response 64 --bootstrap 10",
    "extrapolate.py": "--problems 2 --train-problems 2 --samples 1 --max-response 64 --gammas 0.5 --taus=-1"
    " --bootstrap 20",
    "replace.py": "--problems 2 --samples 1 --max-response 64 --ratios 0.1 --calibration-problems 2"
    " --calibration-passes 1 --criteria dlogp --bootstrap 20",
    "toy_bandit.py": "--runs 5 --steps 100",
}


@each_script
def test_the_readme_command_of_each_script_runs(name, tmp_path, monkeypatch):
    """As written, plus flags that make it short."""
    monkeypatch.chdir(ROOT)
    assert [name] in commands(ROOT / "README.md")
    script(name).main(script(name).parse_args([*SHORT[name].split(), "--out", str(tmp_path / "run")]))
    assert list((tmp_path / "run").glob("*.png"))


def test_gpu_commands_are_for_real_models():
    """The first of them stands in the README as well."""
    found = [words for words in commands(ROOT / "docs" / "gpu.md") if words[0] in NAMES]
    assert len(found) >= 6 and found[0] in commands(ROOT / "README.md")
    for name, *flags in found:
        args = script(name).parse_args(flags)
        assert args.max_response > 128 and args.out.startswith("runs/")


def test_three_recorded_verdicts_are_decided_again_by_other_code():
    assert recompute.main(recompute.RESULTS) == 0


def test_ci_runs_the_readme_test_command():
    tests = re.findall(r"^.*python -m pytest.*$", (ROOT / "README.md").read_text(), re.M)
    assert len(tests) == 1
    assert ".ci/run" not in tests[0] and "README.md" in (ROOT / ".ci" / "run").read_text()


def test_files_the_readme_and_docs_point_to_exist():
    for page in PAGES:
        for target in re.findall(r"\]\((?!http)([^)#]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
