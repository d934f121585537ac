/* One job: where it is, what it costs, what was lost, and what can be done with it. */
import {follow, get, post, remove, send, sleep} from "../lib/api.js";
import {el, empty, setText, skeleton} from "../lib/dom.js";
import {NONE, badge, bytes, count, date, duration, ended, fixed, now, percent, perplexity, small, working} from "../lib/format.js";
import {confirm, failure, notice} from "../lib/notices.js";
import {errorsPanel} from "./job_errors.js";
import {layersPanel} from "./job_layers.js";
import {tuningPanel} from "./job_tuning.js";
import {logPanel} from "./job_log.js";
import {runPanel} from "./job_run.js";

const JOBS = "/v1/quantization/jobs";
const REFRESH_SECONDS = 15; /* complete rows of a running job; new ones come with events */

const PHASES = [["loading", "Load"], ["measuring", "Measure"], ["quantizing", "Quantize"], ["evaluating", "Evaluate"], ["exporting", "Export"]];

const ACTIONS = [
  {name: "pause", label: "Pause", done: "The job pauses after the open block"},
  {name: "resume", label: "Resume", done: "The job continues"},
  {name: "retry", label: "Retry", done: "The job is queued again"},
  {name: "cancel", label: "Cancel", danger: true, done: "The job is cancelled", ask: "What is finished of a cancelled job is dropped; a retry starts over."},
];

