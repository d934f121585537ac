/* 2 to 8 jobs on one axis: what they cost, what they lost, and where they differ. */
import {get, poll, query as queryOf} from "../lib/api.js";
import {chart, powerTicks, series} from "../lib/charts.js";
import {token} from "../lib/colours.js";
import {el, empty, setText, skeleton} from "../lib/dom.js";
import {NONE, badge, bytes, count, duration, ended, fixed, small} from "../lib/format.js";
import {virtualTable} from "../lib/table.js";

const MOST = 8;
const SHAPES = ["circle", "rect", "triangle", "rectRot", "star", "crossRot", "rectRounded", "cross"];

const METRICS = {
  output_relative_mse: {label: "Output error (relative MSE)", log: true, text: small},
  relative_mse: {label: "Weight error (relative MSE)", log: true, text: small},
  sqnr_db: {label: "SQNR in dB", log: false, text: (value) => fixed(value, 1)},
  bits_per_weight: {label: "Bits per weight", log: false, text: (value) => fixed(value, 2)},
  seconds: {label: "Seconds to solve", log: true, text: small},
};

const positive = (value) => (value > 0 ? value : null); /* a mean of nothing is reported as 0 */

/* Rows of the table of totals: better: -1 where less is better, 1 where more is. */
const MEASURES = [
  {label: "Perplexity", value: (job) => job.evaluation?.perplexity_after, text: (v) => fixed(v, 3), better: -1, accuracy: true},
  {label: "Perplexity before", value: (job) => job.evaluation?.perplexity_before, text: (v) => fixed(v, 3), better: 0},
  {label: "KL divergence", value: (job) => job.evaluation?.kl_divergence_mean, text: small, better: -1, accuracy: true, log: true},
  {label: "Output error, mean", value: (job) => positive(job.totals?.mean_output_relative_mse), text: small, better: -1, accuracy: true, log: true},
  {label: "Weight error, mean", value: (job) => positive(job.totals?.mean_relative_mse), text: small, better: -1, accuracy: true, log: true},
  {label: "Bits per weight", value: (job) => job.totals?.bits_per_weight, text: (v) => fixed(v, 2), better: -1},
  {label: "Size", value: (job) => job.totals?.artifact_bytes, text: bytes, better: -1},
  {label: "Size before", value: (job) => job.totals?.source_bytes, text: bytes, better: 0},
  {label: "Layers", value: (job) => job.totals?.modules, text: count, better: 0},
  {label: "Layers that fell back", value: (job) => job.totals?.fallbacks, text: count, better: -1},
  {label: "Time", value: (job) => job.totals?.elapsed_seconds, text: (v) => (v < 10 ? `${v.toFixed(2)} s` : duration(v)), better: -1},
  {label: "Process memory, peak", value: (job) => job.totals?.host_peak_bytes, text: bytes, better: -1},
];

const letter = (i) => String.fromCharCode(65 + i);
const nameOf = (job) => job.name || job.id;

function shown(value) {
  return value === undefined || value === null ? NONE : typeof value === "object" ? JSON.stringify(value) : typeof value === "boolean" ? (value ? "yes" : "no") : String(value);
}

