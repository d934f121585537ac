/* Lines to copy, and a quotation for a shell. */
import {el} from "./dom.js";
import {notice} from "./notices.js";

export async function copy(text, element) {
  try {
    await navigator.clipboard.writeText(text); /* only where the page came by TLS or from this machine */
    notice("Copied", "good");
  } catch {
    getSelection().selectAllChildren(element);
    notice("Selected: press Ctrl+C to copy");
  }
}

/* A box of lines with its title and a button that copies them; text() gives what is copied. */
export function lines(title, note = null) {
  const code = el("code");
  const pre = el("pre", {tabindex: "0", "aria-label": `${title}: commands`}, code);
  const element = el("div", {class: "recipe"},
    el("header", {}, el("h3", {}, title), el("button", {class: "button", type: "button", "aria-label": `Copy the lines for ${title}`, on: {click: () => copy(code.textContent, pre)}}, "Copy")),
    note ? el("p", {}, note) : null, pre);
  return {element, set: (text) => (code.textContent === text ? null : (code.textContent = text))};
}

/* One word of a POSIX shell. */
export function quote(text) {
  return /^[A-Za-z0-9_./:@%+,=-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`;
}
