// One response: its tokens in colour, and what everyone gives for the one that is looked at.

const MEASURES = [
  ["alpha", "Alpha", "how much the target holds back here"],
  ["disagreement", "Disagreement", "how much the solution changes what the model says, nats"],
  ["entropy", "Student entropy", "how undecided the student is, nats"],
  ["surprise", "Surprise", "−log of the sampled token’s probability, nats"],
];
const VIEWS = ["student", "reference", "teacher", "target"];
const nameOf = (view, run) => (view === "target" && run.config.method === "demopsd" ? "barycenter" : view);

// What a sample's place in its block holds: its tokens with all their figures.
function sampleOf(tokens, place) {
  const start = sum(tokens.lengths.slice(0, place));
  const length = tokens.lengths[place];
  const there = new Set(tokens.there[place]);
  const width = tokens.candidates;
  const figure = (name) => (there.has(name) ? (i) => tokens[name][start + i] * tokens.scales[name] : () => null);
  const logp = figure("rollout_logp");
  const of = { alpha: figure("alpha"), disagreement: figure("disagreement"), entropy: figure("entropy"), loss: figure("loss"), surprise: logp };
  const views = VIEWS.filter((name) => there.has(name));
  return {
    length,
    of,
    has: (name) => (name === "surprise" ? there.has("rollout_logp") : there.has(name)),
    views,
    text: (i) => tokens.texts[tokens.token[start + i]],
    version: (i) => tokens.version[start + i],
    candidates(i) {
      if (!views.length) return [];
      const rows = [];
      for (let c = (start + i) * width; c < (start + i + 1) * width; c++) {
        const given = Object.fromEntries(views.map((name) => [name, tokens[name][c] * tokens.scales[name]]));
        rows.push({ text: tokens.texts[tokens.candidate[c]], same: tokens.candidate[c] === tokens.token[start + i], ...given });
      }
      return rows;
    },
  };
}

// The whole scale of a measure, so that colours mean the same in every response.
function scaleOf(measure, run, sample) {
  if (measure === "alpha") return Number(run.config["demopsd.alpha_max"]) || 1;
  if (measure === "disagreement") return Math.LN2;
  let most = 0;
  for (let i = 0; i < sample.length; i++) most = Math.max(most, sample.of[measure](i) ?? 0);
  return Math.max(most, measure === "entropy" ? 1 : 2);
}

function tokenView(run, entry, sample, texts) {
  const usable = MEASURES.filter(([name]) => sample.has(name));
  let measure = usable.some(([name]) => name === state.measure) ? state.measure : usable[0]?.[0];
  const legendPlace = el("p", { class: "ramp" });
  const panel = el("div", { class: "panel", "aria-live": "polite" });
  const line = el("div", { class: "response", role: "listbox", "aria-label": "Tokens of the response", "aria-orientation": "horizontal", tabindex: -1 });
  const spans = [];
  for (let i = 0; i < sample.length; i++) {
    const text = sample.text(i);
    const span = el("span", { class: "token", role: "option", tabindex: -1, "aria-selected": "false", "data-place": i });
    span.append(...visible(text));
    spans.push(span);
    line.append(span);
    if (text.includes("\n")) line.append(el("br"));
  }
  let pinned = loudest(sample);

  function paint() {
    const most = scaleOf(measure, run, sample);
    line.dataset.measure = measure;
    spans.forEach((span, i) => span.style.setProperty("--heat", clamp((sample.of[measure](i) ?? 0) / most, 0, 1).toFixed(3)));
    const [, name, about] = MEASURES.find(([key]) => key === measure);
    legendPlace.dataset.measure = measure;
    legendPlace.replaceChildren(el("span", {}, "0"), el("i", { "aria-hidden": "true" }), el("span", {}, short(most)), el("span", { class: "ramp-about" }, `${name}: ${about}`));
  }
  function look(place, { pin = false, focus = false } = {}) {
    if (pin) {
      spans[pinned]?.setAttribute("aria-selected", "false");
      if (spans[pinned]) spans[pinned].tabIndex = -1;
      pinned = place;
      spans[pinned].setAttribute("aria-selected", "true");
      spans[pinned].tabIndex = 0;
    }
    if (focus) spans[place].focus({ preventScroll: false });
    panel.replaceChildren(...tokenPanel(run, sample, place));
  }
  const placeOf = (event) => {
    const span = event.target.closest?.(".token");
    return span ? Number(span.dataset.place) : null;
  };
  line.addEventListener("pointerover", (event) => placeOf(event) !== null && look(placeOf(event)));
  line.addEventListener("pointerleave", () => spans.length && look(pinned));
  line.addEventListener("click", (event) => placeOf(event) !== null && look(placeOf(event), { pin: true, focus: true }));
  line.addEventListener("focusin", (event) => placeOf(event) !== null && look(placeOf(event), { pin: true }));
  line.addEventListener("keydown", (event) => {
    const moves = { ArrowLeft: pinned - 1, ArrowRight: pinned + 1, Home: 0, End: spans.length - 1 };
    if (!(event.key in moves)) return;
    event.preventDefault();
    look(clamp(moves[event.key], 0, spans.length - 1), { pin: true, focus: true });
  });

  const measures = usable.length
    ? choice("Colour by", usable.map(([name, label]) => [name, label]), measure, (name) => {
        measure = state.measure = name;
        paint();
      })
    : null;
  if (usable.length) paint();
  if (spans.length) look(pinned, { pin: true });
  else line.append(el("em", {}, "an empty response"));
  return [sampleHead(run, entry, texts), measures, usable.length ? legendPlace : null, line, cutNote(run, sample), panel, readings(entry, texts)].filter(Boolean);
}

