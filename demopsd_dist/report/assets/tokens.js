// One response: its coloured tokens, and the probabilities of the candidates at the selected token.

const MEASURES = [
  ["alpha", "Alpha", "weight of the reference in the barycenter"],
  ["disagreement", "Disagreement", "Jensen-Shannon divergence of reference and teacher, nats"],
  ["entropy", "Student entropy", "entropy of the student’s next-token distribution, nats"],
  ["surprise", "Surprisal", "−log of the sampled token’s probability, nats"],
];
const VIEWS = ["student", "reference", "teacher", "target"];
const nameOf = (view, run) => (view === "target" ? targetName([run]) : view);

// Sample at an index of its block: tokens with their values and candidates.
function sampleOf(tokens, index) {
  const start = sum(tokens.lengths.slice(0, index));
  const length = tokens.lengths[index];
  const recorded = new Set(tokens.recorded[index]);
  const width = tokens.candidates;
  const column = (name) => (recorded.has(name) ? (i) => tokens[name][start + i] * tokens.scales[name] + tokens.lowest[name] : () => null);
  const surprise = column("rollout_logp");
  const values = { alpha: column("alpha"), disagreement: column("disagreement"), entropy: column("entropy"), loss: column("loss"), surprise };
  const views = VIEWS.filter((name) => recorded.has(name));
  return {
    length,
    values,
    has: (name) => (name === "surprise" ? recorded.has("rollout_logp") : recorded.has(name)),
    views,
    text: (i) => tokens.texts[tokens.token[start + i]],
    version: (i) => tokens.version[start + i],
    candidates(i) {
      if (!views.length) return [];
      const rows = [];
      for (let c = (start + i) * width; c < (start + i + 1) * width; c++) {
        const probabilities = Object.fromEntries(views.map((name) => [name, tokens[name][c] * tokens.scales[name]]));
        rows.push({ text: tokens.texts[tokens.candidate[c]], same: tokens.candidate[c] === tokens.token[start + i], ...probabilities });
      }
      return rows;
    },
  };
}

// Upper end of a measure's colour scale; fixed for alpha and disagreement, so that colours are comparable.
function scaleOf(measure, run, sample) {
  if (measure === "alpha") return Number(run.config["demopsd.alpha_max"]) || 1;
  if (measure === "disagreement") return Math.LN2;
  let maximum = 0;
  for (let i = 0; i < sample.length; i++) maximum = Math.max(maximum, sample.values[measure](i) ?? 0);
  return Math.max(maximum, measure === "entropy" ? 1 : 2);
}