export function show(main, {query, signal, title}) {
  title("Compare");
  const ids = [...new Set((query.get("jobs") ?? "").split(",").map((id) => id.trim()).filter(Boolean))];
  const subtitle = el("p", {class: "muted"}, "2 to 8 jobs on one axis.");
  const pick = el("select", {}, el("option", {value: ""}, "Choose a job"));
  const add = el("form", {class: "row", on: {submit: (event) => {
    event.preventDefault();
    if (pick.value) {
      go([...ids, pick.value]);
    }
  }}}, el("label", {class: "field"}, "Add a job", pick), el("button", {class: "button", type: "submit"}, "Add"));
  const chips = el("ul", {class: "chips", "aria-label": "Compared jobs"});
  const body = el("div", {class: "stack"}, ids.length > 1 ? skeleton(8) : null);
  main.append(el("div", {class: "head"}, el("div", {}, el("h1", {}, "Compare"), subtitle), ids.length < MOST ? add : null), chips, body);

  function go(list) {
    location.hash = `#/compare${queryOf({jobs: list.join(",")}).replaceAll("%2C", ",")}`;
  }

  function renderChips(names) {
    chips.replaceChildren(...ids.map((id, i) => el("li", {},
      el("span", {class: "key", vars: {"--key": `var(--series-${1 + i % 8})`}}, letter(i)),
      el("a", {href: `#/jobs/${encodeURIComponent(id)}`}, names.get(id) ?? id),
      el("button", {class: "button quiet", type: "button", "aria-label": `Remove ${names.get(id) ?? id}`, on: {click: () => go(ids.filter((one) => one !== id))}}, "✕"))));
  }

  async function offer() {
    try {
      const list = await get("/v1/quantization/jobs?status=succeeded&limit=100", {signal});
      pick.append(...list.data.filter((job) => !ids.includes(job.id)).map((job) => el("option", {value: job.id}, `${nameOf(job)} (${job.method})`)));
      if (ids.length === 1) {
        renderChips(new Map(list.data.map((job) => [job.id, nameOf(job)])));
      }
    } catch {
      /* The list of jobs stays empty; ids in the address still work. */
    }
  }

  offer();
  renderChips(new Map());
  if (ids.length < 2) {
    body.replaceChildren(empty(ids.length === 0 ? "No jobs were chosen" : "One more job is needed", "Add jobs above, or select 2 to 8 jobs in the queue and press Compare.", el("a", {class: "button", href: "#/"}, "Show the queue")));
    return;
  }
  if (ids.length > MOST) {
    body.replaceChildren(empty("Too many jobs", `${count(ids.length)} jobs were chosen; at most ${MOST} fit on one axis. Remove some above.`));
    return;
  }

  let parts = null, open = true;
  poll(() => `/v1/quantization/compare${queryOf({jobs: ids.join(",")})}`, {
    signal, seconds: () => (open ? 5 : 3600),
    onValue: (comparison) => {
      open = comparison.jobs.some((job) => !ended(job.status));
      renderChips(new Map(comparison.jobs.map((job) => [job.id, nameOf(job)])));
      setText(subtitle, `${count(comparison.jobs.length)} jobs, ${count(comparison.modules.length)} layers`);
      if (parts === null) {
        parts = build(comparison, signal);
        body.replaceChildren(...parts.elements);
      }
      parts.update(comparison);
    },
    onError: (error) => {
      if (parts === null) {
        body.replaceChildren(empty("These jobs cannot be compared", `${error.message}${error.hint ? `. ${error.hint}` : ""}`, el("a", {class: "button", href: "#/"}, "Show the queue")));
      }
    },
  });
}

