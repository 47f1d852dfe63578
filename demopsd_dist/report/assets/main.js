// The page, put together: first what is seen first.

const THEMES = { auto: "Theme: as the system", light: "Theme: light", dark: "Theme: dark" };

function showTheme() {
  const button = byId("theme");
  let theme = remembered() ?? "auto";
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
      // A browser may forbid a page of a file to remember anything.
    }
    apply();
  });
  apply();
}

function remembered() {
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
showTiles();
showNavigation();
showSamples();
showTelling();
requestAnimationFrame(() => {
  showCurves(byId("charts"));
  showTime();
  showExplorer();
  showSettings();
  document.documentElement.dataset.ready = "true";
});
