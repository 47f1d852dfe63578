"""Notice of a run whose first steps bring no reward: counts of the causes, and a response with its expected answer."""

from __future__ import annotations

from collections.abc import Sequence

from demopsd_dist.config import TruncatedReward
from demopsd_dist.data.records import Rollout
from demopsd_dist.data.rewards.builtin import ANSWER_FORMS, Reward, other_form
from demopsd_dist.util.printable import abridged_lines, escape_control_chars

_RESPONSE_LINES, _MAX_CHARS = 4, 200


def notice(rollouts: Sequence[Rollout], reward: Reward, max_response_tokens: int, step: int) -> list[str]:
    """Lines with the likely cause, and one response that shows it.

    A built-in reward distinguishes responses without an answer in its form, cut or not, from those with a different
    answer. Of an own reward only the cut ones are known.
    """
    count = len(rollouts)
    reads_form = reward.name in ANSWER_FORMS
    without: list[Rollout] = []
    different: list[Rollout] = []
    for rollout in rollouts if reads_form else ():
        (without if reward.extract(rollout.full_text) is None else different).append(rollout)
    unrewarded = reward.truncated is TruncatedReward.zero
    cut = [rollout for rollout in (without if reads_form and not unrewarded else rollouts) if rollout.truncated]
    limit = f"rollout.max_response_tokens={max_response_tokens}"
    form = f"reward={reward.name}"
    if reads_form:
        form += f" ({ANSWER_FORMS[reward.name].write('...')})"
    if 2 * len(cut) > count:
        shown = cut[0]
        why = ", and truncated_reward=zero" if unrewarded else " before an answer"
        cause = f"{len(cut)} of {count} were cut at {limit}{why}. Raise it, or ask for short answers"
    elif 2 * len(without) > count:
        shown = next((rollout for rollout in without if not rollout.truncated), without[0])
        hint = other_form([(one.full_text, one.prompt.question.answer) for one in without], reward.name)
        cause = (
            f"no answer in the form of {form} in {len(without)} of {count}. Ask for that form in data.system or "
            f"data.suffix, or set reward to the form that the responses have{f': {hint}' if hint else ''}"
        )
    elif reads_form:
        shown = different[0]
        cause = (
            f"{len(different)} of {count} have an answer, another than the expected one. Compare the two below: either "
            "the questions are too hard for the model, or the notation differs"
        )
    else:
        shown = rollouts[0]
        cause = f"{form} gave 0 to each. Try it on this response"
    counts = f"{count} responses"
    if reads_form:
        of_them = sum(rollout.truncated for rollout in without)
        counts += f": {len(without)} without an answer ({of_them} of them cut), {len(different)} with a different one"
    else:
        counts += f": {len(cut)} cut"
    period = "step" if step == 1 else f"{step} steps"
    return [
        f"warning: no reward in the first {period}. Likely cause, from step {step}: {cause}.",
        f"  {counts}",
        *_example(shown),
    ]


def _example(rollout: Rollout) -> list[str]:
    """The shortened response and the expected answer, with control characters escaped."""
    question = rollout.prompt.question
    first, *rest = abridged_lines(rollout.text, _RESPONSE_LINES, _MAX_CHARS)
    return [
        f"  response to {escape_control_chars(question.id)}: {first}",
        *(f"    | {line}" for line in rest),
        f"  expected answer: {escape_control_chars(question.answer, max_chars=_MAX_CHARS)}",
    ]
