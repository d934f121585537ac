/* The errors of a job's layers: a strip of blocks and kinds, bars, a plot by kind, and the table. They share a metric and a selection. */
import {signals} from "../lib/api.js";
import {chart, powerTicks, series} from "../lib/charts.js";
import {canvasContext, scaleColour, token} from "../lib/colours.js";
import {el, framed, setText} from "../lib/dom.js";
import {NONE, count, fixed, small} from "../lib/format.js";
import {virtualTable} from "../lib/table.js";

const METRICS = {
  output_relative_mse: {label: "Output error (relative MSE)", short: "output error", better: "better", log: true, text: small},
  relative_mse: {label: "Weight error (relative MSE)", short: "weight error", better: "better", log: true, text: small},
  bits_per_weight: {label: "Bits per weight", short: "bits per weight", log: false, text: (value) => fixed(value, 2)},
  seconds: {label: "Seconds to solve", short: "seconds", log: true, text: small},
};

/* "model.layers.3.mlp.experts.7.up_proj" -> "experts.up_proj" */
export function kindOf(module) {
  const names = module.replace(/^.*?layers\.\d+\./, "").split(".").filter((name) => !/^\d+$/.test(name));
  const last = names.at(-1);
  return names.some((name) => /expert/.test(name)) ? `${names.find((name) => /expert/.test(name))}.${last}` : last;
}

function value(row, metric) {
  const found = row[metric];
  return found === null || found === undefined || (METRICS[metric].log && found <= 0) ? null : found;
}

/* The range of the values: {low, high}, null where there is none. */
function rangeOf(rows, metric) {
  let low = Infinity, high = -Infinity;
  for (const row of rows) {
    const v = value(row, metric);
    if (v !== null) {
      low = Math.min(low, v);
      high = Math.max(high, v);
    }
  }
  return low === Infinity ? null : {low, high};
}

function placeIn(range, v, log) {
  if (range.low === range.high) {
    return 0.5;
  }
  return log ? Math.log(v / range.low) / Math.log(range.high / range.low) : (v - range.low) / (range.high - range.low);
}

