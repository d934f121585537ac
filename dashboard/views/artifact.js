/* One artifact: its files with digests, where it comes from, download, verification, deletion. */
import {address, get, key, post, remove, send} from "../lib/api.js";
import {lines, quote} from "../lib/clipboard.js";
import {el, empty, setText, skeleton} from "../lib/dom.js";
import {download, tooLarge} from "../lib/download.js";
import {NONE, bytes, count, date, fixed, percent} from "../lib/format.js";
import {confirm, failure, notice} from "../lib/notices.js";
import {folderOf} from "./job_run.js";

const MANIFEST = "quantd_manifest.json";
const MANIFEST_SHOWN = 1 << 20;

const STATES = {intact: ["good", "intact"], changed: ["bad", "changed"], missing: ["bad", "missing"]};
const SIGNATURES = {valid: "valid", invalid: "invalid", other_key: "of a key that the daemon does not have"};

const pathOf = (name) => name.split("/").map(encodeURIComponent).join("/");

export async function show(main, {args, signal, title}) {
  const path = `/v1/artifacts/${args[0]}`;
  title("Artifact");
  main.append(skeleton(8));
  let artifact, model = null, system;
  try {
    artifact = await get(path, {signal});
    [model, system] = await Promise.all([get(`/v1/models/${artifact.model_id}`, {signal}).catch(() => null), get("/v1/system", {signal})]);
  } catch (error) {
    if (!signal.aborted) {
      main.replaceChildren(empty(error.status === 404 ? "There is no such artifact" : "The artifact could not be read", error.status === 404 ? "It may have been deleted." : error.message, el("a", {class: "button", href: "#/artifacts"}, "Show the artifacts")));
    }
    return;
  }
  if (!signal.aborted) {
    build(main, {artifact, model, system, path, signal, title});
  }
}

