/* Chart.js, loaded with the first chart, in the colours of the theme and without animations. */
import {signals} from "./api.js";
import {el} from "./dom.js";
import {token} from "./colours.js";

let loading = null;

async function chartJs() {
  loading ??= import("../chart.js"); /* defines globalThis.Chart */
  await loading;
  return globalThis.Chart;
}

export function series(i) {
  return token(`series-${1 + (i % 8)}`);
}

/* Options that every chart has; axes: those of Chart.js, which get colours. */
function themed(options) {
  const text = token("muted"), line = token("line"), scales = {}, narrow = window.innerWidth < 600;
  for (const [name, axis] of Object.entries(options.scales ?? {})) {
    const written = axis.title?.display && !(narrow && name === "y"); /* there it is as long as the axis, and runs into the legend */
    scales[name] = {
      ...axis,
      ticks: {color: text, font: {size: 11}, maxRotation: 0, ...axis.ticks},
      grid: {color: line, borderColor: line, tickColor: line, ...axis.grid},
      title: {color: text, font: {size: 11}, ...axis.title, display: Boolean(written)},
    };
  }
  return {animation: false, responsive: true, maintainAspectRatio: false, ...options, scales};
}

/* A chart in a box: {element, draw(config)}; config() is called whenever the data or the theme changed, and returns {type, data, options}
 * of Chart.js, or null where there is nothing to show. */
export function chart(label, config, signal) {
  const canvas = el("canvas", {role: "img", "aria-label": label});
  const box = el("div", {class: "chart"}, canvas);
  let drawn = null, asked = 0;

  async function draw() {
    const number = ++asked;
    const Chart = await chartJs();
    if (signal.aborted || number !== asked) {
      return;
    }
    const wanted = config();
    if (wanted === null) {
      drawn?.destroy();
      drawn = null;
      return;
    }
    const options = themed(wanted.options);
    if (drawn && drawn.config.type === wanted.type) {
      drawn.data = wanted.data;
      drawn.options = options;
      drawn.update("none");
    } else {
      drawn?.destroy();
      drawn = new Chart(canvas, {...wanted, options});
    }
  }

  signals.addEventListener("theme", draw, {signal});
  signal.addEventListener("abort", () => drawn?.destroy());
  return {element: box, draw, describe: (text) => canvas.setAttribute("aria-label", text)};
}

/* Labels of a logarithmic axis from low to high: of powers of ten, and where there is space for them, of their doubles and fives. */
export function powerTicks(low, high, decades) {
  const shown = high / low < 10 ** decades ? [1, 2, 5] : [1];
  return (value) => {
    const power = Math.floor(Math.log10(value) + 1e-9), first = Math.round(value / 10 ** power);
    if (Math.abs(value / 10 ** power - first) > 1e-6 || !shown.includes(first)) {
      return "";
    }
    return power >= -2 && power <= 3 ? String(Number(value.toPrecision(1))) : `${first}e${power}`.replace("-", "−");
  };
}
