/* How blocks learned: the report's "tuning" as loss curves, one line a block, each relative to the block's loss as it was solved. */
import {chart, series} from "../lib/charts.js";
import {token} from "../lib/colours.js";
import {el} from "../lib/dom.js";

function curve(block, i) {
  return {
    label: `block ${block.layer}`, borderColor: series(i), backgroundColor: series(i), borderWidth: 1.5, pointRadius: 0, pointHitRadius: 6,
    data: block.curve.filter((point) => point.loss !== null).map((point) => ({x: point.step, y: point.loss / block.first_loss})),
  };
}

/* Returns {element, update(tuning)}; it is hidden where nothing learned. */
export function tuningPanel(signal) {
  const facts = el("span", {class: "muted"}), notes = el("ul", {class: "messages"});
  let blocks = [];

  const lines = chart("Loss by step", () => {
    if (blocks.length === 0) {
      return null;
    }
    return {
      type: "line",
      data: {datasets: blocks.map(curve)},
      options: {
        parsing: false, normalized: true,
        interaction: {mode: "nearest", axis: "x", intersect: false},
        scales: {
          x: {type: "linear", min: 1, grid: {display: false}, title: {display: true, text: "step"}},
          y: {type: "linear", title: {display: true, text: "loss, of the solved block's"}},
        },
        plugins: {
          legend: {display: blocks.length <= 16, position: "top", align: "start", labels: {color: token("muted"), boxWidth: 10, boxHeight: 10, font: {size: 11}}},
          tooltip: {callbacks: {title: (items) => `step ${items[0]?.raw.x ?? ""}`, label: (item) => `${item.dataset.label}: ${item.raw.y.toPrecision(3)}`}},
        },
      },
    };
  }, signal);
  const element = el("section", {class: "panel", "aria-label": "Learning", hidden: true}, el("header", {}, el("h2", {}, "Learning"), facts), el("div", {class: "body"}, lines.element, notes));

  return {
    element,
    update(tuning) {
      blocks = (tuning?.blocks ?? []).filter((block) => block.curve.length > 0 && block.first_loss > 0);
      element.hidden = blocks.length === 0;
      if (blocks.length === 0) {
        return;
      }
      facts.textContent = `${blocks.length} blocks, loss ${tuning.loss_ratio.toPrecision(3)} of the solved ones', ${tuning.seconds.toFixed(0)} s`;
      notes.replaceChildren(...blocks.filter((block) => block.note !== null).map((block) => el("li", {}, `Block ${block.layer}: ${block.note}`)));
      lines.draw();
    },
  };
}
