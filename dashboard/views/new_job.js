/* A new job: a form made from the schemas of GET /v1/methods and /openapi.json, and the same job as lines for a shell. */
import {get, send} from "../lib/api.js";
import {lines} from "../lib/clipboard.js";
import {el, empty, framed, setText, skeleton} from "../lib/dom.js";
import {control, faults, readable} from "../lib/fields.js";
import {bytes, count} from "../lib/format.js";
import {notice} from "../lib/notices.js";
import {storeFile} from "../lib/upload.js";
import {begin} from "./calibration.js";
import {estimate} from "./new_job_estimate.js";
import {curlLines, quantctlLines} from "./new_job_lines.js";
import {recommend} from "./new_job_recommend.js";

const OTHER = "uri";
const STREAM = "stream";

/* Members with a choice stand first; the others are one press away. */
const isMain = ([, schema]) => Array.isArray(schema.enum);

const LABELS = {
  num_samples: "Sequences", sequence_length: "Tokens of a sequence", text_field: "Member with the text", add_special_tokens: "Add special tokens", packing: "Pack records", shuffle: "Shuffle", report_tokens: "Tokens that errors are measured on",
  hold_back: "Part held back", max_tokens: "Tokens at most", max_shard_bytes: "Bytes of a shard", host_memory_bytes: "Bytes of host memory", seed: "Seed", priority: "Priority",
  max_attempts: "Attempts", timeout_seconds: "Time limit in seconds", expires_after_seconds: "Seconds to wait for calibration", metadata: "Metadata", webhook_id: "Webhook", sign: "Sign the artifact",
  targets: "Runtimes that must load it", tensor_parallel_size: "Devices that they divide it over",
};

export async function show(main, {query, signal, title}) {
  title("New job");
  main.append(skeleton(10));
  try {
    const [methods, system, api, models, files] = await Promise.all([get("/v1/methods", {signal}), get("/v1/system", {signal}), get("/openapi.json", {signal}),
      get("/v1/models?limit=100", {signal}), get("/v1/files?limit=100", {signal})]);
    if (!signal.aborted) {
      build(main, {methods: methods.data, system, schemas: api.components.schemas, models: models.data, files: files.data, wanted: query, signal});
    }
  } catch (error) {
    if (!signal.aborted) {
      main.replaceChildren(empty("The form could not be made", `${error.message}${error.hint ? `. ${error.hint}` : ""}`, el("button", {class: "button", type: "button", on: {click: () => {
        main.replaceChildren();
        show(main, {query, signal, title});
      }}}, "Try again")));
    }
  }
}

function put(body, pointer, value) {
  const names = pointer.split("/").slice(1), last = names.pop();
  let at = body;
  for (const name of names) {
    at = at[name] ??= {};
  }
  at[last] = value;
}

