/* The same job from a shell: lines for quantctl and for curl. No line holds an API key. */
import {address, key} from "../lib/api.js";
import {quote} from "../lib/clipboard.js";

/* A value as --set reads it: JSON where it is JSON, else a scalar of YAML's core schema, so text that looks like another scalar is quoted. */
function setting(value) {
  return typeof value === "string" && /^[A-Za-z][A-Za-z0-9_.:/-]*$/.test(value) && !/^(true|false|null)$/i.test(value) ? value : JSON.stringify(value);
}

/* A name of a file that no option is mistaken for. */
function pathOf(name) {
  return name.startsWith("-") ? `./${name}` : name;
}

const OPTIONS = new Set(["model", "method", "quantization", "output", "calibration", "evaluation", "resources", "name", "seed", "priority", "max_attempts", "timeout_seconds", "webhook_id", "metadata"]);

/* records: the name of the local file that is streamed, or null. */
export function quantctlLines(body, records) {
  if (Object.keys(body).some((member) => !OPTIONS.has(member))) { /* a member without an option: the request as a job file */
    const file = body.calibration?.stream ? `--calibration ${quote(pathOf(records ?? "records.ndjson"))} ` : "";
    return `quantctl submit --file - ${file}\\\n  --server ${quote(location.origin)} --watch <<'JOB'\n${JSON.stringify(body.model === undefined ? {model: "MODEL", ...body} : body, null, 2)}\nJOB`;
  }
  const words = [];
  const option = (name, value) => words.push(`--${name} ${quote(String(value))}`);
  option("model", body.model === undefined ? "MODEL" : typeof body.model === "object" ? body.model.uri || "file:MODEL" : body.model);
  for (const name of [body.method].flat()) {
    option("method", name);
  }
  for (const [name, value] of Object.entries(body.quantization ?? {})) {
    if ((name === "bits" || name === "group_size") && Number.isInteger(value)) {
      option(name.replace("_", "-"), value);
    } else {
      option("set", `${name}=${setting(value)}`);
    }
  }
  for (const [name, value] of Object.entries(body.output ?? {})) {
    if (name === "format") {
      option("format", value);
    } else if (name === "targets") {
      value.forEach((target) => option("target", target));
    } else {
      option("set", `output.${name}=${setting(value)}`);
    }
  }
  const {stream, file_id: file, num_samples: samples, sequence_length: length, ...calibration} = body.calibration ?? {};
  if (stream || file) {
    option("calibration", file ?? pathOf(records ?? "records.ndjson"));
  }
  for (const [name, value] of [["num-samples", samples], ["sequence-length", length]]) {
    if (value === 0) { /* the option's range begins at 1 */
      option("set", `calibration.${name.replace("-", "_")}=0`);
    } else if (value !== undefined) {
      option(name, value);
    }
  }
  for (const [name, value] of Object.entries(calibration)) {
    option("set", `calibration.${name}=${setting(value)}`);
  }
  const {file_id: text, hold_back: part, ...evaluation} = body.evaluation ?? {};
  if (body.evaluation) {
    option("evaluation", text ?? part ?? 0.125);
  }
  for (const [name, value] of Object.entries(evaluation)) {
    option("set", `evaluation.${name}=${setting(value)}`);
  }
  const {device, ...resources} = body.resources ?? {};
  if (device) {
    option("device", device);
  }
  for (const [name, value] of Object.entries(resources)) {
    option("set", `resources.${name}=${setting(value)}`);
  }
  for (const [member, name] of [["name", "name"], ["seed", "seed"], ["priority", "priority"], ["max_attempts", "max-attempts"], ["timeout_seconds", "time-limit"], ["webhook_id", "webhook"]]) {
    if (body[member] !== undefined) {
      words.push(`--${name}${String(body[member]).startsWith("-") ? "=" : " "}${quote(String(body[member]))}`);
    }
  }
  for (const [name, value] of Object.entries(body.metadata ?? {})) {
    option("metadata", `${name}=${value}`);
  }
  option("server", location.origin);
  words.push("--watch");
  return `quantctl submit ${words.join(" \\\n  ")}`;
}

export function curlLines(body, records) {
  const header = key() ? ' -H "Authorization: Bearer $QUANTD_API_KEY"' : "";
  const json = JSON.stringify(body.model === undefined ? {model: "MODEL", ...body} : body, null, 2);
  const create = `curl -fsS${header} -H 'Content-Type: application/json' \\\n  ${address("/v1/quantization/jobs")} -d ${quote(json)}`;
  if (!body.calibration?.stream) {
    return create;
  }
  return `job=$(${create} | jq -r .id)\ncurl -fsS${header} -H 'Content-Type: application/x-ndjson' -X POST -T ${quote(pathOf(records ?? "records.ndjson"))} \\\n  "${address("/v1/quantization/jobs")}/$job/calibration?complete=1"`;
}
