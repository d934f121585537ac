/* The frame: which view is shown, the theme, the key, and whether the daemon answers. */
import {key, setKey, signals} from "./lib/api.js";
import {el, empty, setText, skeleton} from "./lib/dom.js";
import {login} from "./views/login.js";
import {VIEWS} from "./views/views.js";

const main = document.getElementById("main");
const bar = document.getElementById("views");
const themeButton = document.getElementById("theme");
const signOut = document.getElementById("sign-out");

let current = null; /* AbortController of what is shown */
let shown = null; /* its path */

function place() {
  const [path, query] = location.hash.replace(/^#/, "").split("?");
  return {path: path || "/", query: new URLSearchParams(query ?? "")};
}

function begin() {
  current?.abort();
  current = new AbortController();
  return current.signal;
}

function title(text) {
  document.title = text ? `${text} · quantd` : "quantd";
}

function markLink(view) {
  for (const link of bar.children) {
    const here = view && (view.link?.href ?? view.part) === link.getAttribute("href");
    if (here) {
      link.setAttribute("aria-current", view.link ? "page" : "true");
    } else {
      link.removeAttribute("aria-current");
    }
  }
}

async function showView() {
  const {path, query} = place();
  const signal = begin();
  const moved = shown !== null && shown !== path;
  shown = path;
  signOut.hidden = !key();
  bar.hidden = false;
  for (const view of VIEWS) {
    const match = view.pattern.exec(path);
    if (!match) {
      continue;
    }
    markLink(view);
    main.replaceChildren(skeleton(6));
    try {
      const module = await view.load();
      if (!signal.aborted) {
        main.replaceChildren();
        module.show(main, {args: match.slice(1), query, signal, title});
        if (moved) {
          main.focus({preventScroll: true});
          scrollTo(0, 0);
        }
      }
    } catch (error) {
      if (!signal.aborted) {
        main.replaceChildren(empty("This view could not be loaded", error.message,
          el("button", {class: "button", type: "button", on: {click: () => location.reload()}}, "Load the page again")));
      }
    }
    return;
  }
  markLink(null);
  title("Not found");
  main.replaceChildren(empty("There is no such page", `The dashboard has no ${path}.`, el("a", {class: "button", href: "#/"}, "Show the queue")));
}

function askKey(problem) {
  const signal = begin();
  setKey(null);
  signOut.hidden = true;
  bar.hidden = true;
  title("Sign in");
  login(main, {signal, problem, done: showView});
}

/* --- theme: the system's, or the one chosen here */

const dark = matchMedia("(prefers-color-scheme: dark)");

function isDark() {
  const chosen = document.documentElement.dataset.theme;
  return chosen ? chosen === "dark" : dark.matches;
}

function labelTheme() {
  setText(themeButton, isDark() ? "Light theme" : "Dark theme");
}

function themeChanged() {
  labelTheme();
  signals.dispatchEvent(new Event("theme"));
}

themeButton.addEventListener("click", () => {
  const next = isDark() ? "light" : "dark";
  document.documentElement.dataset.theme = next;
  try {
    localStorage.setItem("quantd.theme", next);
  } catch {
    /* Storage is blocked: until the page is left. */
  }
  themeChanged();
});
dark.addEventListener("change", themeChanged);
labelTheme();

/* --- start */

bar.append(...VIEWS.filter((view) => view.link).map((view) => el("a", {href: view.link.href}, view.link.label)));
signOut.addEventListener("click", () => askKey(null));
signals.addEventListener("login", (event) => askKey(event.detail));
signals.addEventListener("offline", () => setText(document.getElementById("connection"), "No answer from the daemon, trying again"));
signals.addEventListener("online", () => setText(document.getElementById("connection"), ""));
addEventListener("hashchange", (event) => {
  if (location.hash === "#main") {
    main.focus();
    history.replaceState(null, "", event.oldURL);
  } else {
    showView();
  }
});
showView();
