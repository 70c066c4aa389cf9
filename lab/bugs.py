"""Fifteen silent faults of RL code: plant one into a copy of dapo.py, train it, find it by what metrics.jsonl shows.

    python lab/bugs.py --plant random                    # writes runs/bugs/planted.py, and prints how to run it
    python lab/bugs.py --symptoms runs/bugs/planted      # the numbers of a run that lie outside the healthy range
    python lab/bugs.py --reveal                          # which fault it is, with its line
    python lab/bugs.py --plant 3                         # a fault of your choice
    python lab/bugs.py --measure                         # docs/bugs.md: 54 runs, 20 minutes; goes on if stopped

Each fault is one changed line, and trains without an error. docs/bugs.md leads from the symptom to the suspects, and
says which of them were met in public code.

The rule for a fingerprint, written before the runs:
  Runs: SETTINGS, that is 6 steps with 4 optimiser steps each, at temperature 0.8. Healthy: seeds 1 to 6. A fault: seeds
  1 to 3. Control: healthy code with seeds 7 to 9, judged as if it were a fault.
  Numbers of a run: accuracy, length, entropy, ratio, kl, clip (clip_low + clip_high) and grad_norm, each as the mean
  over steps 1 to 3 ("early") and over steps 4 to 6 ("late"); test/accuracy at step 0 ("early") and 6 ("late"); gap,
  late accuracy of the rollouts minus late test/accuracy. kl and grad_norm are compared as logarithms to base 10.
  A number shows the fault if it lies, for all three seeds and on the same side, outside the range of the six healthy
  runs by more than half the width of that range. A fault without such a number has no fingerprint.
  First difference: the first of "base model" (row 0), "rollouts" (accuracy, length and entropy of step 1) and "update"
  (the rest of step 1) where the run of a seed differs from the healthy run of the same seed, of the same machine; the
  earliest one of the three seeds.
Added when the first run of fault 8 had such steps: a step without an update, because no group taught, is left out.
Added after the runs, because eight faults had no fingerprint: where the first difference is "update", both runs trained
on the same responses in step 1. So loss, kl and grad_norm of step 1 are also divided by those of the healthy run.
"""

import argparse
import contextlib
import difflib
import io
import json
import math
import random
import sys
import tempfile
import types
from pathlib import Path
from typing import NamedTuple

from matplotlib.figure import Figure

ROOT = Path(__file__).resolve().parent.parent
RECORDS = ROOT / "lab/fingerprints.jsonl"
PICTURE = ROOT / "docs/figures/bugs.png"
SETTINGS = (
    "--steps 6 --warmup-steps 3 --lr 4e-4 --temperature 0.8 --prompts-per-step 8 --mini-batch 2 --micro-batch 8"
    " --max-response 96 --eval-every 6 --eval-problems 32"
)
BUG_SEEDS = (1, 2, 3)
HEALTHY_SEEDS = (1, 2, 3, 4, 5, 6)
CONTROL_SEEDS = (7, 8, 9)
MARGIN = 0.5  # a number must lie this many widths of the healthy range outside it
TINY = 1e-9  # stands for 0 where a logarithm is taken
SERIES = ("accuracy", "length", "entropy", "ratio", "kl", "clip", "grad_norm")  # of every step
LOGARITHMIC = ("kl", "grad_norm")
PLACES = ("base model", "rollouts", "update", "nowhere")  # of the first difference
QUOTIENTS = ("loss", "kl", "grad_norm")
UNITS = {
    "accuracy": "share right",
    "test/accuracy": "share right",
    "length": "tokens",
    "entropy": "nats a token",
    "ratio": "new over old",
    "kl": "nats a token",
    "clip": "share of tokens",
    "grad_norm": "before clipping",
}


# ----------------------------------------------------------------------------------------------------------- the faults
class Bug(NamedTuple):
    name: str
    healthy: str  # a line of dapo.py without its indentation; it stands there exactly once
    faulty: str  # what replaces it
    about: str  # one sentence
    caught_by: str  # a test that fails with it


