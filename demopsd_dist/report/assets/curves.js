// Charts of the section Curves: metrics that are drawn together, with their captions and axes.

// metrics: name in metrics.jsonl -> name in the legend; comparing runs shows the first two
const CURVES = [
  {
    head: "Evaluation",
    charts: [
      { title: "Accuracy", about: "Mean over the fields on test and out-of-distribution questions, with 95 % intervals over questions.", unit: "accuracy, %", evaluations: true, show: (value) => percent(value, 0) },
      { title: "Accuracy by field", about: "On test questions.", unit: "accuracy, %", fields: true, show: (value) => percent(value, 0) },
      { title: "Right in one of several", about: "pass@k: the probability that one of k responses to a test question is right, and mean@k, the accuracy of one. Where pass@k falls while mean@k rises, training narrows what the model tries.", unit: "accuracy, %", passes: true, show: (value) => percent(value, 0) },
      { title: "Reward", about: "Mean over all responses sampled for a step.", unit: "mean reward, %", metrics: { "rollout/reward_mean": "reward" }, show: (value) => percent(value, 0) },
    ],
  },
  {
    head: "Distillation",
    charts: [
      { title: "Disagreement", about: "Jensen-Shannon divergence of reference and teacher at a token: the effect of the solution on the prediction.", unit: "nats a token", metrics: { "demopsd/disagreement_mean_nats": "mean", "demopsd/disagreement_p95_nats": "95th percentile" }, zero: true },
      { title: "Alpha", about: "Weight of the reference in the barycenter; it rises with the disagreement.", unit: "alpha", metrics: { "demopsd/alpha_mean": "mean", "demopsd/alpha_p95": "95th percentile" }, zero: true },
      { title: "Leakage", about: `KL divergence from the reference: upper bound of the information about the solution in teacher and ${TARGET}.`, unit: "nats a token", metrics: { "leakage/target_nats": TARGET, "leakage/teacher_nats": "teacher" }, zero: true },
      { title: "Answer leakage", about: "Mutual information of the next token and the bare answer in the prompt.", unit: "nats a token", metrics: { "leakage/answers_target_nats": TARGET, "leakage/answers_teacher_nats": "teacher" }, zero: true },
      { title: "Sibling leakage", about: "Mutual information of the next token and the right response in the prompt, among responses with the same answer.", unit: "nats a token", metrics: { "leakage/siblings_target_nats": TARGET, "leakage/siblings_teacher_nats": "teacher" }, zero: true },
      { title: "Entropy", about: "Entropy of the next-token distribution.", unit: "nats a token", metrics: { "policy/entropy_nats": "student", "entropy/reference_nats": "reference", "entropy/target_nats": TARGET, "entropy/teacher_nats": "teacher" }, zero: true },
    ],
  },
  {
    head: "Optimization",
    charts: [
      { title: "Loss", about: "Loss of the method.", unit: "nats a token", metrics: { "learner/loss": "loss" } },
      { title: "Gradient norm", about: "Norm before clipping.", unit: "gradient norm", metrics: { "learner/grad_norm": "norm" }, zero: true },
      { title: "Learning rate", about: "Learning rate of each optimizer step.", unit: "learning rate", metrics: { "learner/learning_rate": "rate" }, zero: true },
      { title: "Training signal", about: "Responses that are learned from; questions that the method can learn from; questions whose responses differ in reward.", unit: "fraction, %", metrics: { "rollout/learned_fraction": "responses learned from", "rollout/groups_learnable_fraction": "questions to learn from", "rollout/groups_differing_fraction": "questions with different rewards" }, show: (value) => percent(value, 0) },
      { title: "Solutions shown", about: "Sources of the solution in the teacher’s prompt; the rest are correct siblings.", unit: "fraction, %", metrics: { "privileged/dataset_fraction": "data set’s own", "privileged/sibling_and_dataset_fraction": "sibling and own", "privileged/feedback_fraction": "feedback alone" }, show: (value) => percent(value, 0) },
      { title: "Response length", about: "Mean tokens of a response.", unit: "tokens", metrics: { "rollout/response_tokens_mean": "tokens" } },
      { title: "Repetition", about: "Runs of four tokens that a response has had before.", unit: "fraction, %", metrics: { "rollout/repeated_fraction": "repeated" }, show: (value) => percent(value, 0), zero: true },
      { title: "Distance to the initial model", about: "KL divergence of the student from the initial model, on responses that the initial model sampled.", unit: "nats a token", metrics: { "drift/initial_kl_nats": "distance" }, zero: true },
      { title: "Engine/learner mismatch", about: "Largest difference in the log-probability of a sampled token; logarithmic scale.", unit: "nats", metrics: { "mismatch/logp_diff_max": "difference" }, log: true },
      { title: "Utilisation", about: "Operations of a stage’s matrix products over its seconds and the measured peak of its workers.", unit: "share of the peak, %", metrics: { "perf/sample_utilisation": "sample", "perf/score_utilisation": "score", "perf/learn_utilisation": "learn", "perf/support_utilisation": "support" }, zero: true, show: (value) => percent(value, 0) },
      { title: "Staleness", about: "Age of rollouts in weight versions.", unit: "steps", metrics: { "policy/age_steps_max": "oldest", "policy/age_steps_mean": "mean" }, zero: true },
    ],
  },
];

