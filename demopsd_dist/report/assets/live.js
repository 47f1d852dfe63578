// Live page: asks the server for a new state, and loads the page again with the reader's place and choices kept.

const ASK_MS = 2000;
const INPUTS = ["search", "field", "reward", "step", "run", "sort", "least", "learned", "metric", "smoothing"];

function showLive() {
  const status = byId("live");
  status.hidden = false;
  const done = DATA.live.startsWith("done");
  const say = (text) => (status.textContent = text);
  restorePlace();
  if (done) return say("The run is done");
  say("Live");
  const timer = setInterval(async () => {
    try {
      const answer = await fetch(`state${location.search}`, { cache: "no-store" });
      if (!answer.ok || (await answer.json()) === DATA.live) return;
      clearInterval(timer);
      keepPlace();
      location.reload();
    } catch {
      say("Not live: demopsd watch has ended"); // goes on asking, in case it is started again with this address
    }
  }, ASK_MS);
}

function keepPlace() {
  const inputs = Object.fromEntries(INPUTS.map((id) => [id, byId(id)]).filter(([, node]) => node).map(([id, node]) => [id, node.type === "checkbox" ? node.checked : node.value]));
  const chosen = state.chosen && { step: state.chosen.step, prompt: state.chosen.prompt, sample: state.chosen.sample };
  sessionStorage.setItem("place", JSON.stringify({ inputs, chosen, measure: state.measure, view: state.view, top: window.scrollY }));
}

function restorePlace() {
  const stored = sessionStorage.getItem("place");
  if (!stored) return;
  sessionStorage.removeItem("place");
  const place = JSON.parse(stored);
  state.measure = place.measure;
  state.view = place.view;
  for (const [id, value] of Object.entries(place.inputs)) {
    const node = byId(id);
    if (!node) continue;
    if (node.type === "checkbox") node.checked = value;
    else if (node.tagName !== "SELECT" || [...node.options].some((option) => option.value === value)) node.value = value;
    for (const kind of ["input", "change"]) node.dispatchEvent(new Event(kind, { bubbles: true }));
  }
  if (place.chosen) state.open?.((entry) => Object.entries(place.chosen).every(([name, value]) => entry[name] === value));
  window.scrollTo({ top: place.top, behavior: "instant" });
}
