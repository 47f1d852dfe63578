// What a run came to, where its time went, its workers, all its figures, its settings.

function showAbout() {
  const names = RUNS.map((run) => run.name).join(", ");
  byId("title").textContent = names;
  document.title = `${names} – run report`;
  const parts = RUNS.map((run) => {
    const method = run.config.method ?? run.summary.method;
    const model = run.config["model.path"];
    const state = run.done ? plural(run.step.at(-1) ?? 0, "step") : `${run.step.at(-1) ?? 0} of ${run.config.steps ?? "?"} steps so far`;
    return [MANY ? `${run.name}:` : null, method, "on", model, "·", state, run.summary.wall_s ? `· ${seconds(run.summary.wall_s)}` : null, run.every > 1 ? `· one in ${run.every} steps is drawn` : null]
      .filter(Boolean)
      .join(" ");
  });
  byId("about").replaceChildren(...parts.map((part, i) => el("span", { class: "run-name", "--run": colour(i) }, MANY ? el("i", { class: "key" }) : null, part)));
}

function showDifferences() {
  if (!MANY) return;
  byId("differ").hidden = false;
  const rows = DATA.differences.map(({ key, values }) => [key, ...values]);
  byId("differ-table").append(table(["setting", ...RUNS.map((run) => run.name)], rows, { class: "settings" }));
}

function evaluationsOf(run, split) {
  return run.evaluations.filter((line) => line.evaluation === split);
}

// [label, of run -> {value, note}]
const TILES = [
  ["Accuracy", (run) => accuracyTile(run, "test")],
  ["Out of distribution", (run) => accuracyTile(run, "ood")],
  ["Entropy", (run) => changeTile(evaluationsOf(run, "test").map((line) => line.entropy_nats), "nats a token, on test questions")],
  ["Disagreement", (run) => changeTile(run.metrics["demopsd/disagreement_mean_nats"], "nats, mean of a token")],
  ["Alpha", (run) => changeTile(run.metrics["demopsd/alpha_mean"], `mean of a token, at most ${run.config["demopsd.alpha_max"] ?? "?"}`)],
  ["Leakage let through", (run) => ({ value: percent(mean(run.metrics["leakage/ratio"] ?? []), 0), note: "KL to the reference: target over teacher" })],
  ["Speed", (run) => ({ value: `${short(mean(run.metrics["perf/samples_per_s"] ?? []))}/s`, note: "responses sampled, mean over steps" })],
  ["A step", (run) => ({ value: seconds(mean(run.metrics["perf/step_s"] ?? [])), note: "mean" })],
];

function accuracyTile(run, split) {
  const lines = evaluationsOf(run, split);
  if (!lines.length) return { value: "–", note: "not measured" };
  const end = lines.at(-1).mean;
  const from = lines.length > 1 ? `from ${percent(lines[0].mean.average)}; ` : "";
  return { value: percent(end.average), note: `${from}95 % interval ${percent(end.low)} to ${percent(end.high)}` };
}

function changeTile(values, note) {
  const there = (values ?? []).filter(isNumber);
  if (!there.length) return { value: "–", note: "not measured" };
  return { value: short(there.at(-1)), note: (there.length > 1 ? `from ${short(there[0])}; ` : "") + note };
}

function showTiles() {
  const found = TILES.map(([label, of]) => [label, RUNS.map(of)]).filter(([, values]) => values.some((one) => !one.value.startsWith("–")));
  if (MANY) {
    const rows = found.map(([label, values]) => [label, ...values.map((one) => el("span", {}, el("b", {}, one.value), el("small", {}, one.note)))]);
    byId("tiles").append(el("div", { class: "scroll" }, table(["", ...RUNS.map((run) => run.name)], rows, { class: "compare" })));
    return;
  }
  byId("tiles").append(
    el("dl", { class: "tiles" }, ...found.map(([label, [one]]) => el("div", { class: "card tile" }, el("dt", {}, label), el("dd", {}, one.value, el("small", {}, one.note))))),
  );
}

// The driver's own stages add up to the step; what is within the wait for rollouts overlaps.
const OUTER = ["wait_for_rollouts", "learn", "publish_weights", "samples", "checkpoint"];
const INNER = ["sample", "support", "score", "probe"];
const STAGES = {
  wait_for_rollouts: "wait for scored rollouts",
  learn: "learn",
  publish_weights: "publish weights",
  samples: "keep samples",
  checkpoint: "checkpoint",
  other: "other",
  sample: "sample",
  support: "support",
  score: "score",
  probe: "leakage probe",
};

