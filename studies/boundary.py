"""Does training shrink or expand what a model can solve, and when? Paper B, sections 3 and 4, tables 1 to 3.

256 responses to each of 40 test problems, counts kept, by every base and by models of training.py (seed 2): plateau and
end of four algorithms, at temperature 1 and at the paper's 0.6 with top-p 0.95; of GRPO and GRPO-N also eight
checkpoints at temperature 1. The plateau is chosen from training curves alone: the numbered checkpoint, not the last,
with the most leaps of two (plateau_of in training.py).

The rule, written before the runs (added after them: printed, the early loss at 0.6 / 0.95 against the base's second
sample); unit, interval, verdict and Holm as in common.py. A problem is solvable if at least 1
of 256 is right. Lost: solvable by the base, not by the model; won: the other way round; shares of the problems. Whether
it is 0 or 1 of 256 is chance in part, so the base is sampled twice: what it loses against itself is the floor. A table
prints how often the base was right on what was lost. 0.05 matters: 2 problems of 40. Above 0 if not said otherwise:
  early training shrinks   pass@256 of the base minus the plateau's (lost minus won): section 3, remark 3, with "may"
  some are lost early      share lost at the plateau minus the floor (ours)
  more training expands    pass@256 at the end minus the plateau's: remark 4, with "may"
  competitive at k = 1     pass@1 at the end minus GRPO's at the paper's setting, above -0.02 (tables 1 to 3)
  more answer entropy      at the end minus GRPO's, nats, at the paper's setting; 0.1 matters (GRPO's lost 0.9 of 2.6 on
                           AMC23). Table 4: -N variants above GRPO, GSPO below it
Nearly guaranteed by construction, and no claim: trained models win at k = 1. A model that is right every second time
has pass@256 = 1: if training succeeds at all, the end is above a base of 0.6 to 0.85, and two such ends do not differ.
So the paper's text ("for every value of k"; true in table 1, but in tables 2 and 3 GRPO-N ends below the base: Llama
92.5 to 100, MATH-500 72.2 to 88.0) cannot be put to the test here; the table has the numbers.

Power: with 40 problems of which a tenth change sides, a difference has sd sqrt(0.1 / 40) = 0.05 from problems alone;
smallest_decidable(0.05) = 0.08. Shrinkage by 0.05 cannot be decided; by 0.1 (first world: 0.07 to 0.17), it can.

    python studies/boundary.py            # 70 minutes on two cores, after training.py
    python studies/boundary.py --quick    # 4 samples, models of two steps
"""

import functools
import itertools

import numpy as np
from common import arguments, base_folder, decide, finish, interval, make_bases, read_json, rounded, run_all
from matplotlib.figure import Figure
from training import FOUR, QUICK, SEEDS, TWO, jobs_of, plateau_of

SETTINGS = ((1.0, 1.0), (0.6, 0.95))  # (temperature, top-p); the second is the paper's
CHECKPOINTS = (10, 20, 30, 40, 50, 60, 80, 100)


def summary(folder, samples):
    """The record of a model at a setting: how many of its responses to each problem were right."""
    (problems,) = read_json(folder / "passk.json")["models"].values()
    found = {"samples": samples, "right": [problem["right"] for problem in problems]}
    return found | {name: rounded(p[name] for p in problems) for name in ("answer_entropy", "token_entropy")}


def lost_and_won(base, model):
    """(share lost, share won, the base's counts of what was lost) of two lists of counts, a problem each."""
    base, model = np.array(base), np.array(model)
    lost, won = (base > 0) & (model == 0), (base == 0) & (model > 0)
    return float(lost.mean()), float(won.mean()), base[lost].tolist()


def draw(path, counts, solved, bases, arms, plateaus, last):
    """Solvable problems over training; shares lost and won at plateau and end at both settings; dots are bases."""
    figure = Figure(figsize=(14, 4.3), layout="constrained")
    axes = figure.subplots(1, 3)
    axes[2].sharex(axes[1])
    for i, arm in enumerate(arms[:2]):
        steps = [s for s in (0, *CHECKPOINTS, last) if s in (0, last) or (arm, bases[0], s, 0) in counts]
        at = [[solved["base" if step == 0 else arm, b, step, 0] for step in dict.fromkeys(steps)] for b in bases]
        axes[0].plot([*dict.fromkeys(steps)], np.transpose(at), color=f"C{i}", lw=0.7, alpha=0.6)
        axes[0].plot([*dict.fromkeys(steps)], np.mean(at, 0), "o-", color=f"C{i}", label=f"{arm}, mean (thin: bases)")
    title = "solved with 256 samples\ntemperature 1, top-p 1"
    axes[0].set(title=title, xlabel="training step", ylabel="share of problems", ylim=(0, 1.02))
    axes[0].legend(fontsize=8)
    for s, setting in enumerate(SETTINGS):
        keys = {"the base again": [("base", b, -1, s) for b in bases]}
        for arm in arms:
            keys |= {f"{arm}, plateau": [(arm, b, plateaus[arm, b], s) for b in bases]}
            keys |= {f"{arm}, end": [(arm, b, last, s) for b in bases]}
        for y, models in enumerate(keys.values()):
            pairs = np.array([lost_and_won(counts["base", key[1], 0, s], counts[key])[:2] for key in models]) * [-1, 1]
            axes[s + 1].barh([y, y], pairs.mean(0), color=["C3", "C2"])
            axes[s + 1].plot(pairs, np.full_like(pairs, y), "k.", ms=3)
            axes[s + 1].plot(pairs.sum(1).mean(), y, "wD", mec="k", ms=5)
        axes[s + 1].set_yticks(range(len(keys)), keys, fontsize=8)
        axes[s + 1].invert_yaxis()
        title = "lost (left), won (right)\ntemperature {:g}, top-p {:g}".format(*setting)
        axes[s + 1].set(title=title, xlabel="share of problems; dots: bases, diamond: sum")
    figure.savefig(path, dpi=90)


