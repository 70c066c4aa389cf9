"""lab/: the blanks are blank, the solutions are the functions of the scripts, each mistake gets its sentence."""

import ast
import contextlib
import doctest
import inspect
import io
import re
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import random_qwen

import dapo
import delta_logp
import extrapolate
import grpo_n
import replace
import toy_bandit

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "lab"))

import check
import exercises
import solutions
from mistakes import EXERCISES

LAB = Path(check.__file__).parent
pytestmark = pytest.mark.filterwarnings("ignore:.*degrees of freedom")  # as check.py does
NAMES = [exercise.name for exercise in EXERCISES.values()]


def run_check(*words):
    """(whether all are ok, what is printed) of python lab/check.py WORDS."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        all_ok = check.main(check.parse_args([str(word) for word in words]))
    return all_ok, printed.getvalue()


def verdict_on(number, function):
    """What check.py says about a function that a student wrote for an exercise."""
    exercise = EXERCISES[number]
    return check.check_exercise(exercise, SimpleNamespace(**{exercise.name: function, "__file__": __file__}))


# ------------------------------------------------------------------------------------------------ blanks and solutions
def test_blanks_are_not_written_yet():
    all_ok, printed = run_check("--file", LAB / "exercises.py")
    assert not all_ok
    assert printed.count("not written yet") == 8 and printed.endswith("\n0 of 8 ok\n")


def test_solutions_pass():
    all_ok, printed = run_check("--file", LAB / "solutions.py")
    assert all_ok and printed.endswith("\n8 of 8 ok\n")


def test_exit_status_counts_only_what_was_asked(tmp_path):
    half = tmp_path / "half.py"
    half.write_text(f"{(LAB / 'exercises.py').read_text()}\n{inspect.getsource(solutions.is_replaced)}")
    for words, status in ((["7"], 0), (["7", "8"], 1)):
        command = [sys.executable, str(LAB / "check.py"), *words, "--file", str(half)]
        found = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert found.returncode == status and "7 is_replaced        ok" in found.stdout, found.stdout + found.stderr


@pytest.mark.parametrize("name", NAMES)
def test_the_example_of_the_docstring_is_what_the_solution_prints(name):
    assert inspect.signature(getattr(exercises, name)) == inspect.signature(getattr(solutions, name))
    example = doctest.DocTestFinder(recurse=False).find(getattr(exercises, name), name, globs={"torch": torch})[0]
    example.globs[name] = getattr(solutions, name)
    printed = io.StringIO()
    result = doctest.DocTestRunner(verbose=False).run(example, out=printed.write)
    assert result.attempted > 0 and result.failed == 0, printed.getvalue()


def test_the_first_numbers_of_the_checks_come_from_the_docstrings():
    """A student who has computed the example by hand sees these numbers again."""
    for exercise in EXERCISES.values():
        shown = exercise.cases[9].expected if exercise.name == "dapo_loss" else exercise.cases[0].expected
        text = inspect.getdoc(getattr(exercises, exercise.name)).split(">>>")[-1]
        numbers = [f"{float(x):.4f}" for x in shown.flatten()] if shown.is_floating_point() else ["True", "False"]
        for number in numbers:
            assert number in text, exercise.name


# --------------------------------------------------------------------------------------------------------- the scripts
def random_batch(seed):
    """logp, logp_old, adv, mask, (6, 5) each."""
    generator = torch.Generator().manual_seed(seed)
    logp_old = torch.log_softmax(torch.randn(6, 5, 4, generator=generator), -1)[..., 0]
    logp = logp_old + torch.randn(6, 5, generator=generator)
    adv = torch.randn(6, 1, generator=generator).expand(6, 5)
    lengths = torch.randint(0, 6, (6, 1), generator=generator)
    return logp, logp_old, adv, (torch.arange(5) < lengths).float()


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_losses_and_weights_are_those_of_the_scripts(seed):
    logp, logp_old, adv, mask = random_batch(seed)
    rewards = torch.randint(0, 3, (20, 3), generator=torch.Generator().manual_seed(seed)).float()
    assert torch.equal(solutions.group_advantages(rewards), dapo.group_advantages(rewards))
    assert torch.equal(solutions.negative_only(adv), grpo_n.negative_only(adv))
    assert torch.equal(solutions.reweight_low_prob(adv, logp_old, 0.3), dapo.reweight_low_prob(adv, logp_old, 0.3))
    for arguments in ((), (0.1, 0.5, 2.0)):
        ours = logp.clone().requires_grad_()
        theirs = logp.clone().requires_grad_()
        loss = solutions.dapo_loss(ours, logp_old, adv, mask, *arguments)
        expected, _ = dapo.dapo_loss(theirs, logp_old, adv, mask, *arguments)
        loss.backward()
        expected.backward()
        assert loss.item() == pytest.approx(expected.item()) and torch.allclose(ours.grad, theirs.grad)


def test_the_bandit_is_that_of_toy_bandit():
    """One sampled action is Lemma 1; the mean over a group, its mean reward the baseline, is an update."""
    z = torch.log(torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64))
    change = solutions.bandit_update(z, 1, 0.7, 0.4, 0.1) - z
    assert np.allclose(change, toy_bandit.logit_update([0.5, 0.2, 0.3], 1, 0.7 - 0.4, 0.1))

    rewards = (0.5, 1.0, 0.0)
    (one_run,) = toy_bandit.run_bandit(rewards, (0.5, 0.2, 0.3), steps=1, group_size=3, n_runs=1, seed=2)
    uniform = np.random.default_rng(2).random(3)
    actions = [int((u >= np.cumsum([0.5, 0.2])).sum()) for u in uniform]
    assert len(set(actions)) > 1  # else nothing moves
    baseline = np.mean([rewards[action] for action in actions])
    new_z = [solutions.bandit_update(z, action, rewards[action], baseline, 0.1) for action in actions]
    assert np.allclose(torch.softmax(torch.stack(new_z).mean(0), 0), one_run[1], atol=1e-6)


def test_dlogp_replacement_and_extrapolation_are_those_of_the_scripts():
    base = random_qwen(seed=0)
    rlvr = random_qwen(seed=1)
    tokens = torch.randint(2, 40, (1, 12), generator=torch.Generator().manual_seed(0))
    mask = (torch.arange(12) >= 5).long()[None]
    with torch.no_grad():
        logits_base = base(tokens).logits[0]
        logits_rlvr = rlvr(tokens).logits[0]
    scored = delta_logp.score_pair(base, rlvr, tokens, mask)
    dlogp = solutions.response_dlogp(logits_base, logits_rlvr, tokens[0], 5)
    assert torch.allclose(dlogp, scored["dlogp"][0, 5:], atol=1e-5)

    generator = torch.Generator().manual_seed(3)
    decoded = replace.decode_two(
        base, rlvr, [[5, 6, 7]] * 4, replace.score_dlogp, [0.5], 12, [1], None, 1.0, 1.0, generator
    )
    drawn = decoded["mask"] == 1
    is_replaced = solutions.is_replaced(-decoded["scores"], -0.5)
    assert torch.equal(is_replaced[drawn], decoded["replaced"][drawn]) and 0 < is_replaced[drawn].sum() < drawn.sum()

    logp_base = torch.log_softmax(logits_base, -1)
    logp_rlvr = torch.log_softmax(logits_rlvr, -1)
    logp_rlvr[:, :3] = -torch.inf
    for gamma in (-1.0, 0.0, 0.5, 2.0):
        expected = extrapolate.extrapolate_logp(logp_rlvr, logp_base, gamma)
        assert torch.equal(solutions.extrapolate_logp(logp_rlvr, logp_base, gamma), expected)


REFERENCES = {  # the scripts' functions, with the arguments of the exercises
    1: lambda z, action, reward, baseline, lr: (
        z + torch.from_numpy(toy_bandit.logit_update(toy_bandit.softmax(z.numpy()), action, reward - baseline, lr))
    ),
    2: dapo.group_advantages,
    3: grpo_n.negative_only,
    4: lambda *inputs: dapo.dapo_loss(*inputs)[0],
    5: dapo.reweight_low_prob,
    7: lambda dlogp, threshold: -dlogp > -threshold,  # scores of replace.py are -dlogp
    8: extrapolate.extrapolate_logp,
}


@pytest.mark.parametrize("number", REFERENCES)
def test_the_scripts_pass_the_checks(number):
    """So the right answers in mistakes.py are theirs, gradients included."""
    assert verdict_on(number, REFERENCES[number]) == "ok"


# -------------------------------------------------------------------------------------------------------- the mistakes
@pytest.mark.parametrize("number", EXERCISES)
def test_each_known_mistake_is_told_from_all_others(number):
    exercise = EXERCISES[number]
    assert len(exercise.sentences) == len(set(exercise.sentences.values())) >= 3
    for mistake, sentence in exercise.sentences.items():
        assert verdict_on(number, partial(exercise.wrong, mistake)) == sentence, mistake
    with pytest.raises(ValueError, match="no such mistake"):
        exercise.wrong("no such mistake", *exercise.cases[0].inputs.values())


def bandit_of_one_logit(z, action, reward, baseline, lr):
    z = z.clone()
    z[action] += lr * (reward - baseline) * (1 - z.softmax(0)[action])
    return z


def bandit_in_place(z, action, reward, baseline, lr):
    pi = z.softmax(0)
    z -= lr * (reward - baseline) * pi
    z[action] += lr * (reward - baseline)
    return z


def bandit_without_baseline(z, action, reward, baseline, lr):
    one_hot = torch.nn.functional.one_hot(torch.tensor(action), len(z))
    return z + lr * reward * (one_hot - z.softmax(0))


def bandit_that_descends(z, action, reward, baseline, lr):
    logits = z.clone().requires_grad_()
    loss = -(reward - baseline) * logits.log_softmax(0)[action]
    loss.backward()
    return (logits + lr * logits.grad).detach()


def ratio_and_clipped(logp, logp_old, low, high):
    ratio = torch.exp(logp - logp_old.detach())
    return ratio, torch.clamp(ratio, 1 - low, 1 + high)


def raised(term, adv, c):
    return torch.where(adv < 0, torch.max(term, c * adv), term)


def dapo_by_response(logp, logp_old, adv, mask, low=0.2, high=0.28, c=10.0):
    ratio, clipped = ratio_and_clipped(logp, logp_old, low, high)
    term = raised(torch.min(ratio * adv, clipped * adv), adv, c)
    return -((term * mask).sum(1) / mask.sum(1)).nanmean()


def dapo_with_max(logp, logp_old, adv, mask, low=0.2, high=0.28, c=10.0):
    ratio, clipped = ratio_and_clipped(logp, logp_old, low, high)
    loss = torch.min(-ratio * adv, -clipped * adv)
    return (loss * mask).sum() / mask.sum()


def dapo_with_min_of_ratios(logp, logp_old, adv, mask, low=0.2, high=0.28, c=10.0):
    ratio, clipped = ratio_and_clipped(logp, logp_old, low, high)
    return -(torch.min(ratio, clipped) * adv * mask).sum() / mask.sum()


def dapo_of_log_ratio(logp, logp_old, adv, mask, low=0.2, high=0.28, c=10.0):
    ratio = logp - logp_old
    term = raised(torch.min(ratio * adv, ratio.clamp(1 - low, 1 + high) * adv), adv, c)
    return -(term * mask).sum() / mask.sum()


def dapo_without_dual_clip(logp, logp_old, adv, mask, low=0.2, high=0.28, c=10.0):
    ratio, clipped = ratio_and_clipped(logp, logp_old, low, high)
    return -(torch.min(ratio * adv, clipped * adv) * mask).sum() / mask.sum()


def dapo_without_mask(logp, logp_old, adv, mask, low=0.2, high=0.28, c=10.0):
    ratio, clipped = ratio_and_clipped(logp, logp_old, low, high)
    return -raised(torch.min(ratio * adv, clipped * adv), adv, c).mean()


def dapo_two_mistakes(logp, logp_old, adv, mask, low=0.2, high=0.28, c=10.0):
    """Without dual clip and by response: the first case that shows one of them decides."""
    ratio, clipped = ratio_and_clipped(logp, logp_old, low, high)
    return -((torch.min(ratio * adv, clipped * adv) * mask).sum(1) / mask.sum(1)).mean()


def dapo_over_padding(logp, logp_old, adv, mask, low=0.2, high=0.28, c=10.0):
    """Right values; where padding overflows its gradient is nan."""
    ratio, clipped = ratio_and_clipped(logp, logp_old, low, high)
    term = raised(torch.min(ratio * adv, clipped * adv), adv, c)
    return -torch.where(mask == 1, term, 0.0).sum() / mask.sum().clamp(min=1)


def dapo_old_policy_moves(logp, logp_old, adv, mask, low=0.2, high=0.28, c=10.0):
    ratio = (logp - logp_old).masked_fill(mask == 0, 0.0).exp()
    term = raised(torch.min(ratio * adv, ratio.clamp(1 - low, 1 + high) * adv), adv, c)
    return -(term * mask).sum() / mask.sum().clamp(min=1)


def dapo_half_detached(logp, logp_old, adv, mask, low=0.2, high=0.28, c=10.0):
    """At a ratio of 1 both terms of the minimum are equal, and each gets half of the gradient."""
    ratio = (logp - logp_old.detach()).masked_fill(mask == 0, 0.0).exp()
    term = raised(torch.min(ratio * adv, ratio.detach().clamp(1 - low, 1 + high) * adv), adv, c)
    return -(term * mask).sum() / mask.sum().clamp(min=1)


def dlogp_by_loop(shift):
    def dlogp(base, rlvr, tokens, n_prompt):
        values = []
        for t in range(n_prompt, len(tokens)):
            token = tokens[t].item()
            values.append(rlvr[t - shift].log_softmax(0)[token] - base[t - shift].log_softmax(0)[token])
        return torch.stack(values)

    return dlogp


def dlogp_of_probabilities(base, rlvr, tokens, n_prompt):
    targets = tokens[n_prompt:, None]
    return (rlvr.softmax(-1)[n_prompt - 1 : -1] - base.softmax(-1)[n_prompt - 1 : -1]).gather(1, targets)[:, 0]


def dlogp_of_log_of_softmax(base, rlvr, tokens, n_prompt):
    targets = tokens[n_prompt:, None]
    dlogp = rlvr.softmax(-1).log() - base.softmax(-1).log()
    return dlogp[n_prompt - 1 : -1].gather(1, targets)[:, 0]


def dlogp_of_everything(base, rlvr, tokens, n_prompt):
    dlogp = rlvr.log_softmax(-1) - base.log_softmax(-1)
    return dlogp[:-1].gather(1, tokens[1:, None])[:, 0]


PLANTED = [  # (exercise, a function as a student might write it, words of its sentence)
    (1, bandit_of_one_logit, "Only the logit of the sampled action"),
    (1, bandit_in_place, "changes its input z"),
    (1, bandit_without_baseline, "baseline is not used"),
    (1, bandit_that_descends, "wrong direction"),
    (1, lambda z, a, r, b, lr: bandit_that_descends(z, a, b, r, lr) - z, "change of the logits"),
    (1, lambda z, a, r, b, lr: z * 1.0, "returns [0, 0, 0.6931], but the docstring gets [0.025,"),  # unknown
    (2, lambda r: (r - r.mean(1, True)) / (r.std(1, correction=0, keepdim=True) + 1e-8), "divides by G;"),
    (2, lambda r: (r - r.mean()) / (r.std() + 1e-6), "whole batch"),
    (2, lambda r: (r - r.mean(1, True)) / r.std(1, keepdim=True), "gives nan, because 0 is divided by 0"),
    (2, lambda r: (r - r.mean(1, True)) / (r.std(1, keepdim=True) + 1e-8), "rounding makes their mean differ"),
    (2, lambda r: r - r.mean(1, True), "not divided by the standard deviation"),
    (2, lambda r: (r - r.mean(0)) / (r.std(0) + 1e-6), "a group is a row"),
    (2, lambda r: (r - r.mean(1)) / r.std(1), "keepdim=True"),
    (2, lambda r: (r - r.mean(1, True)) / r.var(1, keepdim=True), "variance"),
    (3, lambda a: a.clamp(max=0) - a.clamp(max=0).mean(-1, True), "nothing may be shifted"),
    (3, lambda a: a[a < 0], "the shape must stay"),
    (3, lambda a: a.relu(), "You keep the positive"),
    (3, lambda a: a < 0, "dtype torch.bool"),
    (3, lambda a: (a < 0).float(), "their values are wanted"),
    (3, lambda a: a.clamp_(max=0), "changes its input adv"),
    (4, dapo_by_response, "divided by its own length"),
    (4, dapo_with_max, "The larger of both terms"),
    (4, dapo_of_log_ratio, "must be exponentiated"),
    (4, dapo_without_dual_clip, "dual clip is missing"),
    (4, dapo_without_mask, "mask is ignored"),
    (4, dapo_two_mistakes, "dual clip is missing"),
    (4, lambda *inputs: -solutions.dapo_loss(*inputs), "The sign is wrong"),
    (4, lambda *inputs: solutions.dapo_loss(*inputs).item(), "returns a float"),
    (4, lambda *inputs: dapo.dapo_loss(*inputs), "returns a tuple"),
    (4, lambda *inputs: solutions.dapo_loss(*inputs)[None], "the shape (1,)"),
    (4, lambda logp, *inputs: solutions.dapo_loss(logp.detach(), *inputs), "no gradient flows into logp"),
    (4, dapo_over_padding, "gradient is nan"),
    (4, dapo_old_policy_moves, "flows into logp_old"),
    (4, dapo_half_detached, "its gradient is not"),
    (4, dapo_with_min_of_ratios, "The smaller ratio is taken first"),
    (5, lambda a, logp, alpha: (a * (1 - alpha * (1 - logp.exp()))).detach(), "as in the baseline Dominate"),
    (5, lambda a, logp, alpha: (a * (alpha * logp.exp() + 1 - alpha)).detach(), "as in the baseline Dominate"),
    (5, lambda a, logp, alpha: a * (1 + alpha * (1 - logp.exp())), "a gradient flows through the weights"),
    (5, lambda a, logp, alpha: a * (1 + alpha * (1 - logp)), "log-prob stands where"),
    (5, lambda a, logp, alpha: a * (1 + alpha * logp.exp()), "Likely tokens count more"),
    (6, dlogp_by_loop(0), "off by one"),
    (6, lambda base, rlvr, *rest: dlogp_by_loop(1)(rlvr, base, *rest), "The sign is wrong"),
    (6, dlogp_of_probabilities, "You subtract probabilities"),
    (6, dlogp_of_log_of_softmax, "use torch.log_softmax"),
    (6, dlogp_of_everything, "tokens of the prompt"),
    (6, lambda b, r, t, n: (r - b)[n - 1 : -1].gather(1, t[n:, None])[:, 0], "need a log-softmax"),
    (6, lambda b, r, t, n: solutions.response_dlogp(b, r, t, n)[:, None], "the shape (2, 1)"),
    (7, lambda dlogp, threshold: dlogp > threshold, "the wrong way round"),
    (7, lambda dlogp, threshold: dlogp.abs() > -threshold, "whatever its sign"),
    (7, lambda dlogp, threshold: dlogp <= threshold, "it must stay"),
    (7, lambda dlogp, threshold: torch.where(dlogp < threshold)[0], "positions of the replaced"),
    (7, lambda dlogp, threshold: (dlogp < threshold).int(), "torch.bool is wanted"),
    (8, lambda rlvr, base, gamma: rlvr + gamma * (rlvr - base), "not normalised"),
    (8, lambda rlvr, base, gamma: (base + gamma * (rlvr - base)).log_softmax(-1), "You start from the base"),
    (8, lambda rlvr, base, gamma: (rlvr + gamma * (base - rlvr)).log_softmax(-1), "back towards the base"),
    (8, lambda rlvr, base, gamma: (rlvr + gamma * (rlvr - base)).log_softmax(-1), "-inf - (-inf) is nan"),
    (8, lambda rlvr, base, gamma: (rlvr + gamma * (rlvr - base)).softmax(-1), "You return probabilities"),
]


@pytest.mark.parametrize(("number", "function", "words"), PLANTED)
def test_a_planted_mistake_gets_its_sentence(number, function, words):
    verdict = verdict_on(number, function)
    assert words in verdict and "\n" not in verdict


def test_at_least_three_mistakes_are_planted_in_each_exercise():
    for number in EXERCISES:
        assert len({words for planted, _, words in PLANTED if planted == number}) >= 3


# ------------------------------------------------------------------------------------------- what else a student does
def student_file(tmp_path, old, new):
    """exercises.py with one text replaced."""
    source = (LAB / "exercises.py").read_text()
    assert source.count(old) == 1
    path = tmp_path / "mine.py"
    path.write_text(source.replace(old, new))
    return path


BLANK = 'raise NotImplementedError("exercise 3: negative_only")'


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("return adv / unknown", "stops with NameError: name 'unknown' is not defined (line {line}: `{code}`)"),
        ("return adv.softmax(0, 1, 2, 3)", "stops with TypeError: "),
        ("return torch.tensor([1, 2]).softmax(0)", "(line {line}: `{code}`)"),  # torch's own NotImplementedError
        ("raise NotImplementedError", "stops with NotImplementedError (line {line}"),
        ("return exit()", "stops with SystemExit: None (line {line}"),
        ("pass", "returns nothing: is there a `return`"),
        ("return adv.tolist()", "returns a list; one torch tensor is wanted"),
        ("return adv.sum()", "returns the shape (); (4,) is wanted"),
    ],
)
def test_what_stops_a_function_is_one_sentence_with_its_line(tmp_path, code, words):
    path = student_file(tmp_path, BLANK, code)
    all_ok, printed = run_check(3, 7, "--file", path)
    line = 1 + path.read_text().splitlines().index(f"    {code}")
    first, second, _ = printed.splitlines()
    assert not all_ok and words.format(line=line, code=code) in first and first.endswith((".", "?"))
    assert "not written yet" in second


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (BLANK, "return adv *", "mine.py, line {line}: Python cannot read `return adv *` (invalid syntax)"),
        (BLANK, "return (adv", "mine.py, line {line}: Python cannot read `return (adv` ('(' was never closed)"),
        ("import torch  #", "import torhc  #", "mine.py stops with ModuleNotFoundError: No module named 'torhc'"),
    ],
)
def test_a_file_that_does_not_load_is_one_message(tmp_path, old, new, words):
    path = student_file(tmp_path, old, new)
    line = 1 + next(i for i, text in enumerate(path.read_text().splitlines()) if new in text)
    with pytest.raises(ValueError) as caught:
        run_check("--file", path)
    assert str(caught.value).startswith(words.format(line=line)) and "\n" not in str(caught.value)


def test_the_command_prints_that_message_and_no_traceback(tmp_path):
    command = [sys.executable, str(LAB / "check.py"), "--file", str(student_file(tmp_path, BLANK, "return adv *"))]
    found = subprocess.run(command, capture_output=True, text=True)
    assert found.returncode == 1 and found.stdout == ""
    assert found.stderr.startswith("error: mine.py, line ") and found.stderr.count("\n") == 1


def test_a_missing_file_or_function_or_exercise(tmp_path, capsys):
    with pytest.raises(ValueError, match=r"nowhere.py: there is no such file"):
        run_check("--file", tmp_path / "nowhere.py")
    _, printed = run_check(3, "--file", student_file(tmp_path, "def negative_only(", "def negatives_only("))
    assert "There is no function negative_only in the file" in printed
    with pytest.raises(SystemExit):
        run_check(9)
    assert "there is no exercise 9: they are 1 to 8" in capsys.readouterr().err


def test_a_changed_file_is_read_again(tmp_path):
    """Within the second, and of the same length: a compiled copy would look fresh."""
    path = student_file(tmp_path, BLANK, "return adv.clamp(max=0)")
    assert run_check(3, "--file", path)[0]
    path.write_text(path.read_text().replace("max=0", "min=0"))
    assert "You keep the positive" in run_check(3, "--file", path)[1]


def test_the_solution_is_never_printed():
    """No statement of solutions.py, and no right-hand side of one, stands in anything that check.py can say."""
    spoken = [verdict_on(number, function) for number, function, _ in PLANTED]
    for exercise in EXERCISES.values():
        spoken += [*exercise.sentences.values(), *(case.words for case in exercise.cases)]
    code = []
    for node in ast.walk(ast.parse((LAB / "solutions.py").read_text())):
        if isinstance(node, ast.Assign | ast.AugAssign | ast.Return):
            code += [ast.unparse(node), ast.unparse(node.value)]
    assert len(code) > 30
    for statement in code:
        assert not any(statement in text for text in spoken), statement


def test_the_readme_is_short_and_has_the_eight_functions_in_order():
    text = (LAB / "README.md").read_text()
    assert len(text.split()) <= 400
    assert re.findall(r"^\| \d `(\w+)`", text, re.M) == NAMES
    for target in re.findall(r"\]\((.+?)\)", text):
        assert (LAB / target).exists(), target
    for words in re.findall(r"python lab/check.py([^#\n]*)", text):
        check.parse_args(words.split())


def test_the_lab_needs_torch_alone():
    for path in LAB.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import | ast.ImportFrom):
                modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module]
                for module in modules:
                    allowed = {"torch", "numpy", "matplotlib", "mistakes"} | sys.stdlib_module_names
                    assert module.split(".")[0] in allowed, path.name