BUGS = {
    1: Bug(
        "log-probs off by one",
        "hidden_chunks = states[:, :-1][scored].split(chunk)",
        "hidden_chunks = states[:, 1:][scored].split(chunk)",
        "A token is scored by the state that has already read it, not by the one before it.",
        "tests/test_model.py::test_logp_and_entropy_equal_a_float64_loop_over_prefixes",
    ),
    2: Bug(
        "end masked by its value",
        'mask[i, len(response.problem["ids"]) : lengths[i]] = 1.0',
        'mask[i, len(response.problem["ids"]) : lengths[i]] = torch.tensor(response.ids) != response.ids[-1]',
        "The mask asks which token it is: the token that ends a response, taken for padding, is not trained.",
        "tests/test_model.py::test_batches_keep_the_sampled_ids_and_masks_come_from_positions",
    ),
    3: Bug(
        "mean per micro-batch",
        "n_tokens,",
        "mask[rows].sum() * len(micro_batches),",
        "Each micro-batch is divided by its own number of tokens: tokens of short responses count more.",
        "tests/test_runs.py::test_micro_batch_and_checkpointing_change_only_rounding",
    ),
    4: Bug(
        "no temperature in the scorer",
        "logits = model.get_output_embeddings()(hidden)[:, :n_vocab].float() / temperature  # (chunk, V)",
        "logits = model.get_output_embeddings()(hidden)[:, :n_vocab].float()  # (chunk, V)",
        "Responses are sampled at --temperature, and scored at 1.",
        "tests/test_model.py::test_logp_and_entropy_equal_a_float64_loop_over_prefixes",
    ),
    5: Bug(
        "top-p in the rollouts alone",
        "sampling = (args.temperature, args.rollout_top_p, generator)",
        "sampling = (args.temperature, 0.9, generator)",
        "Rollouts are cut to top-p 0.9, as by the defaults of a model's generation_config, and scored without it.",
        "tests/test_runs.py::test_greedy_rollouts_teach_nothing_and_the_run_goes_on",
    ),
    6: Bug(
        "old log-probs are the new ones",
        "log_ratio = (logp - logp_old.detach()).masked_fill(outside, 0.0)",
        "log_ratio = (logp - logp.detach()).masked_fill(outside, 0.0)",
        "The ratio is always 1, so that nothing is ever clipped.",
        "tests/test_maths.py::test_hand_computed_batch",
    ),
    7: Bug(
        "mean of the batch",
        "centred = rewards - rewards.mean(dim=1, keepdim=True)",
        "centred = rewards - rewards.mean()",
        "A reward is compared with those of all prompts, not with those of its group.",
        "tests/test_maths.py::test_group_advantages_by_hand_with_n_minus_1",
    ),
    8: Bug(
        "padding on the right",
        "ids = torch.tensor([[0] * (width - len(p)) + list(p) for p in prompts], device=device)  # (B, W)",
        "ids = torch.tensor([list(p) + [0] * (width - len(p)) for p in prompts], device=device)  # (B, W)",
        "In rollouts shorter prompts are padded on the right, and decoding goes on after the padding.",
        "tests/test_model.py::test_logp_and_entropy_equal_a_float64_loop_over_prefixes",
    ),
    9: Bug(
        "clip of the larger term",
        "objective = torch.min(ratio * adv, clipped * adv)  # (7)",
        "objective = torch.max(ratio * adv, clipped * adv)  # (7)",
        "The clip acts on the wrong side: it stops tokens that come back, and none that go too far.",
        "tests/test_maths.py::test_the_sign_of_the_advantage_decides_which_clip_acts",
    ),
    10: Bug(
        "divided by its own length",
        "adv = adv.view_as(mask)  # (N, L)",
        "adv = adv.view_as(mask) * mask.sum(1).mean() / mask.sum(1, keepdim=True)  # (N, L)",
        "Each response counts the same, so that a token of a long wrong one is punished less.",
        "tests/test_bugs.py::test_an_update_is_that_of_a_plain_loop",
    ),
    11: Bug(
        "gradients are never reset",
        "optimizer.zero_grad()",
        "optimizer.zero_grad",
        "The call lacks its parentheses: the gradients of all earlier updates are added.",
        "tests/test_bugs.py::test_an_update_is_that_of_a_plain_loop",
    ),
    12: Bug(
        "the rate does not arrive",
        'optimizer.param_groups[0]["lr"] = lr',
        'optimizer.defaults["lr"] = lr',
        "The warm-up is logged, but the optimiser steps with the full rate from the start.",
        "tests/test_bugs.py::test_an_update_is_that_of_a_plain_loop",
    ),
    13: Bug(
        "weights in bf16",
        "model = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32, use_safetensors=True)",
        "model = AutoModelForCausalLM.from_pretrained(name, dtype=torch.bfloat16, use_safetensors=True)",
        "Weights are trained in bf16, where small updates are rounded away.",
        "tests/test_bugs.py::test_an_update_is_that_of_a_plain_loop",
    ),
    14: Bug(
        "part of the answer is enough",
        "if normalize_answer(said) == normalize_answer(answer):",
        "if said in answer:",
        "The checker looks for one text inside the other: the box 4 is right where the answer is 24,71.",
        "tests/test_verifier.py::test_different_answers",
    ),
    15: Bug(
        "advantages in another order",
        "adv[rows, :width],",
        "adv[sorted(rows), :width],",
        "Responses are sorted by length in a micro-batch, their advantages are not: they go to other responses.",
        "tests/test_bugs.py::test_an_update_is_that_of_a_plain_loop",
    ),
}


