// Entry point: draws the sections, the visible ones first.

const THEMES = { auto: "Theme: as the system", light: "Theme: light", dark: "Theme: dark" };

function showTheme() {
  const button = byId("theme");
  let theme = storedTheme() ?? "auto";
  function apply() {
    if (theme === "auto") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = theme;
    button.textContent = THEMES[theme];
  }
  button.addEventListener("click", () => {
    const names = Object.keys(THEMES);
    theme = names[(names.indexOf(theme) + 1) % names.length];
    try {
      localStorage.setItem("theme", theme);
    } catch {
      // A browser may deny storage to a page opened from a file.
    }
    apply();
  });
  apply();
}

function storedTheme() {
  try {
    const theme = localStorage.getItem("theme");
    return theme in THEMES ? theme : null;
  } catch {
    return null;
  }
}

function showNavigation() {
  const sections = [...document.querySelectorAll("main > section")].filter((section) => !section.hidden);
  byId("nav").append(...sections.map((section) => el("a", { href: `#${section.id}` }, section.querySelector("h2").textContent)));
}

showTheme();
showAbout();
showDifferences();
const answersShown = showAnswers();
showTiles();
showNavigation();
const samplesShown = showSamples();
showTopTokens();
requestAnimationFrame(async () => {
  showCurves(byId("charts"));
  showTime();
  showExplorer();
  showSettings();
  if (DATA.live) {
    await Promise.all([samplesShown, answersShown]);
    showLive();
  }
  document.documentElement.dataset.ready = "true";
});
