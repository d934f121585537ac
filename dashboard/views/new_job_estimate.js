/* What the job of the form would take and make, as it is filled in: POST /v1/quantization/estimates, a moment after the last change. */
import {send} from "../lib/api.js";
import {el, setText} from "../lib/dom.js";
import {marks} from "../lib/fields.js";
import {bytes, count, duration, fixed} from "../lib/format.js";

const PAUSE_MS = 400;

/* Calls run() once nothing has asked for it for a moment; never once the signal has come. */
function debounced(run, signal) {
  let timer = null;
  signal.addEventListener("abort", () => clearTimeout(timer));
  return () => {
    clearTimeout(timer);
    timer = signal.aborted ? null : setTimeout(run, PAUSE_MS);
  };
}

/* The phases of a report that a phase of memory is made of. */
const PARTS = {loading: ["load"], calibrating: ["forward", "hessian"], quantizing: ["solve", "measure", "checkpoint"], evaluating: ["evaluate"], packing: ["export", "other"]};
const LABELS = {loading: "Loading", calibrating: "Calibrating", quantizing: "Quantizing", evaluating: "Evaluating", packing: "Packing"};

function phases({memory, time}) {
  const cells = (one) => [LABELS[one.phase] ?? one.phase, bytes(one.device_bytes), bytes(memory.process_bytes + one.host_bytes), time ? duration((PARTS[one.phase] ?? []).reduce((sum, part) => sum + (time.phases[part] ?? 0), 0)) : "–"];
  return el("table", {class: "table"}, el("caption", {class: "visually-hidden"}, "Memory and time of each phase"),
    el("thead", {}, el("tr", {}, ...["Phase", "Device", "Process", "Time"].map((title, at) => el("th", {scope: "col", class: at > 0 ? "number" : null}, title)))),
    el("tbody", {}, ...memory.phases.map((one) => el("tr", {}, ...cells(one).map((cell, at) => el(at === 0 ? "th" : "td", {scope: at === 0 ? "row" : null, class: at > 0 ? "number" : null}, cell))))));
}

const line = (label, value, note = null, wrong = false) => [el("dt", {}, label), el("dd", {class: wrong ? "fault" : ""}, value, note ? el("span", {class: "help"}, ` ${note}`) : null)];

function figures({method, recommendation, output, memory, disk, time, parameters}) {
  const rows = [];
  if (recommendation) {
    rows.push(line("Chosen", `${recommendation.choice} (${method})`, recommendation.reason));
  }
  if (output) {
    rows.push(line("Artifact", output.artifact_bytes === null ? "none" : bytes(output.artifact_bytes),
      output.compression_ratio === null ? null : `of ${bytes(output.source_bytes)}, ${fixed(output.compression_ratio, 1)} times smaller, ${output.format}`));
    rows.push(line("Bits per weight", fixed(output.bits_per_weight, 2), output.bits_per_weight === null ? null : `with scales, of ${count(output.parameters_quantized)} of ${count(parameters)} weights`));
  }
  if (memory) {
    const short = memory.free_bytes !== null && memory.minimum_bytes > memory.free_bytes;
    rows.push(line("Memory", `${memory.upper_bound ? "up to " : ""}${bytes(memory.expected_bytes)}`, `of ${memory.device}; ${bytes(memory.minimum_bytes)} at least${memory.free_bytes === null ? "" : `, ${bytes(memory.free_bytes)} free`}`, short));
    rows.push(line("Process", bytes(memory.host_expected_bytes), `of the host's memory at the peak${memory.host_free_bytes === null ? "" : `; ${bytes(memory.host_free_bytes)} free`}`));
  }
  if (disk) {
    rows.push(line("Disk", bytes(disk.needed_bytes), `while it runs; ${bytes(disk.free_bytes)} free`, disk.needed_bytes > disk.free_bytes));
  }
  if (time?.seconds > 0) {
    rows.push(line("Time", `about ${duration(time.seconds)}`, time.basis === "jobs" ? "by the jobs that this machine has finished" : "by a first measurement of this machine; closer once a job has finished"));
  }
  return rows.flat();
}

/* {element, ask(), stop()}. body() is the job now, or null where it has no model yet; controls(): those that problems are shown at. */
export function estimate({body, controls, signal}) {
  const list = el("dl", {class: "estimate"}), problems = el("ul", {class: "problems"}), table = el("div", {class: "scroller"}), more = el("details", {hidden: true}, el("summary", {}, "Phase by phase"), table), said = el("p", {class: "muted", role: "status"});
  const element = el("section", {class: "panel", "aria-label": "Estimate"}, el("header", {}, el("h2", {}, "Estimate")), el("div", {class: "body stack"}, said, list, more, problems));
  const marked = marks();
  let asked = null, shown = null, forbidden = false; /* asked: what aborts the request under way */

  function clear(text) {
    shown = null;
    list.replaceChildren();
    more.hidden = true;
    problems.replaceChildren();
    marked.show(controls(), []);
    setText(said, text);
  }

  function show(found) {
    list.replaceChildren(...figures(found));
    more.hidden = found.memory === null;
    table.replaceChildren(...(found.memory === null ? [] : [phases(found)]));
    const sentence = (one) => `${one.detail}${one.hint ? ` (${one.hint})` : ""}`;
    const rest = marked.show(controls(), found.problems);
    problems.replaceChildren(...rest.map((one) => el("li", {class: "fault"}, sentence(one))), ...found.warnings.map((one) => el("li", {class: "warning"}, one.message)));
    const at = found.problems.length - rest.length;
    setText(said, found.possible ? "The job can run as it is." : `The job could not run: ${count(found.problems.length)} ${found.problems.length === 1 ? "problem" : "problems"}${at > 0 ? ", marked in the form" : ""}.`);
  }

  const ask = debounced(async () => {
    const json = body(), text = JSON.stringify(json);
    asked?.abort(); /* also where the form is again what the estimate shows */
    if (forbidden || text === shown) {
      return;
    }
    if (json === null) {
      clear("Name a checkpoint to see what the job would take.");
      return;
    }
    const mine = asked = new AbortController();
    signal.addEventListener("abort", () => mine.abort(), {signal: mine.signal});
    try {
      const found = await (await send("POST", "/v1/quantization/estimates", {json, signal: mine.signal})).json();
      if (!mine.signal.aborted) {
        shown = text;
        show(found);
      }
    } catch (error) {
      if (mine.signal.aborted || error.name === "AbortError") {
        return;
      }
      if (error.status === 403) {
        forbidden = true;
        clear("This key may not make jobs, so nothing is estimated.");
      } else if (error.errors?.length > 0) {
        clear("The job cannot be read yet.");
        problems.replaceChildren(...marked.show(controls(), error.errors).map((one) => el("li", {class: "fault"}, `${one.detail}${one.hint ? ` (${one.hint})` : ""}`)));
      } else {
        clear(`There is no estimate: ${error.message}`);
      }
    } finally {
      mine.abort(); /* and lets go of the view's signal */
    }
  }, signal);

  return {element, ask, stop: () => asked?.abort()};
}