# -------------------------------------------------------------------------------------------------- planting, revealing
def read_script():
    """The text of dapo.py for a copy in another folder: it finds tiny/ here."""
    here = "HERE = Path(__file__).resolve().parent"
    return replace_line((ROOT / "dapo.py").read_text(), here, f'HERE = Path("{ROOT.as_posix()}")')


def replace_line(source, old, new):
    """source with the one line that is `old`, but for its indentation, replaced by `new`.

    Raises ValueError unless there is exactly one.
    """
    lines = source.split("\n")
    found = [number for number, line in enumerate(lines) if line.strip() == old]
    if len(found) != 1:
        raise ValueError(f"dapo.py: this line stands there {len(found)} times, once is wanted: {old}")
    line = lines[found[0]]
    lines[found[0]] = line[: len(line) - len(line.lstrip())] + new
    return "\n".join(lines)


def plant(number):
    """The text of dapo.py with a fault of BUGS."""
    bug = BUGS[number]
    return replace_line(read_script(), bug.healthy, bug.faulty)


def reveal(path):
    """What to print about a planted file: number, name, sentence, test, and the changed line.

    Raises ValueError where there is no file, or it is not dapo.py with one fault of BUGS.
    """
    if not path.exists():
        raise ValueError(f"{path}: no such file; --plant random makes it")
    planted = path.read_text()
    for number, bug in BUGS.items():
        if plant(number) == planted:
            changes = difflib.unified_diff(read_script().split("\n"), planted.split("\n"), lineterm="", n=0)
            line = "\n".join(list(changes)[2:])  # without the names of the files
            return f"fault {number}, {bug.name}. {bug.about}\ncaught by: {bug.caught_by}\n{line}"
    raise ValueError(f"{path}: not dapo.py with one of these faults; was one of both changed since?")


# ------------------------------------------------------------------------------------------------------------ measuring
def run_script(source, seed):
    """The rows of metrics.jsonl of one run of a script's text, with SETTINGS."""
    module = types.ModuleType("planted")
    module.__file__ = str(ROOT / "dapo.py")
    sys.modules["planted"] = module  # dataclasses look there
    exec(compile(source, "planted", "exec"), vars(module))
    module.draw_curves = lambda *_: None  # a tenth of the time
    with tempfile.TemporaryDirectory() as folder:
        flags = f"--device cpu --seed {seed} --out {folder}/run {SETTINGS}"
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            module.main(module.parse_args(flags.split()))
        return read_rows(Path(folder) / "run/metrics.jsonl")


def read_rows(path):
    """The rows of a metrics.jsonl, with "clip" added. Raises ValueError where the run is not one of 6 steps."""
    if not path.exists():
        raise ValueError(f"{path}: no such file")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    if len(rows) != 7:
        raise ValueError(f"{path}: want a finished run of 6 steps; --plant prints the command")
    for row in rows[1:]:
        if "ratio" in row:
            row["clip"] = row["clip_low"] + row["clip_high"]
    return rows


def curves_of(rows):
    """What is recorded of a run: {metric: values of steps 1 to 6}, and {"test/...": values of steps 0 and 6}.

    A step without an update, because no group taught, has None where an update has a value.
    """
    curves = {}
    for name in (*SERIES, "loss"):
        curves[name] = [float(f"{row[name]:.7g}") if name in row else None for row in rows[1:]]
    for name in ("test/accuracy", "test/length", "test/entropy"):
        curves[name] = [float(f"{rows[step][name]:.7g}") for step in (0, 6)]
    return curves


