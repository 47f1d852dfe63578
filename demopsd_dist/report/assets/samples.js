// List of samples with search, filters and order. Only the visible rows are elements.

const ROW_HEIGHT = 66;
const state = { measure: "alpha", chosen: null, smoothing: 0, view: "tokens" };
const SORTS = [
  ["peak", "most disagreement at a token"],
  ["disagreement", "most disagreement, mean"],
  ["entropy", "most entropy, mean"],
  ["new", "latest step first"],
  ["old", "first step first"],
  ["long", "longest first"],
];

async function showSamples() {
  const container = byId("samples");
  const withSamples = RUNS.map((run, number) => ({ run, number })).filter(({ run }) => run.samples);
  if (!withSamples.length) {
    container.append(el("p", { class: "note" }, "No samples were recorded: samples.every_steps was 0, or no step is done."));
    return;
  }
  const entries = [];
  for (const { run, number } of withSamples) {
    const columns = await unpack(`index-${number}`);
    const names = Object.keys(columns).filter((name) => name !== "arrays");
    for (let i = 0; i < run.samples; i++) {
      const entry = { run: number, index: i };
      for (const name of names) entry[name] = columns[name][i];
      entries.push(entry);
    }
  }
  const list = sampleList(entries);
  container.append(list.controls, el("div", { class: "split" }, list.box, list.detail));
  list.refresh();
}

