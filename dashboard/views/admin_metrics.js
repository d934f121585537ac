/* /metrics at a glance: rates are those between two readings. */
import {send, sleep} from "../lib/api.js";
import {el, setText} from "../lib/dom.js";
import {NONE, bytes, count, duration, now, small} from "../lib/format.js";
import {parseMetrics, total} from "../lib/metrics.js";

const SECONDS = 5;

const mean = (samples, name, accept) => {
  const number = total(samples, `${name}_count`, accept);
  return number > 0 ? total(samples, `${name}_sum`, accept) / number : null;
};
const milliseconds = (seconds) => (seconds === null ? NONE : seconds < 1 ? `${small(seconds * 1000)} ms` : seconds < 60 ? `${seconds.toFixed(1)} s` : duration(seconds));

/* Streams and waits last as long as their client wants. */
const answered = ({route}) => !/events$|\/jobs\/\{job_id\}$|calibration$|files|archive|oci$|uploads/.test(route ?? "");

export function metricsPanel(signal) {
  const facts = el("dl", {class: "facts in-panel"});
  const at = el("span", {class: "muted", role: "status"});
  const memory = el("div", {class: "body"});
  let before = null;

  const fact = (label, value, more) => el("div", {class: "fact"}, el("dt", {}, label), el("dd", {}, value), more ? el("dd", {class: "more"}, more) : null);

  function render(samples, time) {
    const requests = total(samples, "quantd_http_requests_total"), failed = total(samples, "quantd_http_requests_total", ({code}) => /^5/.test(code)), refused = total(samples, "quantd_http_requests_total", ({code}) => /^4/.test(code));
    const rate = before ? (requests - before.requests) / (time - before.time) : null;
    const outcome = (name) => total(samples, "quantd_jobs_finished_total", (labels) => labels.outcome === name);
    facts.replaceChildren(
      fact("Requests", rate === null ? count(requests) : `${rate.toFixed(1)} a second`, `${count(requests)} since the start`),
      fact("Refused or failed", `${count(refused)} / ${count(failed)}`, "status 4xx / 5xx"),
      fact("Time of a request", milliseconds(mean(samples, "quantd_http_request_duration_seconds", answered)), "mean, without transfers and waits"),
      fact("Jobs that ended", count(outcome("succeeded") + outcome("failed") + outcome("cancelled") + outcome("expired")), `${count(outcome("succeeded"))} succeeded, ${count(outcome("failed"))} failed`),
      fact("Wait in the queue", milliseconds(mean(samples, "quantd_job_queue_wait_seconds")), "mean"),
      fact("Operation of the database", milliseconds(mean(samples, "quantd_storage_duration_seconds")), "mean"),
      fact("Finished blocks", bytes(total(samples, "quantd_checkpoint_bytes_total")), "written since the start"));
    memory.replaceChildren(...samples.filter((one) => one.name === "quantd_gpu_memory_bytes" && one.labels.kind === "total").map(({labels, value}) => {
      const peak = total(samples, "quantd_gpu_memory_bytes", (other) => other.gpu === labels.gpu && other.kind === "job_peak");
      return el("div", {class: "use wide"}, el("span", {}, `${labels.gpu}: ${peak > 0 ? `at most ${bytes(peak)} used by the running job, of ` : ""}${bytes(value)} of memory`),
        peak > 0 ? el("meter", {min: "0", max: "1", high: "0.9", optimum: "0", value: String(peak / value), "aria-label": `Memory of ${labels.gpu}`}) : null);
    }));
    before = {requests, time};
    setText(at, `every ${SECONDS} s`);
  }

  async function watch() {
    while (!signal.aborted) {
      try {
        if (!document.hidden) {
          render(parseMetrics(await (await send("GET", "/metrics", {signal})).text()), now());
        }
      } catch (error) {
        if (signal.aborted) {
          return;
        }
        setText(at, error.message);
      }
      await sleep(SECONDS * 1000, signal);
    }
  }

  watch();
  return el("section", {class: "panel", "aria-label": "Metrics"}, el("header", {}, el("h2", {}, "Metrics"), at), facts, memory);
}
