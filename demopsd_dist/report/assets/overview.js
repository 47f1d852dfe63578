// Sections Overview, Time and workers, All metrics, and Settings.

function showAbout() {
  const names = RUNS.map((run) => run.name).join(", ");
  byId("title").textContent = names;
  document.title = `${names} – run report`;
  const lines = RUNS.map((run) => {
    const method = run.config.method ?? run.summary.method;
    const model = run.config["model.path"];
    const state = run.done ? plural(run.step.at(-1) ?? 0, "step") : `${run.step.at(-1) ?? 0} of ${run.config.steps ?? "?"} steps so far`;
    return [MANY ? `${run.name}:` : null, method, "on", model, "·", state, run.summary.wall_s ? `· ${seconds(run.summary.wall_s)}` : null, run.every > 1 ? `· charts show one in ${run.every} steps` : null]
      .filter(Boolean)
      .join(" ");
  });
  byId("about").replaceChildren(...lines.map((line, i) => el("span", { class: "run-name", "--run": colour(i) }, MANY ? el("i", { class: "key" }) : null, line)));
}

function showDifferences() {
  if (!MANY) return;
  byId("differ").hidden = false;
  const rows = DATA.differences.map(({ key, values }) => [key, ...values]);
  const head = ["setting", ...RUNS.map((run) => run.name)];
  byId("differ-table").append(table(head, rows, { class: "settings" }), csvTool("Settings that differ", head, () => rows));
}

function evaluationsOf(run, split) {
  return run.evaluations.filter((line) => line.evaluation === split);
}

// [label, run -> {value, note}]
const TILES = [
  ["Accuracy", (run) => accuracyTile(run, "test")],
  ["Out of distribution", (run) => accuracyTile(run, "ood")],
  ["Entropy", (run) => changeTile(evaluationsOf(run, "test").map((line) => line.entropy_nats), "nats a token, on test questions")],
  ["Disagreement", (run) => changeTile(run.metrics["demopsd/disagreement_mean_nats"], "nats, mean over tokens")],
  ["Alpha", (run) => changeTile(run.metrics["demopsd/alpha_mean"], `mean over tokens, at most ${run.config["demopsd.alpha_max"] ?? "?"}`)],
  ["Leakage ratio", (run) => ({ value: percent(meanOf(run, "leakage/ratio"), 0), note: `KL to the reference: ${TARGET} over teacher` })],
  ["Speed", (run) => ({ value: `${short(meanOf(run, "perf/samples_per_s"))}/s`, note: "sampled responses a second, mean over steps" })],
  ["Step time", (run) => ({ value: seconds(meanOf(run, "perf/step_s")), note: "mean over steps" })],
];

function accuracyTile(run, split) {
  const lines = evaluationsOf(run, split);
  if (!lines.length) return { value: "–", note: "not measured" };
  const end = lines.at(-1).mean;
  const from = lines.length > 1 ? `from ${percent(lines[0].mean.average)}; ` : "";
  return { value: percent(end.average), note: `${from}95 % interval ${percent(end.low)} to ${percent(end.high)}` };
}

function changeTile(values, note) {
  const numbers = (values ?? []).filter(isNumber);
  if (!numbers.length) return { value: "–", note: "not measured" };
  return { value: short(numbers.at(-1)), note: (numbers.length > 1 ? `from ${short(numbers[0])}; ` : "") + note };
}

function showTiles() {
  const tiles = TILES.map(([label, tileOf]) => [label, RUNS.map(tileOf)]).filter(([, values]) => values.some((one) => !one.value.startsWith("–")));
  if (MANY) {
    const rows = tiles.map(([label, values]) => [term(label), ...values.map((one) => el("span", {}, el("b", {}, one.value), el("small", {}, one.note)))]);
    byId("tiles").append(el("div", { class: "scroll" }, table(["", ...RUNS.map((run) => run.name)], rows, { class: "compare" })));
    return;
  }
  byId("tiles").append(
    el("dl", { class: "tiles" }, ...tiles.map(([label, [one]]) => el("div", { class: "card tile" }, el("dt", {}, term(label)), el("dd", {}, one.value, el("small", {}, one.note))))),
  );
}

