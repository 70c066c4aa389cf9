"""Public data sets of problems with checkable answers, as data/NAME/{train,test}.jsonl in the format of the scripts.

    python data/prepare.py gsm8k                           # from the hub; needs: pip install datasets
    python data/prepare.py mmlu-pro --limit 128 --seed 1   # 128 questions drawn at random, as in paper B
    python data/prepare.py math --raw FOLDER               # from FOLDER/SPLIT.jsonl, rows in the data set's own format

A row is {"system": ..., "prompt": ..., "answer": ...}: the prompt of paper B (arXiv 2510.04028, section 4), the answer
as the verifier compares it. Rows whose answer cannot be extracted, and repeated prompts, are left out and counted.

  name           on the hub                         problems                 answer
  gsm8k          openai/gsm8k                       7,473 train, 1,319 test  what stands behind ####
  math           EleutherAI/hendrycks_math          7,500 train, 5,000 test  last box of the solution
  math500        HuggingFaceH4/MATH-500             500 test                 given
  dapo-math-17k  BytedTsinghua-SIA/DAPO-Math-17k    about 17,400 train       given; the copy on the hub repeats rows
  aime24         HuggingFaceH4/aime_2024            30 test                  given
  aime25         math-ai/aime25                     30 test                  given
  amc23          math-ai/amc23                      40 test                  given
  arc-c          allenai/ai2_arc                    1,119 train, 1,172 test  a letter
  mmlu-pro       TIGER-Lab/MMLU-Pro                 about 12,000 test        a letter, A to J

The formats are those of the data sets' public cards; no hub could be reached where this was written.
"""

import argparse
import json
import os
import random
import re
import sys
from dataclasses import dataclass
from pathlib import Path

SYSTEM = "You are a helpful assistant."
ASK = "Please reason step by step, and put your final answer within \\boxed{}."
ASK_LETTER = "Please reason step by step, and put the letter of your final answer within \\boxed{}."
MATH = ("algebra", "counting_and_probability", "geometry", "intermediate_algebra", "number_theory", "prealgebra")
MATH += ("precalculus",)


class InputError(ValueError):
    """Something that the user can mend: one sentence that names the file or flag, and the mend."""


def last_box(text):
    r"""What stands in the last balanced \boxed{...} of the last 20,000 characters; None if there is none."""
    text, opened, found = text[-20_000:], [], None
    for brace in re.finditer(r"\\boxed\s*\{|\\.|[{}]", text, re.DOTALL):  # one pass and a stack: linear time
        if brace[0] == "}":
            start = opened.pop() if opened else None
            if start is not None and (found is None or start > found[0]):
                found = start, brace.start()
        elif brace[0].endswith("{") and brace[0] != "\\{":
            opened.append(brace.end() if brace[0] != "{" else None)
    return None if found is None else text[slice(*found)].strip()


def from_gsm8k(row):
    """(problem, answer) of a row of GSM8K; an empty answer where nothing stands behind ####."""
    answer = row["answer"].rpartition("####")[2] if "####" in row["answer"] else ""
    return row["question"], answer.replace(",", "").strip()


def from_math(row):
    """(problem, answer) of a row of MATH: the last box of its solution."""
    return row["problem"], last_box(row["solution"])


def from_dapo(row):
    """(problem, answer) of a row of DAPO-Math-17k, whose prompt wraps the problem in instructions of its own."""
    text = row["prompt"][0]["content"]
    body = re.fullmatch(
        r"Solve the following math problem step by step\..*?\n\n(.*)\n\nRemember to put.*", text, re.DOTALL
    )
    return (body[1] if body else text), row["reward_model"]["ground_truth"]


def given(problem, answer):
    """A reader of rows that hold both under these names."""
    return lambda row: (row[problem], row[answer])


def from_choices(question, texts, correct):
    """(problem with lettered choices, letter), correct an index."""
    lines = [f"{chr(65 + i)}. {text}" for i, text in enumerate(texts)]
    return "\n".join([question, *lines]), chr(65 + correct)


def from_arc(row):
    """(problem, letter) of a row of ARC; its own labels are letters or numbers."""
    choices = row["choices"]
    return from_choices(row["question"], choices["text"], choices["label"].index(row["answerKey"]))


def from_mmlu(row):
    """(problem, letter) of a row of MMLU-Pro."""
    return from_choices(row["question"], row["options"], ord(row["answer"]) - 65)