// Where the solution changes most; where nothing is known of that, the first token.
function loudest(sample) {
  let best = 0;
  for (let i = 1; i < sample.length; i++) if ((sample.of.disagreement(i) ?? 0) > (sample.of.disagreement(best) ?? 0)) best = i;
  return best;
}

// White space and what was escaped stand out from the text around.
function visible(text) {
  if (text === "") return [el("span", { class: "faint" }, "·")];
  return text.split(/(\n|\t|^ +$|\\x[0-9a-f]{2}|\\u[0-9a-f]{4}|\\U[0-9a-f]{8})/).map((part) => {
    if (part === "\n") return el("span", { class: "faint" }, "⏎");
    if (part === "\t") return el("span", { class: "faint" }, "⇥");
    if (/^ +$/.test(part) && part === text) return el("span", { class: "faint" }, "␣".repeat(part.length));
    return /^\\[xuU][0-9a-f]+$/.test(part) ? el("span", { class: "escaped" }, part) : part;
  });
}

function sampleHead(run, entry, texts) {
  const right = entry.reward >= 0.5;
  const facts = [
    MANY ? run.name : null,
    `step ${entry.step}`,
    entry.field,
    `response ${entry.sample + 1}`,
    `rollout worker ${entry.worker}`,
    plural(entry.tokens, "token"),
    entry.truncated ? "cut at the limit" : null,
  ].filter(Boolean);
  return el(
    "header",
    { class: "sample-head" },
    el("p", { class: "facts" }, el("span", { class: right ? "badge right" : "badge wrong" }, `${right ? "✓ right" : "✗ wrong"} · reward ${short(entry.reward)}`), ...facts.map((fact) => el("span", {}, fact))),
    el("p", { class: "question" }, ...visibleLines(texts.question)),
    el("p", { class: "facts" }, el("span", {}, "expected ", el("b", {}, entry.expected)), entry.learned ? null : el("span", {}, "not learned from: its group had nothing to show the teacher")),
    texts.feedback ? el("p", { class: "facts" }, el("span", {}, `feedback: ${texts.feedback}`)) : null,
  );
}

function visibleLines(text) {
  return text.split("\n").flatMap((part, i) => [...(i ? [el("br")] : []), ...(part === "" ? [] : visible(part))]);
}

function cutNote(run, sample) {
  const most = Number(run.config["samples.tokens"]);
  return sample.length === most ? el("p", { class: "note" }, `Of a longer response only the first ${plural(most, "token")} may be here (samples.tokens); its text is whole below.`) : null;
}