// The driver's stages add up to the step; the stages inside the wait for rollouts overlap.
const OUTER = ["wait_for_rollouts", "learn", "publish_weights", "samples", "checkpoint"];
const INNER = ["sample", "support", "score", "probe"];
const STAGES = {
  wait_for_rollouts: "wait for scored rollouts",
  learn: "learn",
  publish_weights: "publish weights",
  samples: "write samples",
  checkpoint: "checkpoint",
  other: "other",
  sample: "sample",
  support: "support",
  score: "score",
  probe: "leakage probe",
};

function stageSums(run) {
  const spentIn = (name) => totalsOf(run, `time/${name}_s`).sum;
  const total = totalsOf(run, "perf/step_s").sum;
  const outer = OUTER.map((name) => [name, spentIn(name)]).filter(([, spent]) => spent > 0);
  return { total, outer: [...outer, ["other", Math.max(total - sum(outer.map(([, spent]) => spent)), 0)]], inner: INNER.map((name) => [name, spentIn(name)]).filter(([, spent]) => spent > 0) };
}

function showTime() {
  const cards = RUNS.flatMap((run) => {
    const { total, outer, inner } = stageSums(run);
    const suffix = MANY ? `: ${run.name}` : "";
    return total
      ? [bars(`Time by stage${suffix}`, "The driver’s stages; they add up to the steps.", outer, total), bars(`Stages inside the wait${suffix}`, "These overlap: finished responses are scored while others are still sampled.", inner, total)]
      : [];
  });
  byId("stages").append(el("div", { class: "grid" }, ...cards, speedChart(), workersCard(), healthCard()));
}

function bars(title, about, stages, total) {
  if (!stages.length) return null;
  const rows = stages.map(([name, spent], i) =>
    el(
      "li",
      {},
      el("span", { class: "bar-name" }, STAGES[name]),
      el("span", { class: "bar", "--part": spent / total, "--run": colour(i) }, el("i", {})),
      el("span", { class: "bar-value" }, `${seconds(spent)} · ${percent(spent / total, 0)}`),
    ),
  );
  return el("figure", { class: "card" }, el("figcaption", {}, el("h3", {}, title), el("p", {}, about)), el("ul", { class: "bars" }, ...rows));
}

function workerNames(run) {
  return Object.keys(run.metrics).filter((name) => /^rollout\/worker_\d+_tokens_per_s$/.test(name));
}

function speedChart() {
  const series = RUNS.flatMap((run, index) => {
    if (MANY) return [{ name: run.name, colour: colour(index), points: pointsOf(run, "perf/tokens_per_s") }];
    return workerNames(run).map((name, i) => ({ name: `rollout ${name.match(/\d+/)[0]}`, colour: colour(i), points: pointsOf(run, name) }));
  });
  return lineChart({
    title: MANY ? "Throughput" : "Rollout workers",
    about: MANY ? "Sampled response tokens over the step time." : "Throughput of each worker while it is busy.",
    unit: "tokens/s",
    series,
    zero: true,
  });
}

function workersCard() {
  const rows = RUNS.flatMap((run) => {
    const prefix = MANY ? `${run.name}, ` : "";
    const named = workerNames(run).map((name) => [`${prefix}rollout ${name.match(/\d+/)[0]}`, name]);
    if (run.totals["teacher/tokens_per_s"]) named.push([`${prefix}teacher, all`, "teacher/tokens_per_s"]);
    return named.map(([label, name]) => {
      const totals = totalsOf(run, name);
      return [label, short(meanOf(run, name)), short(totals.min), short(totals.last), String(totals.count)];
    });
  });
  if (!rows.length) return null;
  return el(
    "figure",
    { class: "card" },
    el("figcaption", {}, el("h3", {}, "Workers"), el("p", {}, "Tokens a second, over the steps in which a worker took part.")),
    el("div", { class: "scroll" }, table(["worker", "mean", "minimum", "last", "steps"], rows)),
  );
}

function healthCard() {
  const lines = RUNS.flatMap((run) => healthOf(run).map(([passed, text]) => [passed, MANY ? `${run.name}: ${text}` : text]));
  return el(
    "figure",
    { class: "card" },
    el("figcaption", {}, el("h3", {}, "Health"), el("p", {}, "Checks against the run’s configured limits.")),
    el("ul", { class: "health" }, ...lines.map(([passed, text]) => el("li", { class: passed ? "pass" : "warn" }, el("b", {}, passed ? "✓" : "!"), el("span", {}, passed ? text : `${text} – check this`)))),
  );
}