def numbers_of(curves):
    """{(metric, "early" or "late"): value} of a run, as the rule has them; logarithms are not taken here."""
    numbers = {}
    for name in SERIES:
        for when, values in (("early", curves[name][:3]), ("late", curves[name][-3:])):
            present = [value for value in values if value is not None]
            if present:
                numbers[name, when] = sum(present) / len(present)
    numbers["test/accuracy", "early"], numbers["test/accuracy", "late"] = curves["test/accuracy"]
    numbers["gap", "late"] = numbers["accuracy", "late"] - numbers["test/accuracy", "late"]
    return numbers


def scaled(key, value):
    """The value that is compared: its logarithm for kl and grad_norm."""
    return math.log10(max(value, TINY)) if key[0] in LOGARITHMIC else value


def find_symptoms(runs, healthy):
    """{(metric, when): widths of the healthy range between it and the nearest run, negative below it}.

    runs, healthy: lists of numbers_of() of runs. Only numbers that lie more than MARGIN outside, in all of `runs`.
    """
    symptoms = {}
    for key in healthy[0]:
        normal = [scaled(key, numbers[key]) for numbers in healthy]
        if not all(key in numbers for numbers in runs):
            continue
        seen = [scaled(key, numbers[key]) for numbers in runs]
        width = max(max(normal) - min(normal), TINY)
        above = (min(seen) - max(normal)) / width
        below = (min(normal) - max(seen)) / width
        if above > MARGIN:
            symptoms[key] = above
        elif below > MARGIN:
            symptoms[key] = -below
    return symptoms


def first_difference(curves, healthy):
    """Where a run leaves the healthy run of the same seed: "base model", "rollouts", "update", or "nowhere"."""
    if any(curves[name][0] != healthy[name][0] for name in ("test/accuracy", "test/length", "test/entropy")):
        return "base model"
    if any(curves[name][0] != healthy[name][0] for name in ("accuracy", "length", "entropy")):
        return "rollouts"
    if any(curves[name][0] != healthy[name][0] for name in ("ratio", "kl", "clip", "grad_norm", "loss")):
        return "update"
    return "nowhere"


def quotients_of(curves, healthy):
    """{metric: its value in step 1 over that of the healthy run of the same seed}, for the metrics of QUOTIENTS.

    Empty where one of the two had no update. They mean something where both trained on the same responses.
    """
    if curves["kl"][0] is None or healthy["kl"][0] is None:
        return {}
    return {name: curves[name][0] / healthy[name][0] for name in QUOTIENTS}


def read_records():
    """{(name of the fault or "healthy", seed): curves_of() of that run}"""
    records = {}
    if RECORDS.exists():
        for line in RECORDS.read_text().splitlines():
            record = json.loads(line)
            records[record["name"], record["seed"]] = record["curves"]
    return records


def measure():
    """Run what is not recorded yet, then draw and print. A record is added after each run."""
    jobs = [("healthy", seed, read_script()) for seed in HEALTHY_SEEDS]
    for number, bug in BUGS.items():
        jobs += [(bug.name, seed, plant(number)) for seed in BUG_SEEDS]
    jobs += [("healthy", seed, read_script()) for seed in CONTROL_SEEDS]
    for name, seed, source in jobs:
        if (name, seed) in read_records():
            continue
        print(f"{name}, seed {seed}", flush=True)
        record = {"name": name, "seed": seed, "curves": curves_of(run_script(source, seed))}
        with open(RECORDS, "a") as file:
            file.write(json.dumps(record) + "\n")
    records = read_records()
    draw(records)
    for name, lines in (
        ("healthy", healthy_table(records)),
        ("suspects", suspects_table(records)),
        ("faults", faults_table(records)),
    ):
        print(f"\n{name}\n" + "\n".join(lines))
    print(f"\ncontrol: {symptoms_of(records, 0) or 'no symptom'}")


# ---------------------------------------------------------------------------------------------------- tables and figure
def fault_runs(records, number):
    """curves_of() the runs of a fault, a list in the order of the seeds; number 0 is the control."""
    if number == 0:
        return [records["healthy", seed] for seed in CONTROL_SEEDS]
    return [records[BUGS[number].name, seed] for seed in BUG_SEEDS]