@dataclass(frozen=True)
class Source:
    """Where a data set is, and how its rows are read: splits maps ours to the hub's, configs are its parts."""

    hub: str
    splits: dict
    read: object
    configs: tuple = (None,)
    ask: str = ASK


BOTH = {"train": "train", "test": "test"}
SOURCES = {
    "gsm8k": Source("openai/gsm8k", BOTH, from_gsm8k, ("main",)),
    "math": Source("EleutherAI/hendrycks_math", BOTH, from_math, MATH),
    "math500": Source("HuggingFaceH4/MATH-500", {"test": "test"}, given("problem", "answer")),
    "dapo-math-17k": Source("BytedTsinghua-SIA/DAPO-Math-17k", {"train": "train"}, from_dapo),
    "aime24": Source("HuggingFaceH4/aime_2024", {"test": "train"}, given("problem", "answer")),
    "aime25": Source("math-ai/aime25", {"test": "test"}, given("problem", "answer")),
    "amc23": Source("math-ai/amc23", {"test": "test"}, given("question", "answer")),
    "arc-c": Source("allenai/ai2_arc", BOTH, from_arc, ("ARC-Challenge",), ASK_LETTER),
    "mmlu-pro": Source("TIGER-Lab/MMLU-Pro", {"test": "test"}, from_mmlu, ask=ASK_LETTER),
}


def raw_rows(source, split, folder):
    """The rows of a split in the data set's own format: from FOLDER/SPLIT.jsonl if a folder is given, else the hub."""
    if folder:
        path = Path(folder) / f"{split}.jsonl"
        try:
            lines = path.read_text(encoding="utf-8").rstrip("\n").split("\n")  # not at U+2028
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from None
        for number, line in enumerate(lines, start=1):
            try:
                yield json.loads(line)
            except (json.JSONDecodeError, RecursionError):
                raise InputError(f"{path}, line {number}: this is not JSON: {line[:40]!r}") from None
        return
    try:
        from datasets import load_dataset
    except ImportError:
        raise InputError("the hub is read with the package datasets, which is missing: pip install datasets") from None
    for config in source.configs:
        yield from load_dataset(source.hub, config, split=split)


def convert(rows, source):
    """(rows for the scripts, {reason: number of rows left out}) of rows in the data set's own format."""
    kept, left_out = {}, {"without an answer": 0, "repeated": 0}
    for number, row in enumerate(rows, start=1):
        try:
            problem, answer = source.read(row)
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            raise InputError(
                f"row {number} is not in the format of {source.hub}: {type(error).__name__} {error}; "
                "the data set may have changed"
            ) from None
        answer = "" if answer is None else str(answer).strip()
        prompt = f"{str(problem).strip()}\n{source.ask}"
        if not answer:
            left_out["without an answer"] += 1
        elif prompt in kept:
            left_out["repeated"] += 1
        else:
            kept[prompt] = {"system": SYSTEM, "prompt": prompt, "answer": answer}
    return list(kept.values()), {reason: n for reason, n in left_out.items() if n}


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=SOURCES, help="data set")
    parser.add_argument("--out", default=str(Path(__file__).resolve().parent), help="folder of NAME/ (default: data/)")
    parser.add_argument("--raw", default="", help="folder with SPLIT.jsonl files to read instead of the hub")
    parser.add_argument("--limit", type=int, default=0, help="draw N rows of each split at random; 0: all, in order")
    parser.add_argument("--seed", type=int, default=1, help="of --limit")
    args = parser.parse_args(argv)
    source, folder = SOURCES[args.name], Path(args.out) / args.name
    for ours, theirs in source.splits.items():
        rows, left_out = convert(raw_rows(source, theirs, args.raw), source)
        if not rows:
            raise InputError(f"no row of {args.name}'s split {theirs} has an answer; nothing was written for {ours}")
        if args.limit:
            rows = random.Random(args.seed).sample(rows, min(args.limit, len(rows)))
        path = folder / f"{ours}.jsonl"
        folder.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(path.name + ".tmp")
        temporary.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        os.replace(temporary, path)
        note = "".join(f", {n} left out: {reason}" for reason, n in left_out.items())
        print(f"{path}: {len(rows)} problems{note}")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (InputError, OSError) as error:
        print(f"{Path(__file__).name}: error: {error}", file=sys.stderr)
        sys.exit(2)