function idempotencyKey() {
  return [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

function build(main, {methods, system, schemas, models, files, wanted, signal}) {
  const part = (name) => schemas[name].properties;
  const option = (value, label) => el("option", {value}, label);
  const changed = framed(() => (signal.aborted ? null : update()));
  const make = (pointer, label, schema, choices = null) => control(pointer, label, schema, {onChange: changed, choices});
  /* Controls of all members of a schema but those that are made by hand. */
  const rest = (base, properties, except) => Object.entries(properties).filter(([name]) => !except.includes(name)).map(([name, schema]) => make(`${base}/${name}`, LABELS[name] ?? name, schema));
  const more = (label, controls) => (controls.length > 0 ? el("details", {}, el("summary", {}, label), el("div", {class: "form-grid"}, ...controls.map((one) => one.element))) : null);

  /* --- model and method */

  const job = part("JobRequestRtn");
  const model = make("/model", "Model", {description: ""}, el("select", {}, ...models.map((one) => option(one.id, `${one.name || one.uri} (${count(one.parameters)} parameters)`)), option(OTHER, "A checkpoint on the server …")));
  const uri = make("/model/uri", "Where the checkpoint is", {...part("ModelRequest").uri, description: part("ModelRequest").uri.description});
  const modelNote = el("p", {class: "muted"});
  const name = make("/name", "Name", job.name);
  const method = make("/method", "Method", {}, el("select", {}, ...methods.map((one) => option(one.name, one.title === one.name ? one.name : `${one.title} (${one.name})`))));
  const stage = make("/method/0", "Method before it", {description: "Rewrites the model before the method above quantizes it: smoothquant or awq. Before tune: what it works on, such as gptq."}, el("select", {}, option("", "None"), ...methods.map((one) => option(one.name, one.title === one.name ? one.name : `${one.title} (${one.name})`))));
  const methodNote = el("p", {class: "muted"});
  const format = make("/output/format", "Format", {description: part("JobRequestOutput").format.description}, el("select", {}));
  const parameters = el("div", {class: "stack"});
  let ofMethod = [];

  const wantedModel = wanted.get("model");
  model.input.value = models.some((one) => one.id === wantedModel) ? wantedModel : models[0]?.id ?? OTHER;
  method.input.value = methods.some((one) => one.name === wanted.get("method")) ? wanted.get("method") : methods.some((one) => one.name === "gptq") ? "gptq" : methods[0].name;

  /* --- calibration and evaluation */

  const source = make("/calibration", "Records", {description: "Lines of JSON with a text, or with token ids."}, el("select", {}));
  const local = el("input", {type: "file", id: "local-records", accept: ".ndjson,.jsonl,.json,application/x-ndjson"});
  const localField = el("div", {class: "field control"}, el("label", {for: "local-records"}, "File of this computer"), local, el("span", {class: "help"}, "It is sent into the job once the job has been made; a count of tokens follows it."));
  const stored = make("/calibration/file_id", "Stored file", {description: part("JobRequestCalibration").file_id.description}, el("select", {}));
  const calibration = [make("/calibration/num_samples", LABELS.num_samples, part("JobRequestCalibration").num_samples), make("/calibration/sequence_length", LABELS.sequence_length, part("JobRequestCalibration").sequence_length)];
  const calibrationMore = rest("/calibration", part("JobRequestCalibration"), ["file_id", "stream", "num_samples", "sequence_length"]);
  const evaluate = make("/evaluation", "Perplexity and KL", {description: job.evaluation.description}, el("select", {}, option("", "Not measured"), option("hold_back", "On a part of the records"), option("file", "On a stored file")));
  const holdBack = make("/evaluation/hold_back", LABELS.hold_back, part("JobRequestEvaluation").hold_back);
  const evaluationFile = make("/evaluation/file_id", "Stored file", {description: part("JobRequestEvaluation").file_id.description}, el("select", {}));
  const evaluationMore = rest("/evaluation", part("JobRequestEvaluation"), ["file_id", "hold_back"]);
  const storing = el("p", {class: "muted", role: "status"});
  let evaluationTouched = false, sourceTouched = false;

  function storedOptions(select, purpose) {
    const chosen = select.value, list = files.filter((one) => one.purpose === purpose);
    select.replaceChildren(...(list.length > 0 ? list.map((one) => option(one.id, `${one.name ?? one.id} (${bytes(one.bytes)})`)) : [option("", "None is stored yet")]));
    select.value = list.some((one) => one.id === chosen) ? chosen : select.options[0].value;
  }

  function storeButton(purpose, select) {
    const input = el("input", {type: "file", hidden: true, "aria-label": `File to store for ${purpose}`, accept: ".ndjson,.jsonl,.json,application/x-ndjson", on: {change: async () => {
      const file = input.files[0];
      if (!file) {
        return;
      }
      button.disabled = true;
      try {
        const kept = await storeFile(file, purpose, {signal, onProgress: (sent, size) => setText(storing, `${file.name}: ${bytes(sent)} of ${bytes(size)}`)});
        files.unshift(kept);
        storedOptions(select, purpose);
        select.value = kept.id;
        setText(storing, `${file.name} was stored.`);
        changed();
      } catch (error) {
        if (error.name !== "AbortError") {
          setText(storing, "");
          notice(`${file.name}: ${error.message}${error.hint ? ` (${error.hint})` : ""}`, "error");
        }
      }
      button.disabled = false;
      input.value = "";
    }}});
    const button = el("button", {class: "button", type: "button", on: {click: () => input.click()}}, "Store a file …");
    return el("div", {class: "row"}, button, input);
  }
  const storeCalibration = storeButton("calibration", stored.input), storeEvaluation = storeButton("evaluation", evaluationFile.input);

  /* --- the rest */

  const device = make("/resources/device", "Device", {description: "Where it runs."}, el("select", {}, option("", "Chosen by the daemon"), ...system.devices.map((one) => option(one.id, `${one.id}: ${one.name}`))));
  const others = [...rest("", job, ["name", "model", "method", "quantization", "output", "calibration", "evaluation", "resources"]),
    ...rest("/output", part("JobRequestOutput"), ["format"]), ...rest("/resources", part("JobRequestResources"), ["device"])];

  /* --- what is entered, as the body of the request */

  const named = (name) => methods.find((one) => one.name === name);
  const chosenMethod = () => named(method.input.value);
  const records = () => local.files[0]?.name ?? null;

  /* The controls that count now. */
  function counted() {
    const list = [name, ...(model.input.value === OTHER ? [uri] : []), ...ofMethod, ...(chosenMethod().formats.length > 0 ? [format] : []), device, ...others];
    if (source.input.value !== "") {
      list.push(...calibration, ...calibrationMore, ...(source.input.value === "file" ? [stored] : []));
    }
    if (evaluate.input.value !== "") {
      list.push(...evaluationMore, evaluate.input.value === "file" ? evaluationFile : holdBack);
    }
    return list;
  }

  /* Text that cannot be read yet is left out, so that the lines follow the typing. */
  function body() {
    const made = {};
    if (model.input.value !== OTHER) {
      made.model = model.input.value;
    }
    made.method = stage.input.value === "" ? method.input.value : [stage.input.value, method.input.value];
    if (source.input.value !== "") {
      made.calibration = source.input.value === STREAM ? {stream: true} : {};
    }
    if (evaluate.input.value !== "") {
      made.evaluation = {};
    }
    for (const one of counted()) {
      try {
        const value = one.read();
        if (value !== undefined) {
          put(made, one.pointer, value);
        }
      } catch {
        /* readable() says what is wrong with it. */
      }
    }
    return made;
  }

  /* --- the page */

  /* The model as the body names it; undefined: it does not yet. */
  const namedModel = () => (model.input.value !== OTHER ? model.input.value : uri.input.value.trim() === "" ? undefined : {uri: uri.input.value.trim()});
  const shownControls = () => [model, method, stage, source, evaluate, ...counted()];
  const guess = estimate({body: () => (namedModel() === undefined ? null : body()), controls: shownControls, signal});
  const advice = recommend({schema: schemas.RecommendationRequest, model: namedModel, records: () => source.input.value !== "" || !sourceTouched, onUse: fill, signal});
  const summary = el("p", {class: "fault", role: "alert"});
  const submit = el("button", {class: "button primary", type: "submit"}, "Create the job");
  const quantctl = lines("quantctl", "Reads its key from QUANTD_API_KEY, or from what quantctl login has stored."), curl = lines("curl");
  const group = (label, ...content) => el("fieldset", {class: "panel"}, el("legend", {class: "visually-hidden"}, label), el("header", {"aria-hidden": "true"}, el("h2", {}, label)), el("div", {class: "body stack"}, ...content));
  const grid = (...content) => el("div", {class: "form-grid"}, ...content);
  const form = el("form", {class: "stack", novalidate: "", "aria-label": "New job", on: {submit: (event) => {
    event.preventDefault();
    create();
  }}},
  group("Model", grid(model.element, uri.element, name.element), modelNote),
  group("Method", advice.element, grid(method.element, stage.element, format.element), methodNote, parameters),
  group("Calibration", grid(source.element, localField, stored.element, ...calibration.map((one) => one.element)), storeCalibration, storing, more("More about the records", calibrationMore)),
  group("Evaluation", grid(evaluate.element, holdBack.element, evaluationFile.element), storeEvaluation, more("More about the evaluation", evaluationMore)),
  group("Run", grid(device.element), more("Priority, seed, limits, metadata", others)),
  el("div", {class: "row"}, submit, el("a", {class: "button quiet", href: "#/"}, "Back to the queue")), summary);

  main.replaceChildren(el("div", {class: "head"}, el("div", {}, el("h1", {}, "New job"), el("p", {class: "muted"}, "An empty field takes the daemon's default."))),
    el("div", {class: "columns form-columns"}, form, el("div", {class: "stack sticky"}, guess.element,
      el("section", {class: "panel", "aria-label": "The same job from a shell"}, el("header", {}, el("h2", {}, "The same job from a shell")), el("div", {class: "body"}, quantctl.element, curl.element)))));

  /* A way that was recommended: its method with its parameters and its format, in place of what was entered. */
  function fill({name: way, job: wanted}) {
    method.input.value = wanted.method;
    stage.input.value = "";
    for (const one of ofMethod) {
      one.set(undefined);
    }
    drawMethod();
    for (const one of ofMethod) {
      one.set(wanted.quantization?.[one.pointer.split("/").at(-1)]);
      one.fault("");
    }
    format.input.value = wanted.output?.format ?? "";
    changed();
    notice(`The form was filled in: ${way}`, "good");
    method.input.focus();
  }

  function drawMethod() {
    const chosen = chosenMethod(), first = named(stage.input.value);
    const entries = Object.entries({...chosen.parameters.properties, ...Object.fromEntries(Object.entries(first?.parameters.properties ?? {}).filter(([member]) => !(member in chosen.parameters.properties)))});
    const learns = chosen.needs_calibration || Boolean(first?.needs_calibration);
    const before = new Map(ofMethod.map((one) => [one.pointer, one.input.value]));
    const controls = new Map(entries.map((entry) => [entry[0], make(`/quantization/${entry[0]}`, entry[0], entry[1])]));
    ofMethod = [...controls.values()];
    for (const one of ofMethod) { /* what was entered for another method stays where it can */
      const value = before.get(one.pointer) ?? "";
      if (one.input.tagName !== "SELECT" || [...one.input.options].some((choice) => choice.value === value)) {
        one.input.value = value;
      }
    }
    const main = entries.filter(isMain).map(([member]) => controls.get(member)), others = entries.filter((entry) => !isMain(entry)).map(([member]) => controls.get(member));
    parameters.replaceChildren(...[main.length > 0 ? grid(...main.map((one) => one.element)) : null, more(`${main.length > 0 ? "More parameters" : "Parameters"} (${others.length})`, others)].filter(Boolean));
    setText(methodNote, chosen.description);
    format.input.replaceChildren(option("", "Chosen by the daemon"), ...chosen.formats.map((one) => option(one, system.formats.find((known) => known.name === one)?.title ?? one)));
    const had = source.input.value;
    source.input.replaceChildren(...(learns ? [] : [option("", "None")]), option(STREAM, "A file of this computer"), option("file", "A stored file"));
    source.input.value = sourceTouched && [...source.input.options].some((one) => one.value === had) ? had : learns ? STREAM : "";
  }

  function update() {
    const chosen = chosenMethod(), other = model.input.value === OTHER, known = models.find((one) => one.id === model.input.value), from = source.input.value;
    uri.element.hidden = !other;
    setText(modelNote, known ? `${known.architecture}, ${count(known.num_layers)} blocks, ${known.dtype}, ${bytes(known.bytes)}${known.supported === false ? `. Not supported: ${(known.reasons ?? []).join("; ")}` : ""}`
      : "The checkpoint is registered with the job. Only folders below the daemon's model roots can be named.");
    format.element.hidden = chosen.formats.length === 0;
    setText(format.element.querySelector(".help"), system.formats.find((one) => one.name === format.input.value)?.description ?? part("JobRequestOutput").format.description);
    localField.hidden = from !== STREAM;
    stored.element.hidden = storeCalibration.hidden = from !== "file";
    for (const one of [...calibration, ...calibrationMore]) {
      one.element.hidden = from === "";
    }
    if (!evaluationTouched) {
      evaluate.input.value = from === "" ? "" : "hold_back";
    }
    holdBack.element.hidden = evaluate.input.value !== "hold_back";
    evaluationFile.element.hidden = storeEvaluation.hidden = evaluate.input.value !== "file";
    for (const box of form.querySelectorAll("details")) {
      box.hidden = [...box.querySelectorAll(".control")].every((one) => one.hidden) || (evaluate.input.value === "" && box.contains(evaluationMore[0]?.element));
    }
    const now = body();
    quantctl.set(quantctlLines(now, records()));
    curl.set(curlLines(now, records()));
    guess.ask();
  }

  method.input.addEventListener("input", drawMethod);
  stage.input.addEventListener("input", drawMethod);
  source.input.addEventListener("input", () => (sourceTouched = true));
  evaluate.input.addEventListener("input", () => (evaluationTouched = true));
  local.addEventListener("change", changed);
  storedOptions(stored.input, "calibration");
  storedOptions(evaluationFile.input, "evaluation");
  drawMethod();
  update();

  /* --- the request */

  let sent = null; /* its text and key: the same again is the same job, also when its answer was lost */

  async function create() {
    const all = shownControls();
    guess.stop();
    faults(all, null, summary);
    if (!readable(all)) {
      return;
    }
    if (model.input.value === OTHER && uri.read() === undefined) {
      uri.fault("Name a folder, for example file:my-model");
      uri.input.focus();
      return;
    }
    if (source.input.value === STREAM && !local.files[0]) {
      source.fault("Choose the file of records below.");
      local.focus();
      return;
    }
    const json = body(), text = JSON.stringify(json);
    sent = sent?.text === text ? sent : {text, key: idempotencyKey()};
    submit.disabled = true;
    try {
      const made = await (await send("POST", "/v1/quantization/jobs", {json, signal, headers: {"Idempotency-Key": sent.key}})).json();
      sent = null;
      notice("The job was created", "good");
      if (json.calibration?.stream) {
        begin(made.id, local.files[0]);
      } else {
        location.hash = `#/jobs/${made.id}`;
      }
    } catch (error) {
      if (!signal.aborted) {
        faults(all, error, summary);
        submit.disabled = false;
      }
    }
  }
}
