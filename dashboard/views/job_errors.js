/* Where a job's error comes from, and what would lower it: the report's "anatomy" and "suggestions" in words. */
import {copy} from "../lib/clipboard.js";
import {el} from "../lib/dom.js";
import {bytes} from "../lib/format.js";

function share(part) {
  const value = 100 * part;
  return `${value >= 9.95 ? value.toFixed(0) : value.toPrecision(2)} %`;
}

function effect(one) {
  const removed = one.error_removed === null ? "effect not predicted" : `removes about ${share(one.error_removed)} of the error`;
  return `${removed}, ${one.bytes_added > 0 ? `adds ${bytes(one.bytes_added)}` : "adds no bytes"}`;
}

function suggestion(one, i) {
  const patch = el("code", {}, JSON.stringify(one.patch));
  return el("li", {},
    el("p", {}, `${one.reason} (${effect(one)})`),
    el("p", {class: "muted"}, `Basis: ${one.basis}`),
    el("p", {class: "row"}, patch, el("button", {class: "button", type: "button", "aria-label": `Copy change ${i + 1} of the request`, on: {click: () => copy(patch.textContent, patch)}}, "Copy")));
}

/* Returns {element, update(report)}; it is hidden where the report says nothing. */
export function errorsPanel() {
  const body = el("div", {class: "body stack"});
  const element = el("section", {class: "panel", "aria-label": "Where the error comes from", hidden: true}, el("header", {}, el("h2", {}, "Where the error comes from")), body);

  return {
    element,
    update(report) {
      const anatomy = report?.anatomy, suggestions = report?.suggestions ?? [];
      element.hidden = !anatomy;
      if (!anatomy) {
        return;
      }
      body.replaceChildren(
        el("p", {}, anatomy.summary),
        el("dl", {class: "pairs"}, ...anatomy.worst.flatMap((one) => [el("dt", {class: "mono"}, one.module.replace(/^.*?layers\./, "")), el("dd", {}, one.sentence)])),
        ...(suggestions.length === 0 ? [] : [el("h3", {}, "What would lower it"), el("ol", {class: "suggestions"}, ...suggestions.map(suggestion))]));
    },
  };
}