function stageSums(run) {
  const of = (name) => sum(run.metrics[`time/${name}_s`] ?? []);
  const whole = sum(run.metrics["perf/step_s"] ?? []);
  const outer = OUTER.map((name) => [name, of(name)]).filter(([, spent]) => spent > 0);
  return { whole, outer: [...outer, ["other", Math.max(whole - sum(outer.map(([, spent]) => spent)), 0)]], inner: INNER.map((name) => [name, of(name)]).filter(([, spent]) => spent > 0) };
}

function showTime() {
  const cards = RUNS.flatMap((run) => {
    const { whole, outer, inner } = stageSums(run);
    const of = MANY ? `: ${run.name}` : "";
    return whole
      ? [bars(`Where the time goes${of}`, "The driver’s stages, which add up to the steps.", outer, whole), bars(`Within the wait${of}`, "These overlap: what is sampled is scored while the rest is still sampled.", inner, whole)]
      : [];
  });
  byId("stages").append(el("div", { class: "grid" }, ...cards, speedChart(), workersCard(), healthCard()));
}

function bars(title, about, stages, whole) {
  if (!stages.length) return null;
  const rows = stages.map(([name, spent], i) =>
    el(
      "li",
      {},
      el("span", { class: "bar-name" }, STAGES[name]),
      el("span", { class: "bar", "--part": spent / whole, "--run": colour(i) }, el("i", {})),
      el("span", { class: "bar-value" }, `${seconds(spent)} · ${percent(spent / whole, 0)}`),
    ),
  );
  return el("figure", { class: "card" }, el("figcaption", {}, el("h3", {}, title), el("p", {}, about)), el("ul", { class: "bars" }, ...rows));
}

function workerNames(run) {
  return Object.keys(run.metrics).filter((name) => /^rollout\/worker_\d+_tokens_per_s$/.test(name));
}

function speedChart() {
  const series = RUNS.flatMap((run, place) => {
    if (MANY) return [{ name: run.name, colour: colour(place), points: pointsOf(run, "perf/tokens_per_s") }];
    return workerNames(run).map((name, i) => ({ name: `rollout ${name.match(/\d+/)[0]}`, colour: colour(i), points: pointsOf(run, name) }));
  });
  return lineChart({
    title: MANY ? "Tokens a second" : "Rollout workers",
    about: MANY ? "Response tokens sampled by the time of the step." : "Tokens a second of each, while it had something to do.",
    series,
    zero: true,
  });
}

function workersCard() {
  const rows = RUNS.flatMap((run) => {
    const named = MANY ? `${run.name}, ` : "";
    const speeds = workerNames(run).map((name) => [`${named}rollout ${name.match(/\d+/)[0]}`, run.metrics[name]]);
    const teacher = run.metrics["teacher/tokens_per_s"];
    return [...speeds, ...(teacher ? [[`${named}teacher, all`, teacher]] : [])].map(([name, values]) => {
      const there = values.filter(isNumber);
      return [name, short(mean(there)), short(Math.min(...there)), short(there.at(-1)), String(there.length)];
    });
  });
  if (!rows.length) return null;
  return el(
    "figure",
    { class: "card" },
    el("figcaption", {}, el("h3", {}, "Workers"), el("p", {}, "Tokens a second over the steps in which each took part.")),
    el("div", { class: "scroll" }, table(["", "mean", "least", "last", "steps"], rows)),
  );
}

function healthCard() {
  const lines = RUNS.flatMap((run) => healthOf(run).map(([fine, text]) => [fine, MANY ? `${run.name}: ${text}` : text]));
  return el(
    "figure",
    { class: "card" },
    el("figcaption", {}, el("h3", {}, "Health"), el("p", {}, "Checked against the run’s own bounds.")),
    el("ul", { class: "health" }, ...lines.map(([fine, text]) => el("li", { class: fine ? "fine" : "look" }, el("b", {}, fine ? "✓" : "!"), el("span", {}, fine ? text : `${text} – look here`)))),
  );
}