const DASHES = [null, "5 3", "2 3", "8 3 2 3"];

function showCurves(container) {
  container.append(smoothingControl());
  for (const { head, charts } of CURVES) {
    const cards = charts.map(chartOf).filter(Boolean);
    if (cards.length) container.append(el("h3", { class: "group" }, head), el("div", { class: "grid" }, ...cards));
  }
}

function chartOf(chart) {
  const series = chart.evaluations ? accuracySeries() : chart.fields ? fieldSeries() : chart.passes ? passSeries() : metricSeries(chart.metrics);
  return lineChart({ ...chart, series });
}

function metricSeries(metrics) {
  const legend = Object.entries(metrics);
  return RUNS.flatMap((run, index) =>
    legend.slice(0, MANY ? 2 : legend.length).map(([metric, name], i) => ({
      name: MANY ? (legend.length > 1 ? `${run.name}, ${name}` : run.name) : name,
      colour: colour(MANY ? index : i),
      dash: MANY ? DASHES[i] : null,
      points: pointsOf(run, metric),
    })),
  );
}

function pointsOf(run, metric) {
  return (run.metrics[metric] ?? []).flatMap((value, i) => (isNumber(value) ? [[run.step[i], value]] : []));
}

function accuracySeries() {
  const splits = { test: "test", ood: "out of distribution" };
  return RUNS.flatMap((run, index) =>
    Object.entries(splits).map(([split, name], i) => {
      const lines = run.evaluations.filter((line) => line.evaluation === split);
      return {
        name: MANY ? `${run.name}, ${name}` : name,
        colour: colour(MANY ? index : i),
        dash: MANY ? DASHES[i] : null,
        dots: true,
        points: lines.map((line) => [line.step, line.mean.average]),
        band: lines.map((line) => [line.step, line.mean.low, line.mean.high]),
      };
    }),
  );
}

function passSeries() {
  return RUNS.flatMap((run, index) => {
    const lines = run.evaluations.filter((line) => line.evaluation === "test" && line.samples > 1 && line.passes);
    if (!lines.length) return [];
    const k = lines[0].samples;
    const curve = (name, accuracyOf, i) => ({
      name: MANY ? `${run.name}, ${name}` : name,
      colour: colour(MANY ? index : i),
      dash: MANY ? DASHES[i] : null,
      dots: true,
      points: lines.filter((line) => line.samples === k).map((line) => [line.step, accuracyOf(line).average]),
    });
    return [curve(`mean@${k}`, (line) => line.mean, 0), curve(`pass@${k}`, (line) => line.passes[k], 1)];
  });
}

function fieldSeries() {
  if (MANY) return [];
  const lines = RUNS[0].evaluations.filter((line) => line.evaluation === "test");
  const fields = Object.keys(lines[0]?.mean.by_field ?? {});
  if (fields.length < 2) return [];
  return fields.map((field, i) => ({
    name: field,
    colour: colour(i),
    dots: true,
    points: lines.filter((line) => field in line.mean.by_field).map((line) => [line.step, line.mean.by_field[field]]),
  }));
}
