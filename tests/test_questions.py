"""docs/questions.md: every question has its parts, its one-line changes of grpo_n.py apply, its numbers are those of
the records, and the seconds-long block prints what the page says."""

import contextlib
import io
import json
import re
import shlex
from pathlib import Path

import pytest

import grpo_n

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs/questions.md").read_text()
HEAD, *SECTIONS = re.split(r"^## ", PAGE, flags=re.M)
TITLES = [section.splitlines()[0] for section in SECTIONS]
each_section = pytest.mark.parametrize("section", SECTIONS, ids=TITLES)


def section_of(number):
    return next(section for section in SECTIONS if section.startswith(f"{number}. "))


def record(study, name):
    """The record of a run of a study, a dict."""
    for line in (ROOT / f"studies/results/{study}.jsonl").read_text().splitlines():
        row = json.loads(line)
        if row["name"] == name:
            return row
    raise LookupError(f"{study}.jsonl has no {name}")


def mean(run, key, first, last):
    """Mean over training steps first to last; lists begin with step 1."""
    values = run[key][first - 1 : last]
    return sum(values) / len(values)


def test_the_page_is_short_and_its_table_links_to_every_question():
    assert len(PAGE.split()) <= 1800
    anchors = [re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in TITLES]
    assert re.findall(r"\]\(#(\S+)\)", HEAD) == anchors


@each_section
def test_a_question_has_two_sentences_a_command_its_number_and_its_code(section):
    _, _, rest = section.partition("\n\n")
    answer, _, rest = rest.partition("\n\n")
    assert len(re.findall(r"[.?!](?=\s|$)", answer)) == 2, answer
    assert rest.startswith(("```sh\npython ", "```sh\nsed ", "```python\n", "The command"))
    assert rest.count("- **It gave") == 1 and rest.count("- **Code:**") == 1
    source = (ROOT / "dapo.py").read_text() + (ROOT / "grpo_n.py").read_text()
    names = re.findall(r"`([a-z_0-9]+)`", rest.partition("- **Code:**")[2])
    assert names and all(re.search(rf"\b{name}\b", source) for name in names), names


def test_each_changed_copy_changes_one_line_and_takes_its_flags():
    changes = re.findall(r"sed 's/(.*?)/(.*?)/' (\w+\.py) > (\S+) && python (\S+) (.*)", PAGE)
    assert len(changes) == PAGE.count("```sh\nsed ") == 2
    for old, new, name, copy, runs, flags in changes:
        source = (ROOT / name).read_text()
        assert not re.search(r"[\\*^$\[\]]", old) and not re.search(r"[\\&]", new), "a sign of sed's own"
        assert source.count(old) == 1 and copy == runs
        compile(source.replace(old, new), copy, "exec")
        assert grpo_n.parse_args(shlex.split(flags)).out.startswith("runs/questions/")


def test_the_block_prints_the_numbers_of_the_page():
    section = section_of(8)
    block = re.search(r"```python\n(.*?)```", section, re.S)[1]
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown):
        exec(compile(block, "docs/questions.md", "exec"), {})
    numbers = [float(number) for number in re.findall(r"-?\d+\.\d*", shown.getvalue())]
    assert numbers == pytest.approx([4.9497, 7.4833, 1.75, 4, -0.01, -0.01, -0.025, -0.00625], abs=1e-4)
    for text in ("4.95", "7.48", "1.75 to 4", "-0.01 and -0.01", "-0.025", "-0.00625", "0.66", "0.44"):
        assert text in section
    assert 4.9497 / 7.4833 == pytest.approx(0.66, abs=5e-3) and 1.75 / 4 == pytest.approx(0.44, abs=5e-3)


@pytest.mark.parametrize(
    ("number", "study", "name", "key", "first", "last", "text"),
    [
        (3, "dapo", "none-1-2", "clip_low", 1, 100, "0.0003"),
        (3, "dapo", "none-1-2", "clip_high", 1, 100, "0.00004"),
        (4, "dapo", "none-1-2", "accuracy", 16, 20, "0.29"),
        (4, "dapo", "none-1-2", "accuracy", 26, 30, "0.34"),
        (4, "dapo", "none-1-2", "accuracy", 46, 50, "0.66"),
        (4, "dapo", "none-1-2", "one_at_a_time", 16, 20, "0.50"),
        (4, "dapo", "none-1-2", "one_at_a_time", 26, 30, "0.91"),
        (6, "dapo", "none-1-2", "prompts_sampled", 1, 1, "64.00"),
        (6, "dapo", "none-1-2", "prompts_sampled", 20, 20, "32.00"),
        (9, "dapo", "top-p-0.9-1-2", "one_at_a_time", 1, 3, "0.01"),
        (9, "dapo", "none-1-2", "one_at_a_time", 1, 3, "0.18"),
        (10, "dapo", "none-1-2", "entropy", 1, 1, "0.37"),
        (10, "dapo", "none-1-2", "entropy", 26, 30, "0.21"),
        (10, "dapo", "none-1-2", "entropy", 96, 100, "0.18"),
        (10, "dapo", "none-1-2", "accuracy", 96, 100, "0.93"),
        (10, "dapo", "top-p-0.9-1-2", "entropy", 96, 100, "0.20"),
        (10, "dapo", "top-p-0.9-1-2", "accuracy", 96, 100, "0.37"),
        (14, "grpo_n", "gspo-narrow-clip-1-2", "clip_low", 1, 20, "0.14"),
        (14, "grpo_n", "gspo-narrow-clip-1-2", "clip_high", 1, 20, "0.07"),
    ],
)
def test_numbers_of_records(number, study, name, key, first, last, text):
    digits = len(text.partition(".")[2])
    assert f"{mean(record(study, name), key, first, last):.{digits}f}" == text
    assert text.removesuffix(".00") in section_of(number)


def test_gspo_clips_a_fifth_with_the_narrow_clip_and_nothing_with_the_wide_one():
    for model in range(1, 6):
        narrow = record("grpo_n", f"gspo-narrow-clip-{model}-2")
        assert 0.185 <= mean(narrow, "clip_low", 1, 100) + mean(narrow, "clip_high", 1, 100) <= 0.205
        wide = record("grpo_n", f"gspo-{model}-2")
        assert max(wide["clip_low"] + wide["clip_high"]) == 0
    assert "0.19 to 0.20" in section_of(14)
