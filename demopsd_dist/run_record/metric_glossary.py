"""Every figure that a step's line of `metrics.jsonl` may hold: its unit and what it means.

docs/metrics.md is this table: `python -m demopsd_dist.run_record.metric_glossary > docs/metrics.md` writes it anew.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

_PARTS = {"{quantile}": r"p\d+", "{i}": r"\d+", "{stage}": r"[a-z_]+"}


@dataclass(frozen=True)
class Metric:
    """`name` may hold `{quantile}`, `{i}` or `{stage}` where figures differ only in that."""

    name: str
    unit: str
    meaning: str

    def names(self, name: str) -> bool:
        """Whether `name` is this metric's."""
        return self._match(name) is not None

    def parts(self, name: str) -> dict[str, str]:
        """What stands for `{quantile}`, `{i}` or `{stage}` in a name of this metric."""
        found = self._match(name)
        return found.groupdict() if found else {}

    def _match(self, name: str) -> re.Match[str] | None:
        pattern = self.name
        for part, found in _PARTS.items():
            pattern = pattern.replace(part, f"(?P<{part[1:-1]}>{found})")
        return re.fullmatch(pattern, name)


ROOMS: dict[str, tuple[str, list[Metric]]] = {
    "rollout": (
        "What was sampled for the step.",
        [
            Metric("rollout/reward_mean", "0 to 1", "mean reward of all responses"),
            Metric("rollout/response_tokens_mean", "tokens", "mean length of a response"),
            Metric("rollout/truncated_fraction", "fraction", "responses cut at rollout.max_response_tokens"),
            Metric("rollout/samples", "responses", "responses sampled"),
            Metric("rollout/tokens", "tokens", "response tokens sampled"),
            Metric("rollout/groups", "questions", "questions whose responses came in time"),
            Metric("rollout/groups_differing_fraction", "fraction", "questions whose responses differ in reward"),
            Metric("rollout/learned_fraction", "fraction", "responses that the step learned from"),
            Metric("rollout/learned_tokens", "tokens", "response tokens of these"),
            Metric("rollout/reward_errors", "responses", "responses that the reward failed on, left out"),
            Metric("rollout/workers", "workers", "rollout workers that took part"),
            Metric("rollout/workers_replaced", "workers", "those that were replaced since the start"),
            Metric("rollout/worker_{i}_tokens_per_s", "tokens/s", "of a rollout worker, while it had something to do"),
        ],
    ),
    "policy": (
        "The student, and how old its rollouts are.",
        [
            Metric("policy/entropy_nats", "nats", "mean entropy of a token's distribution, over the whole vocabulary"),
            Metric(
                "policy/age_steps_max", "steps", "age of the oldest rollout: versions of the weights since it began"
            ),
            Metric("policy/age_steps_mean", "steps", "mean age of a token"),
        ],
    ),
    "demopsd": (
        "What DemoPSD decides at each token: the disagreement d of reference and teacher, and the gate alpha.",
        [
            Metric("demopsd/alpha_mean", "fraction", "mean alpha: how much the target holds back to the reference"),
            Metric("demopsd/alpha_{quantile}", "fraction", "the same, its quantiles"),
            Metric("demopsd/alpha_saturated_fraction", "fraction", "tokens with alpha above 0.9 of alpha_max"),
            Metric("demopsd/disagreement_mean_nats", "nats", "mean d, a Jensen-Shannon divergence of at most ln 2"),
            Metric("demopsd/disagreement_{quantile}_nats", "nats", "the same, its quantiles"),
            Metric("demopsd/disagreement_above_quarter_fraction", "fraction", "tokens with d above 0.25"),
        ],
    ),
    "leakage": (
        "What distributions tell about the solution that the teacher saw (docs/methods.md).",
        [
            Metric("leakage/teacher_nats", "nats", "KL of the teacher to the reference"),
            Metric("leakage/target_nats", "nats", "KL of the target to the reference; at most the teacher's"),
            Metric("leakage/ratio", "fraction", "the target's over the teacher's"),
            Metric("leakage/r_leak", "1", "squared distance of the teacher's log-probabilities to the reference's"),
            Metric("leakage/r_demo", "1", "the same of the target, without its normaliser"),
            Metric("leakage/teacher_variance", "1", "variance of that difference under the reference: teacher"),
            Metric("leakage/target_variance", "1", "variance of that difference under the reference: target"),
            Metric(
                "leakage/siblings_teacher_nats", "nats", "the teacher's next token tells which right sibling was shown"
            ),
            Metric("leakage/siblings_target_nats", "nats", "the target's next token tells that"),
            Metric("leakage/siblings_ratio", "fraction", "the target's over the teacher's"),
            Metric(
                "leakage/siblings_contexts_mean",
                "solutions",
                "siblings shown in turn; the figures cannot exceed its ln",
            ),
            Metric(
                "leakage/answers_teacher_nats", "nats", "the teacher's next token tells which bare answer was shown"
            ),
            Metric("leakage/answers_target_nats", "nats", "the target's next token tells that"),
            Metric("leakage/answers_ratio", "fraction", "the target's over the teacher's"),
            Metric(
                "leakage/answers_contexts_mean", "solutions", "answers shown in turn; the figures cannot exceed its ln"
            ),
        ],
    ),
    "entropy": (
        "Over the support and its tail bucket, means over the tokens learned from.",
        [
            Metric("entropy/student_atoms_nats", "nats", "of the student"),
            Metric("entropy/reference_nats", "nats", "of the reference"),
            Metric("entropy/teacher_nats", "nats", "of the teacher"),
            Metric("entropy/target_nats", "nats", "of the target"),
            Metric("entropy/order_violated_fraction", "fraction", "tokens where not reference >= target >= teacher"),
            Metric("entropy/target_below_teacher_fraction", "fraction", "tokens where target < teacher"),
            Metric("entropy/covariance_negative_fraction", "fraction", "tokens where theorem 2's condition fails"),
        ],
    ),
    "support": (
        "The student's most likely tokens, at which all give their probabilities.",
        [
            Metric("support/student_mass", "fraction", "probability that they hold of the student"),
            Metric("support/teacher_tail_mass", "fraction", "probability that they miss of the teacher"),
        ],
    ),
    "opsd": ("Of that method alone.", [Metric("opsd/clipped_fraction", "fraction", "tokens with a term at its bound")]),
    "grpo": (
        "Of that method alone.",
        [
            Metric("grpo/clipped_fraction", "fraction", "tokens whose probability ratio was clipped"),
            Metric("grpo/advantage_abs_mean", "1", "mean size of the advantage, over tokens"),
            Metric("grpo/kl_nats", "nats", "KL to the initial model, estimated from the sampled tokens"),
        ],
    ),
    "learner": (
        "The optimizer step.",
        [
            Metric("learner/loss", "nats", "the method's loss; absent, with all here, where nothing was learned"),
            Metric("learner/grad_norm", "1", "of the whole gradient, before it is clipped"),
            Metric("learner/learning_rate", "1", "that of the step"),
        ],
    ),
    "mismatch": (
        "Rollout engine against learner.",
        [Metric("mismatch/logp_diff_max", "nats", "largest difference in the log-probability of a sampled token")],
    ),
    "teacher": (
        "The teacher workers.",
        [
            Metric("teacher/tokens_per_s", "tokens/s", "response tokens scored, whatever the number of forwards"),
            Metric("teacher/bytes_per_token", "bytes", "log-probabilities sent for a response token"),
        ],
    ),
    "perf": (
        "Of the whole step.",
        [
            Metric("perf/step_s", "s", "from the end of the step before to its own"),
            Metric("perf/samples_per_s", "responses/s", "responses sampled, by that time"),
            Metric("perf/tokens_per_s", "tokens/s", "response tokens sampled, by that time"),
        ],
    ),
    "time": (
        "Seconds of each stage. `wait_for_rollouts` contains `sample`, `support`, `score` and `probe`, which overlap.",
        [Metric("time/{stage}_s", "s", "the driver spent in this stage since the step before")],
    ),
}


def table() -> Iterator[Metric]:
    for _, metrics in ROOMS.values():
        yield from metrics


def find(name: str) -> Metric | None:
    """The entry of a recorded name."""
    return next((metric for metric in table() if metric.names(name)), None)


def page() -> str:
    """docs/metrics.md."""
    lines = [
        "# Metrics",
        "",
        "A line of `metrics.jsonl` with a `step` and no `evaluation` holds these figures of the step, as far as the",
        "method has them. Where nothing else is said they are means over the response tokens learned from.",
        "`{quantile}` is `p50`, `p90`, `p95` or `p99`, `{i}` a worker's number, `{stage}` a stage of the driver.",
        "",
        "This page is written from [demopsd_dist/run_record/metric_glossary.py](../demopsd_dist/run_record/metric_glossary.py) by",
        "`python -m demopsd_dist.run_record.metric_glossary > docs/metrics.md`.",
    ]
    for room, (about, metrics) in ROOMS.items():
        lines += ["", f"## {room}", "", about, "", "| metric | unit | meaning |", "|---|---|---|"]
        lines += [f"| `{metric.name}` | {metric.unit} | {metric.meaning} |" for metric in metrics]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(page(), end="")
