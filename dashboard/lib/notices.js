/* Short messages about what was done or went wrong, for eyes and for screen readers. */
import {el} from "./dom.js";

const SECONDS = 8, SHOWN = 5;

export function notice(text, kind = "info") {
  const close = el("button", {class: "button quiet", type: "button", "aria-label": "Dismiss", on: {click: () => box.remove()}}, "✕");
  const box = el("div", {class: `notice ${kind}`, role: kind === "error" ? "alert" : "status"}, el("p", {}, text), close);
  const notices = document.getElementById("notices");
  notices.append(box);
  while (notices.children.length > SHOWN) {
    notices.firstElementChild.remove();
  }
  if (kind !== "error") {
    setTimeout(() => box.remove(), SECONDS * 1000);
  }
  return box;
}

/* What a refused request says, with its hint. */
export function failure(what, error) {
  if (error.name === "AbortError") {
    return;
  }
  notice(`${what}: ${error.message}${error.hint ? ` (${error.hint})` : ""}`, "error");
}

/* A question before something that cannot be undone. True when it was confirmed. */
export function confirm(title, text, action) {
  return new Promise((resolve) => {
    const no = el("button", {class: "button", type: "submit", value: "no"}, "Keep");
    const yes = el("button", {class: "button danger", type: "submit", value: "yes"}, action);
    const dialog = el("dialog", {class: "dialog", "aria-labelledby": "dialog-title", "aria-describedby": "dialog-text"},
      el("form", {method: "dialog"}, el("h2", {id: "dialog-title"}, title), el("p", {id: "dialog-text"}, text), el("div", {class: "row end"}, no, yes)));
    dialog.addEventListener("close", () => {
      dialog.remove();
      resolve(dialog.returnValue === "yes");
    });
    document.body.append(dialog);
    dialog.showModal();
    no.focus();
  });
}