/* Returns {element, update(rows, blocks)}. rows: of the report, in its order; blocks: how many there will be. */
export function layersPanel(signal) {
  let rows = [], blocks = 0, kinds = [], metric = "output_relative_mse", range = null, chosen = null, cells = new Map(), pointed = null, picked = false;
  const kindIndex = new Map(), kindNames = new Map(); /* of kinds, of modules */

  const metricSelect = el("select", {}, ...Object.entries(METRICS).map(([name, {label}]) => el("option", {value: name}, label)));
  const summary = el("span", {class: "muted"});

  /* --- the strip */

  const names = el("div", {class: "strip-names", "aria-hidden": "true"});
  const canvas = el("canvas");
  const field = el("div", {class: "strip-field", role: "slider", tabindex: "0", "aria-label": "Layer of the strip", "aria-valuemin": "0", "aria-valuemax": "0", "aria-valuenow": "0", "aria-valuetext": "none"}, canvas);
  const reading = el("span");
  const low = el("span"), high = el("span"), legend = el("canvas", {"aria-hidden": "true"});
  const strip = el("div", {class: "strip"}, el("div", {class: "strip-body"}, names, field),
    el("div", {class: "strip-foot"}, reading, el("span", {class: "legend"}, low, legend, high)));

  const drawStrip = framed(() => {
    if (signal.aborted || blocks === 0 || kinds.length === 0) {
      return;
    }
    field.style.height = `${Math.max(40, kinds.length * 15)}px`;
    const {context, width, height} = canvasContext(canvas);
    const w = width / blocks, h = height / kinds.length, gapX = w > 4 ? 1 : 0, gapY = h > 6 ? 1 : 0, track = token("track"), mark = token("text");
    for (let block = 0; block < blocks; block++) {
      for (let kind = 0; kind < kinds.length; kind++) {
        const row = cells.get(block * kinds.length + kind);
        const v = row ? value(row, metric) : null;
        context.fillStyle = v === null || range === null ? track : scaleColour(placeIn(range, v, METRICS[metric].log));
        context.fillRect(block * w, kind * h, Math.max(w - gapX, 0.5), h - gapY);
      }
    }
    if (chosen) {
      context.strokeStyle = mark;
      context.lineWidth = 2;
      context.strokeRect(chosen.layer * w, kindIndex.get(kindNames.get(chosen.module)) * h, Math.max(w - gapX, 2), Math.max(h - gapY, 2));
    }
    const scale = canvasContext(legend);
    for (let x = 0; x < scale.width; x++) {
      scale.context.fillStyle = scaleColour(x / scale.width);
      scale.context.fillRect(x, 0, 1, scale.height);
    }
    read(pointed ?? chosen);
  });

  function describe(row) {
    return `Block ${row.layer} · ${row.module.replace(/^.*?layers\.\d+\./, "")} · ${METRICS[metric].short} ${METRICS[metric].text(row[metric])}`;
  }

  function read(row) {
    setText(reading, row ? describe(row) : `${count(rows.length)} layers in ${count(blocks)} blocks; darker is ${METRICS[metric].better ?? "less"}. Point at a cell, or use the arrow keys.`);
  }

  function cellAt(event) {
    const box = field.getBoundingClientRect();
    const block = Math.floor((event.clientX - box.left) / box.width * blocks), kind = Math.floor((event.clientY - box.top) / box.height * kinds.length);
    return cells.get(block * kinds.length + kind) ?? null;
  }

  field.addEventListener("pointermove", (event) => {
    pointed = cellAt(event);
    read(pointed ?? chosen);
  });
  field.addEventListener("pointerleave", () => {
    pointed = null;
    read(chosen);
  });
  field.addEventListener("click", (event) => select(cellAt(event), "strip"));
  field.addEventListener("keydown", (event) => {
    const steps = {ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowDown: [0, 1], ArrowUp: [0, -1]}[event.key];
    if (rows.length === 0 || (!steps && event.key !== "Home" && event.key !== "End")) {
      return;
    }
    event.preventDefault();
    if (!steps || chosen === null) {
      select(event.key === "End" ? rows.at(-1) : rows[0], "strip");
      return;
    }
    const block = chosen.layer + steps[0], kind = kindIndex.get(kindNames.get(chosen.module)) + steps[1];
    const next = block >= 0 && block < blocks && kind >= 0 && kind < kinds.length ? cells.get(block * kinds.length + kind) : null;
    if (next) {
      select(next, "strip");
    }
  });
  new ResizeObserver(drawStrip).observe(field);
  signals.addEventListener("theme", drawStrip, {signal});

  /* --- charts */

  /* A number, because Chart.js resolves functions for each bar. */
  function thickness(width) {
    return Math.max(1, (width - 64) / Math.max(1, rows.length) - (rows.length < 300 ? 1 : 0));
  }

  const bars = chart("Errors by layer", () => {
    if (rows.length === 0 || range === null) {
      return null;
    }
    const {log, label, text} = METRICS[metric];
    const firsts = new Map();
    rows.forEach((row, i) => {
      if (!firsts.has(row.layer)) {
        firsts.set(row.layer, i);
      }
    });
    const starts = [...firsts.values()], points = kinds.map(() => []);
    rows.forEach((row, i) => {
      if (value(row, metric) !== null) {
        points[kindIndex.get(kindNames.get(row.module))].push({x: i, y: row[metric], row});
      }
    });
    return {
      type: "bar",
      data: {
        datasets: kinds.map((kind, k) => ({
          label: kind, backgroundColor: series(k), grouped: false,
          barThickness: thickness(bars.element.clientWidth),
          data: points[k],
        })),
      },
      options: {
        parsing: false, normalized: true,
        onResize: (drawn, size) => drawn.data.datasets.forEach((set) => (set.barThickness = thickness(size.width))),
        interaction: {mode: "nearest", axis: "x", intersect: false},
        onClick: (event, found) => select(found[0]?.element.$context.raw.row ?? null, "bars"),
        scales: {
          x: {type: "linear", offset: false, min: -0.5, max: rows.length - 0.5, grid: {display: false}, title: {display: true, text: "block"},
            afterBuildTicks: (axis) => {
              const step = Math.ceil(starts.length / Math.max(2, axis.chart.width / 44));
              axis.ticks = starts.filter((_, i) => i % step === 0).map((at) => ({value: at}));
            },
            ticks: {autoSkip: false, callback: (at) => String(rows[at]?.layer ?? "")}},
          y: log ? {type: "logarithmic", min: range.low / 1.5, ticks: {callback: powerTicks(range.low, range.high, 3), autoSkip: false}, title: {display: true, text: label}}
            : {type: "linear", beginAtZero: true, title: {display: true, text: label}},
        },
        plugins: {
          legend: {position: "top", align: "start", labels: {color: token("muted"), boxWidth: 10, boxHeight: 10, font: {size: 11}}},
          tooltip: {callbacks: {title: (items) => items[0]?.raw.row.module ?? "", label: (item) => `${METRICS[metric].short} ${text(item.raw.y)}`}},
        },
      },
    };
  }, signal);

  const spread = chart("Errors by kind of layer", () => {
    if (rows.length === 0 || range === null) {
      return null;
    }
    const {log, label, text} = METRICS[metric];
    const found = kinds.map(() => []);
    for (const row of rows) {
      if (value(row, metric) !== null) {
        found[kindIndex.get(kindNames.get(row.module))].push(row[metric]);
      }
    }
    found.forEach((list) => list.sort((a, b) => a - b));
    const quantile = (list, q) => list[Math.min(list.length - 1, Math.floor(q * list.length))];
    return {
      type: "bar",
      data: {
        labels: kinds,
        datasets: [
          {label: "median", type: "line", showLine: false, pointStyle: "rectRot", pointRadius: 5, pointHoverRadius: 6, backgroundColor: token("text"), borderColor: token("surface"),
            data: found.map((list) => (list.length > 0 ? quantile(list, 0.5) : null))},
          {label: "minimum to maximum", backgroundColor: kinds.map((_, k) => series(k)), barPercentage: 0.55, minBarLength: 3,
            data: found.map((list) => (list.length > 0 ? [list[0], list.at(-1)] : null))},
        ],
      },
      options: {
        indexAxis: "y",
        scales: {
          x: log ? {type: "logarithmic", min: range.low / 1.5, max: range.high * 1.5, ticks: {callback: powerTicks(range.low, range.high, 1.5), autoSkip: false}, title: {display: true, text: label}}
            : {type: "linear", title: {display: true, text: label}},
          y: {grid: {display: false}},
        },
        plugins: {
          legend: {display: false},
          tooltip: {callbacks: {label: (item) => (Array.isArray(item.raw) ? `${text(item.raw[0])} to ${text(item.raw[1])}` : `median ${text(item.raw)}`)}},
        },
      },
    };
  }, signal);

  /* --- the table */

  const table = virtualTable({
    label: "Layers", identity: (row) => row.module, onSelect: (row) => select(row, "table"),
    columns: [
      {label: "Block", class: "number c-block", text: (row) => count(row.layer), order: (row) => row.layer},
      {label: "Module", class: "clip mono c-module", text: (row) => row.module.replace(/^.*?layers\.\d+\./, ""), title: (row) => row.module, order: (row) => row.module},
      {label: "Method", class: "clip", text: (row) => row.method ?? NONE, order: (row) => row.method ?? null},
      {label: "Bits", class: "number", text: (row) => fixed(row.bits_per_weight ?? null, 2), order: (row) => row.bits_per_weight ?? null},
      {label: "Output error", class: "number", text: (row) => small(row.output_relative_mse), order: (row) => row.output_relative_mse ?? null},
      {label: "Weight error", class: "number", text: (row) => small(row.relative_mse), order: (row) => row.relative_mse ?? null},
      {label: "SQNR dB", class: "number", text: (row) => fixed(row.sqnr_db ?? null, 1), order: (row) => row.sqnr_db ?? null},
      {label: "Seconds", class: "number", text: (row) => small(row.seconds), order: (row) => row.seconds ?? null},
      {label: "Note", class: "clip c-note", text: (row) => row.fallback ?? row.note ?? "", title: (row) => row.fallback ?? row.note},
    ],
  });

  function select(row, from) {
    if (row === null) {
      return;
    }
    chosen = row;
    if (from !== "table") {
      table.select(row);
    }
    const at = rows.indexOf(row);
    field.setAttribute("aria-valuenow", String(Math.max(0, at)));
    field.setAttribute("aria-valuetext", describe(row));
    drawStrip();
  }

  function changed() {
    range = rangeOf(rows, metric);
    cells = new Map();
    for (const row of rows) { /* of experts, the worst */
      const at = row.layer * kinds.length + kindIndex.get(kindNames.get(row.module)), before = cells.get(at);
      if (!before || (value(row, metric) ?? -1) > (value(before, metric) ?? -1)) {
        cells.set(at, row);
      }
    }
    setText(low, range ? METRICS[metric].text(range.low) : "");
    setText(high, range ? METRICS[metric].text(range.high) : "");
    const worst = range && METRICS[metric].log ? rows.reduce((a, b) => ((value(b, metric) ?? -1) > (value(a, metric) ?? -1) ? b : a)) : null;
    setText(summary, worst ? `largest: ${worst.module} ${METRICS[metric].text(worst[metric])}` : "");
    bars.describe(worst ? `${METRICS[metric].label} of ${rows.length} layers; the largest is ${worst.module} with ${METRICS[metric].text(worst[metric])}` : `${METRICS[metric].label} of ${rows.length} layers`);
    spread.describe(`${METRICS[metric].label} by kind of layer: minimum, median and maximum`);
    drawStrip();
    bars.draw().then(() => setTimeout(() => spread.draw())); /* two tasks: what is pressed meanwhile is not held up by both */
  }

  metricSelect.addEventListener("change", () => {
    metric = metricSelect.value;
    picked = true;
    changed();
  });

  const element = el("div", {class: "stack"},
    el("section", {class: "panel", "aria-label": "Layers"},
      el("header", {}, el("h2", {}, "Layers"), el("label", {class: "row"}, el("span", {class: "visually-hidden"}, "Metric"), metricSelect)),
      el("div", {class: "body"}, strip)),
    el("div", {class: "columns main"},
      el("section", {class: "panel", "aria-label": "By layer"}, el("header", {}, el("h2", {}, "By layer"), summary), el("div", {class: "body"}, bars.element)),
      el("section", {class: "panel", "aria-label": "By kind"}, el("header", {}, el("h2", {}, "By kind"), el("span", {class: "muted"}, "minimum, median, maximum")), el("div", {class: "body"}, spread.element))),
    el("section", {class: "panel", "aria-label": "Table of layers"}, el("div", {class: "body flush"}, table.element)));

  return {
    element,
    update(list, total) {
      rows = list;
      for (const row of rows) {
        if (!kindNames.has(row.module)) {
          kindNames.set(row.module, kindOf(row.module));
        }
      }
      kinds = [...new Set(rows.map((row) => kindNames.get(row.module)))];
      kindIndex.clear();
      kinds.forEach((kind, k) => kindIndex.set(kind, k));
      blocks = Math.max(total ?? 0, ...rows.slice(-1).map((row) => row.layer + 1));
      if (!picked && rows.length > 0 && rangeOf(rows, metric) === null) { /* methods without inputs have no output error */
        metric = metricSelect.value = "relative_mse";
      }
      chosen = chosen === null ? null : rows.find((row) => row.module === chosen.module) ?? null;
      names.replaceChildren(...kinds.map((kind) => el("span", {}, kind)));
      field.setAttribute("aria-valuemax", String(Math.max(0, rows.length - 1)));
      table.rows(rows);
      changed();
    },
  };
}
