/* Lines to paste: how the artifact of a job is fetched and loaded, by its format (docs/formats.md). */
import {lines} from "../lib/clipboard.js";
import {el} from "../lib/dom.js";

/* A name for a folder that no shell reads as something else. */
export function folderOf(job) {
  const name = (job.name || "").replace(/[^A-Za-z0-9._-]+/g, "-").replace(/^[-.]+|[-.]+$/g, "");
  return name || job.id;
}

/* more: arguments of both calls; config: of the model's alone, with what is imported for it. */
function transformersLines(folder, {more = "", config = ""} = {}) {
  return `from transformers import AutoModelForCausalLM, AutoTokenizer${config ? ", CompressedTensorsConfig" : ""}

model = AutoModelForCausalLM.from_pretrained("./${folder}"${more}${config}, device_map="auto")
tokenizer = AutoTokenizer.from_pretrained("./${folder}"${more})`;
}

/* Recipes {title, note, text} for what the job made. */
export function recipes(job) {
  const folder = folderOf(job), format = job.output.format, quantization = job.quantization ?? {}, codes = new Set(job.warnings.map((warning) => warning.code));
  const list = [{title: "Download", note: "Every file is checked against its digest.", text: `quantctl pull ${job.id} --output ${folder} --server ${location.origin}`}];
  const cache = quantization.kv_cache?.dtype ?? (/kv_cache/.test(job.method) ? quantization.dtype : null);
  const vllm = (note) => list.push({title: "vLLM", note, text: `vllm serve ./${folder}${cache === "fp8_e4m3" ? " --kv-cache-dtype fp8" : ""}`});
  const asymmetric = quantization.sym === false, bits = quantization.bits;

  switch (format) {
  case "compressed-tensors":
    if (!codes.has("not_in_vllm")) {
      vllm(bits && bits !== 4 && !/fp8|smoothquant|llm_int8/.test(job.method) ? "Widths other than 4 bits need a GPU there." : null);
    }
    if (!codes.has("not_in_transformers")) {
      list.push({title: "transformers", note: "Needs the package compressed-tensors.",
        text: transformersLines(folder, asymmetric ? {config: ", quantization_config=CompressedTensorsConfig(dequantize=True)"} : {})});
    }
    break;
  case "gptq":
  case "gptq_v2":
    if (!asymmetric && (bits === 4 || bits === 8)) {
      vllm(bits === 8 ? "8 bits need a GPU there." : null);
    }
    list.push({title: "transformers", note: "Needs the package gptqmodel.", text: transformersLines(folder)});
    break;
  case "awq":
    vllm(null);
    list.push({title: "transformers", note: "Needs the package gptqmodel.", text: transformersLines(folder)});
    break;
  case "bitsandbytes":
    vllm("Needs the package vllm-bnb-plugin.");
    list.push({title: "transformers", note: "Needs the package bitsandbytes.", text: transformersLines(folder)});
    break;
  case "aqlm":
    list.push({title: "transformers", note: "Needs the package aqlm; on a CPU it must run on one thread.", text: `# on a CPU: export NUMBA_NUM_THREADS=1\n${transformersLines(folder)}`});
    break;
  case "gguf":
    list.push({title: "llama.cpp", note: null, text: `llama-server -m ./${folder}/model.gguf`});
    list.push({title: "transformers", note: "Needs the package gguf; weights are dequantized.", text: transformersLines(folder, {more: ', gguf_file="model.gguf"'})});
    break;
  default:
    vllm(null);
    list.push({title: "transformers", note: null, text: transformersLines(folder)});
  }
  return list;
}

export function runPanel(job) {
  const list = recipes(job).map(({title, note, text}) => {
    const box = lines(title, note);
    box.set(text);
    return box.element;
  });
  return el("section", {class: "panel", "aria-label": "Use the artifact"}, el("header", {}, el("h2", {}, "Use the artifact"), el("span", {class: "muted"}, job.output.format)), el("div", {class: "body"}, ...list));
}
