"""Paper B, section 3, over a grid: how often do the two stages appear, and how often does the best arm die?

Runs `toy_bandit.py --rewards ...` for three arms: a1 common and fair (reward 0.2, 0.5 or 0.8), a2 the best (reward 1),
which starts at 0.01 to 1/3, a3 worthless; a1 and a3 share the rest equally. 200 runs each of 20,000 updates, times the
temperature.

The rule, written before the seeds below were run. A setting is a reward of a1 and a start of a2; a2 is rare up to 0.05.
Intervals over settings are Student's t.
  two stages whenever a2 is rare     the share of runs with two stages (outcome in toy_bandit.py), G = 2, temperature 1.
                                     "holds": in every rare setting the 95% Wilson interval lies above 0.9; "does not
                                     hold": in some it lies below
  larger G or temperature keep them  the difference of that share to G = 2, temperature 1, paired by rare setting.
                                     "holds": the interval lies above -0.05; "does not hold": below
  ... and are smoother               the runs agree more on when exploration starts: log of (interquartile range /
                                     median) of that update, paired likewise. "holds": below 0; not: above -0.05
  negative-only keeps a2 alive more  the share of runs in which a2 is lost (below 1e-9 at the end) under both signs, or
                                     under positive only, minus that under negative only, paired, all settings.
                                     "holds": above 0; "does not hold": below 0.02

    python studies/bandit.py            # 3 minutes on two cores
    python studies/bandit.py --quick    # few runs and updates: to see that it works
"""

import argparse
import functools

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from common import ROOT, interval, judge, read_json, run_all, write_json

FAIR, STARTS, RARE = (0.2, 0.5, 0.8), (0.01, 0.02, 0.05, 0.1, 0.2, 1 / 3), 0.05
VARIANTS = {"G = 2": "", "negative only": "--signs negative", "positive only": "--signs positive"}
VARIANTS |= {f"G = {g}": f"--group-size {g}" for g in (4, 8, 16)}
VARIANTS |= {f"temperature {t}": f"--temperature {t}" for t in (2, 5)}