def symptoms_of(records, number):
    """find_symptoms() of a fault, the farthest first; number 0 is the control."""
    healthy = [numbers_of(records["healthy", seed]) for seed in HEALTHY_SEEDS]
    runs = [numbers_of(curves) for curves in fault_runs(records, number)]
    symptoms = find_symptoms(runs, healthy)
    return dict(sorted(symptoms.items(), key=lambda item: -abs(item[1])))


def show_range(values):
    """Smallest and largest of some values, with the digits that show how far they are apart: 0.062–0.094"""
    low = min(values)
    high = max(values)
    for digits in range(2, 8):
        shown_low = f"{low:.{digits}g}"
        shown_high = f"{high:.{digits}g}"
        if abs(float(shown_high) - float(shown_low) - (high - low)) <= 0.2 * (high - low):
            break
    if shown_low == shown_high:
        return shown_low
    return f"{shown_low}–{shown_high}"


def healthy_table(records):
    """Rows of Markdown: the range of the six healthy runs, for each metric, early and late."""
    healthy = [numbers_of(records["healthy", seed]) for seed in HEALTHY_SEEDS]
    lines = []
    for name in (*SERIES, "test/accuracy", "gap"):
        cells = []
        for when in ("early", "late"):
            values = [numbers[name, when] for numbers in healthy if (name, when) in numbers]
            cells.append(show_range(values) if values else "")
        lines.append(f"| `{name}` | {cells[0]} | {cells[1]} |")
    return lines


def suspects_table(records):
    """Rows of Markdown: a symptom, and the faults that show it early and late."""
    suspects = {}
    for number in BUGS:
        for (name, when), distance in symptoms_of(records, number).items():
            direction = "higher" if distance > 0 else "lower"
            suspects.setdefault((name, direction), {"early": [], "late": []})[when].append(str(number))
    lines = []
    for name in (*SERIES, "test/accuracy", "gap"):
        for direction in ("higher", "lower"):
            if (name, direction) in suspects:
                found = suspects[name, direction]
                lines.append(f"| `{name}` {direction} | {', '.join(found['early'])} | {', '.join(found['late'])} |")
    return lines


def faults_table(records):
    """Rows of Markdown: a fault, its line, first difference, quotients of step 1, the farthest number, the test."""
    lines = []
    for number, bug in BUGS.items():
        places = []
        quotients = {name: [] for name in QUOTIENTS}
        for seed, curves in zip(BUG_SEEDS, fault_runs(records, number), strict=True):
            healthy = records["healthy", seed]
            places.append(first_difference(curves, healthy))
            for name, value in quotients_of(curves, healthy).items():
                quotients[name].append(value)
        first = min(places, key=PLACES.index)
        cells = [show_range(values) if first == "update" else "" for values in quotients.values()]
        runs = [numbers_of(curves) for curves in fault_runs(records, number)]
        symptoms = symptoms_of(records, number)
        farthest = "**none**"
        if symptoms:
            name, when = next(iter(symptoms))
            farthest = f"`{name}` {when} {show_range([run[name, when] for run in runs])}"
        line = bug.faulty.split("  # ")[0]  # without its comment
        test = bug.caught_by.split("::")[1]
        cells = [f"{number} {bug.name}", f"`{line}`", first, *cells, farthest, f"`{test}`"]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def draw(records):
    """A small picture for each fault: the metric that shows it best, six healthy runs in gray, three faulty in red."""
    figure = Figure(figsize=(10, 9.5), layout="constrained")
    axes = figure.subplots(4, 4).flat
    for axis, number in zip(axes, [*BUGS, 0], strict=True):
        symptoms = [name for name, _ in symptoms_of(records, number)]
        name = symptoms[0].replace("gap", "accuracy") if symptoms else "accuracy"
        for seed in HEALTHY_SEEDS:
            draw_run(axis, name, records["healthy", seed], color="gray", lw=0.8, label="healthy, seeds 1 to 6")
        label = "faulty, seeds 1 to 3" if number > 0 else "healthy, seeds 7 to 9"
        color = "tab:red" if number > 0 else "black"
        for curves in fault_runs(records, number):
            draw_run(axis, name, curves, color=color, lw=1.2, label=label)
        if name in LOGARITHMIC:
            axis.set_yscale("log")
        title = f"{number} {BUGS[number].name}" if number > 0 else "control: no fault"
        axis.set_title(title, fontsize=9)
        axis.set_ylabel(f"{name} ({UNITS[name]})" if symptoms else f"{name}: no fingerprint", fontsize=8)
        axis.set_xticks(range(7))
        axis.tick_params(labelsize=7)
        axis.grid(alpha=0.3)
    for axis in axes[-4:]:
        axis.set_xlabel("training step", fontsize=8)
    handles = {}
    for axis in (axes[0], axes[-1]):
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            handles[label] = handle
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=3, fontsize=9)
    figure.suptitle("Each fault in the metric that shows it best (a kl of 0 is drawn at 1e-6)")
    figure.savefig(PICTURE, dpi=100)