function healthOf(run) {
  const lines = [];
  const of = (name) => run.metrics[name] ?? [];
  const worst = largest(of("mismatch/logp_diff_max"));
  const allowed = Number(run.config["weights.max_logp_diff"] ?? NaN);
  if (worst > -Infinity) lines.push([!(worst > allowed), `Engines sample from the learners’ weights: largest difference ${short(worst)} nats, allowed ${short(allowed)}.`]);
  const oldest = largest(of("policy/age_steps_max"));
  if (oldest > -Infinity) lines.push([!(oldest > Number(run.config["rollout.ahead"])), `Oldest rollout: ${plural(oldest, "step")}, allowed ${run.config["rollout.ahead"]}.`]);
  const silent = run.step.filter((_, i) => !isNumber(of("learner/loss")[i])).length;
  lines.push([silent === 0, `Steps that learned nothing: ${silent} of ${run.step.length}.`]);
  const cut = mean(of("rollout/truncated_fraction"));
  if (cut !== null) lines.push([cut < 0.05, `Responses cut at the limit: ${percent(cut)}.`]);
  const replaced = last(of("rollout/workers_replaced"));
  if (replaced !== null) lines.push([replaced === 0, `Rollout workers that were replaced: ${replaced}; there are ${last(of("rollout/workers")) ?? "?"}.`]);
  const failed = sum(of("rollout/reward_errors"));
  if (of("rollout/reward_errors").length) lines.push([failed === 0, `Responses that the reward failed on: ${failed}.`]);
  const speeds = workerNames(run).map((name) => mean(run.metrics[name]));
  if (speeds.length > 1) {
    const slow = Math.min(...speeds) / Math.max(...speeds);
    lines.push([slow > 0.5, `The slowest rollout worker does ${percent(slow, 0)} of what the fastest does.`]);
  }
  return lines;
}

// Any figure that was recorded, drawn on demand.
function showExplorer() {
  const names = [...new Set(RUNS.flatMap((run) => Object.keys(run.metrics)))].sort();
  if (!names.length) return;
  const shown = el("div", { class: "explorer-chart" });
  const rooms = [...new Set(names.map((name) => name.split("/")[0]))];
  const select = el(
    "select",
    { id: "figure", onchange: () => show(select.value) },
    ...rooms.map((room) => el("optgroup", { label: room }, ...names.filter((name) => name.split("/")[0] === room).map((name) => el("option", { value: name }, name)))),
  );
  function show(name) {
    const { unit, meaning } = DATA.meanings[name] ?? { unit: "", meaning: "a figure that this version does not know" };
    const series = RUNS.map((run, place) => ({ name: run.name, colour: colour(place), points: pointsOf(run, name) }));
    const chart = lineChart({ title: name, about: `${meaning} (${unit})`, series });
    shown.replaceChildren(chart ?? el("p", {}, "No value."));
  }
  byId("explorer").append(el("label", { class: "field", for: "figure" }, "Figure ", select), shown);
  select.value = names.includes("learner/loss") ? "learner/loss" : names[0];
  show(select.value);
}

function showSettings() {
  const keys = [...new Set(RUNS.flatMap((run) => Object.keys(run.config)))];
  const search = el("input", { type: "search", id: "setting", placeholder: "learner, alpha, …", oninput: () => list() });
  const place = el("div", { class: "scroll tall", tabindex: 0, role: "region", "aria-label": "Settings" });
  function list() {
    const found = keys.filter((key) => key.includes(search.value.trim().toLowerCase()));
    place.replaceChildren(table(["setting", ...RUNS.map((run) => run.name)], found.map((key) => [key, ...RUNS.map((run) => run.config[key] ?? "–")]), { class: "settings" }));
  }
  list();
  const facts = RUNS.flatMap((run) => {
    const versions = Object.entries(run.summary.versions ?? {}).map(([name, version]) => `${name} ${version}`);
    const parts = [run.summary.commit ? `commit ${run.summary.commit}` : null, isNumber(run.summary.seed) ? `seed ${run.summary.seed}` : null, ...versions].filter(Boolean);
    return parts.length ? [el("p", { class: "lead" }, (MANY ? `${run.name}: ` : "") + parts.join(" · "))] : [];
  });
  byId("settings-table").append(...facts, el("label", { class: "field", for: "setting" }, "Find ", search), place);
}