/* {elements, update(comparison)} for a set of jobs, which stays the same. */
function build(first, signal) {
  const jobs = first.jobs.length, state = {comparison: first, metric: null, accuracy: null, chosen: null};
  const heads = first.jobs.map((job, i) => `${letter(i)}: ${nameOf(job)}`);
  const metric = el("select", {}, ...Object.entries(METRICS).map(([name, {label}]) => el("option", {value: name}, label)));
  const accuracy = el("select", {}, ...MEASURES.filter((one) => one.accuracy).map((one) => el("option", {value: one.label}, one.label)));
  const reading = el("p", {class: "muted", role: "status"});
  const totals = el("table", {class: "table totals"});
  const parameters = el("table", {class: "table totals"}), differ = el("summary");
  const different = el("details", {}, differ, el("div", {class: "scroller", tabindex: "0", role: "region", "aria-label": "Parameters that differ"}, parameters));
  const missing = el("p", {class: "muted"});

  const value = (module, i) => {
    const found = module.values[i]?.[state.metric] ?? null;
    return found === null || (METRICS[state.metric].log && found <= 0) ? null : found;
  };

  function bounds() {
    const all = state.comparison.modules.flatMap((module) => module.values.map((_, i) => value(module, i))).filter((v) => v !== null);
    return all.length > 0 ? {low: all.reduce((a, b) => Math.min(a, b)), high: all.reduce((a, b) => Math.max(a, b))} : null;
  }

  const layers = chart("Layers of the compared jobs", () => {
    const range = bounds(), modules = state.comparison.modules;
    if (range === null) {
      return null;
    }
    const {log, label, text} = METRICS[state.metric], starts = modules.flatMap((module, i) => (i === 0 || modules[i - 1].layer !== module.layer ? [i] : [])), step = Math.ceil(starts.length / 16);
    return {
      type: "line",
      data: {datasets: heads.map((head, i) => ({
        label: head, borderColor: series(i), backgroundColor: series(i), borderWidth: 1.5, spanGaps: false,
        pointStyle: SHAPES[i], pointRadius: modules.length > 200 ? 0 : 3, pointHoverRadius: 6,
        data: modules.map((module, x) => ({x, y: value(module, i), module})),
      }))},
      options: {
        parsing: false, normalized: true, interaction: {mode: "index", intersect: false},
        onClick: (event, found) => choose(found[0] ? modules[found[0].index] : null),
        scales: {
          x: {type: "linear", min: -0.5, max: modules.length - 0.5, grid: {display: false}, title: {display: true, text: "block"},
            afterBuildTicks: (axis) => (axis.ticks = starts.filter((_, i) => i % step === 0).map((at) => ({value: at}))),
            ticks: {autoSkip: false, callback: (at) => String(modules[at]?.layer ?? "")}},
          y: log ? {type: "logarithmic", min: range.low / 1.5, max: range.high * 1.5, ticks: {callback: powerTicks(range.low, range.high), autoSkip: false}, title: {display: true, text: label}}
            : {type: "linear", title: {display: true, text: label}},
        },
        plugins: {
          legend: {position: "top", align: "start", labels: {color: token("muted"), usePointStyle: true, boxHeight: 7, font: {size: 11}}},
          tooltip: {callbacks: {title: (items) => items[0]?.raw.module.module ?? "", label: (item) => `${item.dataset.label}  ${text(item.raw.y)}`}},
        },
      },
    };
  }, signal);

  const scatter = chart("Accuracy against size", () => {
    const measure = MEASURES.find((one) => one.label === state.accuracy);
    const points = state.comparison.jobs.map((job, i) => ({i, x: job.totals?.artifact_bytes ?? null, y: measure.value(job) ?? null})).filter((point) => point.x !== null && point.y !== null);
    if (points.length === 0) {
      return null;
    }
    const low = Math.min(...points.map((point) => point.y)), high = Math.max(...points.map((point) => point.y));
    const logarithmic = measure.log && low > 0;
    return {
      type: "scatter",
      data: {datasets: points.map((point) => ({
        label: heads[point.i], data: [{x: point.x, y: point.y}], backgroundColor: series(point.i), borderColor: series(point.i), borderWidth: 2,
        pointStyle: SHAPES[point.i], pointRadius: 8, pointHoverRadius: 10,
      }))},
      options: {
        scales: {
          x: {type: "linear", grace: "15%", title: {display: true, text: "size of the artifact"}, ticks: {callback: (at) => bytes(Math.round(at)), maxTicksLimit: 4}},
          y: logarithmic ? {type: "logarithmic", min: low / 2, max: high * 2, ticks: {callback: powerTicks(low / 2, high * 2), autoSkip: false}, title: {display: true, text: measure.label}}
            : {type: "linear", grace: "15%", title: {display: true, text: measure.label}},
        },
        plugins: {
          legend: {position: "top", align: "start", labels: {color: token("muted"), usePointStyle: true, boxHeight: 7, font: {size: 11}}},
          tooltip: {callbacks: {label: (item) => `${item.dataset.label}  ${measure.text(item.raw.y)}, ${bytes(item.raw.x)}`}},
        },
      },
    };
  }, signal);

  const text = (module, i) => (module.values[i] ? METRICS[state.metric].text(module.values[i][state.metric] ?? null) : "none");
  const table = virtualTable({
    label: "Layers of the compared jobs", identity: (module) => module.module, onSelect: choose,
    columns: [
      {label: "Block", class: "number c-block", text: (module) => count(module.layer), order: (module) => module.layer},
      {label: "Module", class: "clip mono c-module", text: (module) => module.module.replace(/^.*?layers\.\d+\./, ""), title: (module) => module.module, order: (module) => module.module},
      ...heads.map((head, i) => ({label: head, class: "number clip c-job", text: (module) => text(module, i),
        title: (module) => module.values[i]?.fallback ?? `${head}: ${text(module, i)}`, order: (module) => value(module, i)})),
      {label: "Spread", class: "number", text: (module) => spreadText(module), order: spread},
    ],
  });

  const grid = table.element.querySelector("table");
  grid.classList.add("by-job");
  grid.style.setProperty("--jobs", String(jobs));

  /* The largest of a layer's values to the smallest: where the jobs differ. */
  function spread(module) {
    const found = module.values.map((_, i) => value(module, i)).filter((v) => v !== null);
    return found.length < 2 || Math.min(...found) <= 0 ? null : Math.max(...found) / Math.min(...found);
  }

  function spreadText(module) {
    const found = spread(module);
    return found === null ? NONE : `× ${found < 100 ? found.toFixed(2) : Math.round(found)}`;
  }

  function choose(module) {
    if (module) {
      state.chosen = module;
      table.select(module);
      setText(reading, `Block ${module.layer} · ${module.module.replace(/^.*?layers\.\d+\./, "")}: ${heads.map((_, i) => `${letter(i)} ${text(module, i)}`).join(", ")}`);
    }
  }

  function renderTotals() {
    const list = state.comparison.jobs;
    const cell = (content, more = {}) => el("td", more, content);
    const rows = [
      el("tr", {}, el("th", {scope: "row"}, "Status"), ...list.map((job) => cell(badge(job.status)))),
      el("tr", {}, el("th", {scope: "row"}, "Method"), ...list.map((job) => cell(job.method))),
    ];
    for (const measure of MEASURES) {
      const values = list.map((job) => measure.value(job) ?? null), known = values.filter((v) => v !== null);
      if (known.length === 0) {
        continue;
      }
      const best = measure.better !== 0 && new Set(known).size > 1 ? (measure.better < 0 ? Math.min(...known) : Math.max(...known)) : null;
      rows.push(el("tr", {}, el("th", {scope: "row"}, measure.label),
        ...values.map((v) => cell([measure.text(v), best !== null && v === best ? " " : null, best !== null && v === best ? el("span", {class: "best"}, "best") : null], {class: "number"}))));
    }
    totals.replaceChildren(el("caption", {class: "visually-hidden"}, "Totals of the compared jobs"), headRow(list), el("tbody", {}, ...rows));
    const members = [...new Set(list.flatMap((job) => Object.keys(job.quantization ?? {})))].filter((name) => new Set(list.map((job) => shown(job.quantization?.[name]))).size > 1);
    parameters.replaceChildren(el("caption", {class: "visually-hidden"}, "Parameters in which the compared jobs differ"), headRow(list),
      el("tbody", {}, ...members.map((member) => el("tr", {}, el("th", {scope: "row", class: "mono"}, member), ...list.map((job) => el("td", {}, shown(job.quantization?.[member])))))));
    setText(differ, members.length === 1 ? "One parameter differs" : `${count(members.length)} parameters differ`);
    different.hidden = members.length === 0;
  }

  function headRow(list) {
    return el("thead", {}, el("tr", {}, el("td", {}), ...list.map((job, i) => el("th", {scope: "col"},
      el("span", {class: "key", vars: {"--key": `var(--series-${1 + i % 8})`}}, letter(i)), " ", el("a", {href: `#/jobs/${job.id}`}, nameOf(job))))));
  }

  function draw() {
    const range = bounds();
    setText(missing, range === null ? "No job has this value." : "");
    missing.hidden = range !== null;
    layers.element.hidden = range === null;
    layers.describe(`${METRICS[state.metric].label} of ${state.comparison.modules.length} layers for ${jobs} jobs; the table below has the same values`);
    scatter.describe(`${state.accuracy} against size: ${state.comparison.jobs.map((job, i) => `${letter(i)} ${MEASURES.find((one) => one.label === state.accuracy).text(MEASURES.find((one) => one.label === state.accuracy).value(job) ?? null)} at ${bytes(job.totals?.artifact_bytes ?? null)}`).join("; ")}`);
    layers.draw();
    scatter.draw();
    table.rows(state.comparison.modules);
    setText(reading, "");
    if (state.chosen) {
      choose(state.comparison.modules.find((module) => module.module === state.chosen.module));
    }
  }

  metric.addEventListener("change", () => {
    state.metric = metric.value;
    draw();
  });
  accuracy.addEventListener("change", () => {
    state.accuracy = accuracy.value;
    draw();
  });

  /* What most jobs have. */
  function defaults() {
    const has = (name) => state.comparison.jobs.filter((_, i) => state.comparison.modules.some((module) => (module.values[i]?.[name] ?? null) !== null)).length;
    state.metric = metric.value = has("output_relative_mse") === jobs ? "output_relative_mse" : "relative_mse";
    const counts = MEASURES.filter((one) => one.accuracy).map((one) => [one.label, state.comparison.jobs.filter((job) => (one.value(job) ?? null) !== null).length]);
    state.accuracy = accuracy.value = counts.reduce((best, one) => (one[1] > best[1] ? one : best))[0];
  }

  return {
    elements: [
      el("section", {class: "panel", "aria-label": "Totals"}, el("header", {}, el("h2", {}, "Totals")), el("div", {class: "body flush scroller", tabindex: "0", role: "region", "aria-label": "Totals"}, totals), different),
      el("div", {class: "columns main"},
        el("section", {class: "panel", "aria-label": "By layer"}, el("header", {}, el("h2", {}, "By layer"), el("label", {class: "row"}, el("span", {class: "visually-hidden"}, "Metric"), metric)), el("div", {class: "body"}, layers.element, missing, reading)),
        el("section", {class: "panel", "aria-label": "Accuracy against size"}, el("header", {}, el("h2", {}, "Accuracy against size"), el("label", {class: "row"}, el("span", {class: "visually-hidden"}, "Accuracy"), accuracy)), el("div", {class: "body"}, scatter.element))),
      el("section", {class: "panel", "aria-label": "Table of layers"}, el("div", {class: "body flush"}, table.element)),
    ],
    update(comparison) {
      state.comparison = comparison;
      if (state.metric === null && comparison.modules.length > 0) {
        defaults();
      }
      state.metric ??= metric.value;
      state.accuracy ??= accuracy.value;
      renderTotals();
      draw();
    },
  };
}