def draw_run(axis, name, curves, **style):
    """One line over training steps; kl of 0 is drawn at 1e-6."""
    steps = (0, 6) if name.startswith("test/") else range(1, 7)
    values = [math.nan if value is None else value for value in curves[name]]
    if name in LOGARITHMIC:
        values = [max(value, 1e-6) for value in values]
    axis.plot(steps, values, **style)


# -------------------------------------------------------------------------------------------------------------- command
def describe_run(folder, healthy_folder=None):
    """What to print about a run: its numbers outside the healthy range, and where it leaves a healthy run.

    Raises ValueError where the folder holds no finished run of SETTINGS.
    """
    records = read_records()
    healthy = [numbers_of(records["healthy", seed]) for seed in HEALTHY_SEEDS]
    curves = curves_of(read_rows(folder / "metrics.jsonl"))
    numbers = numbers_of(curves)
    lines = []
    for (name, when), distance in find_symptoms([numbers], healthy).items():
        direction = "higher" if distance > 0 else "lower"
        normal = show_range([other[name, when] for other in healthy])
        lines.append(f"{name} {when}: {numbers[name, when]:.4g} is {direction} than healthy, {normal}")
    if not lines:
        lines.append("no number lies outside the healthy range")
    if healthy_folder:
        other = curves_of(read_rows(healthy_folder / "metrics.jsonl"))
        place = first_difference(curves, other)
        lines.append(f"first difference from {healthy_folder}: {place}")
        if place == "update":
            quotients = [f"{name} {value:.3g}" for name, value in quotients_of(curves, other).items()]
            lines.append(f"step 1, over that of {healthy_folder}: {', '.join(quotients)}")
    return "\n".join(lines)


def main(args):
    """The command. Raises ValueError for what a person can put right."""
    folder = Path(args.out)
    if args.plant:
        number = random.choice(list(BUGS)) if args.plant == "random" else int(args.plant)
        run = folder / "planted"
        if run.exists():
            raise ValueError(f"{run} holds the run of an earlier fault: delete it, or give another --out")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "planted.py").write_text(plant(number))
        print(f"wrote {folder / 'planted.py'}. Run it, and the healthy script, about a minute each:")
        print(f"  python {folder / 'planted.py'} --device cpu --out {run} {SETTINGS}")
        print(f"  python dapo.py --device cpu --out {folder / 'healthy'} {SETTINGS}")
        print(f"  python lab/bugs.py --symptoms {run} {folder / 'healthy'}")
    elif args.symptoms:
        print(describe_run(*[Path(name) for name in args.symptoms]))
    elif args.reveal:
        print(reveal(folder / "planted.py"))
    else:
        measure()


def parse_args(argv=None):
    """Command line -> namespace: plant, symptoms, reveal, measure, of which one is given; out, a folder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    group = parser.add_mutually_exclusive_group(required=True)
    group.add_argument("--plant", metavar="N", help=f"plant fault N, 1 to {len(BUGS)}, or random, in a copy")
    group.add_argument("--symptoms", nargs="+", metavar="RUN", help="compare a run, and perhaps a healthy one after it")
    group.add_argument("--reveal", action="store_true", help="tell which fault is planted")
    group.add_argument("--measure", action="store_true", help="run all faults, draw and print what docs/bugs.md has")
    parser.add_argument("--out", default="runs/bugs", help="folder of the planted copy")
    args = parser.parse_args(argv)
    if args.plant and args.plant not in ["random", *map(str, BUGS)]:
        parser.error(f"--plant {args.plant}: want a number from 1 to {len(BUGS)}, or random")
    if args.symptoms and len(args.symptoms) > 2:
        parser.error("--symptoms: want one or two folders of runs")
    return args


if __name__ == "__main__":
    try:
        main(parse_args())
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
