/* How blocks learned: the report's "tuning" as loss curves, one line a block and one of the complete model, each relative to the loss as it was
 * solved; and what learns now, from the steps that progress events tell. */
import {chart, series} from "../lib/charts.js";
import {token} from "../lib/colours.js";
import {el} from "../lib/dom.js";
import {NONE} from "../lib/format.js";

const MODEL = "model"; /* the place of a layer's number */

function named(layer) {
  return layer === MODEL ? "complete model" : `block ${layer}`;
}

function curve(block, i) {
  return {
    label: named(block.layer), borderColor: series(i), backgroundColor: series(i), borderWidth: 1.5, pointRadius: 0, pointHitRadius: 6,
    data: block.curve.filter((point) => point.loss !== null).map((point) => ({x: point.step, y: point.loss / block.first_loss})),
  };
}

/* Returns {element, update(tuning), watch(block, tuning), rest()}; it is hidden where nothing learned. */
export function tuningPanel(signal) {
  const facts = el("span", {class: "muted"}), notes = el("ul", {class: "messages"});
  const live = new Map(); /* by layer, until the report has it */
  let blocks = [], summary = "";

  function shown() {
    return [...blocks, ...live.values()];
  }

  const lines = chart("Loss by step", () => {
    const curves = shown();
    if (curves.length === 0) {
      return null;
    }
    return {
      type: "line",
      data: {datasets: curves.map(curve)},
      options: {
        parsing: false, normalized: true,
        interaction: {mode: "nearest", axis: "x", intersect: false},
        scales: {
          x: {type: "linear", min: 1, grid: {display: false}, title: {display: true, text: "step"}},
          y: {type: "linear", title: {display: true, text: "loss, of the solved block's"}},
        },
        plugins: {
          legend: {display: curves.length <= 16, position: "top", align: "start", labels: {color: token("muted"), boxWidth: 10, boxHeight: 10, font: {size: 11}}},
          tooltip: {callbacks: {title: (items) => `step ${items[0]?.raw.x ?? ""}`, label: (item) => `${item.dataset.label}: ${item.raw.y.toPrecision(3)}`}},
        },
      },
    };
  }, signal);
  const element = el("section", {class: "panel", "aria-label": "Learning", hidden: true}, el("header", {}, el("h2", {}, "Learning"), facts), el("div", {class: "body"}, lines.element, notes));

  function draw() {
    const open = [...live.values()].at(-1), point = open?.curve.at(-1);
    element.hidden = shown().length === 0;
    if (element.hidden) {
      return;
    }
    facts.textContent = open
      ? `${named(open.layer)}: step ${point.step} of ${open.steps}, loss ${(point.loss / open.first_loss).toPrecision(3)} of the solved one's, rates ${(100 * open.rate).toFixed(0)} %`
      : summary;
    lines.draw();
  }

  return {
    element,
    update(tuning) {
      const model = tuning?.end_to_end ?? null, learned = tuning?.blocks ?? [];
      blocks = [...learned, ...model === null ? [] : [{...model, layer: MODEL}]].filter((block) => block.curve.length > 0 && block.first_loss > 0);
      for (const block of [...learned, ...model === null ? [] : [{layer: MODEL}]]) {
        live.delete(block.layer);
      }
      summary = tuning ? `${learned.length} blocks, loss ${tuning.loss_ratio?.toPrecision(3) ?? NONE} of the solved ones', ${tuning.seconds.toFixed(0)} s` : "";
      notes.replaceChildren(...blocks.filter((block) => block.note !== null).map((block) => el("li", {}, `${block.layer === MODEL ? "Complete model" : `Block ${block.layer}`}: ${block.note}`)));
      draw();
    },
    /* block: its number from 1, or null of the complete model; tuning: of a progress event. */
    watch(block, tuning) {
      const layer = block === null ? MODEL : block - 1, known = live.get(layer);
      if (blocks.some((one) => one.layer === layer) || tuning.loss === null || !(tuning.first_loss > 0) || known?.curve.at(-1).step === tuning.step) {
        return;
      }
      if (known === undefined || known.curve.at(-1).step > tuning.step) { /* it began again */
        live.set(layer, {layer, steps: tuning.steps, first_loss: tuning.first_loss, curve: []});
      }
      Object.assign(live.get(layer), {rate: tuning.rate}).curve.push({step: tuning.step, loss: tuning.loss});
      draw();
    },
    /* Nothing learns any more. */
    rest() {
      live.clear();
      draw();
    },
  };
}