function healthOf(run) {
  const lines = [];
  const worst = totalsOf(run, "mismatch/logp_diff_max").max ?? -Infinity;
  const allowed = Number(run.config["weights.max_logp_diff"] ?? NaN);
  if (worst > -Infinity) lines.push([!(worst > allowed), `Engine/learner mismatch of log-probabilities: at most ${short(worst)} nats, limit ${short(allowed)}.`]);
  const oldest = totalsOf(run, "policy/age_steps_max").max ?? -Infinity;
  if (oldest > -Infinity) lines.push([!(oldest > Number(run.config["rollout.ahead"])), `Largest staleness: ${plural(oldest, "step")}, limit ${run.config["rollout.ahead"]}.`]);
  const unlearned = run.steps - totalsOf(run, "learner/loss").count;
  lines.push([unlearned === 0, `Steps without a training signal: ${unlearned} of ${run.steps}.`]);
  const truncated = meanOf(run, "rollout/truncated_fraction");
  if (truncated !== null) lines.push([truncated < 0.05, `Truncated responses: ${percent(truncated)}.`]);
  const replaced = totalsOf(run, "rollout/workers_replaced").last;
  if (replaced !== null) lines.push([replaced === 0, `Replaced rollout workers: ${replaced}; running: ${totalsOf(run, "rollout/workers").last ?? "?"}.`]);
  const failed = totalsOf(run, "rollout/reward_errors").sum;
  if (run.totals["rollout/reward_errors"]) lines.push([failed === 0, `Responses whose reward failed: ${failed}.`]);
  const speeds = workerNames(run).map((name) => meanOf(run, name));
  if (speeds.length > 1) {
    const slow = Math.min(...speeds) / Math.max(...speeds);
    lines.push([slow > 0.5, `Throughput of the slowest rollout worker: ${percent(slow, 0)} of the fastest.`]);
  }
  return lines;
}

// Chart of any recorded metric.
function showExplorer() {
  const names = [...new Set(RUNS.flatMap((run) => Object.keys(run.metrics)))].sort();
  if (!names.length) return;
  const chartBox = el("div", { class: "explorer-chart" });
  const groups = [...new Set(names.map((name) => name.split("/")[0]))];
  const select = el(
    "select",
    { id: "metric", onchange: () => show(select.value) },
    ...groups.map((group) => el("optgroup", { label: group }, ...names.filter((name) => name.split("/")[0] === group).map((name) => el("option", { value: name }, name)))),
  );
  function show(name) {
    const { unit, meaning } = DATA.meanings[name] ?? { unit: "", meaning: "a metric that this version does not know" };
    const series = RUNS.map((run, index) => ({ name: run.name, colour: colour(index), points: pointsOf(run, name) }));
    const chart = lineChart({ title: name, about: `${meaning} (${unit})`, unit, series });
    chartBox.replaceChildren(chart ?? el("p", {}, "No value."));
  }
  byId("explorer").append(el("label", { class: "field", for: "metric" }, "Metric ", select), chartBox);
  select.value = names.includes("learner/loss") ? "learner/loss" : names[0];
  show(select.value);
}

function showSettings() {
  const keys = [...new Set(RUNS.flatMap((run) => Object.keys(run.config)))];
  const search = el("input", { type: "search", id: "setting", placeholder: "learner, alpha, …", oninput: () => list() });
  const box = el("div", { class: "scroll tall", tabindex: 0, role: "region", "aria-label": "Settings" });
  function list() {
    const matching = keys.filter((key) => key.includes(search.value.trim().toLowerCase()));
    box.replaceChildren(table(["setting", ...RUNS.map((run) => run.name)], matching.map((key) => [key, ...RUNS.map((run) => run.config[key] ?? "–")]), { class: "settings" }));
  }
  list();
  const tool = csvTool("Settings", ["setting", ...RUNS.map((run) => run.name)], () => keys.map((key) => [key, ...RUNS.map((run) => run.config[key] ?? "")]));
  const facts = RUNS.flatMap((run) => {
    const versions = Object.entries(run.summary.versions ?? {}).map(([name, version]) => `${name} ${version}`);
    const provenance = [run.summary.commit ? `commit ${run.summary.commit}` : null, isNumber(run.summary.seed) ? `seed ${run.summary.seed}` : null, ...versions].filter(Boolean);
    return provenance.length ? [el("p", { class: "lead" }, (MANY ? `${run.name}: ` : "") + provenance.join(" · "))] : [];
  });
  byId("settings-table").append(...facts, el("label", { class: "field", for: "setting" }, "Find ", search), box, tool);
}