def main():
    args = arguments(__doc__)
    arms = QUICK["grpo_n"] if args.quick else FOUR
    jobs, paths, folders = jobs_of("grpo_n", args, wanted=arms)
    run_all(jobs)
    trained, both = {key[:2]: read_json(path) for key, path in paths.items()}, range(len(SETTINGS))
    every, last, samples, problems = (1, 2, 4, 4) if args.quick else (10, CHECKPOINTS[-1], 256, 40)
    plateaus = {key: plateau_of(record, every) for key, record in trained.items()}
    wanted = [("base", b, i, s) for b in args.bases for i in (0, -1) for s in both]  # -1: once more
    for arm, base in trained:
        wanted += [(arm, base, step, s) for step in (plateaus[arm, base], last) for s in both]
        wanted += [(arm, base, step, 0) for step in CHECKPOINTS if arm in TWO and not args.quick]
    jobs, paths = {}, {}
    for arm, base, step, s in dict.fromkeys(wanted):
        name, data = f"{arm}-{base}-{'again' if step < 0 else step}-t{SETTINGS[s][0]:g}", base_folder(base, args.quick)
        model = data / "base" if arm == "base" else folders[arm, base, SEEDS[0]] / f"model_{step:06d}"
        flags = f"--steps 0 --kl-coef 0 --eval-problems 1 --gen-batch 64 --seed {2 if step < 0 else 1} --model {model}"
        flags += " --passk-temperature {} --passk-top-p {}".format(*SETTINGS[s])
        flags += f" --passk-samples {samples} --passk-problems {problems} --train {data}/test.jsonl"
        folder, record = args.runs / "boundary" / name, args.where / "boundary" / f"{name}.json"
        read = functools.partial(summary, folder, samples)
        jobs[record] = [(f"grpo_n.py {flags} --test {data}/test.jsonl", folder, "passk.json")], read
        paths[arm, base, step, s] = record
    make_bases(args, jobs)
    run_all(jobs)
    found = {key: read_json(path) for key, path in paths.items()}
    counts = {key: record["right"] for key, record in found.items()}
    first = {key: float(np.mean(x)) / samples for key, x in counts.items()}  # pass@1
    answers = {key: float(np.mean(record["answer_entropy"])) for key, record in found.items()}
    solved = {key: float(np.mean(np.array(x) > 0)) for key, x in counts.items()}
    print(f"\n| model | pass@1 | pass@{samples} | lost | won | right by the base, of the lost |\n" + "|---" * 6 + "|")
    for (arm, base, step, s), x in counts.items():
        lost, won, of = lost_and_won(counts["base", base, 0, s], x)
        cells = f"{first[arm, base, step, s]:.3f} | {solved[arm, base, step, s]:.3f} | {lost:.3f} | {won:.3f} | {of}"
        print("| {}, base {}, step {}, {:g} / {:g} | {} |".format(arm, base, step, *SETTINGS[s], cells))
    claims = []

    def each(function, arm, s, step=None):
        """function(key) of an arm's model on each base; step None is the plateau."""
        return np.array([function((arm, b, plateaus[arm, b] if step is None else step, s)) for b in args.bases])

    def lost(key):
        return lost_and_won(counts["base", key[1], 0, key[3]], counts[key])[0]

    for s, arm in itertools.product(both, arms):
        claim = functools.partial(decide, measure="pass@{} at {:g} / {:g}".format(samples, *SETTINGS[s]), matters=0.05)
        start, middle, floor = each(solved.get, "base", s, 0), each(solved.get, arm, s), each(lost, "base", s, -1)
        end = each(solved.get, arm, s, last)
        claims.append(claim("B 3, remark 3", f"early training shrinks: {arm}", values=start - middle))
        share, early = "share lost, minus the floor, at {:g} / {:g}".format(*SETTINGS[s]), each(lost, arm, s) - floor
        claims.append(claim("B 3 (ours: lost)", f"some are lost early: {arm}", measure=share, values=early))
        claims.append(claim("B 3, remark 4", f"more training expands again: {arm}", values=end - middle))
    for arm in arms[1:]:
        measure, (values, of) = "pass@1 at 0.6 / 0.95", (each(x.get, arm, 1, last) for x in (first, answers))
        effect = values - each(first.get, "grpo", 1, last)
        claims.append(decide("B 4, tables 1-3", f"competitive at k = 1: {arm}", measure, effect, 0.0, -0.02))
        measure, sign = "nats at 0.6 / 0.95", -1 if arm == "gspo" else 1
        text = f"{'less' if sign < 0 else 'more'} answer entropy than grpo: {arm}"
        claims.append(decide("B 4, table 4", text, measure, sign * (of - each(answers.get, "grpo", 1, last)), 0.1))
    again = each(solved.get, "base", 1, -1) - each(solved.get, "grpo", 1)
    print("\nearly loss of grpo at 0.6 / 0.95, base sampled again: {:+.3f} ± {:.3f}\n".format(*interval(again)))
    finish(args, "boundary", claims, draw, counts, solved, args.bases, arms, plateaus, last)


if __name__ == "__main__":
    main()
