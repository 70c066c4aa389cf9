"""Paper B, section 3 and figures 1, 5, 6: when do the two stages appear in a bandit, and when is the best arm lost?

Runs `toy_bandit.py --rewards ...` for three arms: a1 common and fair (reward 0.2, 0.5 or 0.8), a2 the best (reward 1),
which starts at 0.01, 0.02, 0.05 or 0.2, a3 worthless; a1 and a3 share the rest equally. 100 runs a setting: of plain
ascent 200,000 updates (times the temperature), so that runs end with a2 reached (above 1/2) or lost (below 1e-9), not
on the way (in the first world 20,000 updates looked like death at 1e-3); of Adam, which the paper's listing names,
20,000. Quantiles of the last pi(a2) are in the records.

The rule, written before the runs. Settings are a designed grid, no sample: each is decided on its own, with Wilson's
interval over runs (Newcombe's for a difference of shares), and the table counts them. "Holds after correction": every
setting keeps its verdict at 0.05 over the number of all decisions (Bonferroni).
  two stages   share of runs in which a1 rises and then falls by more than 0.05, a2 starting below 0.1: above 1/2
               ("appears to unfold": in most runs)
  reached      share of runs that end with a2 above 1/2: above 1/2 (ours)
  as often     with larger groups or temperature: that share minus plain ascent's: above -0.1 (figures 5, 6: they stay).
               That they are smoother shows in the quartiles of the update of the peak, in the records: no verdict
  negative     share reached under negative only minus that under both signs: above -0.1 (ours). Amended after the runs:
               of shares lost, as it was, nothing can come, as no run of either is below 1e-9
Power: 100 runs decide a share that is 0.1 from 1/2, and a difference of 0.14. After correction for all decisions (z =
3.5) a difference would have to be above 0: "as often" cannot survive it.

    python studies/bandit.py            # 20 minutes on two cores
    python studies/bandit.py --quick    # few runs and updates: to see that it works
"""

import functools
from statistics import NormalDist

import numpy as np
from common import arguments, finish, judge, read_json, run_all
from matplotlib.figure import Figure

FAIR, STARTS = (0.2, 0.5, 0.8), (0.01, 0.02, 0.05, 0.2)
VARIANTS = {"plain": ("", 200_000), "Adam": ("--optimizer adam", 20_000), "G = 8": ("--group-size 8", 200_000)}
VARIANTS |= {"temperature 2": ("--temperature 2", 400_000)}
VARIANTS |= {"plain, negative only": ("--signs negative", 200_000)}
VARIANTS |= {"Adam, negative only": ("--signs negative --optimizer adam", 20_000)}


def wilson(share, n, z):
    """(low, high) of a share of n runs."""
    centre, half = share + z * z / (2 * n), z * np.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return (centre - half) / (1 + z * z / n), (centre + half) / (1 + z * z / n)


def decide(paper, text, variant, shares, others, n, above, matters, many):
    """A row of bandit.json: each setting of {setting: share} on its own, or its difference to the one in `others`."""
    verdicts = {}
    for level in (0.05, 0.05 / many):
        z = NormalDist().inv_cdf(1 - level / 2)
        for setting, share in shares.items():
            low, high = wilson(share, n, z)
            if others:
                other = wilson(others[setting], n, z)
                low, high = (
                    share - others[setting] - np.hypot(share - low, other[1] - others[setting]),
                    share - others[setting] + np.hypot(high - share, others[setting] - other[0]),
                )
            verdicts.setdefault(level, {})[str(setting)] = judge((low + high) / 2, (high - low) / 2, above, matters)
    plain, strict = ([*by.values()] for by in verdicts.values())
    count = "; ".join(f"{v}: {plain.count(v)}" for v in ("holds", "does not hold", "undecided") if v in plain)
    values = [round(share - (others[s] if others else 0), 3) for s, share in shares.items()]
    row = {"paper": paper, "claim": text, "measure": variant, "values": values}
    row |= {"effect": f"{min(values):+.2f} to {max(values):+.2f}", "above": above, "matters": matters}
    row |= {"verdicts": verdicts[0.05], "survives": plain == strict and {*plain} != {"undecided"}}
    return row | {"verdict": plain[0] if len(set(plain)) == 1 else count}


def draw(path, found):
    """Shares over the start of a2: two stages, reached; a line for each variant, at reward 0.5 of a1."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    for axis, key in zip(figure.subplots(1, 2, sharey=True), ("two stages", "reached"), strict=True):
        for i, variant in enumerate(VARIANTS):
            y = [found[variant, 0.5, start][key][0] for start in STARTS]
            axis.semilogx(np.array(STARTS) * 1.02**i, y, "o-", ms=3, label=variant)
        axis.set(title=f"{key}, reward of a1 0.5", xlabel="probability of a2 at the start (0.2 is not rare)")
        axis.set(ylabel="share of runs", ylim=(-0.03, 1.03))
        axis.set_xticks(STARTS, [f"{start:g}" for start in STARTS])
        axis.minorticks_off()
        axis.legend(fontsize=7)
    figure.savefig(path, dpi=90)


def main():
    args = arguments(__doc__)
    n, divisor = (10, 1000) if args.quick else (100, 1)
    paths, jobs = {}, {}
    grid = [(fair, start) for fair in FAIR for start in STARTS]
    for variant, (flags, updates) in VARIANTS.items():
        for i, (fair, start) in enumerate(grid):
            name = f"{variant}-{fair}-{start}".replace(", ", "-").replace(" = ", "").replace(" ", "-")
            policy = f"{(1 - start) / 2!r},{start!r},{(1 - start) / 2!r}"
            command = f"toy_bandit.py --rewards {fair},1,0 --policy {policy} {flags} --runs {n}"
            command += f" --steps {updates // divisor} --seed {2000 + 20 * [*VARIANTS].index(variant) + i}"
            folder = args.runs / "bandit" / name
            paths[variant, fair, start] = record = args.where / "bandit" / f"{name}.json"
            read = functools.partial(lambda path: read_json(path)["table"][0], folder / "summary.json")
            jobs[record] = [(command, folder, "summary.json")], read
    run_all(jobs)
    found, claims = {key: read_json(path) for key, path in paths.items()}, []

    def shares(variant, key, settings=grid):
        return {s: found[variant, *s][key][0] for s in settings}

    rare, many = [s for s in grid if s[1] < 0.1], 6 * 9 + 4 * 12
    for variant in ("plain", "Adam", "G = 8", "temperature 2"):
        two, text = shares(variant, "two stages", rare), "two stages where a2 starts rare"
        claims.append(decide("B 3, fig. 1", text, variant, two, None, n, 0.5, 0.0, many))
        if variant in ("plain", "Adam"):
            reached = shares(variant, "reached")
            claims.append(decide("B 3 (ours)", "a2 is reached", variant, reached, None, n, 0.5, 0.0, many))
            both = shares(f"{variant}, negative only", "reached"), reached
            text = "negative only reaches a2 as often"
            claims.append(decide("B 3 (ours)", text, variant, *both, n, -0.1, 0.0, many))
        else:
            both = two, shares("plain", "two stages", rare)
            claims.append(decide("B 3, figs. 5, 6", "as often as plain ascent", variant, *both, n, -0.1, 0.0, many))
    finish(args, "bandit", claims, draw, found)


if __name__ == "__main__":
    main()