def draw(path, found):
    """Shares over the start of a2: two stages by reward, two stages by variant, death by sign."""
    figure, axes = plt.subplots(1, 3, figsize=(13, 4), layout="constrained")

    def line(axis, key, variant, fair, label, shift):
        points = np.array([found[variant, fair, start][key] for start in STARTS])
        x = np.array(STARTS) * (1 + 0.03 * shift)  # side by side
        error = np.clip([points[:, 0] - points[:, 1], points[:, 2] - points[:, 0]], 0, None)
        axis.errorbar(x, points[:, 0], error, fmt="o-", ms=3, capsize=2, label=label)

    for i, fair in enumerate(FAIR):
        line(axes[0], "two stages", "G = 2", fair, f"reward of a1 {fair}", i)
    for i, variant in enumerate(name for name in VARIANTS if "only" not in name):
        line(axes[1], "two stages", variant, 0.5, variant, i)
    for i, variant in enumerate(("G = 2", "positive only", "negative only")):
        line(axes[2], "lost", variant, 0.5, "both signs" if variant == "G = 2" else variant, i)
    titles = (
        "two stages: G = 2, temperature 1",
        "two stages: reward of a1 0.5",
        "the best arm is lost: reward of a1 0.5",
    )
    for axis, title in zip(axes, titles, strict=True):
        axis.set(title=title, xscale="log", xlabel="probability that the best arm starts with", ylim=(-0.03, 1.03))
        axis.set_ylabel("share of runs (95% Wilson)")
        axis.set_xticks(STARTS, [f"{start:.2g}" for start in STARTS])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="10 runs of 200 updates, nothing recorded")
    parser.add_argument("--runs", default="runs/studies/bandit", help="folder of the runs")
    args = parser.parse_args()
    runs = ROOT / args.runs
    where = runs if args.quick else ROOT / "studies" / "results"
    n_runs, steps = (10, 200) if args.quick else (200, 20_000)
    places, jobs = {}, {}
    for v, (variant, flags) in enumerate(VARIANTS.items()):
        for i, (fair, start) in enumerate((fair, start) for fair in FAIR for start in STARTS):
            policy = f"{(1 - start) / 2!r},{start!r},{(1 - start) / 2!r}"
            updates = steps * (int(variant.split()[1]) if "temperature" in variant else 1)
            command = f"toy_bandit.py --rewards {fair},1,0 --policy {policy} {flags} --runs {n_runs} --steps {updates}"
            folder = runs / f"{variant.replace(' ', '').replace('=', '')}-{fair}-{start:.3f}"
            places[variant, fair, start] = record = runs / "records" / f"{folder.name}.json"
            read = functools.partial(lambda path: read_json(path)["table"][0], folder / "summary.json")
            jobs[record] = [(f"{command} --seed {1000 + 20 * v + i}", folder, "summary.json")], read
    run_all(jobs)
    found = {key: read_json(path) for key, path in places.items()}

    claims, rare = [], [(fair, start) for fair in FAIR for start in STARTS if start <= RARE]

    def decide(text, effect, verdict):
        claims.append({"claim": text, "effect": effect, "verdict": verdict})

    def paired(settings, value, more, less):
        """Differences of value(row) between two variants, over the settings where both have one."""
        rows = [(found[more, *setting], found[less, *setting]) for setting in settings]
        pairs = [(value(a), value(b)) for a, b in rows]
        return [a - b for a, b in pairs if a is not None and b is not None]

    def share(row):
        return row["two stages"][0]

    def spread(row):
        low, middle, high = row["peaks"] or (0, 0, 0)
        return np.log((high - low) / middle) if high > low else None

    shares = {setting: found["G = 2", *setting]["two stages"] for setting in rare}
    worst = min(shares, key=lambda setting: shares[setting][0])
    verdict = "holds" if all(low > 0.9 for _, low, _ in shares.values()) else "undecided"
    verdict = "does not hold" if any(high < 0.9 for *_, high in shares.values()) else verdict
    least = "least share {:.3f} [{:.3f}, {:.3f}]".format(*shares[worst])
    above = sum(low > 0.9 for _, low, _ in shares.values())
    text = f"{least}, at reward {worst[0]}, start {worst[1]}; above 0.9 in {above} of {len(rare)} settings"
    decide(f"two stages whenever the best arm starts at {RARE} or less", text, verdict)
    for variant in [name for name in VARIANTS if name.startswith(("G", "temp")) and name != "G = 2"]:
        mean, half = interval(paired(rare, share, variant, "G = 2"))
        verdict = "holds" if mean - half > -0.05 else "does not hold" if mean + half < -0.05 else "undecided"
        decide(f"{variant} keeps the two stages", f"{mean:+.3f} ± {half:.3f} in the share", verdict)
        logs = paired(rare, spread, variant, "G = 2")
        mean, half = interval(logs) if len(logs) > 1 else (0.0, np.inf)
        sizes = f"{mean:+.3f} ± {half:.3f} in the log of the spread, {len(logs)} settings"
        decide(f"{variant} makes it smoother", sizes, judge(-mean, half, 0.05))
    everywhere = [(fair, start) for fair in FAIR for start in STARTS]
    for other, name in (("G = 2", "both signs"), ("positive only", "positive only")):
        mean, half = interval(paired(everywhere, lambda row: row["lost"][0], other, "negative only"))
        text = f"{mean:+.3f} ± {half:.3f} in the share of runs in which it is lost"
        decide(f"negative-only updates keep the best arm alive more often than {name}", text, judge(mean, half, 0.02))

    print("\n| claim | effect (95%) | verdict |\n|---|---|---|")
    for row in claims:
        print(f"| {row['claim']} | {row['effect']} | {row['verdict']} |")
    table = [{"variant": v, "reward of a1": f, "start of a2": s} | row for (v, f, s), row in found.items()]
    write_json(where / "bandit.json", {"command": "python studies/bandit.py", "claims": claims, "settings": table})
    draw(where / "bandit.png", found)
    print(f"\nwritten: {where / 'bandit.json'}, {where / 'bandit.png'}")


if __name__ == "__main__":
    main()
