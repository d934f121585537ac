/* Downloads with the key. Without one a link is enough and the browser streams it to disk. With one the bytes come by fetch: into the file
 * that the browser lets people choose, and else through memory, up to a limit. */
import {address, key, send} from "./api.js";
import {bytes} from "./format.js";
import {failure, notice} from "./notices.js";

const IN_MEMORY = 1 << 30;

/* Whether the browser can write to a file while the bytes come: only Chromium's, and only where the page came by TLS or from this machine. */
function writesFiles() {
  return typeof globalThis.showSaveFilePicker === "function";
}

export function tooLarge(size) {
  return Boolean(key()) && !writesFiles() && size > IN_MEMORY;
}

/* Saves path as name. size: what is expected, for the progress; onProgress(received, size). Rejects with a Problem, or AbortError. */
async function fetched(path, name, size, {signal, onProgress}) {
  const handle = writesFiles() ? await globalThis.showSaveFilePicker({suggestedName: name}) : null;
  const response = await send("GET", path, {signal}), reader = response.body.getReader();
  const file = handle ? await handle.createWritable() : null, parts = [];
  let received = 0;
  try {
    for (let piece = await reader.read(); !piece.done; piece = await reader.read()) {
      received += piece.value.length;
      if (file) {
        await file.write(piece.value);
      } else {
        parts.push(piece.value);
      }
      onProgress(received, size);
    }
  } catch (error) {
    await file?.abort().catch(() => {});
    throw error.name === "TypeError" ? new Error(`the connection broke after ${bytes(received)}`) : error;
  }
  if (file) {
    await file.close();
    return;
  }
  const place = URL.createObjectURL(new Blob(parts));
  save(place, name);
  setTimeout(() => URL.revokeObjectURL(place), 60000);
}

function save(place, name) {
  const link = document.createElement("a");
  link.href = place;
  link.download = name;
  document.body.append(link);
  link.click();
  link.remove();
}

/* advice: what to do where the file is too large for memory. */
export async function download(path, name, size, {signal, advice, onProgress = () => {}}) {
  if (!key()) {
    save(address(path), name);
    return;
  }
  if (tooLarge(size)) {
    notice(`${name} has ${bytes(size)}, which this browser can only keep in memory. ${advice}`, "error");
    return;
  }
  try {
    await fetched(path, name, size, {signal, onProgress});
    notice(`${name} was saved`, "good");
  } catch (error) {
    failure(name, error);
  }
}
