// Elements, numbers, and the data in this page. Nothing here or elsewhere turns text into markup.

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
const mean = (values) => {
  const there = values.filter(isNumber);
  return there.length ? sum(there) / there.length : null;
};
const last = (values) => values.findLast(isNumber) ?? null;
const largest = (values) => values.reduce((most, value) => (isNumber(value) && value > most ? value : most), -Infinity);

// 0.0249, 1.3e-5, 2,032: three digits, however large.
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

// A probability: 67.7, and <0.1 rather than 0.0.
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
const colour = (place) => `var(--series-${(place % COLOURS) + 1})`;

// A block of demopsd_dist/report/embedded_samples.py: its header, with the arrays in it under their names.
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

// The same, each block at most once at a time, the latest few kept.
const opened = new Map();
function block(id) {
  if (!opened.has(id)) {
    opened.set(id, unpack(id));
    if (opened.size > 24) opened.delete(opened.keys().next().value);
  }
  return opened.get(id);
}

function table(head, rows, attributes = {}) {
  return el(
    "table",
    attributes,
    el("thead", {}, el("tr", {}, ...head.map((text) => el("th", { scope: "col" }, text)))),
    el("tbody", {}, ...rows.map((cells) => el("tr", {}, ...cells.map((cell, place) => (place ? el("td", {}, cell) : el("th", { scope: "row" }, cell)))))),
  );
}

// A row of buttons of which one is chosen; arrow keys move the choice.
function choice(label, options, chosen, changed) {
  const name = `choice-${label.replace(/\W+/g, "-").toLowerCase()}`;
  const inputs = options.map(([value, text]) =>
    el("label", {}, el("input", { type: "radio", name, value, checked: value === chosen, onchange: () => changed(value) }), el("span", {}, text)),
  );
  return el("fieldset", { class: "choice" }, el("legend", {}, label), ...inputs);
}