function tokenView(run, entry, sample, texts) {
  const usable = MEASURES.filter(([name]) => sample.has(name));
  let measure = usable.some(([name]) => name === state.measure) ? state.measure : usable[0]?.[0];
  const ramp = el("p", { class: "ramp" });
  const panel = el("div", { class: "panel", "aria-live": "polite" });
  const line = el("div", { class: "response", role: "listbox", "aria-label": "Tokens of the response", "aria-orientation": "horizontal", tabindex: -1 });
  const spans = [];
  for (let i = 0; i < sample.length; i++) {
    const text = sample.text(i);
    const span = el("span", { class: "token", role: "option", tabindex: -1, "aria-selected": "false", "data-index": i });
    span.append(...visible(text));
    spans.push(span);
    line.append(span);
    if (text.includes("\n")) line.append(el("br"));
  }
  let pinned = peakDisagreement(sample);

  function paint() {
    const maximum = scaleOf(measure, run, sample);
    line.dataset.measure = measure;
    spans.forEach((span, i) => span.style.setProperty("--heat", clamp((sample.values[measure](i) ?? 0) / maximum, 0, 1).toFixed(3)));
    const [, name, about] = MEASURES.find(([key]) => key === measure);
    ramp.dataset.measure = measure;
    ramp.replaceChildren(el("span", {}, "0"), el("i", { "aria-hidden": "true" }), el("span", {}, short(maximum)), el("span", { class: "ramp-about" }, `${name}: ${about}`));
  }
  function select(index, { pin = false, focus = false } = {}) {
    if (pin) {
      spans[pinned]?.setAttribute("aria-selected", "false");
      if (spans[pinned]) spans[pinned].tabIndex = -1;
      pinned = index;
      spans[pinned].setAttribute("aria-selected", "true");
      spans[pinned].tabIndex = 0;
    }
    if (focus) spans[index].focus({ preventScroll: false });
    panel.replaceChildren(...tokenPanel(run, sample, index));
  }
  const indexOf = (event) => {
    const span = event.target.closest?.(".token");
    return span ? Number(span.dataset.index) : null;
  };
  line.addEventListener("pointerover", (event) => indexOf(event) !== null && select(indexOf(event)));
  line.addEventListener("pointerleave", () => spans.length && select(pinned));
  line.addEventListener("click", (event) => indexOf(event) !== null && select(indexOf(event), { pin: true, focus: true }));
  line.addEventListener("focusin", (event) => indexOf(event) !== null && select(indexOf(event), { pin: true }));
  line.addEventListener("keydown", (event) => {
    const moves = { ArrowLeft: pinned - 1, ArrowRight: pinned + 1, Home: 0, End: spans.length - 1 };
    if (!(event.key in moves)) return;
    event.preventDefault();
    select(clamp(moves[event.key], 0, spans.length - 1), { pin: true, focus: true });
  });

  const measures = usable.length
    ? choice("Colour by", usable.map(([name, label]) => [name, label]), measure, (name) => {
        measure = state.measure = name;
        paint();
      })
    : null;
  if (usable.length) paint();
  if (spans.length) select(pinned, { pin: true });
  else line.append(el("em", {}, "an empty response"));
  return [sampleHead(run, entry, texts), measures, usable.length ? ramp : null, line, cutNote(run, sample), panel, sampleTexts(entry, texts)].filter(Boolean);
}

// Index of the token with the most disagreement; the first token where none is recorded.
function peakDisagreement(sample) {
  let best = 0;
  for (let i = 1; i < sample.length; i++) if ((sample.values.disagreement(i) ?? 0) > (sample.values.disagreement(best) ?? 0)) best = i;
  return best;
}

// Text as nodes, in which white space and escaped characters are marked.
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
    entry.truncated ? "truncated" : null,
  ].filter(Boolean);
  return el(
    "header",
    { class: "sample-head" },
    el("p", { class: "facts" }, el("span", { class: right ? "badge right" : "badge wrong" }, `${right ? "✓ right" : "✗ wrong"} · reward ${short(entry.reward)}`), ...facts.map((fact) => el("span", {}, fact))),
    el("p", { class: "question" }, ...visibleLines(texts.question)),
    el("p", { class: "facts" }, el("span", {}, "expected ", el("b", {}, entry.expected)), entry.learned ? null : el("span", {}, `not learned from: ${run.config.method === "grpo" ? "the rewards of its group are equal" : "no privileged context, or its group was not needed"}`)),
    texts.feedback ? el("p", { class: "facts" }, el("span", {}, `feedback: ${texts.feedback}`)) : null,
  );
}

function visibleLines(text) {
  return text.split("\n").flatMap((part, i) => [...(i ? [el("br")] : []), ...(part === "" ? [] : visible(part))]);
}

function cutNote(run, sample) {
  const limit = Number(run.config["samples.tokens"]);
  return sample.length === limit ? el("p", { class: "note" }, `Tokens may be cut to the first ${plural(limit, "token")} (samples.tokens); the full text is below.`) : null;
}