function tokenPanel(run, sample, i) {
  const facts = [
    ["alpha", sample.of.alpha(i)],
    ["disagreement", sample.of.disagreement(i)],
    ["entropy", sample.of.entropy(i)],
    ["loss", sample.of.loss(i)],
  ].filter(([, value]) => value !== null);
  const sampled = Math.exp(-(sample.of.surprise(i) ?? 0));
  const rows = sample.candidates(i).sort((a, b) => (b.target ?? b.student) - (a.target ?? a.student));
  return [
    el(
      "div",
      { class: "panel-head" },
      el("h4", {}, "Token ", el("code", { class: "chip" }, ...visible(sample.text(i))), el("small", {}, ` ${i + 1} of ${sample.length}`)),
      el("dl", { class: "token-facts" }, ...facts.map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, short(value)))), el("div", {}, el("dt", {}, "sampled with"), el("dd", {}, `${chance(sampled)} %`)), el("div", {}, el("dt", {}, "weights"), el("dd", {}, String(sample.version(i))))),
    ),
    rows.length ? el("p", { class: "story" }, storyOf(sample, rows, i)) : el("p", { class: "story" }, "Not learned from, so nobody else was asked about it."),
    rows.length ? candidateTable(run, sample, rows) : null,
  ].filter(Boolean);
}

function candidateTable(run, sample, rows) {
  const cell = (name, value) => el("td", { class: "p" }, el("span", {}, chance(value)), el("i", { class: name, "--part": value.toFixed(4), "aria-hidden": "true" }));
  const rest = Object.fromEntries(sample.views.map((name) => [name, Math.max(1 - sum(rows.map((row) => row[name])), 0)]));
  return el(
    "table",
    { class: "candidates" },
    el("caption", {}, "Probability of the next token, %"),
    el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "token"), ...sample.views.map((name) => el("th", { scope: "col" }, nameOf(name, run))))),
    el(
      "tbody",
      {},
      ...rows.map((row) =>
        el("tr", { class: row.same ? "sampled" : null }, el("th", { scope: "row" }, el("code", { class: "chip" }, ...visible(row.text)), row.same ? el("small", {}, " sampled") : null), ...sample.views.map((name) => cell(name, row[name]))),
      ),
      el("tr", { class: "rest" }, el("th", { scope: "row" }, "all others"), ...sample.views.map((name) => cell(name, rest[name]))),
    ),
  );
}

// In words, what the table says.
function storyOf(sample, rows, i) {
  const top = (name) => rows.reduce((best, row) => (row[name] > best[name] ? row : best));
  if (!sample.views.includes("teacher")) return "This method asks no teacher.";
  const base = sample.views.includes("reference") ? "reference" : "student";
  const [without, withIt] = [top(base), top("teacher")];
  const d = sample.of.disagreement(i);
  if (without.text !== withIt.text) {
    return `Without the solution the model says “${without.text}” (${chance(without[base])} %), with it “${withIt.text}” (${chance(withIt.teacher)} %). ${goes(sample, i)}`;
  }
  if (d !== null && d < 0.001) return `The solution changes nothing here: everyone says “${withIt.text}”.`;
  return `Both say “${withIt.text}”: ${chance(without[base])} % without the solution, ${chance(withIt.teacher)} % with it. ${goes(sample, i)}`;
}

function goes(sample, i) {
  const alpha = sample.of.alpha(i);
  return alpha === null ? "" : `In log-probability the target goes ${percent(1 - alpha, 1)} of the way to the teacher.`;
}

function readings(entry, texts) {
  const parts = [
    ["The teacher’s prompt, with the solution", texts.privileged_view],
    ["The student’s prompt", texts.student_view],
    ["The response as text", texts.response],
  ].filter(([, text]) => text);
  return el("div", { class: "readings" }, ...parts.map(([title, text], i) => el("details", { open: i === 0 }, el("summary", {}, title), el("pre", { tabindex: 0 }, ...visibleLines(text)))));
}
