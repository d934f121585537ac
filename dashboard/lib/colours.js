/* Colours for canvases: those of the style sheet, and a scale for values that people with any colour vision can order. */
import {signals} from "./api.js";

/* Cividis (Nuñez, Anderton, Renslow 2018), from dark to light. */
const CIVIDIS = [[0, 32, 76], [0, 48, 111], [57, 72, 107], [87, 93, 109], [112, 113, 115], [138, 134, 120], [166, 157, 117], [196, 181, 108], [228, 207, 91], [255, 234, 70]];

/* Of a place from 0 to 1. */
export function scaleColour(place) {
  const at = Math.min(1, Math.max(0, place)) * (CIVIDIS.length - 1), low = Math.min(CIVIDIS.length - 2, Math.floor(at)), part = at - low;
  const mix = CIVIDIS[low].map((value, i) => Math.round(value + (CIVIDIS[low + 1][i] - value) * part));
  return `rgb(${mix.join(" ")})`;
}

/* What a custom property of the style sheet is now: asking makes the browser compute styles, so answers are kept until the theme changes. */
const tokens = new Map();
signals.addEventListener("theme", () => tokens.clear());

export function token(name) {
  if (tokens.has(name)) {
    return tokens.get(name);
  }
  const probe = document.createElement("span");
  probe.style.color = `var(--${name})`;
  document.body.append(probe);
  const colour = getComputedStyle(probe).color;
  probe.remove();
  tokens.set(name, colour);
  return colour;
}

/* A canvas of the size that it has on the page; its context in pixels of the page. */
export function canvasContext(canvas) {
  const box = canvas.getBoundingClientRect(), ratio = devicePixelRatio || 1;
  const width = Math.max(1, Math.round(box.width * ratio)), height = Math.max(1, Math.round(box.height * ratio));
  if (canvas.width !== width || canvas.height !== height) {
    canvas.width = width;
    canvas.height = height;
  }
  const context = canvas.getContext("2d");
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.clearRect(0, 0, box.width, box.height);
  return {context, width: box.width, height: box.height};
}
