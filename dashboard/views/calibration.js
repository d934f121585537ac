/* Records of this computer into a job that waits for them: how many tokens have arrived, what was rejected, and the way on. */
import {get} from "../lib/api.js";
import {el, empty, setText, skeleton} from "../lib/dom.js";
import {bytes, count, percent} from "../lib/format.js";
import {notice} from "../lib/notices.js";
import {sendRecords} from "../lib/upload.js";

const SHOWN = 20; /* rejected lines */

let handed = null; /* {job, file} of the form that made the job */

/* Shows this view for a job that was just made, and sends the file. */
export function begin(job, file) {
  handed = {job, file};
  location.hash = `#/jobs/${job}/calibration`;
}

export async function show(main, {args, signal, title}) {
  const [id] = args, file = handed?.job === id ? handed.file : null;
  handed = null;
  title("Calibration");
  main.append(skeleton(5));
  let job;
  try {
    job = await get(`/v1/quantization/jobs/${id}`, {signal});
  } catch (error) {
    if (!signal.aborted) {
      main.replaceChildren(empty(error.status === 404 ? "There is no such job" : "The job could not be read", error.status === 404 ? "It may have been deleted." : error.message, el("a", {class: "button", href: "#/"}, "Show the queue")));
    }
    return;
  }
  if (signal.aborted) {
    return;
  }
  if (job.status !== "awaiting_calibration") {
    main.replaceChildren(empty("The job takes no records", "Its calibration set is complete.", el("a", {class: "button", href: `#/jobs/${id}`}, "Show the job")));
    return;
  }
  build(main, job, file, signal);
}

function build(main, job, first, signal) {
  const bar = el("progress", {class: "plain", max: "1", "aria-label": "Part of the file that was sent"}), position = el("p", {role: "status"});
  const tokens = el("dd", {}, count(job.calibration.tokens ?? 0)), records = el("dd", {}, count(job.calibration.records ?? 0)), needed = el("dd", {}, "–"), rejected = el("dd", {}, "0");
  const fault = el("p", {class: "fault", role: "alert"}), messages = el("ul", {class: "messages"});
  const input = el("input", {type: "file", id: "records", accept: ".ndjson,.jsonl,.json,application/x-ndjson"});
  const resume = el("input", {type: "checkbox", id: "resume"}), resumeLabel = el("label", {for: "resume"});
  const resumeRow = el("div", {class: "row"}, resume, resumeLabel);
  const picker = el("div", {class: "stack"}, resumeRow, el("label", {class: "field", for: "records"}, "A file of records, one a line", input));
  const fact = (label, value) => el("div", {class: "fact"}, el("dt", {}, label), value);
  let refused = 0, sending = false;

  bar.value = 0;
  bar.hidden = true;
  input.addEventListener("change", () => {
    if (input.files[0]) {
      start(input.files[0]);
    }
  });

  /* number: records of the job; again: whether the same file is expected. */
  function offer(number, again) {
    resumeRow.hidden = number === 0;
    resume.checked = number > 0 && again;
    setText(resumeLabel, number === 1 ? "It begins with the record that the job has: leave that out" : `It begins with the ${count(number)} records that the job has: leave these out`);
  }
  offer(job.calibration.records ?? 0, true);

  function leaving(event) {
    event.preventDefault();
  }

  async function start(file) {
    if (sending) {
      return;
    }
    sending = true;
    refused = 0;
    setText(fault, "");
    messages.replaceChildren();
    picker.hidden = true;
    bar.hidden = false;
    addEventListener("beforeunload", leaving);
    setText(position, `Sending ${file.name} (${bytes(file.size)})`);
    try {
      const answer = await sendRecords(job.id, file, {signal, resumed: resume.checked, onProgress: ({answer: so, read}) => {
        bar.value = file.size > 0 ? read / file.size : 1;
        setText(position, `${file.name}: ${percent(Math.min(1, bar.value))} of ${bytes(file.size)}`);
        setText(tokens, count(so.tokens));
        setText(records, count(so.next_offset));
        setText(needed, so.needed === 0 ? "none" : count(so.needed));
        refused += so.rejected ?? 0;
        setText(rejected, count(refused));
        for (const error of (so.errors ?? []).slice(0, Math.max(0, SHOWN - messages.children.length))) {
          messages.append(el("li", {class: "bad"}, `Line ${error.line} of a batch: ${error.detail} `, el("code", {}, error.code)));
        }
        for (const warning of so.warnings ?? []) {
          if (![...messages.children].some((item) => item.dataset.key === warning.code)) {
            messages.append(el("li", {data: {key: warning.code}}, warning.message, " ", el("code", {}, warning.code)));
          }
        }
      }});
      notice(`${count(answer.tokens)} tokens were accepted`, "good");
      if (refused === 0) {
        location.replace(`#/jobs/${job.id}`);
      } else {
        setText(position, `The set is complete; ${count(refused)} lines were rejected.`);
      }
    } catch (error) {
      if (error.name !== "AbortError" && !signal.aborted) {
        setText(fault, `${error.message}${error.hint ? ` (${error.hint})` : ""}`);
        await waiting(error);
      }
    }
    removeEventListener("beforeunload", leaving);
    sending = false;
  }
  /* What the job has after a failure, and the question for another file. */
  async function waiting(error) {
    const state = await get(`/v1/quantization/jobs/${job.id}`, {signal}).catch(() => null);
    if (state) {
      setText(tokens, count(state.calibration.tokens ?? 0));
      setText(records, count(state.calibration.records ?? 0));
      offer(state.calibration.records ?? 0, error.code !== "insufficient_calibration");
    }
    setText(position, "The job still waits: choose another file, or the same one to continue.");
    picker.hidden = false;
    input.value = "";
  }
  signal.addEventListener("abort", () => removeEventListener("beforeunload", leaving));

  main.replaceChildren(
    el("div", {class: "head"}, el("div", {}, el("p", {class: "muted"}, el("a", {href: "#/"}, "Queue"), " / ", el("a", {href: `#/jobs/${job.id}`}, job.name || job.id)), el("h1", {}, "Calibration records")), el("a", {class: "button", href: `#/jobs/${job.id}`}, "Show the job")),
    el("div", {class: "stack"},
      el("section", {class: "panel", "aria-label": "Records"}, el("header", {}, el("h2", {}, "Records"), el("span", {class: "muted"}, "Lines of JSON: {\"text\": …}, {\"messages\": […]} or {\"input_ids\": […]}")),
        el("div", {class: "body stack"}, picker, bar, position, fault)),
      el("dl", {class: "facts"}, fact("Tokens", tokens), fact("Records", records), fact("Tokens still needed", needed), fact("Rejected lines", rejected)), messages));
  if (first) {
    start(first);
  }
}