function sampleList(entries) {
  const fields = [...new Set(entries.map((entry) => entry.field))].sort();
  const steps = [...new Set(entries.map((entry) => entry.step))].sort((a, b) => a - b);
  const peak = Math.max(...entries.map((entry) => entry.peak ?? 0));
  const option = ([value, text]) => el("option", { value }, text);
  const changed = { onchange: () => refresh() };
  const search = el("input", { type: "search", id: "search", placeholder: "question or response", oninput: () => searchSoon() });
  const field = el("select", { id: "field", ...changed }, ...[["", "any"], ...fields.map((name) => [name, name])].map(option));
  const reward = el("select", { id: "reward", ...changed }, ...[["", "any"], ["right", "right"], ["wrong", "wrong"]].map(option));
  const step = el("select", { id: "step", ...changed }, ...[["", "any"], ...steps.map((one) => [String(one), String(one)])].map(option));
  const run = el("select", { id: "run", ...changed }, ...[["", "any"], ...RUNS.map((one, i) => [String(i), one.name])].map(option));
  const sort = el("select", { id: "sort", ...changed }, ...(peak ? SORTS : SORTS.filter(([key]) => !["peak", "disagreement"].includes(key))).map(option));
  const least = el("input", { type: "range", id: "least", min: 0, max: 1, step: 0.01, value: 0, oninput: () => refresh() });
  const leastText = el("output", { for: "least" });
  const learned = el("input", { type: "checkbox", id: "learned", ...changed });
  const labelled = (text, input, ...more) => el("label", { class: "field", for: input.id }, el("span", {}, text), input, ...more);
  const count = el("p", { class: "count", role: "status" });
  const controls = el(
    "form",
    { class: "controls", onsubmit: (event) => event.preventDefault() },
    labelled("Search", search),
    MANY ? labelled("Run", run) : null,
    labelled("Field", field),
    labelled("Reward", reward),
    labelled("Step", step),
    labelled("Sort by", sort),
    peak ? el("label", { class: "field", for: "least" }, el("span", {}, "Peak disagreement at least", leastText), least) : null,
    el("label", { class: "check", for: "learned" }, learned, "only responses learned from"),
  );
  const rows = el("div", { class: "rows", role: "listbox", "aria-label": "Samples", tabindex: 0 });
  const space = el("div", { class: "space" });
  rows.append(space);
  const box = el("div", { class: "list" }, count, rows);
  const detail = el("article", { class: "card detail", "aria-label": "Selected sample" });
  let matching = [];
  let texts = null;
  let searches = 0;

  // The index has previews only; full texts are decoded at the first search.
  async function searchSoon() {
    const current = ++searches;
    if (search.value && !texts) {
      count.textContent = "loading all texts …";
      texts = await allTexts(entries);
    }
    if (current === searches) refresh();
  }

  function refresh() {
    const words = search.value.trim().toLowerCase();
    const bound = peak * Number(least.value);
    leastText.textContent = ` ${short(bound)} nats`;
    matching = entries.filter(
      (entry, i) =>
        (!run.value || entry.run === Number(run.value)) &&
        (!field.value || entry.field === field.value) &&
        (!reward.value || entry.reward >= 0.5 === (reward.value === "right")) &&
        (!step.value || entry.step === Number(step.value)) &&
        (bound === 0 || (entry.peak ?? 0) >= bound) &&
        (!learned.checked || entry.learned) &&
        (!words || (texts ? texts[i] : `${entry.question} ${entry.response}`.toLowerCase()).includes(words)),
    );
    const keys = { peak: (e) => -(e.peak ?? -1), disagreement: (e) => -(e.disagreement ?? -1), entropy: (e) => -(e.entropy ?? -1), new: (e) => -e.step, old: (e) => e.step, long: (e) => -e.tokens };
    const key = keys[sort.value];
    matching.sort((a, b) => key(a) - key(b));
    const recorded = sum(RUNS.map((one) => one.recorded));
    const more = recorded > entries.length ? `, evenly out of ${recorded.toLocaleString("en")} recorded` : "";
    count.textContent = `${matching.length.toLocaleString("en")} of ${plural(entries.length, "sample")}${more}`;
    space.style.height = `${matching.length * ROW_HEIGHT}px`;
    rows.scrollTop = 0;
    if (!matching.includes(state.chosen)) choose(matching[0] ?? null);
    draw();
  }

  function draw() {
    const first = Math.max(Math.floor(rows.scrollTop / ROW_HEIGHT) - 4, 0);
    const visibleEntries = matching.slice(first, first + Math.ceil(rows.clientHeight / ROW_HEIGHT) + 8);
    space.replaceChildren(...visibleEntries.map((entry, i) => rowOf(entry, first + i)));
    const chosen = matching.indexOf(state.chosen);
    if (chosen >= first && chosen < first + visibleEntries.length) rows.setAttribute("aria-activedescendant", `row-${chosen}`);
    else rows.removeAttribute("aria-activedescendant");
  }

  function rowOf(entry, index) {
    const right = entry.reward >= 0.5;
    const node = el(
      "div",
      { class: "row", role: "option", id: `row-${index}`, "aria-selected": String(entry === state.chosen), "aria-posinset": index + 1, "aria-setsize": matching.length, "--peak": peak ? clamp((entry.peak ?? 0) / peak, 0, 1).toFixed(3) : 0, onclick: () => choose(entry) },
      el("span", { class: right ? "verdict right" : "verdict wrong" }, right ? "✓" : "✗", el("span", { class: "hidden" }, right ? " right" : " wrong")),
      el("span", { class: "row-question" }, entry.question),
      el("span", { class: "row-response" }, entry.response || "(empty)"),
      el("span", { class: "row-facts" }, `${MANY ? `${RUNS[entry.run].name} · ` : ""}step ${entry.step} · ${entry.field}${entry.peak === null ? "" : ` · peak disagreement ${short(entry.peak)}`}`),
    );
    node.style.top = `${index * ROW_HEIGHT}px`;
    return node;
  }

  async function choose(entry) {
    state.chosen = entry;
    draw();
    if (!entry) {
      detail.replaceChildren(el("p", { class: "note" }, "No sample matches. Remove a filter."));
      return;
    }
    const { block_samples: size } = RUNS[entry.run];
    const number = Math.floor(entry.index / size);
    const [tokens, textColumns] = await Promise.all([block(`tokens-${entry.run}-${number}`), block(`texts-${entry.run}-${number}`)]);
    if (state.chosen !== entry) return;
    const index = entry.index % size;
    const texts = Object.fromEntries(Object.entries(textColumns).filter(([name]) => name !== "arrays").map(([name, column]) => [name, column[index]]));
    const same = (sample) => entries.find((one) => one.run === entry.run && one.step === entry.step && one.prompt === entry.prompt && one.sample === sample);
    const show = () => {
      const tabs = texts.group ? [viewTabs(texts.group.length, show)] : [];
      const grouped = state.view === "group" && texts.group;
      const content = grouped ? [sampleHead(RUNS[entry.run], entry, texts), groupView(entry, texts.group, same, choose)] : tokenView(RUNS[entry.run], entry, sampleOf(tokens, index), texts);
      detail.replaceChildren(...tabs, ...content);
    };
    show();
  }

  rows.addEventListener("scroll", () => requestAnimationFrame(draw), { passive: true });
  rows.addEventListener("keydown", (event) => {
    const at = matching.indexOf(state.chosen);
    const page = Math.floor(rows.clientHeight / ROW_HEIGHT);
    const moves = { ArrowUp: at - 1, ArrowDown: at + 1, PageUp: at - page, PageDown: at + page, Home: 0, End: matching.length - 1 };
    if (!(event.key in moves) || !matching.length) return;
    event.preventDefault();
    const next = clamp(moves[event.key], 0, matching.length - 1);
    if (next * ROW_HEIGHT < rows.scrollTop) rows.scrollTop = next * ROW_HEIGHT;
    if ((next + 1) * ROW_HEIGHT > rows.scrollTop + rows.clientHeight) rows.scrollTop = (next + 1) * ROW_HEIGHT - rows.clientHeight;
    choose(matching[next]);
  });
  new ResizeObserver(draw).observe(rows);
  state.open = (wanted) => {
    const entry = entries.find(wanted);
    if (entry) choose(entry);
  };
  state.search = (words) => {
    search.value = words;
    searchSoon();
  };
  return { controls, box, detail, refresh };
}

