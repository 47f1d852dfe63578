"""Glossary of the metrics in `metrics.jsonl`: name, unit and meaning of each.

docs/metrics.md is generated from it by `python -m demopsd_dist.run_record.metric_glossary > docs/metrics.md`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

_PLACEHOLDERS = {"{quantile}": r"p\d+", "{i}": r"\d+", "{stage}": r"[a-z_]+", "{set}": r"[\w.-]+"}


@dataclass(frozen=True)
class Metric:
    """A metric, or several that differ only in a placeholder in `name`: `{quantile}`, `{i}`, `{stage}` or `{set}`."""

    name: str
    unit: str
    meaning: str

    def matches(self, name: str) -> bool:
        """True if `name` is a recorded name of this metric."""
        return self._match(name) is not None

    def labels(self, name: str) -> dict[str, str]:
        """Values of the placeholders in a recorded name of this metric."""
        match = self._match(name)
        return match.groupdict() if match else {}

    def _match(self, name: str) -> re.Match[str] | None:
        pattern = self.name
        for placeholder, values in _PLACEHOLDERS.items():
            pattern = pattern.replace(placeholder, f"(?P<{placeholder[1:-1]}>{values})")
        return re.fullmatch(pattern, name)


METRIC_GROUPS: dict[str, tuple[str, list[Metric]]] = {
    "rollout": (
        "Rollouts sampled for the step.",
        [
            Metric("rollout/reward_mean", "0 to 1", "mean reward of all responses"),
            Metric("rollout/response_tokens_mean", "tokens", "mean length of a response"),
            Metric("rollout/truncated_fraction", "fraction", "responses cut at rollout.max_response_tokens"),
            Metric("rollout/repeated_fraction", "fraction", "runs of four tokens that a response has had before"),
            Metric("rollout/samples", "responses", "sampled responses"),
            Metric("rollout/tokens", "tokens", "sampled response tokens"),
            Metric("rollout/groups", "questions", "questions whose responses finished in time"),
            Metric("rollout/groups_differing_fraction", "fraction", "questions whose responses differ in reward"),
            Metric(
                "rollout/groups_learnable_fraction",
                "fraction",
                "questions that the method can learn from: a response has a privileged context; for grpo, rewards "
                "differ; for mixed, either",
            ),
            Metric("rollout/learned_fraction", "fraction", "responses that are training examples of the step"),
            Metric("rollout/learned_tokens", "tokens", "response tokens of the training examples"),
            Metric("rollout/reward_errors", "responses", "responses left out because the reward failed on them"),
            Metric(
                "rollout/undecided", "responses", "answers that math-verify or a gym task's scorer failed on, as wrong"
            ),
            Metric("rollout/workers", "workers", "rollout workers that are serving"),
            Metric("rollout/workers_replaced", "workers", "rollout workers replaced since the start"),
            Metric(
                "rollout/worker_{i}_tokens_per_s", "tokens/s", "throughput of a rollout worker while it has requests"
            ),
        ],
    ),
    "train_set": (
        "Training sets, where `data.train` has several.",
        [
            Metric("train_set/groups_{set}", "questions", "questions of the set whose responses finished in time"),
            Metric("train_set/reward_mean_{set}", "0 to 1", "mean reward of the responses to them"),
        ],
    ),
    "privileged": (
        "Sources of the solution in the teacher's prompt: those that `privileged.source` may have.",
        [
            Metric("privileged/sibling_fraction", "fraction", "training examples with a correct response of the group"),
            Metric("privileged/dataset_fraction", "fraction", "training examples with the data set's own solution"),
            Metric("privileged/sibling_and_dataset_fraction", "fraction", "training examples with both"),
            Metric("privileged/answer_only_fraction", "fraction", "training examples with the bare answer"),
            Metric(
                "privileged/other_question_fraction", "fraction", "training examples with another question's solution"
            ),
            Metric("privileged/feedback_fraction", "fraction", "training examples with feedback and no solution"),
            Metric("privileged/cut_fraction", "fraction", "training examples with a text cut to privileged.max_tokens"),
        ],
    ),
    "policy": (
        "The student, and the staleness of its rollouts.",
        [
            Metric("policy/entropy_nats", "nats", "mean entropy of the student's next token over the whole vocabulary"),
            Metric(
                "policy/age_steps_max", "steps", "largest staleness of a rollout: weight versions since its first token"
            ),
            Metric("policy/age_steps_mean", "steps", "mean staleness of a token"),
        ],
    ),
    "demopsd": (
        "DemoPSD's disagreement d of reference and teacher, and its gate alpha, at each token.",
        [
            Metric("demopsd/alpha_mean", "fraction", "mean alpha: weight of the reference in the target"),
            Metric("demopsd/alpha_{quantile}", "fraction", "quantile of alpha"),
            Metric("demopsd/alpha_saturated_fraction", "fraction", "tokens with alpha above 0.9 of alpha_max"),
            Metric("demopsd/gate_sensitivity", "1/nats", "kappa fitted to the step, with gate=fitted"),
            Metric("demopsd/alpha_max", "fraction", "upper bound of alpha in this step, with alpha_max_final"),
            Metric("demopsd/disagreement_mean_nats", "nats", "mean d, a Jensen-Shannon divergence of at most ln 2"),
            Metric("demopsd/disagreement_{quantile}_nats", "nats", "quantile of d"),
            Metric("demopsd/disagreement_above_quarter_fraction", "fraction", "tokens with d above 0.25"),
        ],
    ),
    "leakage": (
        "Information about the shown solution in the distributions of teacher and target (docs/methods.md).",
        [
            Metric("leakage/teacher_nats", "nats", "KL divergence of the teacher from the reference"),
            Metric(
                "leakage/target_nats", "nats", "KL divergence of the target from the reference; at most the teacher's"
            ),
            Metric("leakage/ratio", "fraction", "leakage/target_nats over leakage/teacher_nats"),
            Metric("leakage/r_leak", "1", "squared distance of the teacher's log-probabilities to the reference's"),
            Metric("leakage/r_demo", "1", "the same for the target, without its normaliser"),
            Metric(
                "leakage/teacher_variance",
                "1",
                "variance, under the reference, of the teacher's log-probability minus the reference's",
            ),
            Metric("leakage/target_variance", "1", "the same for the target"),
            *(
                metric
                for family, shown in (("siblings", "correct sibling"), ("answers", "bare answer"))
                for metric in (
                    Metric(
                        f"leakage/{family}_teacher_nats",
                        "nats",
                        f"mutual information of the teacher's next token and the shown {shown}",
                    ),
                    Metric(
                        f"leakage/{family}_target_nats",
                        "nats",
                        f"mutual information of the target's next token and the shown {shown}",
                    ),
                    Metric(f"leakage/{family}_ratio", "fraction", "the target's information over the teacher's"),
                    Metric(
                        f"leakage/{family}_contexts_mean",
                        "solutions",
                        f"mean number of {shown}s shown in turn; its ln bounds the information",
                    ),
                )
            ),
        ],
    ),
    "entropy": (
        "Entropies over the support and its tail bucket, means over the trained tokens.",
        [
            Metric("entropy/student_atoms_nats", "nats", "entropy of the student"),
            Metric("entropy/reference_nats", "nats", "entropy of the reference"),
            Metric("entropy/teacher_nats", "nats", "entropy of the teacher"),
            Metric("entropy/target_nats", "nats", "entropy of the target"),
            Metric("entropy/order_violated_fraction", "fraction", "tokens without reference >= target >= teacher"),
            Metric("entropy/target_below_teacher_fraction", "fraction", "tokens with target < teacher"),
            Metric("entropy/covariance_negative_fraction", "fraction", "tokens where theorem 2's condition fails"),
        ],
    ),
    "drift": (
        "Distance to the initial model, every `drift.every_steps` steps.",
        [
            Metric(
                "drift/initial_kl_nats",
                "nats",
                "KL(initial model‖student) a token, on responses that the initial model sampled in the first step",
            )
        ],
    ),
    "support": (
        "The support: the tokens at which all models give log-probabilities.",
        [
            Metric("support/student_mass", "fraction", "probability of the support under the student"),
            Metric("support/teacher_tail_mass", "fraction", "probability outside the support under the teacher"),
        ],
    ),
    "opsd": ("OPSD alone.", [Metric("opsd/clipped_fraction", "fraction", "tokens with a clipped term")]),
    "grpo": (
        "GRPO, and the policy gradient of a mixed loss.",
        [
            Metric("grpo/clipped_fraction", "fraction", "tokens with a clipped probability ratio"),
            Metric("grpo/truncated_fraction", "fraction", "tokens with a truncated learner-to-engine ratio"),
            Metric("grpo/advantage_abs_mean", "1", "mean absolute advantage of a token"),
            Metric("grpo/kl_nats", "nats", "KL divergence to the initial model, estimated from the sampled tokens"),
        ],
    ),
    "mixed": (
        "Mixed losses alone. The metrics of their distillation are means over all learned tokens, 0 where nothing is "
        "distilled.",
        [
            Metric("mixed/distilled_fraction", "fraction", "learned tokens with a teacher"),
            Metric("mixed/policy_loss", "1", "policy gradient's part of the loss, a mean over all learned tokens"),
            Metric("mixed/distillation_loss_nats", "nats", "distillation's part of the loss, likewise"),
        ],
    ),
    "learner": (
        "The optimizer step. Steps without a training example have none of these metrics.",
        [
            Metric("learner/loss", "nats", "loss of the method"),
            Metric("learner/grad_norm", "1", "norm of the gradient before clipping"),
            Metric("learner/learning_rate", "1", "learning rate of the step"),
        ],
    ),
    "mismatch": (
        "Rollout engine against learner.",
        [
            Metric("mismatch/logp_diff_max", "nats", "largest difference in the log-probability of a sampled token"),
            Metric("mismatch/logp_diff_{quantile}", "nats", "quantile of that difference"),
        ],
    ),
    "teacher": (
        "The teacher workers.",
        [
            Metric("teacher/tokens_per_s", "tokens/s", "scored response tokens, whatever the number of forwards"),
            Metric("teacher/bytes_per_token", "bytes", "log-probabilities sent for a response token"),
        ],
    ),
    "perf": (
        "Throughput of the whole step.",
        [
            Metric("perf/step_s", "s", "time from the end of the previous step to the end of this one"),
            Metric("perf/samples_per_s", "responses/s", "sampled responses over that time"),
            Metric("perf/tokens_per_s", "tokens/s", "sampled response tokens over that time"),
            Metric(
                "perf/{stage}_utilisation",
                "fraction",
                "matrix products of `sample`, `support`, `score` or `learn` over its seconds and its role's peak",
            ),
        ],
    ),
    "time": (
        "Seconds of each stage. `wait_for_rollouts` contains `sample`, `support`, `score` and `probe`, which overlap.",
        [Metric("time/{stage}_s", "s", "time of the driver in this stage since the previous step")],
    ),
}
"""Metrics by the first part of their names, with a description of each group."""


def all_metrics() -> Iterator[Metric]:
    """The metrics of all groups."""
    for _, metrics in METRIC_GROUPS.values():
        yield from metrics


def find_metric(name: str) -> Metric | None:
    """The metric of a recorded name, None if it is not in the glossary."""
    return next((metric for metric in all_metrics() if metric.matches(name)), None)


def page() -> str:
    """Text of docs/metrics.md."""
    lines = [
        "# Metrics",
        "",
        "A line of `metrics.jsonl` with a `step` and no `evaluation` holds these metrics of the step, as far as the",
        "method has them. Unless stated otherwise they are means over the trained response tokens.",
        "`{quantile}` is `p50`, `p90`, `p95` or `p99`, `{i}` the number of a worker, `{stage}` a stage of the driver,",
        "`{set}` the name of a training set.",
        "",
        "This page is generated from",
        "[demopsd_dist/run_record/metric_glossary.py](../demopsd_dist/run_record/metric_glossary.py) by",
        "`python -m demopsd_dist.run_record.metric_glossary > docs/metrics.md`.",
    ]
    for group, (about, metrics) in METRIC_GROUPS.items():
        lines += ["", f"## {group}", "", about, "", "| metric | unit | meaning |", "|---|---|---|"]
        lines += [f"| `{metric.name}` | {metric.unit} | {metric.meaning} |" for metric in metrics]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(page(), end="")
