// Helpers: DOM elements, number formats, and access to the data in this page. No script turns text into markup.

function el(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

function svg(tag, attributes = {}, ...children) {
  return fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
}

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name.startsWith("--")) node.style.setProperty(name, value);
    else if (name === "value") node.value = value;
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

const byId = (id) => document.getElementById(id);
const clamp = (value, low, high) => Math.min(Math.max(value, low), high);
const isNumber = (value) => typeof value === "number" && Number.isFinite(value);
const sum = (values) => values.reduce((total, value) => total + (value ?? 0), 0);

// Sum, extremes, last value and number of a metric's values over all steps, also those that no curve shows.
const totalsOf = (run, name) => run.totals[name] ?? { sum: 0, min: null, max: null, last: null, count: 0 };
const meanOf = (run, name) => (totalsOf(run, name).count ? totalsOf(run, name).sum / totalsOf(run, name).count : null);

// Three significant digits: 0.0249, 1.3e-5, 2,032.
function short(value) {
  if (!isNumber(value)) return "–";
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e7)) return value.toExponential(1).replace("e+", "e").replace(".0e", "e");
  if (size >= 100) return Math.round(value).toLocaleString("en");
  return String(Number(value.toPrecision(3)));
}

function percent(value, digits = 1) {
  return isNumber(value) ? `${(100 * value).toFixed(digits)} %` : "–";
}

// A probability in percent: 67.7, and <0.1 instead of 0.0.
function chance(value) {
  if (!isNumber(value)) return "–";
  if (value > 0 && value < 0.0005) return "<0.1";
  return (100 * value).toFixed(1);
}

function seconds(value) {
  if (!isNumber(value)) return "–";
  if (value < 90) return `${short(value)} s`;
  const minutes = Math.round(value / 60);
  return minutes < 90 ? `${minutes} min` : `${(value / 3600).toFixed(1)} h`;
}

const plural = (count, noun) => `${count.toLocaleString("en")} ${noun}${count === 1 ? "" : "s"}`;

const DATA = JSON.parse(byId("data").textContent);
const RUNS = DATA.runs;
const MANY = RUNS.length > 1;
const COLOURS = 8;
const colour = (index) => `var(--series-${(index % COLOURS) + 1})`;
// Name of the distribution that the student learns towards: DemoPSD's is the barycenter.
const targetName = (runs) => (runs.every((run) => run.config.method === "demopsd") ? "barycenter" : "target");
const TARGET = targetName(RUNS);

// Decoded block of demopsd_dist/report/embedded_samples.py: its header, with the arrays by name.
async function unpack(id) {
  const raw = atob(byId(id).textContent);
  const bytes = Uint8Array.from(raw, (character) => character.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  const buffer = await new Response(stream).arrayBuffer();
  const size = new DataView(buffer).getUint32(0, true);
  const block = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, size)));
  const kinds = { uint16: Uint16Array, uint32: Uint32Array };
  for (const [name, [kind, offset, length]] of Object.entries(block.arrays)) {
    block[name] = new kinds[kind](buffer, 4 + size + offset, length);
  }
  return block;
}

// Cached decoded block; the cache has the latest 24.
const opened = new Map();
function block(id) {
  if (!opened.has(id)) {
    opened.set(id, unpack(id));
    if (opened.size > 24) opened.delete(opened.keys().next().value);
  }
  return opened.get(id);
}

// Meanings of the page's terms, symbols and units, shown where the pointer or the focus rests on one.
const MEANINGS = {
  alpha: "Weight of the reference in the barycenter at this token: 0 follows the teacher, 1 would keep the reference. It grows with the disagreement.",
  disagreement: "Jensen-Shannon divergence of reference and teacher at this token, in nats: 0 where the solution changes nothing, at most ln 2 = 0.693.",
  entropy: "Entropy of the student’s next-token distribution, in nats: 0 where one token is certain.",
  loss: "Loss of this token, in nats: here the KL divergence of the student to the distribution that it learns towards.",
  "sampled with": "Probability that the rollout engine gave the sampled token.",
  weights: "Version of the weights that sampled the token: the number of updates before it.",
  student: "The model that is trained, with the question alone in its prompt.",
  reference: "Moving average of the student’s weights, with the student’s prompt.",
  teacher: "Moving average of the student’s weights, with a right solution in its prompt.",
  barycenter: "Distribution that the student learns towards: teacher^(1−α) · reference^α, normalised.",
  target: "Distribution that the student learns towards.",
  Accuracy: "Mean over the fields of the share of right responses to test questions, several responses to each (mean@k).",
  "Out of distribution": "The same on questions of another kind than those of the training.",
  Entropy: "Undecidedness of the student about the next token, in nats; 0 where one token is certain.",
  Disagreement: "Jensen-Shannon divergence of reference and teacher, in nats: the effect of the solution on the prediction.",
  Alpha: "Weight of the reference in the barycenter; it grows with the disagreement.",
  "Leakage ratio": "How much of the teacher’s distance from the reference the student’s aim keeps: 100 % keeps all that the solution adds.",
  Speed: "Responses sampled, scored and trained on in a second.",
  "Step time": "Seconds from one update of the weights to the next.",
  d: "d: mean disagreement, in nats.",
  "α": "α: mean alpha, the weight of the reference.",
  nats: "Unit of entropies and divergences with natural logarithms: 1 nat is 1.44 bits.",
  step: "Updates of the weights so far.",
};

// A term with its meaning.
function term(name, text = name) {
  const meaning = MEANINGS[name];
  return meaning ? el("span", { class: "term", tabindex: 0, title: meaning, "aria-description": meaning }, text) : el("span", {}, text);
}

// Meaning of a chart's unit, such as `nats a token`.
const meaningOfUnit = (unit) => Object.entries(MEANINGS).find(([name]) => unit.split(/\W+/).includes(name))?.[1] ?? null;

function table(head, rows, attributes = {}) {
  return el(
    "table",
    attributes,
    el("thead", {}, el("tr", {}, ...head.map((text) => el("th", { scope: "col" }, text)))),
    el("tbody", {}, ...rows.map((cells) => el("tr", {}, ...cells.map((cell, column) => (column ? el("td", {}, cell) : el("th", { scope: "row" }, cell)))))),
  );
}

// Radio buttons in a row; arrow keys move the choice.
function choice(label, options, chosen, changed) {
  const name = `choice-${label.replace(/\W+/g, "-").toLowerCase()}`;
  const inputs = options.map(([value, text]) =>
    el("label", {}, el("input", { type: "radio", name, value, checked: value === chosen, onchange: () => changed(value) }), el("span", {}, text)),
  );
  return el("fieldset", { class: "choice" }, el("legend", {}, label), ...inputs);
}