async function allTexts(entries) {
  const texts = new Array(entries.length);
  const blocks = new Map();
  for (const [i, entry] of entries.entries()) {
    const { block_samples: size } = RUNS[entry.run];
    const id = `texts-${entry.run}-${Math.floor(entry.index / size)}`;
    if (!blocks.has(id)) blocks.set(id, await unpack(id));
    const block = blocks.get(id);
    texts[i] = `${block.question[entry.index % size]}\n${block.response[entry.index % size]}`.toLowerCase();
  }
  return texts;
}

// Tokens with the largest share of the disagreement.
function showTopTokens() {
  const cards = RUNS.filter((run) => run.top_tokens?.length).map((run) => {
    const largestShare = run.top_tokens[0].share || 1;
    const rows = run.top_tokens.filter((one, i) => i < 16 && (i < 6 || one.share > 0.002)).map((one) =>
      el(
        "li",
        {},
        el("code", { class: "chip" }, ...visible(one.text)),
        el("span", { class: "bar", "--part": one.share / largestShare, "--run": "var(--heat-disagreement)" }, el("i", {})),
        el("span", { class: "bar-value" }, `${percent(one.share, 1)} · `, term("d"), ` ${short(one.disagreement)} · `, term("α"), ` ${short(one.alpha)} · ${one.count.toLocaleString("en")}×`),
      ),
    );
    const suffix = MANY ? `: ${run.name}` : "";
    return el(
      "figure",
      { class: "card" },
      el("figcaption", {}, el("h3", {}, `Tokens with the most disagreement${suffix}`), el("p", {}, "Share of the disagreement in all recorded samples; mean disagreement d in nats, mean alpha α, and number of occurrences.")),
      el("ul", { class: "bars top-tokens" }, ...rows),
      csvTool(`Tokens with the most disagreement${suffix}`, ["token", "share", "disagreement", "alpha", "count"], () => run.top_tokens.map((one) => [one.text, one.share, one.disagreement, one.alpha, one.count])),
    );
  });
  byId("top-tokens").append(...cards);
}
