/* Which way to quantize: a goal, an accelerator and a load, and what POST /v1/quantization/recommendations answers, with a button for each way that
 * fills in the form. */
import {send} from "../lib/api.js";
import {el, setText} from "../lib/dom.js";
import {control, faults, readable} from "../lib/fields.js";
import {fixed} from "../lib/format.js";

const NUMBERS = "numbers";
/* Of the numbers of an accelerator: name, label, factor from what is typed. */
const FIGURES = [["memory_bytes", "Memory in GB", 1e9], ["bandwidth_bytes_per_second", "Memory bandwidth in GB/s", 1e9], ["bf16_tflops", "TFLOPS in BF16", 1], ["int8_tflops", "TOPS in INT8", 1], ["fp8_tflops", "TFLOPS in FP8", 1]];

const gigabytes = (value) => (value < 1e9 ? `${(value / 1e6).toPrecision(3)} MB` : `${Number((value / 1e9).toPrecision(3))} GB`);
const times = (value) => `${fixed(value, 1)}×`;

function way(choice, number, use) {
  const facts = [
    ["Memory", `${gigabytes(choice.total_bytes)}${choice.fits ? "" : ": does not fit"}`],
    ["Bits per weight", choice.bits_per_weight === null ? "16" : fixed(choice.bits_per_weight, 2)],
    ["Faster at most", choice.request_speedup === null ? "not made for speed" : `${times(choice.request_speedup)} (reading ${times(choice.prefill_speedup)}, writing ${times(choice.decode_speedup)})`],
    ["Loaded by", choice.runtimes.join(", ")],
  ];
  return el("li", {class: "way"},
    el("div", {class: "row"}, el("h3", {}, `${number}. ${choice.name}`), choice.fits ? null : el("span", {class: "badge warn"}, "Does not fit"), el("button", {class: "button", type: "button", "aria-label": `Use ${choice.name}`, on: {click: () => use(choice)}}, "Use this")),
    el("p", {}, choice.reason),
    el("dl", {class: "estimate"}, ...facts.flatMap(([label, value]) => [el("dt", {}, label), el("dd", {}, value)]), el("dt", {}, "Kernels"), el("dd", {}, choice.kernels)),
    choice.caution ? el("p", {class: "warning"}, choice.caution) : null);
}

/* {element}. schema: RecommendationRequest. model(): the job's, or undefined; records(): whether there are any; onUse(job): fills in the form. */
export function recommend({schema, model, records, onUse, signal}) {
  const {properties} = schema;
  const option = (value, label) => el("option", {value}, label);
  const names = properties.accelerator.anyOf.find((one) => one.enum).enum;
  const goal = control("/goal", "Goal", {description: "What the artifact is for."}, {choices: el("select", {}, ...properties.goal.enum.map((one) => option(one, properties.goal["x-titles"]?.[one] ?? one)))});
  const accelerator = control("/accelerator", "Accelerator", {description: "That serves the artifact."}, {choices: el("select", {}, ...names.map((one) => option(one, one)), option(NUMBERS, "Another one, by its numbers …")), onChange: () => draw()});
  const runtime = control("/runtime", "Runtime", properties.runtime);
  const load = [["batch", "Requests at once"], ["prompt_tokens", "Tokens of a prompt"], ["output_tokens", "Tokens of an answer"]].map(([name, label]) => control(`/${name}`, label, properties[name]));
  const figures = FIGURES.map(([name, label]) => control(`/accelerator/${name}`, label, {type: "number", minimum: 0}));
  const all = () => [goal, accelerator, runtime, ...load, ...(accelerator.input.value === NUMBERS ? figures : [])];
  const summary = el("p", {class: "fault", role: "alert"}), said = el("div", {role: "status"}), ways = el("ol", {class: "ways"}), left = el("div", {});
  const button = el("button", {class: "button", type: "button", on: {click: ask}}, "Recommend");
  let asked = null;

  function draw() {
    for (const one of figures) {
      one.element.hidden = accelerator.input.value !== NUMBERS;
    }
  }

  function body() {
    const made = {model: model(), goal: goal.input.value, calibration: records()};
    made.accelerator = accelerator.input.value === NUMBERS ? Object.fromEntries(figures.map((one, at) => [FIGURES[at][0], one.read() === undefined ? undefined : one.read() * FIGURES[at][2]])) : accelerator.input.value;
    for (const one of [runtime, ...load]) {
      const value = one.read();
      if (value !== undefined) {
        made[one.pointer.slice(1)] = value;
      }
    }
    return made;
  }

  function show(found) {
    said.replaceChildren(el("p", {}, el("strong", {}, `${found.title}. `), found.note), el("p", {}, `In 16 bits the model takes ${gigabytes(found.float.total_bytes)} with the keys and values of the requests, which ${found.float.fits ? "fits" : "does not fit"}. ${found.float.explanation}`),
      ...(found.fit_note ? [el("p", {class: "fault"}, found.fit_note)] : []), ...(found.speed_note ? [el("p", {class: "warning"}, found.speed_note)] : []), ...(found.choices.length === 0 ? [el("p", {class: "fault"}, "None of the ways of this goal can be taken; the reasons are below.")] : []));
    ways.replaceChildren(...found.choices.map((choice, at) => way(choice, at + 1, (chosen) => onUse(chosen))));
    left.replaceChildren(...(found.left_out.length === 0 ? [] : [el("h3", {}, "Left out"), el("ul", {class: "problems"}, ...found.left_out.map((one) => el("li", {}, `${one.name}: ${one.reason}`)))]));
  }

  async function ask() {
    faults(all(), null, summary);
    if (!readable(all())) {
      return;
    }
    if (model() === undefined) {
      setText(summary, "Name a checkpoint above first.");
      return;
    }
    asked?.abort();
    const mine = asked = new AbortController();
    signal.addEventListener("abort", () => mine.abort(), {signal: mine.signal});
    try {
      show(await (await send("POST", "/v1/quantization/recommendations", {json: body(), signal: mine.signal})).json());
    } catch (error) {
      if (!mine.signal.aborted) {
        said.replaceChildren();
        ways.replaceChildren();
        left.replaceChildren();
        faults(all(), error.status === 403 ? Object.assign(error, {errors: [{param: null, detail: "This key may not make jobs, so nothing is recommended."}]}) : error, summary);
      }
    }
    mine.abort(); /* and lets go of the view's signal */
  }

  draw();
  return {
    element: el("details", {class: "recommend", on: {keydown: (event) => {
      if (event.key === "Enter" && event.target.tagName === "INPUT") { /* which would send the form around it */
        event.preventDefault();
        ask();
      }
    }}}, el("summary", {}, "Not sure which? Say what it is for"),
      el("div", {class: "stack"}, el("div", {class: "form-grid"}, ...[goal, accelerator, ...figures, runtime, ...load].map((one) => one.element)), el("div", {class: "row"}, button), summary, said, ways, left)),
  };
}