function build(main, {artifact, model, system, path, signal, title}) {
  const name = artifact.name || artifact.id, folder = folderOf({name: artifact.name, id: artifact.id});
  const pull = `quantctl pull ${artifact.job_id} --output ${quote(folder)} --server ${location.origin}`;
  const advice = `Fetch it from a shell: ${pull}`;
  const position = el("p", {class: "muted", role: "status"});
  const states = new Map(artifact.files.map((file) => [file.path, el("td", {class: "c-state", data: {label: "Verified"}}, NONE)]));
  const busy = {download: false, verify: false};
  title(name);

  const verify = el("button", {class: "button", type: "button", on: {click: check}}, "Verify");
  const all = el("button", {class: "button primary", type: "button", on: {click: () => fetchOne(`${path}/archive`, `${folder}.tar`, artifact.bytes)}}, "Download all");
  const drop = el("button", {class: "button danger", type: "button", on: {click: dropIt}}, "Delete");

  async function fetchOne(from, as, size) {
    if (busy.download) {
      notice("Another download is in progress");
      return;
    }
    busy.download = true;
    await download(from, as, size, {signal, advice, onProgress: (received, of) => setText(position, `${as}: ${bytes(received)}${of ? `, ${percent(Math.min(1, received / of))}` : ""}`)});
    busy.download = false;
    setText(position, "");
  }

  async function check() {
    verify.disabled = true;
    setText(position, `Hashing ${bytes(artifact.bytes)} on the server…`);
    try {
      const found = await post(`${path}/verify`, undefined, {signal});
      for (const file of found.files) {
        const [kind, word] = STATES[file.state] ?? ["warn", file.state];
        states.get(file.path)?.replaceChildren(el("span", {class: `badge ${kind}`}, word));
      }
      const signature = found.signature ? `; its signature is ${SIGNATURES[found.signature.state] ?? found.signature.state}${found.signature.detail ? ` (${found.signature.detail})` : ""}` : "";
      setText(position, found.intact ? `All ${count(found.files.length)} files are intact${signature}.` : `Damaged: ${found.files.filter((file) => file.state !== "intact").map((file) => file.path).join(", ")}${signature}.`);
      const good = found.intact && found.signature?.state !== "invalid";
      notice(good ? "The artifact is intact" : found.intact ? "The signature is not valid" : "The artifact is damaged", good ? "good" : "error");
    } catch (error) {
      setText(position, "");
      failure("Verify", error);
    }
    verify.disabled = false;
  }

  async function dropIt() {
    if (!await confirm(`Delete “${name}”?`, `Its ${count(artifact.files.length)} files (${bytes(artifact.bytes)}) are deleted. The report of its job stays.`, "Delete the artifact")) {
      return;
    }
    try {
      await remove(path, {signal});
      notice("The artifact was deleted", "good");
      location.hash = "#/artifacts";
    } catch (error) {
      failure("Delete", error);
    }
  }

  const files = el("table", {class: "table listing", "aria-label": "Files"},
    el("thead", {}, el("tr", {}, ...[["Path", "c-wide"], ["Size", "number"], ["SHA-256", "c-digest"], ["Verified", "c-state"], ["", "c-act"]].map(([label, kind]) => el("th", {scope: "col", class: kind}, label)))),
    el("tbody", {}, ...artifact.files.map((file) => {
      const from = `${path}/files/${pathOf(file.path)}`, as = file.path.split("/").at(-1);
      const action = key() ? el("button", {class: "button", type: "button", "aria-label": `Download ${file.path}`, on: {click: () => fetchOne(from, as, file.bytes)}}, "Download")
        : el("a", {class: "button", href: address(from).href, download: as, "aria-label": `Download ${file.path}`}, "Download");
      return el("tr", {}, el("td", {class: "clip mono c-wide", title: file.path}, file.path), el("td", {class: "number", data: {label: "Size"}}, bytes(file.bytes)),
        el("td", {class: "clip mono c-digest", title: file.sha256, data: {label: "SHA-256"}}, file.sha256), states.get(file.path), el("td", {class: "c-act"}, action));
    })));

  const sealed = artifact.signature, signed = el("dd", {}, sealed ? [`OpenSSF Model Signing (${sealed.path}), ${sealed.algorithm}, ${date(sealed.signed_at)}, by the key `, el("code", {}, sealed.key_hint)] : "not signed");
  const sign = el("button", {class: "button", type: "button", on: {click: signIt}}, "Sign");
  sign.hidden = Boolean(sealed) || !system.signing_key;

  async function signIt() {
    sign.disabled = true;
    try {
      await post(`${path}/signature`, undefined, {signal});
      notice("The artifact was signed", "good");
      main.replaceChildren();
      show(main, {args: [artifact.id], signal, title});
    } catch (error) {
      sign.disabled = false;
      failure("Sign", error);
    }
  }

  const pairs = [
    ["Id", artifact.id], ["Job", el("a", {href: `#/jobs/${artifact.job_id}`, class: "mono"}, artifact.job_id)],
    ["Model", model ? `${model.name || model.uri}${artifact.architecture ? ` (${artifact.architecture}, ${count(artifact.parameters)} parameters, ${artifact.dtype})` : ""}` : artifact.model_id],
    ["Method", artifact.method], ["Format", artifact.format], ["Published", date(artifact.created_at)],
    ["Manifest", artifact.manifest_sha256 ? el("code", {}, `sha256:${artifact.manifest_sha256}`) : NONE],
  ];
  const recipes = [lines("quantctl", "Continues after a broken connection; every file is checked against its digest."),
    lines("curl", `All files as a tar archive.${key() ? " The key is expected in QUANTD_API_KEY." : ""}`), lines("Container registry", "As an OCI image (CNCF ModelPack); quantctl takes the registry's login from docker login or podman login.")];
  const header = key() ? ' -H "Authorization: Bearer $QUANTD_API_KEY"' : "";
  recipes[0].set(pull);
  recipes[1].set(`mkdir -p ${quote(folder)}\ncurl -fsS${header} ${address(`${path}/archive`)} | tar -x -C ${quote(folder)}`);
  recipes[2].set(`quantctl push ${artifact.id} REGISTRY/REPOSITORY:TAG --server ${location.origin}`);

  const fact = (label, value, more) => el("div", {class: "fact"}, el("dt", {}, label), el("dd", {}, value), more ? el("dd", {class: "more"}, more) : null);
  main.replaceChildren(
    el("div", {class: "head"}, el("div", {}, el("p", {class: "muted"}, el("a", {href: "#/artifacts"}, "Artifacts"), " / ", el("span", {class: "mono"}, artifact.id)), el("h1", {}, name), position),
      el("div", {class: "row"}, all, verify, sign, drop)),
    el("div", {class: "stack"},
      el("dl", {class: "facts"}, fact("Size", bytes(artifact.bytes), `${count(artifact.files.length)} files`), fact("Bits per weight", fixed(artifact.bits_per_weight, 2)),
        fact("Compression", `${fixed(artifact.compression_ratio, 2)} ×`, "smaller than the model"), fact("Format", artifact.format, artifact.method)),
      tooLarge(artifact.bytes) ? el("ul", {class: "messages"}, el("li", {}, "This browser cannot write large downloads to disk. ", advice)) : null,
      el("section", {class: "panel", "aria-label": "Files"}, el("header", {}, el("h2", {}, "Files")), el("div", {class: "body flush scroller", tabindex: "0", role: "region", "aria-label": "Files"}, files)),
      el("div", {class: "columns"},
        el("section", {class: "panel", "aria-label": "Origin"}, el("header", {}, el("h2", {}, "Origin")), el("div", {class: "body"}, el("dl", {class: "pairs"}, ...pairs.flatMap(([label, value]) => [el("dt", {}, label), el("dd", {}, value)]), el("dt", {}, "Signature"), signed), manifestOf(artifact, path, signal))),
        el("section", {class: "panel", "aria-label": "Fetch it from a shell"}, el("header", {}, el("h2", {}, "Fetch it from a shell")), el("div", {class: "body"}, ...recipes.map((one) => one.element))))));
}

/* quantd_manifest.json, read when it is opened. */
function manifestOf(artifact, path, signal) {
  const file = artifact.files.find((one) => one.path === MANIFEST);
  if (!file || file.bytes > MANIFEST_SHOWN) {
    return null;
  }
  const pre = el("pre", {class: "sunken", tabindex: "0", "aria-label": MANIFEST}, "Reading…");
  let read = false;
  return el("details", {on: {toggle: async () => {
    if (read) {
      return;
    }
    read = true;
    try {
      const text = await (await send("GET", `${path}/files/${MANIFEST}`, {signal})).text();
      setText(pre, JSON.stringify(JSON.parse(text), null, 2));
    } catch (error) {
      read = false;
      setText(pre, error.message);
    }
  }}}, el("summary", {}, MANIFEST), pre);
}