export function show(main, {args, signal, title}) {
  const path = `${JOBS}/${args[0]}`;
  const state = {job: null, report: null, model: null, rows: [], known: new Map(), last: 0, acting: false};

  const heading = el("h1", {}, "Job");
  const subtitle = el("div", {class: "row"});
  const buttons = el("div", {class: "row"});
  const phases = el("ol", {class: "phases", "aria-label": "Phases"});
  const position = el("p", {class: "muted", role: "status"});
  const facts = el("dl", {class: "facts"});
  const messages = el("ul", {class: "messages"});
  const messagesPanel = el("section", {class: "panel", "aria-label": "Warnings", hidden: true}, el("header", {}, el("h2", {}, "Warnings")), el("div", {class: "body"}, messages));
  const details = el("dl", {class: "pairs"});
  const run = el("div", {class: "stack", hidden: true});
  const layers = layersPanel(signal);
  const errors = errorsPanel();
  const tuning = tuningPanel(signal);
  const log = logPanel();
  const noRows = el("section", {class: "panel", "aria-label": "Layers"}, empty("No layers yet", "They appear here with the first finished block."));
  const analysis = el("section", {class: "panel", "aria-label": "Analysis", hidden: true});
  layers.element.hidden = true;

  main.append(skeleton(8));

  function build() {
    main.replaceChildren(
      el("div", {class: "head"}, el("div", {}, el("nav", {class: "trail muted", "aria-label": "Trail"}, el("a", {href: "#/"}, "Queue"), el("span", {class: "mono"}, args[0])), heading, subtitle), buttons),
      el("div", {class: "stack"},
        el("section", {class: "panel", "aria-label": "Progress"}, el("header", {}, el("h2", {}, "Progress"), position), el("div", {class: "body"}, phases)),
        facts, messagesPanel, analysis, noRows, errors.element, layers.element, tuning.element,
        el("div", {class: "columns"},
          el("div", {class: "stack"}, run, log.element),
          el("section", {class: "panel", "aria-label": "Request"}, el("header", {}, el("h2", {}, "Request")), el("div", {class: "body"}, details)))));
  }

  /* --- parts */

  function name() {
    return state.job.name || `${state.job.method} of ${modelName()}`;
  }

  function modelName() {
    return state.model ? state.model.name || state.model.uri : state.job.model;
  }

  function renderHead() {
    const job = state.job;
    setText(heading, name());
    title(`${name()}: ${job.status}`);
    subtitle.replaceChildren(badge(job.status), el("span", {class: "muted"}, [job.method, state.model ? modelName() : null, job.output.format].filter(Boolean).join(" · ")));
    const wanted = [...(job.status === "awaiting_calibration" && job.calibration?.stream ? ["send"] : []), ...ACTIONS.filter((action) => job.links[action.name]).map((action) => action.name), ...(ended(job.status) ? ["delete"] : [])];
    if (wanted.join() !== [...buttons.children].map((button) => button.dataset.key).join()) {
      buttons.replaceChildren(...wanted.map((key) => {
        if (key === "send") {
          return el("a", {class: "button primary", href: `#/jobs/${job.id}/calibration`, data: {key}}, "Send records");
        }
        const action = ACTIONS.find((one) => one.name === key);
        return action ? el("button", {class: `button${action.danger ? " danger" : ""}`, type: "button", data: {key}, on: {click: () => act(action)}}, action.label)
          : el("button", {class: "button danger", type: "button", data: {key}, on: {click: drop}}, "Delete");
      }));
    }
    for (const button of buttons.children) {
      button.disabled = state.acting;
    }
  }

  function evaluates(job) {
    return Boolean(job.evaluation && (job.evaluation.file_id || job.evaluation.hold_back > 0));
  }

  /* Done, open (with its part) or neither, for each phase. */
  function renderPhases() {
    const job = state.job, progress = job.progress;
    const list = PHASES.filter(([phase]) => phase === job.phase || (phase !== "measuring" && (phase !== "evaluating" || evaluates(job))));
    const layersDone = progress?.layers_total > 0 ? progress.layers_done / progress.layers_total : 0;
    let at = list.findIndex(([phase]) => phase === job.phase);
    if (at < 0 && job.status !== "succeeded" && progress) { /* it stopped: at the blocks, or after them */
      at = list.findIndex(([phase]) => phase === (layersDone < 1 ? "quantizing" : "exporting"));
    }
    phases.replaceChildren(...list.map(([phase, label], i) => {
      const kind = job.status === "succeeded" || (at >= 0 && i < at) ? "done" : i !== at ? "" : job.status === "failed" ? "failed" : "open";
      const part = phase === "quantizing" ? layersDone : phase === "loading" ? 0.5 : progress?.fraction ?? 0;
      return el("li", {class: kind, vars: {"--part": `${Math.round(part * 100)}%`}, "aria-current": kind === "open" ? "step" : null},
        el("span", {}, kind === "open" && phase === "quantizing" ? `${label} ${progress.layers_done} of ${progress.layers_total}` : label));
    }));
    setText(position, where(job));
  }

  function where(job) {
    const progress = job.progress;
    if (job.status === "queued") {
      const place = job.queue_position ? `Number ${count(job.queue_position)} in the queue` : "In the queue";
      return job.estimated_start_at ? `${place}, starts in about ${duration(job.estimated_start_at - now())}` : place;
    }
    if (job.status === "awaiting_calibration") {
      return `Waits for calibration records: ${count(job.calibration?.records ?? 0)} so far${job.expires_at ? `; expires ${date(job.expires_at)}` : ""}`;
    }
    if (working(job.status) && progress) {
      const left = progress.eta_seconds === null ? "" : `, about ${duration(progress.eta_seconds)} left`;
      return `${percent(progress.fraction)}${progress.block ? `, block ${progress.block} of ${progress.layers_total}: ${progress.step}` : progress.step ? `, ${progress.step}` : ""}${left}`;
    }
    if (job.status === "paused") {
      return `Paused${progress ? ` after block ${progress.layers_done} of ${progress.layers_total}` : ""}`;
    }
    return job.finished_at ? `${date(job.finished_at)}${job.started_at ? `, after ${duration(job.finished_at - job.started_at)}` : ""}` : job.status_reason ?? "";
  }

  function fact(label, value, more) {
    return el("div", {class: "fact"}, el("dt", {}, label), el("dd", {}, value), more ? el("dd", {class: "more"}, more) : null);
  }

  function renderFacts() {
    const job = state.job, totals = state.report?.totals, result = job.result, evaluation = state.report?.evaluation, memory = job.memory;
    const before = result?.perplexity_before ?? evaluation?.perplexity_before ?? null, after = result?.perplexity_after ?? evaluation?.perplexity_after ?? null;
    const list = [];
    const missing = evaluates(job) ? (ended(job.status) ? "not measured" : "measured at the end") : "no evaluation was asked for";
    list.push(fact("Perplexity", perplexity(after),
      after === null ? missing : before === null ? null : `${perplexity(before)} before, ${after >= before ? "+" : "−"}${Math.abs((after / before - 1) * 100).toFixed(2)}\u00a0%`));
    const kl = result?.kl_divergence_mean ?? evaluation?.kl_divergence_mean ?? null;
    list.push(fact("KL divergence", small(kl), kl === null ? missing : "mean, in nats"));
    list.push(fact("Bits per weight", fixed(result?.bits_per_weight ?? totals?.bits_per_weight ?? null, 2), totals?.modules ? `${count(totals.modules)} layers` : null));
    const artifact = memory?.artifact_bytes ?? totals?.artifact_bytes ?? null;
    list.push(fact("Size", artifact === null ? NONE : bytes(artifact), memory ? `${bytes(memory.source_bytes)} before${result?.compression_ratio ? `, ${fixed(result.compression_ratio, 2)} times smaller` : ""}` : null));
    const of = memory?.estimated_gpu_bytes;
    if (of && !memory.gpu_peak_bytes) {
      list.push(fact("Device memory", bytes(of), "estimated, at the peak"));
    }
    if (memory?.gpu_peak_bytes) {
      list.push(fact("Device memory, peak", bytes(memory.gpu_peak_bytes), of ? `${Math.round(memory.gpu_peak_bytes / of * 100)} % of the estimated ${bytes(of)}` : null));
    }
    if (memory?.host_peak_bytes) {
      list.push(fact("Process memory, peak", bytes(memory.host_peak_bytes), null));
    }
    if (job.progress) {
      list.push(fact("Time", duration(job.progress.elapsed_seconds), totals?.modules ? `${fixed(totals.solve_seconds, 1)} s of it solving` : null));
    }
    facts.replaceChildren(...list);
  }

  function renderMessages() {
    const job = state.job, list = [];
    if (job.error) {
      const place = job.error.module ?? (job.error.layer !== null ? `block ${job.error.layer}` : null);
      list.push(el("li", {class: "bad"}, el("strong", {}, job.error.message ?? job.error.code), place ? ` (${place})` : null, job.error.hint ? el("p", {}, job.error.hint) : null, " ", el("code", {}, job.error.code)));
    }
    list.push(...job.warnings.map((warning) => el("li", {}, warning.message, " ", el("code", {}, warning.code))));
    for (const rung of job.gate?.rungs ?? []) {
      const bits = rung.quantization.bits ? `, ${rung.quantization.bits} bits` : "";
      list.push(el("li", {class: rung.passed ? "good" : "bad"}, `Gate, rung ${rung.rung + 1} of ${job.gate.rungs_total} (${rung.method}${bits}) ${rung.passed ? "passed" : "failed"}: perplexity ${perplexity(rung.perplexity)}, KL divergence ${small(rung.kl_divergence)}`,
        rung.passed ? null : el("p", {}, rung.reasons.map((reason) => reason.message).join("; "))));
    }
    const fallbacks = new Map();
    for (const row of state.rows) {
      if (row.fallback) {
        fallbacks.set(row.fallback, [...(fallbacks.get(row.fallback) ?? []), row.module]);
      }
    }
    for (const [why, modules] of fallbacks) {
      list.push(el("li", {}, `${modules.length === 1 ? "One layer was" : `${count(modules.length)} layers were`} not quantized as requested: ${why}. ${modules.slice(0, 3).join(", ")}${modules.length > 3 ? ", …" : ""}`));
    }
    messagesPanel.hidden = list.length === 0;
    setText(messagesPanel.querySelector("h2"), job.error ? "What went wrong" : job.gate ? "Gate and warnings" : "Warnings");
    messages.replaceChildren(...list);
  }

  function text(value) {
    return typeof value === "object" ? JSON.stringify(value) : typeof value === "boolean" ? (value ? "yes" : "no") : String(value);
  }

  function renderDetails() {
    const job = state.job, calibration = job.calibration, pairs = [
      ["Id", job.id], ["Project", job.project], ["Model", state.model ? `${state.model.name || state.model.uri} (${state.model.architecture}, ${count(state.model.parameters)} parameters)` : job.model],
      ["Method", job.method],
      ...(job.recommendation ? [["Chosen", `${job.recommendation.choice}, for ${job.recommendation.goal} on ${text(job.recommendation.accelerator)}. ${[job.recommendation.reason, job.recommendation.caution].filter(Boolean).join(" ")}`]] : []),
      ["Format", job.output.format ?? NONE],
      ...Object.entries(job.quantization ?? {}).filter(([, value]) => value !== null).map(([key, value]) => [key, text(value)]),
      ["Calibration", calibration ? `${count(calibration.sequences ?? calibration.num_samples)} sequences of ${count(calibration.sequence_length)} tokens${calibration.tokens ? `, from ${count(calibration.records)} records` : ""}` : "none"],
      ["Evaluation", evaluates(job) ? (job.evaluation.file_id ?? `${fixed(job.evaluation.hold_back * 100, 1)} % of the calibration set`) : "none"],
      ["Device", state.report?.environment?.device?.name ? `${state.report.environment.device.id}: ${state.report.environment.device.name}` : job.resources?.device],
      ["Seed", text(job.seed)], ["Priority", text(job.priority)], ["Attempt", `${job.attempt} (at most ${job.max_attempts} without progress)`],
      ["Created", date(job.created_at)], ["Started", date(job.started_at)], ["Finished", date(job.finished_at ?? job.cancelled_at)],
      ...(job.metadata ? [["Metadata", Object.entries(job.metadata).map(([key, value]) => `${key}=${value}`).join(", ") || NONE]] : []),
    ];
    details.replaceChildren(...pairs.flatMap(([label, value]) => [el("dt", {class: /^[a-z]/.test(label) ? "mono" : null}, label), el("dd", {}, value ?? NONE)]));
  }

  let ran = "";
  function renderRun() {
    const job = state.job, key = `${job.result?.artifact_id} ${job.name} ${job.warnings.length}`;
    if (key === ran) {
      return;
    }
    ran = key;
    run.hidden = !job.result?.artifact_id && !job.result?.artifact_deleted_at;
    if (job.result?.artifact_id) {
      run.replaceChildren(runPanel(job));
    } else if (job.result?.artifact_deleted_at) {
      run.replaceChildren(el("section", {class: "panel", "aria-label": "Use the artifact"}, empty("The artifact was deleted", date(job.result.artifact_deleted_at))));
    }
  }

  /* Of a method that only measures: what each scheme would cost. */
  function renderAnalysis(schemes) {
    const linears = schemes.length > 0 && "total_kl" in schemes[0];
    analysis.hidden = schemes.length === 0;
    noRows.hidden ||= schemes.length > 0;
    analysis.replaceChildren(el("header", {}, el("h2", {}, "Analysis"), el("span", {class: "muted"}, "error of the outputs by scheme")),
      el("div", {class: "body flush"}, el("div", {class: "scroller", tabindex: "0", role: "group", "aria-label": "Schemes"}, el("table", {class: "table", "aria-label": "Schemes"},
        el("thead", {}, el("tr", {}, ...(linears ? ["Scheme", "Bits per weight", "Mean error", "KL of all", "Largest KL", "Of"] : ["Scheme", "Bits per value", "Mean error", "Largest error", "In block"])
          .map((label, i) => el("th", {scope: "col", class: i > 0 ? "number" : null}, label)))),
        el("tbody", {}, ...schemes.map((one) => el("tr", {}, el("td", {class: "mono"}, one.scheme), el("td", {class: "number"}, fixed(linears ? one.bits_per_weight : one.bits_per_value, 2)),
          el("td", {class: "number"}, small(one.mean_output_relative_mse)), ...(linears
            ? [el("td", {class: "number"}, small(one.total_kl)), el("td", {class: "number"}, small(one.worst_kl)), el("td", {class: "mono"}, one.worst_module)]
            : [el("td", {class: "number"}, small(one.worst_output_relative_mse)), el("td", {class: "number"}, count(one.worst_layer))]))))))));
  }

  function renderRows() {
    const job = state.job;
    layers.element.hidden = state.rows.length === 0;
    noRows.hidden = state.rows.length > 0;
    if (state.rows.length > 0) {
      layers.update(state.rows, job.progress?.layers_total ?? null);
    } else if (ended(job.status)) {
      noRows.replaceChildren(empty("No layers", job.status === "succeeded" ? "This job changed no weights." : "It ended before the first block was finished."));
    }
    errors.update(state.report);
    tuning.update(state.report?.tuning);
    if (ended(job.status)) {
      tuning.rest();
    }
    renderAnalysis(state.report?.analysis?.schemes ?? []);
    renderMessages();
  }

  function render() {
    renderHead();
    renderPhases();
    renderFacts();
    renderMessages();
    renderDetails();
    renderRun();
  }

  /* --- reading */

  async function readReport() {
    try {
      const report = await get(`${path}/report`, {signal});
      state.report = report;
      state.rows = report.layers;
      state.known = new Map(report.layers.map((row) => [row.module, row]));
      renderRows();
      render();
    } catch (error) {
      if (error.status !== 404) {
        failure("The report", error);
      }
    }
  }

  let reported = 0;
  async function watchRows() {
    while (!signal.aborted && state.job && !ended(state.job.status)) {
      await sleep(REFRESH_SECONDS * 1000, signal);
      if (!signal.aborted && reported !== state.rows.length && !document.hidden) {
        await readReport();
        reported = state.rows.length;
      }
    }
  }

  function onEvent(event) {
    state.last = event.seq;
    log.add(event);
    if (event.type === "progress" && event.data.tuning && working(state.job?.status)) {
      tuning.watch(event.data.block, event.data.tuning);
    }
    if (event.type === "layer") {
      let added = false;
      for (const module of event.data.modules) {
        if (!state.known.has(module.module)) {
          const row = {...module, layer: event.data.layer};
          state.known.set(module.module, row);
          state.rows = [...state.rows, row];
          added = true;
        }
      }
      if (added && state.job) {
        renderRows();
      }
    }
  }

  /* The job, again whenever it changes, until it has ended; the daemon holds the request meanwhile. */
  let wake = null;
  async function watchJob() {
    let etag = null, failures = 0;
    while (!signal.aborted) {
      try {
        const response = await send("GET", path, {signal, headers: etag ? {"If-None-Match": etag, Prefer: "wait=30"} : {}});
        failures = 0;
        if (response.status === 200) {
          const before = state.job?.status ?? null, over = state.job ? ended(state.job.status) : false;
          etag = response.headers.get("ETag");
          state.job = await response.json();
          if (before === null) {
            start();
          }
          render();
          if (before !== null && ended(state.job.status) !== over) {
            if (over) {
              begin();
            } else {
              readReport();
            }
          }
        }
        if (ended(state.job.status)) {
          await Promise.race([sleep(10000, signal), new Promise((resolve) => (wake = resolve))]);
        }
      } catch (error) {
        if (signal.aborted) {
          return;
        }
        if (error.status === 404) {
          gone();
          return;
        }
        if (state.job === null && error.status) {
          main.replaceChildren(empty("The job could not be read", `${error.message}. ${error.hint ?? ""}`));
        }
        failures++;
        etag = null;
        await sleep(Math.min(30, 2 ** failures) * 1000, signal);
      }
    }
  }

  function gone() {
    title("No such job");
    main.replaceChildren(empty(state.job ? "The job was deleted" : "There is no such job", "It was deleted, or belongs to another project.", el("a", {class: "button", href: "#/"}, "Show the queue")));
  }

  function start() {
    build();
    readReport();
    follow(args[0], {signal, onEvent});
    watchRows();
    get(`/v1/models/${state.job.model}`, {signal}).then((model) => {
      state.model = model;
      render();
    }, () => {});
  }

  /* A retry: the events continue after those that are shown. */
  function begin() {
    watchRows();
    follow(args[0], {signal, after: state.last, onEvent});
  }

  /* --- actions */

  async function act(action) {
    if (action.ask && !await confirm(`${action.label} “${name()}”?`, action.ask, `${action.label} the job`)) {
      return;
    }
    state.acting = true;
    renderHead();
    try {
      await post(state.job.links[action.name], undefined, {signal});
      notice(action.done, "good");
    } catch (error) {
      failure(action.label, error);
    }
    state.acting = false;
    if (!signal.aborted) {
      renderHead();
      wake?.();
    }
  }

  async function drop() {
    if (!await confirm(`Delete “${name()}”?`, "Its events and report are deleted. Its artifact stays.", "Delete the job")) {
      return;
    }
    try {
      await remove(path, {signal});
      notice("The job was deleted", "good");
      location.hash = "#/";
    } catch (error) {
      failure("Delete", error);
    }
  }

  watchJob();
}
