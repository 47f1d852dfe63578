// Which figures are drawn together, and what a reader should see in them.

// name in metrics.jsonl -> what the legend calls it; the first of a chart stands alone where runs are compared
const CURVES = [
  {
    head: "What it can do",
    charts: [
      { title: "Accuracy", about: "Mean over the fields on test questions and out of distribution, with 95 % intervals over questions.", evaluations: true, show: (value) => percent(value, 0) },
      { title: "Accuracy by field", about: "On test questions.", fields: true, show: (value) => percent(value, 0) },
      { title: "Reward", about: "Mean over all responses sampled for a step.", metrics: { "rollout/reward_mean": "reward" }, show: (value) => percent(value, 0) },
    ],
  },
  {
    head: "What the student takes from the teacher",
    charts: [
      { title: "Disagreement", about: "Of reference and teacher at a token, Jensen-Shannon, in nats: how much the solution changes what the model says.", metrics: { "demopsd/disagreement_mean_nats": "mean", "demopsd/disagreement_p95_nats": "95th percentile" }, zero: true },
      { title: "Alpha", about: "How much the target holds back to the reference, where they disagree.", metrics: { "demopsd/alpha_mean": "mean", "demopsd/alpha_p95": "95th percentile" }, zero: true },
      { title: "Leakage", about: "Distance from the reference, KL in nats: what teacher and target tell about the solution at most.", metrics: { "leakage/target_nats": "target", "leakage/teacher_nats": "teacher" }, zero: true },
      { title: "Which answer was shown", about: "Mutual information of the next token and the bare answer in the prompt, nats.", metrics: { "leakage/answers_target_nats": "target", "leakage/answers_teacher_nats": "teacher" }, zero: true },
      { title: "Which sibling was shown", about: "The same for different right responses, which all hold the same answer.", metrics: { "leakage/siblings_target_nats": "target", "leakage/siblings_teacher_nats": "teacher" }, zero: true },
      { title: "Entropy", about: "Of a token’s distribution, nats.", metrics: { "policy/entropy_nats": "student", "entropy/reference_nats": "reference", "entropy/target_nats": "target", "entropy/teacher_nats": "teacher" }, zero: true },
    ],
  },
  {
    head: "How it learns",
    charts: [
      { title: "Loss", about: "Of the method, nats a token.", metrics: { "learner/loss": "loss" } },
      { title: "Gradient norm", about: "Before clipping.", metrics: { "learner/grad_norm": "norm" }, zero: true },
      { title: "Learning rate", about: "With which each step was made.", metrics: { "learner/learning_rate": "rate" }, zero: true },
      { title: "Learned from", about: "Responses with something to learn from; questions whose responses differ in reward.", metrics: { "rollout/learned_fraction": "responses", "rollout/groups_differing_fraction": "questions that differ" }, show: (value) => percent(value, 0) },
      { title: "Response length", about: "Tokens of a response, mean.", metrics: { "rollout/response_tokens_mean": "tokens" } },
      { title: "Engine against learner", about: "Largest difference in the log-probability of a sampled token, nats; logarithmic.", metrics: { "mismatch/logp_diff_max": "difference" }, log: true },
      { title: "Staleness", about: "Age of rollouts in versions of the weights.", metrics: { "policy/age_steps_max": "oldest", "policy/age_steps_mean": "mean" }, zero: true },
    ],
  },
];

const DASHES = [null, "5 3", "2 3", "8 3 2 3"];

function showCurves(place) {
  for (const { head, charts } of CURVES) {
    const cards = charts.map(chartOf).filter(Boolean);
    if (cards.length) place.append(el("h3", { class: "group" }, head), el("div", { class: "grid" }, ...cards));
  }
}

function chartOf(chart) {
  const series = chart.evaluations ? accuracySeries() : chart.fields ? fieldSeries() : metricSeries(chart.metrics);
  return lineChart({ ...chart, series });
}

function metricSeries(named) {
  const shown = Object.entries(named);
  return RUNS.flatMap((run, place) =>
    shown.slice(0, MANY ? 2 : shown.length).map(([metric, name], i) => ({
      name: MANY ? (shown.length > 1 ? `${run.name}, ${name}` : run.name) : name,
      colour: colour(MANY ? place : i),
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
  return RUNS.flatMap((run, place) =>
    Object.entries(splits).map(([split, name], i) => {
      const lines = run.evaluations.filter((line) => line.evaluation === split);
      return {
        name: MANY ? `${run.name}, ${name}` : name,
        colour: colour(MANY ? place : i),
        dash: MANY ? DASHES[i] : null,
        dots: true,
        points: lines.map((line) => [line.step, line.mean.average]),
        band: lines.map((line) => [line.step, line.mean.low, line.mean.high]),
      };
    }),
  );
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
