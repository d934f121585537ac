/* The events of a job, as lines. Progress is a line only where the step changes. */
import {el} from "../lib/dom.js";
import {STATUSES, clock, count, date, perplexity, small} from "../lib/format.js";

const LINES = 1000;

function line(event, steps) {
  const data = event.data;
  switch (event.type) {
  case "status":
    return [data.status === "failed" || data.status === "expired" ? "bad" : "status",
      `${STATUSES[data.status] ?? data.status}${data.attempt > 1 ? `, attempt ${data.attempt}` : ""}${data.worker ? ` on ${data.worker}` : ""}${data.reason ? `: ${data.reason}` : ""}`];
  case "progress": {
    const step = `${data.phase}`;
    if (steps.last === step) {
      return null;
    }
    steps.last = step;
    return ["progress", data.phase ? `${data.phase[0].toUpperCase()}${data.phase.slice(1)}` : "Working"];
  }
  case "layer": {
    const worst = data.modules.reduce((a, b) => ((b.output_relative_mse ?? b.relative_mse ?? -1) > (a?.output_relative_mse ?? a?.relative_mse ?? -1) ? b : a), null);
    return ["layer", `Block ${data.layer + 1} of ${data.layers_total}: ${count(data.modules.length)} layers${worst ? `, largest error ${small(worst.output_relative_mse ?? worst.relative_mse)} in ${worst.module}` : ""}`];
  }
  case "warning":
    return ["warning", data.message ?? data.code ?? "warning"];
  case "metric":
    return ["metric", `Perplexity ${perplexity(data.perplexity_before)} before, ${perplexity(data.perplexity_after)} after; KL divergence ${small(data.kl_divergence_mean)}`];
  case "gate": {
    const next = {publish: "the artifact is made", next_rung: "going on with the next rung", warn: "the artifact is made all the same", fail: "the job fails"}[data.action];
    return [data.passed ? "metric" : "warning", `Gate, rung ${data.rung + 1} of ${data.rungs_total} (${data.method}) ${data.passed ? "passed" : `failed: ${data.reasons.map((reason) => reason.message).join("; ")}`}; ${next ?? data.action}`];
  }
  case "artifact":
    return ["artifact", "The artifact was deleted"];
  default:
    return [event.type, JSON.stringify(data)];
  }
}

/* Returns {element, add(event)}. */
export function logPanel() {
  const list = el("ol", {class: "log", tabindex: "0", "aria-label": "Events"});
  const steps = {last: null};
  let waiting = null;

  return {
    element: el("section", {class: "panel", "aria-label": "Event log"}, el("header", {}, el("h2", {}, "Events")), el("div", {class: "body flush"}, list)),
    add(event) {
      const found = line(event, steps);
      if (found === null) {
        return;
      }
      if (event.type === "status") {
        steps.last = null;
      }
      const [kind, text] = found;
      if (waiting === null) {
        waiting = document.createDocumentFragment();
        requestAnimationFrame(() => {
          const atEnd = list.scrollTop + list.clientHeight >= list.scrollHeight - 24;
          list.append(waiting);
          waiting = null;
          while (list.children.length > LINES) {
            list.firstElementChild.remove();
          }
          if (atEnd) {
            list.scrollTop = list.scrollHeight;
          }
        });
      }
      waiting.append(el("li", {class: kind}, el("time", {class: "time", datetime: new Date(event.created_at * 1000).toISOString(), title: date(event.created_at)}, clock(event.created_at)),
        el("span", {class: "kind"}, event.type), el("span", {class: "text"}, text)));
    },
  };
}