function tokenPanel(run, sample, i) {
  const facts = [
    ["alpha", sample.values.alpha(i)],
    ["disagreement", sample.values.disagreement(i)],
    ["entropy", sample.values.entropy(i)],
    ["loss", sample.values.loss(i)],
  ].filter(([, value]) => value !== null);
  const sampled = Math.exp(-(sample.values.surprise(i) ?? 0));
  const rows = sample.candidates(i).sort((a, b) => (b.target ?? b.student) - (a.target ?? a.student));
  return [
    el(
      "div",
      { class: "panel-head" },
      el("h4", {}, "Token ", el("code", { class: "chip" }, ...visible(sample.text(i))), el("small", {}, ` ${i + 1} of ${sample.length}`)),
      el("dl", { class: "token-facts" }, ...facts.map(([name, value]) => el("div", {}, el("dt", {}, term(name)), el("dd", {}, short(value)))), el("div", {}, el("dt", {}, term("sampled with")), el("dd", {}, `${chance(sampled)} %`)), el("div", {}, el("dt", {}, term("weights")), el("dd", {}, String(sample.version(i))))),
    ),
    rows.length ? el("p", { class: "story" }, summaryOf(sample, rows, i)) : el("p", { class: "story" }, "Not learned from: neither the teacher nor the reference scored this response."),
    rows.length ? candidateTable(run, sample, rows) : null,
  ].filter(Boolean);
}

function candidateTable(run, sample, rows) {
  const cell = (name, value) => el("td", { class: "p" }, el("span", {}, chance(value)), el("i", { class: name, "--part": value.toFixed(4), "aria-hidden": "true" }));
  const tail = Object.fromEntries(sample.views.map((name) => [name, Math.max(1 - sum(rows.map((row) => row[name])), 0)]));
  return el(
    "table",
    { class: "candidates" },
    el("caption", {}, "Probability of the next token, %"),
    el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "token"), ...sample.views.map((name) => el("th", { scope: "col" }, term(nameOf(name, run)))))),
    el(
      "tbody",
      {},
      ...rows.map((row) =>
        el("tr", { class: row.same ? "sampled" : null }, el("th", { scope: "row" }, el("code", { class: "chip" }, ...visible(row.text)), row.same ? el("small", {}, " sampled") : null), ...sample.views.map((name) => cell(name, row[name]))),
      ),
      el("tr", { class: "rest" }, el("th", { scope: "row" }, "all other tokens"), ...sample.views.map((name) => cell(name, tail[name]))),
    ),
  );
}

// Summary of the table in words.
function summaryOf(sample, rows, i) {
  const top = (name) => rows.reduce((best, row) => (row[name] > best[name] ? row : best));
  if (!sample.views.includes("teacher")) return "No teacher has scored this response.";
  const base = sample.views.includes("reference") ? "reference" : "student";
  const [without, withSolution] = [top(base), top("teacher")];
  const d = sample.values.disagreement(i);
  if (without.text !== withSolution.text) {
    return `Without the solution the likeliest token is “${without.text}” (${chance(without[base])} %), with it “${withSolution.text}” (${chance(withSolution.teacher)} %). ${barycenterShare(sample, i)}`;
  }
  if (d !== null && d < 0.001) return `The solution changes nothing here: the likeliest token is “${withSolution.text}” for all.`;
  return `The likeliest token is “${withSolution.text}” in both: ${chance(without[base])} % without the solution, ${chance(withSolution.teacher)} % with it. ${barycenterShare(sample, i)}`;
}

function barycenterShare(sample, i) {
  const alpha = sample.values.alpha(i);
  return alpha === null ? "" : `In log-probability the barycenter is ${percent(1 - alpha, 1)} of the way from the reference to the teacher.`;
}

// Source of the solution in the teacher's prompt, in words. Older runs did not record it: theirs were siblings.
function sourceInWords(source) {
  const words = {
    sibling: "with a correct sibling’s response",
    dataset: "with the data set’s solution",
    sibling_and_dataset: "with a correct sibling’s response and the data set’s solution",
    answer_only: "with the bare answer",
    other_question: "with the solution of another question",
    feedback: "with feedback and no solution",
  };
  return `, ${words[source] ?? "with the solution"}`;
}

function sampleTexts(entry, texts) {
  const sections = [
    [`The teacher’s prompt${sourceInWords(entry.source)}`, texts.privileged_view],
    ["The student’s prompt", texts.student_view],
    ["The response as text", texts.response],
  ].filter(([, text]) => text);
  return el("div", { class: "readings" }, ...sections.map(([title, text], i) => el("details", { open: i === 0 }, el("summary", {}, title), el("pre", { tabindex: 0 }, ...visibleLines(text)))));
}
