/* Files of this computer: records into a job, batch by batch, and data sets into the store, piece by piece. */
import {Unreachable, get, send, sleep} from "./api.js";

const BATCH_BYTES = 256 << 10; /* of records: small enough that the count of tokens moves */
const PIECE_BYTES = 8 << 20;
const LINE_LENGTH = 64 << 20;
const ATTEMPTS = 8;

/* The lines of a file that are not blank, in batches: [{lines, read}], read: bytes of the file up to here. */
export async function* batchesOf(file) {
  const reader = file.stream().getReader(), decoder = new TextDecoder("utf-8", {fatal: true});
  let rest = "", lines = [], size = 0, read = 0;
  for (let piece = await reader.read(); ; piece = await reader.read()) {
    try {
      rest += decoder.decode(piece.value ?? new Uint8Array(), {stream: !piece.done});
    } catch {
      throw new Error(`${file.name} is not UTF-8; records are lines of JSON`);
    }
    read += piece.value?.length ?? 0;
    const found = rest.split("\n");
    rest = piece.done ? "" : found.pop();
    if (rest.length > LINE_LENGTH) {
      throw new Error(`${file.name} has a line of more than ${LINE_LENGTH >> 20} MiB; records are lines of JSON`);
    }
    for (const line of found) {
      if (line.trim() !== "") {
        lines.push(line);
        size += line.length;
      }
      if (size >= BATCH_BYTES) {
        yield {lines, read};
        lines = [];
        size = 0;
      }
    }
    if (piece.done) {
      yield {lines, read};
      return;
    }
  }
}

/* act(attempt), again where the answer was lost, the daemon is busy, or more has arrived than was known. */
async function persistent(act, signal) {
  for (let attempt = 1; ; attempt++) {
    try {
      return await act(attempt);
    } catch (error) {
      const passing = error instanceof Unreachable || error.status === 503 || error.status === 429 || error.code === "offset_mismatch";
      if (!passing || attempt >= ATTEMPTS || signal.aborted) {
        throw error;
      }
      await sleep(Math.min(10000, 500 * 2 ** attempt), signal);
    }
  }
}

/* Sends a file's records into a job that waits for them, after which it begins. resumed: the file begins with the records that the job has.
 * onProgress({answer, read}). Returns the last answer. */
export async function sendRecords(job, file, {signal, onProgress, resumed}) {
  const path = `/v1/quantization/jobs/${job}`;
  let offset = (await get(path, {signal})).calibration.records ?? 0, skip = resumed ? offset : 0, pending = null, answer = null;

  async function post(batch, last) {
    let lines = batch.lines;
    answer = await persistent(async (attempt) => {
      if (attempt > 1) { /* what arrived of a batch whose answer was lost counts */
        const state = await get(path, {signal});
        if (state.status !== "awaiting_calibration") {
          return {...answer, status: state.status, tokens: state.calibration.tokens, next_offset: state.calibration.records, errors: [], rejected: 0, needed: 0};
        }
        lines = lines.slice(state.calibration.records - offset);
        offset = state.calibration.records;
      }
      const response = await send("POST", `${path}/calibration?offset=${offset}${last ? "&complete=1" : ""}`, {
        signal, body: lines.length > 0 ? `${lines.join("\n")}\n` : "", headers: {"Content-Type": "application/x-ndjson"},
      });
      return response.json();
    }, signal);
    offset = answer.next_offset;
    onProgress({answer, read: batch.read});
  }

  for await (const batch of batchesOf(file)) {
    if (skip > 0) {
      const dropped = Math.min(skip, batch.lines.length);
      skip -= dropped;
      batch.lines.splice(0, dropped);
    }
    if (pending !== null) {
      await post(pending, false);
    }
    pending = batch.lines.length > 0 || pending === null ? batch : {lines: [], read: batch.read};
  }
  await post(pending, true);
  return answer;
}

/* Stores a file. onProgress(sent, size). Returns the stored file. */
export async function storeFile(file, purpose, {signal, onProgress}) {
  const name = file.name.replace(/[\x00-\x1f\x7f]/g, " ").slice(0, 255) || "records";
  const made = await send("POST", `/v1/uploads?${new URLSearchParams({purpose, name})}`, {signal, headers: {"Upload-Length": String(file.size), "Upload-Complete": "?0"}});
  const path = made.headers.get("Location");
  let offset = 0;
  for (;;) {
    const response = await persistent(async (attempt) => {
      if (attempt > 1) {
        const state = await send("HEAD", path, {signal});
        offset = Number(state.headers.get("Upload-Offset"));
      }
      const piece = file.slice(offset, offset + PIECE_BYTES), last = offset + piece.size >= file.size;
      return send("PATCH", path, {signal, body: piece, headers: {"Content-Type": "application/partial-upload", "Upload-Offset": String(offset), "Upload-Complete": last ? "?1" : "?0"}});
    }, signal);
    if (response.status === 201) {
      onProgress(file.size, file.size);
      return response.json();
    }
    offset = Number(response.headers.get("Upload-Offset"));
    onProgress(offset, file.size);
  }
}
